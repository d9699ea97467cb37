//! Finds dump areas in a GUID partition table (UEFI Specification 2.10, chapter 5).
//!
//! Only partitions of the product's own type count, [`TYPE_GUID`]: a dump is written where
//! somebody has said in so many words that dumps go. The table is read with its checksums,
//! the one at the start of the disk first and the one at its end when that is damaged.

use core::fmt;
use core::mem::size_of;

use heapless::Vec;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A GUID in the order its bytes have in a table: the first three groups are little endian.
pub type Guid = [u8; 16];

/// Type of a partition that holds a dump area: `7408c5f2-1103-4e04-9ea7-9a7d2a17cc31`,
/// drawn at random once.
pub const TYPE_GUID: Guid = [
    0xf2, 0xc5, 0x08, 0x74, 0x03, 0x11, 0x04, 0x4e, 0x9e, 0xa7, 0x9a, 0x7d, 0x2a, 0x17, 0xcc, 0x31,
];

/// Partitions of the type that are taken note of; more are passed over.
pub const MAX_PARTITIONS: usize = 8;

/// Partitions that hold dump areas, in the order of the table.
pub type Partitions = Vec<Partition, MAX_PARTITIONS>;

/// A partition of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its own identity.
    pub guid: Guid,
    /// Its place in the table, from 1.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// Why there are no partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GptError<E> {
    /// The disk has no such table: no protective record in its first sector.
    None,
    /// Neither of its tables is whole.
    Damaged,
    /// The disk cannot be read.
    Disk(E),
}

impl<E: fmt::Display> fmt::Display for GptError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("the disk has no GPT partition table"),
            Self::Damaged => f.write_str("both GPT partition tables of the disk are damaged"),
            Self::Disk(error) => write!(f, "cannot read the partition table: {error}"),
        }
    }
}

impl<E: core::error::Error + 'static> core::error::Error for GptError<E> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Disk(error) => Some(error),
            Self::None | Self::Damaged => None,
        }
    }
}

/// Most entries a table may have here; 128 is what every tool makes.
const MAX_ENTRIES: u32 = 1024;
/// Bytes read at a time; an entry never crosses the end of such a piece.
const PIECE: usize = 4096;
/// Partition type of the record that keeps older tools away.
const PROTECTIVE: u8 = 0xee;

/// The header, in a sector of its own.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    signature: [u8; 8],
    revision: U32,
    header_bytes: U32,
    crc32: U32,
    reserved: U32,
    this_sector: U64,
    other_sector: U64,
    first_usable: U64,
    last_usable: U64,
    disk: Guid,
    entries_sector: U64,
    entry_count: U32,
    entry_bytes: U32,
    entries_crc32: U32,
}

const _: () = assert!(size_of::<Header>() == 92);

/// The start of an entry; attributes and name follow.
#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
struct Entry {
    kind: Guid,
    guid: Guid,
    first_sector: U64,
    last_sector: U64,
}

