//! The seal of a stage: this much of the dump is on the medium, and here is how to read it.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{
    AreaError, AreaHeader, BLOCK_BYTES, CRC_OFFSET, DATA_OFFSET, ENTRY_BYTES, MAX_STAGES, SlotOpen,
    check, checksum,
};

/// First eight bytes of a [`StageSeal`].
pub const SEAL_MAGIC: [u8; 8] = *b"EPISEAL\x01";

/// Bytes of the record in version 1, which ended before [`StageSeal::table_offset`].
const VERSION_1_BYTES: usize = 192;

/// Values of [`StageSeal::incomplete`]: why a stage lacks memory it was meant to hold.
/// Others are legal.
pub mod incomplete {
    /// It lacks nothing.
    pub const NOTHING: u32 = 0;
    /// `dump_deadline_ms` had passed.
    pub const DEADLINE: u32 = 1;
    /// The slot was full.
    pub const SLOT_FULL: u32 = 2;
    /// The capture image made a mistake.
    pub const FAULT: u32 = 3;
    /// Some memory could not be read; what could is there.
    pub const UNREADABLE: u32 = 4;
    /// There were more chunks than the capture's memory has room to list.
    pub const TOO_MANY: u32 = 5;
    /// A disk failed; what it had kept is there.
    pub const DISK: u32 = 6;

    /// The word for a reason.
    #[must_use]
    pub const fn name(reason: u32) -> &'static str {
        match reason {
            NOTHING => "nothing",
            DEADLINE => "deadline",
            SLOT_FULL => "slot-full",
            FAULT => "fault",
            UNREADABLE => "unreadable",
            TOO_MANY => "too-many",
            DISK => "disk",
            _ => "unknown",
        }
    }
}

/// Block 1 + k of a slot: stage k of its dump is on the disk.
///
/// In version 1 a stage was a plain ELF file at `header_offset`, and the record ended at
/// byte 192: there [`Self::is_plain`] is true and the fields behind are zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StageSeal {
    /// [`SEAL_MAGIC`].
    pub magic: [u8; 8],
    /// [`super::OLDEST_VERSION`] to [`super::NEWEST_VERSION`], that of the open record it
    /// belongs to.
    pub version: u32,
    /// Bytes of the record.
    pub size: u32,
    /// CRC32 of the record with this field zero.
    pub crc32: u32,
    /// What the stage holds, one of [`super::stage_kind`].
    pub kind: u32,
    /// [`SlotOpen::sequence`] of the dump it belongs to.
    pub sequence: u64,
    /// [`SlotOpen::nonce`] of the dump it belongs to.
    pub nonce: u64,
    /// Offset of the stage's ELF header from the start of the slot; a block multiple.
    pub header_offset: u64,
    /// Bytes of the stage's ELF file.
    pub elf_bytes: u64,
    /// Bytes of its header: file header, program headers, notes, padding.
    pub header_bytes: u64,
    /// CRC32 of these.
    pub header_crc32: u32,
    /// 1 when nothing the stage was meant to hold is missing.
    pub complete: u32,
    /// Time-stamp counter when the stage was on the medium.
    pub sealed_tsc: u64,
    /// From the crashing CPU's jump to `sealed_tsc`, in nanoseconds; 0 when unknown.
    pub duration_ns: u64,
    /// Bytes written for the comparison with the raw medium; 0 when it was not made.
    pub raw_bytes: u64,
    /// How long that took, in nanoseconds.
    pub raw_ns: u64,
    /// How long it took to write what this stage adds, in nanoseconds, flush included.
    pub write_ns: u64,
    /// High-water mark of the reserved region in bytes.
    pub region_bytes_used: u64,
    /// Offset of the table of chunks from the start of the slot; a block multiple.
    pub table_offset: u64,
    /// Bytes of the table: a multiple of [`ENTRY_BYTES`].
    pub table_bytes: u64,
    /// CRC32 of these.
    pub table_crc32: u32,
    /// Why the stage lacks something, one of [`incomplete`].
    pub incomplete: u32,
    /// Offset behind everything the stage needs, from the start of the slot.
    pub log_end: u64,
    /// Bytes of memory this stage adds to the one before, zero pages included.
    pub memory_bytes: u64,
    /// Bytes of chunks it adds, as they are stored.
    pub stored_bytes: u64,
    /// Bytes of zero pages among `memory_bytes` that are not stored.
    pub zero_bytes: u64,
    /// Bytes of memory among `memory_bytes` that are stored compressed.
    pub compressed_bytes: u64,
    /// From the crash to `sealed_tsc`, in nanoseconds: with the time it took to stop the
    /// other CPUs; 0 when unknown.
    pub crash_ns: u64,
    /// Of `stored_bytes`, those in the other area of a dump in two.
    pub other_bytes: u64,
    /// Zero.
    pub reserved: [u64; 7],
}

