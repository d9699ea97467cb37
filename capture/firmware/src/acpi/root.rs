//! The RSDP and the root tables (§5.2.5 to §5.2.8).

use super::HEADER;
use crate::memory::Reader;

/// Bytes of a table, at most: a longer one is not believed. A choice: the largest DSDTs are
/// some 500 KiB.
pub(super) const MAX_TABLE: u32 = 1 << 20;
/// Entries of a root table that are looked at.
const MAX_TABLES: u32 = 512;
/// Where a BIOS may keep the RSDP when the loader does not say (§5.2.5.1).
const BIOS_AREA: (u64, u64) = (0xe_0000, 0x10_0000);
/// Address of the EBDA's segment in the BIOS data area, and the bytes of the EBDA that are
/// searched (§5.2.5.1).
const EBDA_SEGMENT: u64 = 0x40e;
const EBDA_BYTES: u64 = 1024;
/// The lowest address an EBDA can have: behind the BIOS data area.
const LOWEST_EBDA: u64 = 0x400;
/// Bytes that checksums are taken of at a time.
const PIECE: usize = 256;

/// A table, or a part of one, by its place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    pub(super) address: u64,
    /// Header included.
    pub(super) bytes: u32,
}

impl Table {
    /// Returns the physical address of the table's header.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Returns the length in bytes, header included: 36 to 1 MiB.
    #[must_use]
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }

    pub(super) fn array<const N: usize>(
        &self,
        reader: &Reader<'_>,
        offset: u32,
    ) -> Option<[u8; N]> {
        let end = u64::from(offset).checked_add(N as u64)?;
        if end > self.bytes.into() {
            return None;
        }
        reader.array(self.address.checked_add(offset.into())?)
    }

    /// Returns `bytes` from `offset` on.
    pub(super) fn part(&self, offset: u32, bytes: u32) -> Option<Self> {
        let end = offset.checked_add(bytes)?;
        let address = self.address.checked_add(offset.into())?;
        (end <= self.bytes).then_some(Self { address, bytes })
    }

    /// Returns the table at `address` if it has this signature, its length is sane and its
    /// bytes add up to zero.
    pub(super) fn read(reader: &Reader<'_>, address: u64, signature: [u8; 4]) -> Option<Self> {
        if address == 0 {
            return None;
        }
        let [a, b, c, d, lengths @ ..] = reader.array::<8>(address)?;
        let bytes = u32::from_le_bytes(lengths);
        if [a, b, c, d] != signature || !(HEADER..=MAX_TABLE).contains(&bytes) {
            return None;
        }
        adds_up(reader, address, bytes).then_some(Self { address, bytes })
    }
}

/// Returns true if `bytes` from `address` on can be read and add up to zero.
fn adds_up(reader: &Reader<'_>, address: u64, bytes: u32) -> bool {
    let mut buffer = [0; PIECE];
    let (mut sum, mut done) = (0u8, 0u32);
    while done < bytes {
        let wanted = (bytes - done).min(PIECE as u32);
        let Some(piece) = buffer.get_mut(..wanted as usize) else { return false };
        let Some(at) = address.checked_add(done.into()) else { return false };
        if reader.read(at, piece).is_none() {
            return false;
        }
        sum = piece.iter().fold(sum, |sum, byte| sum.wrapping_add(*byte));
        done += wanted;
    }
    sum == 0
}

/// Looks for the RSDP in the EBDA and the BIOS area, on 16-byte boundaries.
pub(super) fn search(reader: &Reader<'_>) -> Option<u64> {
    let segment = reader.array(EBDA_SEGMENT).map_or(0, u16::from_le_bytes);
    let ebda = u64::from(segment) << 4;
    let areas = [(ebda, ebda + EBDA_BYTES), BIOS_AREA];
    areas
        .into_iter()
        .filter(|&(start, _)| start >= LOWEST_EBDA)
        .find_map(|(start, end)| (start..end).step_by(16).find(|&at| is_rsdp(reader, at)))
}

/// Returns true if the first 20 bytes, which every revision has, are those of an RSDP.
fn is_rsdp(reader: &Reader<'_>, at: u64) -> bool {
    reader.array::<8>(at) == Some(*b"RSD PTR ") && adds_up(reader, at, 20)
}

/// The root table: XSDT where there is one, RSDT otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    table: Table,
    /// Bytes of an entry, 4 or 8.
    entry: u32,
}

impl Root {
    pub(super) fn read(reader: &Reader<'_>, rsdp: u64) -> Option<Self> {
        if !is_rsdp(reader, rsdp) {
            return None;
        }
        let first: [u8; 20] = reader.array(rsdp)?;
        let [.., revision, a, b, c, d] = first;
        // Revision 2 and later have a 64-bit table and a checksum over all 36 bytes.
        let xsdt = (revision >= 2 && adds_up(reader, rsdp, 36))
            .then(|| reader.array(rsdp.checked_add(24)?).map(u64::from_le_bytes))
            .flatten()
            .and_then(|address| Table::read(reader, address, *b"XSDT"));
        if let Some(table) = xsdt {
            return Some(Self { table, entry: 8 });
        }
        let address = u32::from_le_bytes([a, b, c, d]).into();
        Table::read(reader, address, *b"RSDT").map(|table| Self { table, entry: 4 })
    }

    /// Returns every table with this signature that is whole.
    pub(super) fn tables<'a>(
        self,
        reader: &'a Reader<'_>,
        signature: [u8; 4],
    ) -> impl Iterator<Item = Table> + 'a {
        let count = (self.table.bytes - HEADER.min(self.table.bytes)).checked_div(self.entry);
        let entries = 0..count.unwrap_or(0).min(MAX_TABLES);
        entries.filter_map(move |index| {
            let at = index.checked_mul(self.entry)?.checked_add(HEADER)?;
            let address = if self.entry == 8 {
                self.table.array(reader, at).map(u64::from_le_bytes)
            } else {
                self.table.array(reader, at).map(|bytes| u32::from_le_bytes(bytes).into())
            };
            Table::read(reader, address?, signature)
        })
    }
}
