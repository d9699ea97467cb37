//! The IVRS table: units of AMD-Vi (AMD I/O Virtualization Technology specification 3.09,
//! chapter 5).

use heapless::Vec;

use super::{Acpi, HEADER};

/// Offset of the first block.
const FIRST: u32 = HEADER + 12;
/// Types of a block that describes a unit (§5.2.2): each later one says more about the same
/// unit.
const UNITS: [u8; 3] = [0x10, 0x11, 0x40];
/// Units that are kept.
pub const MAX_AMD_VI_UNITS: usize = 64;

/// A unit that translates addresses of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmdViUnit {
    /// Physical address of its registers.
    pub registers: u64,
    /// PCI segment.
    pub segment: u16,
    /// Bus in bits 15:8, device in 7:3, function in 2:0 of the unit itself.
    pub device_id: u16,
    /// Offset of its capability in that function's configuration space.
    pub capability: u16,
}

impl Acpi<'_> {
    /// Returns the units of AMD-Vi, each once, by the first block that names it: up to
    /// [`MAX_AMD_VI_UNITS`].
    #[must_use]
    pub fn amd_vi_units(&self) -> Vec<AmdViUnit, MAX_AMD_VI_UNITS> {
        let length = |[_, _, a, b]: [u8; 4]| u16::from_le_bytes([a, b]).into();
        let mut units: Vec<AmdViUnit, MAX_AMD_VI_UNITS> = Vec::new();
        for (block, _, [kind, ..]) in self.entries(self.table(b"IVRS"), FIRST, length) {
            if !UNITS.contains(&kind) {
                continue;
            }
            let fields = [4, 6, 16].map(|at| self.u16(&block, at));
            let registers = self.u64(&block, 8).filter(|&address| address != 0);
            let ([Some(device_id), Some(capability), Some(segment)], Some(registers)) =
                (fields, registers)
            else {
                continue;
            };
            let known =
                units.iter().any(|unit| (unit.segment, unit.device_id) == (segment, device_id));
            let unit = AmdViUnit { registers, segment, device_id, capability };
            if !known && units.push(unit).is_err() {
                break;
            }
        }
        units
    }
}
