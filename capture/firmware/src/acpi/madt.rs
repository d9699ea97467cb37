//! The MADT: processors, and where NMIs arrive (§5.2.12).

use super::{Acpi, HEADER, Table};

/// Entry types (§5.2.12, table 5.21).
const LOCAL_APIC: u8 = 0;
const LOCAL_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
/// The ACPI IDs that mean "every CPU" in entries about NMI pins (§5.2.12.7, §5.2.12.13).
const EVERYONE: u8 = 0xff;
const EVERYONE_X2APIC: u32 = u32::MAX;
/// Bits 0 and 1 of the flags of an interrupt input, and their value for "active low"
/// (§5.2.12.5, table 5.26).
const POLARITY: u8 = 3;
const ACTIVE_LOW: u8 = 3;
/// Local APIC flag: enabled (§5.2.12.2, table 5.23).
const CPU_ENABLED: u32 = 1;

/// A CPU that the firmware lists as usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuEntry {
    /// Its APIC ID.
    pub apic_id: u32,
    /// The ID by which other tables name it; none for a CPU the MADT does not list.
    pub acpi_id: Option<u32>,
}

/// An input of local APICs that NMIs from outside arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmiPin {
    /// ACPI ID of the CPU; `None` for every CPU.
    pub acpi_id: Option<u32>,
    /// 0 for LINT0, 1 for LINT1.
    pub pin: u8,
    /// True if the input is active low.
    pub active_low: bool,
}

impl Acpi<'_> {
    /// Returns the entries of the MADT with their kinds.
    fn madt(&self) -> impl Iterator<Item = (u8, Table)> + '_ {
        // Behind the header: local APIC address and flags.
        let entries =
            self.entries(self.table(b"APIC"), HEADER + 8, |[_, bytes]: [u8; 2]| bytes.into());
        entries.map(|(entry, _, [kind, _])| (kind, entry))
    }

    /// Returns the CPUs that the MADT lists as enabled, in its order; none without a MADT, as
    /// on a machine with one CPU. A damaged table may list a CPU twice.
    ///
    /// A CPU that is only "online capable" is left out: it is a socket that may be filled
    /// later.
    pub fn cpus(&self) -> impl Iterator<Item = CpuEntry> + '_ {
        self.madt().filter_map(|(kind, entry)| {
            let (apic_id, acpi_id, flags) = match kind {
                LOCAL_APIC => {
                    let [_, _, acpi, apic, flags @ ..] = self.array::<8>(&entry, 0)?;
                    (apic.into(), acpi.into(), u32::from_le_bytes(flags))
                }
                LOCAL_X2APIC => {
                    let [apic, flags, acpi] = [4, 8, 12].map(|at| self.u32(&entry, at));
                    (apic?, acpi?, flags?)
                }
                _ => return None,
            };
            (flags & CPU_ENABLED != 0).then_some(CpuEntry { apic_id, acpi_id: Some(acpi_id) })
        })
    }

    /// Returns the inputs of local APICs that NMIs from outside arrive at.
    pub fn nmi_pins(&self) -> impl Iterator<Item = NmiPin> + '_ {
        self.madt().filter_map(|(kind, entry)| {
            let (acpi_id, flags, pin) = match kind {
                LOCAL_NMI => {
                    let [_, _, id, flags, _, pin] = self.array(&entry, 0)?;
                    ((id != EVERYONE).then_some(id.into()), flags, pin)
                }
                LOCAL_X2APIC_NMI => {
                    let id = self.u32(&entry, 4)?;
                    let (flags, pin) = (self.u8(&entry, 2)?, self.u8(&entry, 8)?);
                    ((id != EVERYONE_X2APIC).then_some(id), flags, pin)
                }
                _ => return None,
            };
            Some(NmiPin { acpi_id, pin, active_low: flags & POLARITY == ACTIVE_LOW })
        })
    }
}
