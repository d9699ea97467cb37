//! The dump area: how dumps lie on a disk, versions 1 to 4.
//!
//! Everything is made of 4 KiB blocks. An area is a whole disk or a partition of one, and
//! every offset is counted from its own first byte. Block 0 is the [`AreaHeader`], which
//! divides the area into slots; block 1 remembers how often the machine crashed lately
//! ([`CrashLoop`]). From version 4 on a copy of the header begins the last MiB of the area, no
//! slot reaches into the first or the last MiB, and everything else there is zero: whether an
//! area is still one can be told from a few blocks ([`mod@look`]). A slot begins with 16 record
//! blocks, one record per block so that a torn write of one cannot spoil another, and behind
//! them is a log that only grows:
//!
//! ```text
//! slot + 0         SlotOpen: a dump begins here, and why
//! slot + 4 KiB     StageSeal of stage 1: this much of the dump is complete
//! slot + 8 KiB     StageSeal of stage 2 …
//! slot + 60 KiB    Collected: somebody has this dump in safety
//! slot + 64 KiB    log: chunks of stage 1, its table, its header, chunks of stage 2 …
//! ```
//!
//! Writing goes in this order: open the slot, flush; append a stage's chunks, the table of
//! all chunks so far and the ELF header, flush; seal the stage, flush; go on with the next
//! stage. A stage's file is its header followed by the memory of its chunks, so a later
//! stage repeats nothing of an earlier one. A seal names the sequence number and the nonce
//! of its SlotOpen, so what an older dump left in the same slot never counts.
//!
//! One dump may lie in two areas, on disks that shared the work. The first has its records,
//! its tables, its headers and some of its chunks; a slot of the other has more chunks, behind
//! an open record that names the first. A stage of such a dump is sealed in the other area
//! before it is in the first: where it counts, all of it is on both media.
//!
//! Every record carries its own version. In an area of version 4 the header, the open records
//! and the seals have version 4. In an older area open records and seals have version 2, or 3
//! for a dump in two areas. Crash records and collected records have version 2 everywhere.
//! Version 1 is read as well; its stages are plain ELF files. A reader that meets a newer version
//! refuses and says so, it does not guess. The layout to the byte is in `docs/dump-area.md`.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::PAGE_BYTES;

mod chunk;
pub mod look;
mod marks;
mod open;
mod seal;

pub use chunk::{
    ChunkEntry, ENTRY_BYTES, LZ4_BLOCK_BYTES, Lz4Block, MAX_CHUNK_BYTES, MAX_RAW_BYTES, chunk_area,
    chunk_kind, lz4_block_size, lz4_blocks, lz4_table_bytes,
};
pub use marks::{
    COLLECTED_BLOCK, COLLECTED_MAGIC, Collected, CrashLoop, LOOP_MAGIC, LOOP_OFFSET, LOOP_TIMES,
};
pub use open::{AreaGeometry, OPEN_MAGIC, SlotOpen, part};
pub use seal::{SEAL_MAGIC, StageSeal, incomplete, seal_offset};

/// First eight bytes of an [`AreaHeader`].
pub const AREA_MAGIC: [u8; 8] = *b"EPIAREA\x01";
/// Version of the areas this build makes, and of the open records and seals in them.
pub const AREA_VERSION: u32 = 4;
/// Version of crash records and collected records in every area, and of the open records and
/// seals of a dump in one area older than version 4.
pub const RECORD_VERSION: u32 = 2;
/// Version of the open records and seals of a dump in two areas of which one at least is older
/// than version 4; of no other record.
pub const PAIR_VERSION: u32 = 3;
/// The newest version this build reads.
pub const NEWEST_VERSION: u32 = AREA_VERSION;
/// Versions this build reads.
const VERSIONS: usize = (NEWEST_VERSION - OLDEST_VERSION + 1) as usize;
/// The oldest version this build reads.
pub const OLDEST_VERSION: u32 = 1;
/// Bytes of a block: every record has one for itself.
pub const BLOCK_BYTES: u64 = PAGE_BYTES;
/// Record blocks at the start of a slot.
pub const RECORD_BLOCKS: u64 = 16;
/// Offset of the log in a slot.
pub const DATA_OFFSET: u64 = RECORD_BLOCKS * BLOCK_BYTES;
/// Record blocks for seals, from block 1. Version 1 had one more, where version 2 keeps
/// the [`Collected`] record.
pub const MAX_STAGES: usize = RECORD_BLOCKS as usize - 2;
/// Slots an area may have.
pub const MAX_SLOTS: u32 = 64;
/// Slots start, and are as long as, a multiple of this.
pub const SLOT_ALIGN: u64 = 1 << 20;
/// Bytes at either end of an area of version 4 that no slot reaches into.
pub const MARGIN_BYTES: u64 = SLOT_ALIGN;

