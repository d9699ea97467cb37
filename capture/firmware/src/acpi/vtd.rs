//! The DMAR table: units of Intel VT-d (VT-d specification 4.1, chapter 8).

use heapless::Vec;

use super::{Acpi, HEADER, Table};

/// Offset of the flags, and of the first structure.
const FLAGS: u32 = HEADER + 1;
const FIRST: u32 = HEADER + 12;
/// Type of a structure that describes a unit (§8.3).
const HARDWARE_UNIT: u16 = 0;
/// Bytes of such a structure before the device scopes.
const UNIT_BYTES: u32 = 16;
/// Flag of a unit: every function of its segment that no other unit names.
const INCLUDE_PCI_ALL: u8 = 1;
/// Bytes of a device scope before the path.
const SCOPE_BYTES: u32 = 6;
/// Hops of a path that are kept: a path leads through one bridge a hop.
pub const MAX_SCOPE_PATH: usize = 16;

/// Flags of the DMAR table (§8.1), as they stand there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmarFlags(pub u8);

impl DmarFlags {
    /// Returns true if the units can remap interrupts.
    #[must_use]
    pub const fn remaps_interrupts(self) -> bool {
        self.0 & 1 != 0
    }

    /// Returns true if the firmware asks for xAPIC mode.
    #[must_use]
    pub const fn opts_out_of_x2apic(self) -> bool {
        self.0 & 2 != 0
    }

    /// Returns true if the firmware left translation on, so that no device reaches memory
    /// that it was not given.
    #[must_use]
    pub const fn firmware_protects_dma(self) -> bool {
        self.0 & 4 != 0
    }
}

/// A unit that translates addresses of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtdUnit {
    /// Physical address of its registers.
    pub registers: u64,
    /// Bytes of its registers: 4 KiB times a power of two, up to 128 MiB.
    pub register_bytes: u32,
    /// PCI segment of its devices.
    pub segment: u16,
    /// True if it translates every function of the segment that no other unit names.
    pub include_all: bool,
    structure: Table,
}

/// What a device scope names (§8.3.1, table 40).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeKind {
    /// A PCI function.
    Endpoint,
    /// A bridge with all functions behind it.
    Bridge,
    /// An I/O APIC.
    IoApic,
    /// A HPET that can send messages.
    Hpet,
    /// A device that AML names.
    Namespace,
    /// Another one, by its number.
    Other(u8),
}

/// A device, or devices, that a unit translates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtdScope {
    /// What it is.
    pub kind: ScopeKind,
    /// Number of an I/O APIC, a HPET or a device that AML names.
    pub id: u8,
    /// Bus that the path begins at.
    pub start_bus: u8,
    /// Device and function of every bridge on the way, and at last of the device itself.
    pub path: Vec<(u8, u8), MAX_SCOPE_PATH>,
}

impl Acpi<'_> {
    /// Returns the flags of the DMAR table; `None` on a machine without VT-d.
    #[must_use]
    pub fn dmar_flags(&self) -> Option<DmarFlags> {
        self.u8(&self.table(b"DMAR")?, FLAGS).map(DmarFlags)
    }

    /// Returns the units of Intel VT-d.
    pub fn vtd_units(&self) -> impl Iterator<Item = VtdUnit> + '_ {
        let length = |[_, _, a, b]: [u8; 4]| u16::from_le_bytes([a, b]).into();
        let structures = self.entries(self.table(b"DMAR"), FIRST, length);
        structures.filter_map(|(structure, _, [a, b, ..])| {
            if u16::from_le_bytes([a, b]) != HARDWARE_UNIT {
                return None;
            }
            let flags = self.u8(&structure, 4)?;
            // Before version 4 of the specification the size was reserved, and is 0.
            let register_bytes = 4096 << (self.u8(&structure, 5)? & 15);
            let segment = self.u16(&structure, 6)?;
            let registers = self.u64(&structure, 8).filter(|&address| address != 0)?;
            let include_all = flags & INCLUDE_PCI_ALL != 0;
            Some(VtdUnit { registers, register_bytes, segment, include_all, structure })
        })
    }

    /// Returns the devices that a unit names; those with longer paths than
    /// [`MAX_SCOPE_PATH`] are left out.
    pub fn vtd_scopes<'a>(&'a self, unit: &VtdUnit) -> impl Iterator<Item = VtdScope> + 'a {
        let length = |[_, bytes]: [u8; 2]| bytes.into();
        let scopes = self.entries(Some(unit.structure), UNIT_BYTES, length);
        scopes.filter_map(|(scope, bytes, [kind, _])| {
            let kind = match kind {
                1 => ScopeKind::Endpoint,
                2 => ScopeKind::Bridge,
                3 => ScopeKind::IoApic,
                4 => ScopeKind::Hpet,
                5 => ScopeKind::Namespace,
                other => ScopeKind::Other(other),
            };
            let (id, start_bus) = (self.u8(&scope, 4)?, self.u8(&scope, 5)?);
            let mut path = Vec::new();
            for at in (SCOPE_BYTES..bytes.saturating_sub(1)).step_by(2) {
                let [device, function] = self.array(&scope, at)?;
                path.push((device, function)).ok()?;
            }
            Some(VtdScope { kind, id, start_bus, path })
        })
    }
}
