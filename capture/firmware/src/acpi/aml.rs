//! Constants out of AML, without an interpreter.
//!
//! Firmware declares the sleep types, the number of a host bridge's root bus, and the addresses
//! that the bridge passes on, as constants. The first bytes that read like such a declaration
//! are taken. A value that a method computes is not found.

use handoff::Range;
use heapless::Vec;

use super::root::Table;
use super::{Acpi, Fadt, HEADER};
use crate::memory::Reader;

/// NameOp, MethodOp, ReturnOp and PackageOp (§20.2.5).
const NAME: u8 = 0x08;
const METHOD: u8 = 0x14;
const RETURN: u8 = 0xa4;
const PACKAGE: u8 = 0x12;
/// BytePrefix, WordPrefix, DWordPrefix and QWordPrefix (§20.2.3). ZeroOp and OneOp are their
/// own values.
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;
const QWORD: u8 = 0x0e;

/// Tag and length of address space descriptors (§6.4.3.5): 16 bits wide, of bus numbers, and
/// 32 bits wide, of memory.
const BUSES: [u8; 4] = [0x88, 13, 0, 2];
const MEMORY: [u8; 4] = [0x87, 23, 0, 0];
/// General flags of a descriptor: not for the device's own use, both bounds fixed.
const CONSUMER: u8 = 1;
const FIXED: u8 = 0b1100;

/// Secondary tables that are looked through.
const MAX_SECONDARY: usize = 128;
/// Memory windows that are kept.
const MAX_WINDOWS: usize = 16;
/// Bytes of AML looked at in one piece, and those behind it that a declaration may reach into:
/// a descriptor of memory, the longest, has 26.
const PIECE: usize = 512;
const AHEAD: usize = 32;

/// What AML says by constants.
#[derive(Clone, Debug, Default)]
pub struct Aml {
    /// SLP_TYPa and SLP_TYPb of the `_S5_` package (§7.4.2): the values that switch the machine
    /// off, 0 to 7.
    pub sleep_types: Option<(u8, u8)>,
    /// Root buses by `_BBN` (§6.5.5): bit n of word n / 64 for bus n; bus 0 is left out. A
    /// machine with several sockets has a host bridge for each.
    pub root_buses: [u64; 4],
    /// What `Method (_CBA) { Return (constant) }` says (PCI Firmware Specification 3.3, §4.1.3):
    /// the address of bus 0 in the configuration space of segment 0.
    pub config_space: Option<u64>,
    /// First and last bus below the first host bridge.
    pub buses: Option<(u8, u8)>,
    /// Memory below 4 GiB that host bridges pass on, untranslated.
    pub memory_windows: Vec<Range, MAX_WINDOWS>,
}

impl Acpi<'_> {
    /// Looks through the DSDT, and the SSDTs for sleep types and root buses.
    #[must_use]
    pub fn aml(&self, fadt: Option<&Fadt>) -> Aml {
        let mut aml = Aml::default();
        if let Some(dsdt) = fadt.and_then(|fadt| self.dsdt(fadt)) {
            aml.look_through(&self.reader, &dsdt, true);
        }
        for table in self.tables(*b"SSDT").take(MAX_SECONDARY) {
            aml.look_through(&self.reader, &table, false);
        }
        aml
    }
}

impl Aml {
    fn look_through(&mut self, reader: &Reader<'_>, table: &Table, first: bool) {
        let mut buffer = [0; PIECE + AHEAD];
        let mut at = HEADER;
        while let Some(left) = table.bytes.checked_sub(at).filter(|&left| left > 0) {
            let wanted = (left as usize).min(PIECE + AHEAD);
            let Some(piece) = buffer.get_mut(..wanted) else { return };
            let Some(address) = table.address.checked_add(at.into()) else { return };
            if reader.read(address, piece).is_none() {
                return;
            }
            self.look(piece, PIECE, first);
            at = at.saturating_add(PIECE as u32);
        }
    }