/// Values of [`StageSeal::kind`] and [`crate::notes::CaptureMetrics::stage_kind`].
pub mod stage_kind {
    /// The image, its stacks and its data: what a backtrace needs.
    pub const MINI: u32 = 1;
    /// Memory in use.
    pub const USED: u32 = 2;
    /// All memory.
    pub const ALL: u32 = 3;

    /// The contract's word for a kind.
    #[must_use]
    pub const fn name(kind: u32) -> &'static str {
        match kind {
            MINI => "mini",
            USED => "used",
            ALL => "all",
            _ => "unknown",
        }
    }
}

/// Values of [`SlotOpen::storing`]: the `dump=` of the command line.
pub mod storing {
    /// As it lies in memory.
    pub const RAW: u32 = 1;
    /// Compressed.
    pub const LZ4: u32 = 2;
    /// Whatever is faster, chunk by chunk.
    pub const AUTO: u32 = 3;

    /// The contract's word.
    #[must_use]
    pub const fn name(storing: u32) -> &'static str {
        match storing {
            RAW => "raw",
            LZ4 => "lz4",
            AUTO => "auto",
            _ => "unknown",
        }
    }
}

/// Why a record was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaError {
    /// Fewer bytes than the record needs.
    TooShort,
    /// The block is all zero: nothing was ever written here.
    Blank,
    /// Something else stands here.
    Foreign,
    /// A version this build does not know; holds the version found.
    Version(u32),
    /// The size field does not fit the version.
    Size,
    /// The checksum does not match: stored and computed.
    Checksum(u32, u32),
    /// An offset, size or count leads out of the area.
    Bounds,
    /// The rest of the record's block is not zero; holds the first byte that is not.
    Rest(u32),
    /// The disk is too small for so many slots; holds the bytes it takes.
    DiskTooSmall(u64),
    /// Not between 1 and [`MAX_SLOTS`].
    SlotCount(u32),
}

impl core::fmt::Display for AreaError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooShort => f.write_str("record cut short"),
            Self::Blank => f.write_str("nothing written here"),
            Self::Foreign => f.write_str("not a record of a dump area"),
            Self::Version(found) => {
                write!(
                    f,
                    "version {found} of the dump area is not known here (only up to {NEWEST_VERSION})"
                )
            }
            Self::Size => f.write_str("wrong size field"),
            Self::Checksum(stored, computed) => {
                write!(f, "checksum {stored:08x} stored, {computed:08x} computed")
            }
            Self::Bounds => f.write_str("an offset or size leads out of the dump area"),
            Self::Rest(at) => write!(f, "byte {at} of its block is not zero"),
            Self::DiskTooSmall(needed) => {
                write!(f, "disk too small, at least {needed} bytes needed")
            }
            Self::SlotCount(count) => write!(f, "{count} slots; 1 to {MAX_SLOTS} are possible"),
        }
    }
}

impl core::error::Error for AreaError {}