/// Looks for partitions of the type on a disk of `disk_bytes` with sectors of
/// `sector_bytes`, 512 or 4096. `read` fills a buffer, a multiple of the sector, from a
/// byte of the disk, a multiple as well.
///
/// # Errors
/// When there is no table, it is damaged in both places, or the disk cannot be read.
pub fn partitions<E>(
    disk_bytes: u64,
    sector_bytes: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Partitions, GptError<E>> {
    let sectors = disk_bytes.checked_div(sector_bytes).unwrap_or(0);
    if sector_bytes > PIECE as u64 || sectors < 3 {
        return Err(GptError::None);
    }
    let mut piece = [0; PIECE];
    let sector = piece.get_mut(..sector_bytes as usize).ok_or(GptError::None)?;
    read(0, sector).map_err(GptError::Disk)?;
    if !is_protective(sector) {
        return Err(GptError::None);
    }
    for place in [1, sectors - 1] {
        if let Some(found) = table(place, sectors, sector_bytes, read).map_err(GptError::Disk)? {
            return Ok(found);
        }
    }
    Err(GptError::Damaged)
}

/// Whether a disk's first sector says that a GUID partition table follows.
fn is_protective(sector: &[u8]) -> bool {
    // Four entries of 16 bytes from byte 446, the type at byte 4 of each; then the signature.
    let kinds = [450, 466, 482, 498].map(|at| sector.get(at).copied());
    sector.get(510..512) == Some(&[0x55, 0xaa]) && kinds.contains(&Some(PROTECTIVE))
}

/// Reads the table whose header stands in `place`; `None` when it is damaged.
fn table<E>(
    place: u64,
    sectors: u64,
    sector_bytes: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<Partitions>, E> {
    let mut piece = [0; PIECE];
    let Some(sector) = piece.get_mut(..sector_bytes as usize) else { return Ok(None) };
    read(place * sector_bytes, sector)?;
    let Some(header) = check(sector, place, sectors, sector_bytes) else { return Ok(None) };
    let entry_bytes = header.entry_bytes.get();
    let bytes = u64::from(header.entry_count.get()) * u64::from(entry_bytes);
    let usable = header.first_usable.get()..=header.last_usable.get();
    let mut crc = crc32fast::Hasher::new();
    let mut found = Partitions::new();
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(PIECE as u64);
        let whole = part.checked_next_multiple_of(sector_bytes).unwrap_or(part) as usize;
        let Some(sectors) = piece.get_mut(..whole) else { return Ok(None) };
        read(header.entries_sector.get() * sector_bytes + done, sectors)?;
        let Some(entries) = sectors.get(..part as usize) else { return Ok(None) };
        crc.update(entries);
        let first = done.checked_div(u64::from(entry_bytes)).unwrap_or(0) as u32;
        for (number, entry) in (first + 1..).zip(entries.chunks(entry_bytes.max(1) as usize)) {
            let Ok((entry, _)) = Entry::read_from_prefix(entry) else { continue };
            let (start, end) = (entry.first_sector.get(), entry.last_sector.get());
            let inside = usable.contains(&start) && usable.contains(&end) && start <= end;
            if entry.kind == TYPE_GUID && inside {
                // Full is full, as said at `MAX_PARTITIONS`.
                let _ = found.push(Partition {
                    guid: entry.guid,
                    number,
                    start: start * sector_bytes,
                    bytes: (end - start + 1) * sector_bytes,
                });
            }
        }
        done += part;
    }
    Ok((crc.finalize() == header.entries_crc32.get()).then_some(found))
}

/// Checks a header and everything it leads to.
fn check(sector: &[u8], place: u64, sectors: u64, sector_bytes: u64) -> Option<Header> {
    let (mut header, _) = Header::read_from_prefix(sector).ok()?;
    let own = header.header_bytes.get() as usize;
    let bytes = sector.get(..own).filter(|_| own >= size_of::<Header>())?;
    let stored = header.crc32.get();
    header.crc32 = U32::ZERO;
    let mut crc = crc32fast::Hasher::new();
    crc.update(header.as_bytes());
    crc.update(bytes.get(size_of::<Header>()..)?);
    let (count, entry_bytes) = (header.entry_count.get(), header.entry_bytes.get());
    let array = u64::from(count) * u64::from(entry_bytes);
    let array_end = header
        .entries_sector
        .get()
        .checked_add(array.checked_next_multiple_of(sector_bytes)?.checked_div(sector_bytes)?)?;
    let good = header.signature == *b"EFI PART"
        && crc.finalize() == stored
        && header.this_sector.get() == place
        && count <= MAX_ENTRIES
        && entry_bytes.is_power_of_two()
        && (128..=PIECE as u32).contains(&entry_bytes)
        && array_end <= sectors
        && header.last_usable.get() < sectors
        && header.first_usable.get() > 0;
    good.then_some(header)
}

/// Reads a GUID as people write it: five groups of hexadecimal digits.
#[must_use]
pub fn parse_guid(text: &str) -> Option<Guid> {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    if !text.as_bytes().split(|&byte| byte == b'-').map(<[u8]>::len).eq(GROUPS) {
        return None;
    }
    let mut guid = [0; 16];
    let mut digits = text.bytes().filter(|&byte| byte != b'-');
    for byte in &mut guid {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(digits.next()?)?, digit(digits.next()?)?);
        *byte = (high << 4 | low) as u8;
    }
    // In a table the first three groups are numbers, little endian.
    guid[..4].reverse();
    guid[4..6].reverse();
    guid[6..8].reverse();
    Some(guid)
}

/// A GUID as people write it.
#[derive(Clone, Copy, Debug)]
pub struct ShowGuid<'a>(pub &'a Guid);

impl core::fmt::Display for ShowGuid<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (count, &at) in ORDER.iter().enumerate() {
            if [4, 6, 8, 10].contains(&count) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[at])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
