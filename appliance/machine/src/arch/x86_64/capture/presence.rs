//! Is an address mapped? Asked before the image believes a pointer it was given.

use handoff::Range;

use crate::cpu;

/// Bits of an entry that hold the address of a table.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

/// Whether the page tables in use map every page of `range` to itself.
///
/// The tables' own addresses are followed without further checks: they are what the
/// processor is translating with at this moment, and they are mapped one to one (entry
/// contract).
#[must_use]
#[inline(never)] // Called from everywhere, and translated once where code is emulated.
pub fn mapped(range: Range) -> bool {
    if range.bytes == 0 || range.start.checked_add(range.bytes).is_none() {
        return false;
    }
    let mut address = range.start;
    while address < range.end() {
        match leaf(address) {
            Some((physical, bytes)) if physical == address & !(bytes - 1) => {
                address = (address & !(bytes - 1)).saturating_add(bytes);
            }
            _ => return false,
        }
    }
    true
}

/// Returns how many bytes from `address` on one entry of the page tables leaves unmapped; a page
/// where `address` is mapped.
#[must_use]
pub fn absent(address: u64) -> u64 {
    const PAGE: u64 = 4096;
    let levels = if cpu::la57() { 5 } else { 4 };
    if address >> (9 * levels + 11) != 0 {
        return PAGE;
    }
    let mut table = cpu::cr3();
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = address >> shift & 511;
        // SAFETY: a table of the translation in use, mapped one to one.
        let entry = unsafe { (table as *const u64).add(index as usize).read_volatile() };
        if entry & PRESENT == 0 {
            let bytes = 1u64 << shift;
            return bytes - (address & (bytes - 1));
        }
        if level == 1 || (level <= 3 && entry & LARGE != 0) {
            break;
        }
        table = entry & ADDRESS;
    }
    PAGE
}

/// The physical address and size of the page that `address` lies in.
fn leaf(address: u64) -> Option<(u64, u64)> {
    let levels = if cpu::la57() { 5 } else { 4 };
    // Addresses of the upper half are none of physical memory's.
    if address >> (9 * levels + 11) != 0 {
        return None;
    }
    let mut table = cpu::cr3();
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let bytes = 1u64 << shift;
        let index = address >> shift & 511;
        // SAFETY: a table of the translation in use, mapped one to one.
        let entry = unsafe { (table as *const u64).add(index as usize).read_volatile() };
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 1 || (level <= 3 && entry & LARGE != 0) {
            return Some((entry & ADDRESS & !(bytes - 1), bytes));
        }
        table = entry & ADDRESS;
    }
    None
}