/// Block 0 of the area, and from version 4 on the first block of its last MiB.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AreaHeader {
    /// [`AREA_MAGIC`].
    pub magic: [u8; 8],
    /// [`OLDEST_VERSION`] to [`AREA_VERSION`].
    pub version: u32,
    /// `size_of::<AreaHeader>()`.
    pub size: u32,
    /// CRC32 of the record with this field zero.
    pub crc32: u32,
    /// Slots.
    pub slot_count: u32,
    /// Bytes of the whole area, this block included.
    pub area_bytes: u64,
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// Offset of slot 0 from the start of the area.
    pub first_slot: u64,
    /// Identity of the area, random.
    pub uuid: [u8; 16],
    /// Zero.
    pub reserved: [u64; 8],
}

const _: () = {
    assert!(size_of::<AreaHeader>() == 128);
    assert!(offset_of!(AreaHeader, uuid) == 48);
};

/// Offset of the checksum, the same in every record.
const CRC_OFFSET: usize = 16;
const _: () = assert!(offset_of!(AreaHeader, crc32) == CRC_OFFSET);

fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(record.get(..CRC_OFFSET).unwrap_or_default());
    hasher.update(&[0; 4]);
    hasher.update(record.get(CRC_OFFSET + 4..).unwrap_or_default());
    hasher.finalize()
}

/// What every record begins with.
#[derive(FromBytes)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: u32,
    size: u32,
    crc32: u32,
}

/// Checks what all records have in common and copies one out of its block, which may
/// lie at any address. `sizes` are the bytes of the record in each version, from
/// [`OLDEST_VERSION`], and 0 where there is none; what a version lacks at the end is zero in
/// the copy.
fn check<T: FromBytes + IntoBytes>(
    block: &[u8],
    magic: &[u8; 8],
    sizes: [usize; VERSIONS],
) -> Result<T, AreaError> {
    let (head, _) = Head::read_from_prefix(block).map_err(|_| AreaError::TooShort)?;
    if head.magic != *magic {
        let blank = block.iter().all(|&byte| byte == 0);
        return Err(if blank { AreaError::Blank } else { AreaError::Foreign });
    }
    let version = head.version.checked_sub(OLDEST_VERSION);
    let size = version.and_then(|version| sizes.get(version as usize)).copied();
    let Some(size) = size.filter(|&size| size > 0) else {
        return Err(AreaError::Version(head.version));
    };
    if head.size as usize != size {
        return Err(AreaError::Size);
    }
    let bytes = block.get(..size).ok_or(AreaError::TooShort)?;
    let computed = checksum(bytes);
    if head.crc32 != computed {
        return Err(AreaError::Checksum(head.crc32, computed));
    }
    let mut record = T::new_zeroed();
    let copy = record.as_mut_bytes().get_mut(..size).ok_or(AreaError::TooShort)?;
    copy.copy_from_slice(bytes);
    Ok(record)
}

/// Returns true if `block` begins with a record of any version whose checksum matches: one of a
/// newer version, and not one whose version field is damaged.
#[must_use]
pub fn is_whole(block: &[u8]) -> bool {
    let Ok((head, _)) = Head::read_from_prefix(block) else { return false };
    let record = block.get(..head.size as usize).filter(|record| record.len() >= size_of::<Head>());
    record.is_some_and(|record| checksum(record) == head.crc32)
}

impl AreaHeader {
    /// Divides a disk or partition of `disk_bytes` into `slots` equal slots. The identity is left
    /// zero; the record is not sealed yet.
    ///
    /// # Errors
    /// When the disk is too small or the number of slots is out of range.
    pub fn plan(disk_bytes: u64, slots: u32) -> Result<Self, AreaError> {
        if slots == 0 || slots > MAX_SLOTS {
            return Err(AreaError::SlotCount(slots));
        }
        let area_bytes = disk_bytes / BLOCK_BYTES * BLOCK_BYTES;
        let slot_bytes =
            area_bytes.saturating_sub(2 * MARGIN_BYTES) / u64::from(slots) / SLOT_ALIGN
                * SLOT_ALIGN;
        if slot_bytes == 0 {
            return Err(AreaError::DiskTooSmall(2 * MARGIN_BYTES + u64::from(slots) * SLOT_ALIGN));
        }
        let mut header = Self::new_zeroed();
        header.magic = AREA_MAGIC;
        header.version = AREA_VERSION;
        header.size = size_of::<Self>() as u32;
        header.slot_count = slots;
        header.area_bytes = area_bytes;
        header.slot_bytes = slot_bytes;
        header.first_slot = MARGIN_BYTES;
        Ok(header)
    }

