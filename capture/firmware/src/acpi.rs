//! ACPI tables: from the RSDP to what each table says.
//!
//! A table counts only whole and with the right checksum; any other is treated as absent. The
//! memory may change after the checksum was taken, so every field is checked again where it is
//! used. Section numbers are those of the ACPI specification, 6.5.

mod amd_vi;
mod aml;
mod console;
mod fadt;
mod madt;
mod pci;
mod root;
mod vtd;
mod watchdog;

use core::fmt;

pub use amd_vi::{AmdViUnit, MAX_AMD_VI_UNITS};
pub use console::{Console, ConsoleKind};
pub use fadt::{Fadt, PmTimer};
pub use madt::{CpuEntry, NmiPin};
pub use pci::{ConfigSpaces, Pci};
pub use root::Table;
pub use vtd::{DmarFlags, MAX_SCOPE_PATH, ScopeKind, VtdScope, VtdUnit};
pub use watchdog::{WatchdogAction, WatchdogTable};

use crate::memory::{PhysicalMemory, Reader};
use root::Root;

/// Bytes of a table's header (§5.2.6).
pub(crate) const HEADER: u32 = 36;
/// Bytes read through one [`Acpi`], at most: a choice, eight times what the largest servers
/// have in tables. Damaged entries of a root table can name the same large table often.
pub const MAX_BYTES_READ: u64 = 64 << 20;

/// Reason why no table can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// The caller named no RSDP and none was found in the BIOS areas.
    NoRsdp,
    /// The signature or the checksum of the RSDP or of both root tables is wrong.
    Damaged,
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRsdp => "no ACPI tables found",
            Self::Damaged => "the ACPI root table is damaged",
        })
    }
}

impl core::error::Error for AcpiError {}

/// Where a register is (generic address structure, §5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Physical memory, by address.
    Memory(u64),
    /// An I/O port.
    Port(u16),
}

/// A generic address structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GenericAddress {
    /// 0 memory, 1 I/O ports; others are legal.
    pub(crate) space: u8,
    /// Width of the register in bits.
    pub(crate) bits: u8,
    /// Lowest bit of the field in the register.
    pub(crate) shift: u8,
    /// 1 byte, 2 word, 3 double word, 4 quad word; 0 undefined.
    pub(crate) access: u8,
    /// 0 where there is no such register.
    pub(crate) address: u64,
}

impl GenericAddress {
    pub(crate) const fn new(bytes: [u8; 12]) -> Self {
        let [space, bits, shift, access, a, b, c, d, e, f, g, h] = bytes;
        Self { space, bits, shift, access, address: u64::from_le_bytes([a, b, c, d, e, f, g, h]) }
    }

    /// Returns the place in memory or among the ports; `None` for no register, for another
    /// space, and for a port that no processor has.
    pub(crate) fn location(self) -> Option<Location> {
        match (self.space, self.address) {
            (_, 0) => None,
            (0, address) => Some(Location::Memory(address)),
            (1, address) => u16::try_from(address).ok().map(Location::Port),
            _ => None,
        }
    }
}

/// The tables of a machine. All together, at most [`MAX_BYTES_READ`] are read through one
/// value; beyond that every table is absent.
#[derive(Debug)]
pub struct Acpi<'m> {
    reader: Reader<'m>,
    root: Root,
}

impl<'m> Acpi<'m> {
    /// Finds the root table: by the RSDP at `rsdp`, an address that UEFI, a boot loader or
    /// `acpi_rsdp=` on a command line gave, or by searching for it where a BIOS keeps it.
    ///
    /// # Errors
    /// When there is no RSDP, or it leads to no root table that is whole.
    pub fn open(memory: &'m dyn PhysicalMemory, rsdp: Option<u64>) -> Result<Self, AcpiError> {
        let reader = Reader::new(memory, MAX_BYTES_READ);
        let rsdp = rsdp.or_else(|| root::search(&reader)).ok_or(AcpiError::NoRsdp)?;
        let root = Root::read(&reader, rsdp).ok_or(AcpiError::Damaged)?;
        Ok(Self { reader, root })
    }

    /// Returns the first table with this signature that is whole, for example `b"HPET"`.
    #[must_use]
    pub fn table(&self, signature: &[u8; 4]) -> Option<Table> {
        self.tables(*signature).next()
    }

    /// Returns all tables with this signature that are whole, in the order of the root table.
    pub fn tables(&self, signature: [u8; 4]) -> impl Iterator<Item = Table> + '_ {
        self.root.tables(&self.reader, signature)
    }

    /// Fills `buffer` with a table's bytes from `offset` on; false when they are not all there.
    pub fn read(&self, table: &Table, offset: u32, buffer: &mut [u8]) -> bool {
        let end = u32::try_from(buffer.len()).ok().and_then(|bytes| offset.checked_add(bytes));
        let inside = end.is_some_and(|end| end <= table.bytes);
        inside && self.reader.read(table.address.wrapping_add(offset.into()), buffer).is_some()
    }

    fn array<const N: usize>(&self, table: &Table, offset: u32) -> Option<[u8; N]> {
        table.array(&self.reader, offset)
    }

    fn u8(&self, table: &Table, offset: u32) -> Option<u8> {
        self.array(table, offset).map(|[byte]| byte)
    }

    fn u16(&self, table: &Table, offset: u32) -> Option<u16> {
        self.array(table, offset).map(u16::from_le_bytes)
    }

    fn u32(&self, table: &Table, offset: u32) -> Option<u32> {
        self.array(table, offset).map(u32::from_le_bytes)
    }

    fn u64(&self, table: &Table, offset: u32) -> Option<u64> {
        self.array(table, offset).map(u64::from_le_bytes)
    }

    fn generic_address(&self, table: &Table, offset: u32) -> Option<GenericAddress> {
        self.array(table, offset).map(GenericAddress::new)
    }

    /// Returns offset and length of the entries from `first` to the end of a table, each as
    /// long as `length` says from its first bytes. Ends at an entry that is shorter than these
    /// or reaches over the table's end.
    fn entries<'a, const N: usize>(
        &'a self,
        table: Option<Table>,
        first: u32,
        length: impl Fn([u8; N]) -> u32 + 'a,
    ) -> impl Iterator<Item = (Table, u32, [u8; N])> + 'a {
        let mut at = first;
        core::iter::from_fn(move || {
            let table = table?;
            let head: [u8; N] = self.array(&table, at)?;
            let bytes = length(head);
            let end = at.checked_add(bytes)?;
            // An entry of no length would be read for ever.
            if u64::from(bytes) < N as u64 || end > table.bytes {
                return None;
            }
            let entry = table.part(at, bytes)?;
            at = end;
            Some((entry, bytes, head))
        })
    }
}
