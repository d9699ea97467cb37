//! The ways into the appliance.

use super::Refusal;

/// How the appliance is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// QEMU's `-kernel` through the ELF's PVH note: no firmware menu, the fast lane.
    Pvh,
    /// The same on QEMU's smallest machine: PCI by memory only, and left unassigned by the
    /// firmware, no PIT gate, no power-management timer, hardware-reduced ACPI.
    Microvm,
    /// GRUB from a CD image, by SeaBIOS.
    Bios,
    /// GRUB from the same CD image, by OVMF.
    Uefi,
    /// The same image as a SATA disk, by SeaBIOS.
    DiskBios,
    /// The same, by OVMF.
    DiskUefi,
    /// The same image as a USB stick, by SeaBIOS.
    Usb,
    /// The same, by OVMF.
    UsbUefi,
}

impl Boot {
    /// The contract's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pvh => "pvh",
            Self::Microvm => "microvm",
            Self::Bios => "bios",
            Self::Uefi => "uefi",
            Self::DiskBios => "disk-bios",
            Self::DiskUefi => "disk-uefi",
            Self::Usb => "usb",
            Self::UsbUefi => "usb-uefi",
        }
    }

    /// Every way there is.
    pub const ALL: [Self; 8] = [
        Self::Pvh,
        Self::Microvm,
        Self::Bios,
        Self::Uefi,
        Self::DiskBios,
        Self::DiskUefi,
        Self::Usb,
        Self::UsbUefi,
    ];

    /// Whether GRUB is the loader, which can pass a screen on.
    #[must_use]
    pub const fn by_grub(self) -> bool {
        !matches!(self, Self::Pvh | Self::Microvm)
    }

    /// Whether OVMF is the firmware.
    #[must_use]
    pub const fn by_uefi(self) -> bool {
        matches!(self, Self::Uefi | Self::DiskUefi | Self::UsbUefi)
    }
}

impl std::str::FromStr for Boot {
    type Err = Refusal;

    fn from_str(word: &str) -> Result<Self, Refusal> {
        let words = || Self::ALL.map(Self::name).join(", ");
        match Self::ALL.into_iter().find(|boot| boot.name() == word) {
            Some(boot) => Ok(boot),
            None => Err(Refusal::Wrong(format!("unknown boot '{word}': {}", words()))),
        }
    }
}