    /// Looks for a declaration at each of the first `places` bytes of `aml`; for those that
    /// count in every table only, unless it is the `first` table.
    fn look(&mut self, aml: &[u8], places: usize, first: bool) {
        for place in 0..aml.len().min(places) {
            let rest = aml.get(place..).unwrap_or_default();
            match *rest {
                [b'_', b'S', b'5', b'_', PACKAGE, ..] if self.sleep_types.is_none() => {
                    self.sleep_types = rest.get(5..).and_then(sleep_package);
                }
                [NAME, b'_', b'B', b'B', b'N', ..] => self.add_root(rest.get(5..)),
                // The length of a method that only returns a constant fits one byte.
                [METHOD, 0..=0x3f, b'_', b'B', b'B', b'N', _, RETURN, ..] => {
                    self.add_root(rest.get(8..));
                }
                [b'_', b'C', b'B', b'A', ..] if first && self.config_space.is_none() => {
                    self.config_space = config_space(rest);
                }
                [a, b, c, d, ..] if first => self.add_descriptor([a, b, c, d], rest),
                _ => {}
            }
        }
    }

    fn add_root(&mut self, constant: Option<&[u8]>) {
        let bus = match constant {
            Some(&([BYTE, bus, ..] | [WORD, bus, 0, ..] | [DWORD, bus, 0, 0, 0, ..])) => bus,
            Some(&[1, ..]) => 1,
            // ZeroOp: every walk begins with bus 0.
            _ => return,
        };
        if bus != 0
            && let Some(word) = self.root_buses.get_mut(usize::from(bus / 64))
        {
            *word |= 1 << (bus % 64);
        }
    }

    fn add_descriptor(&mut self, tag: [u8; 4], bytes: &[u8]) {
        match tag {
            BUSES if self.buses.is_none() => self.buses = bus_numbers(bytes),
            MEMORY => {
                if let Some(window) = memory_window(bytes) {
                    // Later ones are those of further bridges; without room the first count.
                    let _ = self.memory_windows.push(window);
                }
            }
            _ => {}
        }
    }
}

fn u16_in(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_in(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_in(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// Returns the first two constants of a package, given what follows its opcode (§20.2.5.4).
fn sleep_package(package: &[u8]) -> Option<(u8, u8)> {
    // PkgLength: its top two bits say how many more bytes it has; then the element count.
    let skip = 1 + usize::from(package.first()? >> 6) + 1;
    let mut rest = package.get(skip..)?;
    let mut constant = || {
        let (value, bytes) = match *rest {
            // The low byte is what counts.
            [BYTE, value, ..] => (value, 2),
            [WORD, value, _, ..] => (value, 3),
            [DWORD, value, _, _, _, ..] => (value, 5),
            [value @ 0..=1, ..] => (value, 1),
            _ => return None,
        };
        rest = rest.get(bytes..)?;
        Some(value & 7)
    };
    let a = constant()?;
    Some((a, constant().unwrap_or(a)))
}

/// Returns the constant of a `_CBA` method, given what begins with its name.
fn config_space(rest: &[u8]) -> Option<u64> {
    let address = match *rest {
        [_, _, _, _, _, RETURN, DWORD, ..] => u32_in(rest, 7).map(u64::from),
        [_, _, _, _, _, RETURN, QWORD, ..] => u64_in(rest, 7),
        _ => None,
    };
    address.filter(|&address| address != 0)
}

/// Returns first and last bus of a descriptor.
fn bus_numbers(bytes: &[u8]) -> Option<(u8, u8)> {
    let (first, last) = (u16_in(bytes, 8)?, u16_in(bytes, 10)?);
    let count = last.checked_sub(first)?.checked_add(1)?;
    (u16_in(bytes, 14)? == count).then_some((first.try_into().ok()?, last.try_into().ok()?))
}

/// Returns the memory of a descriptor that a bridge passes on: bounds fixed, nothing translated,
/// and the length as the bounds have it, which bytes that only look like a descriptor do not.
fn memory_window(bytes: &[u8]) -> Option<Range> {
    let flags = *bytes.get(4)?;
    let (first, last) = (u32_in(bytes, 10)?, u32_in(bytes, 14)?);
    let (translation, length) = (u32_in(bytes, 18)?, u32_in(bytes, 22)?);
    let fits = last.checked_sub(first)?.checked_add(1)? == length;
    // The memory of a graphics card below 1 MiB is passed on as well, and is no place for
    // another device.
    (flags & (CONSUMER | FIXED) == FIXED && fits && translation == 0 && first >= 1 << 20)
        .then_some(Range { start: first.into(), bytes: length.into() })
}

#[cfg(test)]
mod tests;