const _: () = {
    assert!(size_of::<StageSeal>() == 256);
    assert!(offset_of!(StageSeal, header_crc32) == 64);
    assert!(offset_of!(StageSeal, table_offset) == 120);
    assert!(offset_of!(StageSeal, other_bytes) == 192);
    assert!(offset_of!(StageSeal, crc32) == CRC_OFFSET);
    assert!(size_of::<StageSeal>() as u64 <= BLOCK_BYTES);
};

impl StageSeal {
    /// A record that belongs to `open`: to be filled and then [sealed](Self::seal).
    #[must_use]
    pub fn new(open: &SlotOpen) -> Self {
        let mut seal = Self::new_zeroed();
        seal.magic = SEAL_MAGIC;
        seal.version = open.version;
        seal.size = size_of::<Self>() as u32;
        seal.sequence = open.sequence;
        seal.nonce = open.nonce;
        seal
    }

    /// Whether the seal belongs to the dump that `open` began.
    #[must_use]
    pub fn belongs_to(&self, open: &SlotOpen) -> bool {
        self.sequence == open.sequence && self.nonce == open.nonce
    }

    /// Whether the stage is a plain ELF file, without chunks: of version 1.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.version == 1
    }

    /// Chunks the stage's file is made of.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        self.table_bytes / ENTRY_BYTES
    }

    /// Writes the checksum over what stands in the record now.
    pub fn seal(&mut self) {
        self.crc32 = checksum(self.as_bytes());
    }

    /// Checks a record block of a slot in `area` and copies the record out of it.
    ///
    /// # Errors
    /// Says what is wrong; [`AreaError::Blank`] is a stage never sealed.
    pub fn check(block: &[u8], area: &AreaHeader) -> Result<Self, AreaError> {
        let sizes = [VERSION_1_BYTES, size_of::<Self>(), size_of::<Self>(), size_of::<Self>()];
        let mut seal: Self = check(block, &SEAL_MAGIC, sizes)?;
        if seal.is_plain() {
            // Zero in every record ever written; what it means here came with version 2.
            seal.as_mut_bytes()[offset_of!(Self, table_offset)..].fill(0);
        }
        let inside = |offset: u64, bytes: u64| {
            let end = offset.checked_add(bytes);
            offset >= DATA_OFFSET
                && offset.is_multiple_of(BLOCK_BYTES)
                && end.is_some_and(|end| end <= area.slot_bytes)
        };
        let stored = if seal.is_plain() { seal.elf_bytes } else { seal.header_bytes };
        let table = seal.is_plain()
            || (inside(seal.table_offset, seal.table_bytes)
                && seal.table_bytes.is_multiple_of(ENTRY_BYTES)
                && seal.log_end <= area.slot_bytes);
        if !inside(seal.header_offset, stored) || !table || seal.header_bytes > seal.elf_bytes {
            return Err(AreaError::Bounds);
        }
        Ok(seal)
    }
}

/// Offset of the seal of stage `stage` (from 0) in its slot, `None` beyond
/// [`MAX_STAGES`].
#[must_use]
pub const fn seal_offset(stage: usize) -> Option<u64> {
    if stage < MAX_STAGES { Some((stage as u64 + 1) * BLOCK_BYTES) } else { None }
}