    /// Writes the checksum over what stands in the record now.
    pub fn seal(&mut self) {
        self.crc32 = checksum(self.as_bytes());
    }

    /// Checks block 0 of a disk, or the block with the copy, and copies the record out of it.
    ///
    /// The rest of the block has to be zero, as far as it is given. Whether the disk is still as
    /// large as [`AreaHeader::area_bytes`], and whether something else claims it, is for the
    /// caller to find out ([`mod@look`]).
    ///
    /// # Errors
    /// Says what is wrong; nothing of the record may then be believed.
    pub fn check(block: &[u8]) -> Result<Self, AreaError> {
        let header: Self =
            check(block, &AREA_MAGIC, [size_of::<Self>(), size_of::<Self>(), 0, 128])?;
        header.check_geometry()?;
        let rest = block.get(size_of::<Self>()..).unwrap_or_default();
        let rest = rest.iter().take(BLOCK_BYTES as usize - size_of::<Self>());
        match rest.enumerate().find(|&(_, &byte)| byte != 0) {
            Some((at, _)) => Err(AreaError::Rest((at + size_of::<Self>()) as u32)),
            None => Ok(header),
        }
    }

    /// Checks that the slots lie inside the area.
    fn check_geometry(&self) -> Result<(), AreaError> {
        let slots = u64::from(self.slot_count);
        let end =
            self.slot_bytes.checked_mul(slots).and_then(|bytes| bytes.checked_add(self.first_slot));
        let (align, first, last) = match self.has_copy() {
            true => (SLOT_ALIGN, MARGIN_BYTES, self.area_bytes.checked_sub(MARGIN_BYTES)),
            false => (BLOCK_BYTES, BLOCK_BYTES, Some(self.area_bytes)),
        };
        let inside = end.zip(last).is_some_and(|(end, last)| end <= last);
        let aligned = (self.slot_bytes | self.first_slot).is_multiple_of(align)
            && (!self.has_copy() || self.area_bytes.is_multiple_of(BLOCK_BYTES));
        if slots == 0
            || self.slot_count > MAX_SLOTS
            || !aligned
            || !inside
            || self.first_slot < first
            || self.slot_bytes <= DATA_OFFSET
        {
            return Err(AreaError::Bounds);
        }
        Ok(())
    }

    /// Returns true from version 4 on: there is a copy of the header, and no slot reaches into
    /// the first or the last MiB.
    #[must_use]
    pub const fn has_copy(&self) -> bool {
        self.version >= AREA_VERSION
    }

    /// Offset of the copy of the header from the start of the area, `None` before version 4.
    #[must_use]
    pub const fn copy_offset(&self) -> Option<u64> {
        if self.has_copy() { self.area_bytes.checked_sub(MARGIN_BYTES) } else { None }
    }

    /// Offset of the copy on a disk or partition of `disk_bytes` that is an area of version 4
    /// from end to end; `None` where there is no room for one.
    #[must_use]
    pub const fn copy_place(disk_bytes: u64) -> Option<u64> {
        (disk_bytes / BLOCK_BYTES * BLOCK_BYTES).checked_sub(MARGIN_BYTES)
    }

    /// Offset of a slot from the start of the area, `None` when there is no such slot.
    #[must_use]
    pub fn slot_offset(&self, slot: u32) -> Option<u64> {
        if slot >= self.slot_count {
            return None;
        }
        u64::from(slot).checked_mul(self.slot_bytes)?.checked_add(self.first_slot)
    }

    /// Bytes of log a slot has room for.
    #[must_use]
    pub fn slot_capacity(&self) -> u64 {
        self.slot_bytes.saturating_sub(DATA_OFFSET)
    }
}

#[cfg(test)]
mod tests;
