//! What is noted beside the dumps: that one is in safety, and how often the machine
//! crashed.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{AreaError, BLOCK_BYTES, CRC_OFFSET, RECORD_BLOCKS, RECORD_VERSION, SlotOpen};
use super::{check, checksum, look};

/// First eight bytes of a [`Collected`].
pub const COLLECTED_MAGIC: [u8; 8] = *b"EPICOLL\x01";
/// First eight bytes of a [`CrashLoop`].
pub const LOOP_MAGIC: [u8; 8] = *b"EPILOOP\x01";
/// Block of a slot that holds its [`Collected`] record.
pub const COLLECTED_BLOCK: u64 = RECORD_BLOCKS - 1;
/// Offset of the [`CrashLoop`] record from the start of the area.
pub const LOOP_OFFSET: u64 = BLOCK_BYTES;
/// Crashes whose time is remembered.
pub const LOOP_TIMES: usize = 16;

/// Last record block of a slot: the dump in it is in safety elsewhere, and the slot may be
/// used again. Written by the host.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Collected {
    /// [`COLLECTED_MAGIC`].
    pub magic: [u8; 8],
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// `size_of::<Collected>()`.
    pub size: u32,
    /// CRC32 of the record with this field zero.
    pub crc32: u32,
    /// Zero.
    pub reserved_word: u32,
    /// [`SlotOpen::sequence`] of the dump it is about.
    pub sequence: u64,
    /// [`SlotOpen::nonce`] of the dump it is about.
    pub nonce: u64,
    /// When that was, in seconds of Unix time.
    pub unix_time: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

/// Block 1 of the area: the crashes of late, for who wants to know whether there is any
/// point in starting again.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CrashLoop {
    /// [`LOOP_MAGIC`].
    pub magic: [u8; 8],
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// `size_of::<CrashLoop>()`.
    pub size: u32,
    /// CRC32 of the record with this field zero.
    pub crc32: u32,
    /// Entries of `times` in use.
    pub times_count: u32,
    /// Crashes since the area was prepared.
    pub count: u64,
    /// Unix time of the latest crashes in seconds, newest first; 0 where it is unknown.
    pub times: [u64; LOOP_TIMES],
    /// Zero.
    pub reserved: [u64; 4],
}

const _: () = {
    assert!(size_of::<Collected>() == 64);
    assert!(offset_of!(Collected, crc32) == CRC_OFFSET);
    assert!(offset_of!(Collected, sequence) == 24);
    assert!(size_of::<CrashLoop>() == 192);
    assert!(offset_of!(CrashLoop, crc32) == CRC_OFFSET);
    assert!(offset_of!(CrashLoop, times) == 32);
};

impl Collected {
    /// A sealed record about the dump that `open` began.
    #[must_use]
    pub fn of(open: &SlotOpen, unix_time: u64) -> Self {
        let mut collected = Self::new_zeroed();
        collected.magic = COLLECTED_MAGIC;
        collected.version = RECORD_VERSION;
        collected.size = size_of::<Self>() as u32;
        collected.sequence = open.sequence;
        collected.nonce = open.nonce;
        collected.unix_time = unix_time;
        collected.crc32 = checksum(collected.as_bytes());
        collected
    }

    /// Whether it is about the dump that `open` began.
    #[must_use]
    pub fn belongs_to(&self, open: &SlotOpen) -> bool {
        self.sequence == open.sequence && self.nonce == open.nonce
    }

    /// Checks the last record block of a slot and copies the record out of it.
    ///
    /// # Errors
    /// Says what is wrong; [`AreaError::Blank`] is a dump nobody has collected.
    pub fn check(block: &[u8]) -> Result<Self, AreaError> {
        check(block, &COLLECTED_MAGIC, [0, size_of::<Self>(), 0, 0])
    }
}

impl CrashLoop {
    /// A sealed record of no crash.
    #[must_use]
    pub fn new() -> Self {
        let mut record = Self::new_zeroed();
        record.magic = LOOP_MAGIC;
        record.version = RECORD_VERSION;
        record.size = size_of::<Self>() as u32;
        record.seal();
        record
    }

    /// Adds a crash at `unix_time`, 0 when that is unknown, and seals the record.
    pub fn add(&mut self, unix_time: u64) {
        self.count = self.count.saturating_add(1);
        self.times.copy_within(..LOOP_TIMES - 1, 1);
        self.times[0] = unix_time;
        self.times_count = (self.times_count + 1).min(LOOP_TIMES as u32);
        self.seal();
    }

    /// How many of the remembered crashes were within `seconds` before `now`, those of the
    /// future included: the clock was set back, not the machine mended. Crashes of an
    /// unknown time do not count.
    #[must_use]
    pub fn within(&self, now: u64, seconds: u64) -> usize {
        let since = now.saturating_sub(seconds);
        let times = &self.times[..(self.times_count as usize).min(LOOP_TIMES)];
        times.iter().filter(|&&time| time != 0 && time >= since).count()
    }

    /// Checks block 1 of an area and copies the record out of it.
    ///
    /// # Errors
    /// Says what is wrong; [`AreaError::Blank`] is an area of a machine that never crashed.
    pub fn check(block: &[u8]) -> Result<Self, AreaError> {
        check(block, &LOOP_MAGIC, [0, size_of::<Self>(), 0, 0])
    }

    /// Returns true if `block` is the crash record of an area, blank, or one of these with one
    /// word damaged, so that it may be written: nothing of anybody else is in it.
    #[must_use]
    pub fn owns(block: &[u8]) -> bool {
        let (record, rest) = block.split_at_checked(size_of::<Self>()).unwrap_or((block, &[]));
        if look::odd_words(rest, &[]) > 1 {
            return false;
        }
        if look::odd_words(block, &[]) <= 1 {
            return true;
        }
        // The magic alone may be what is damaged.
        let Ok(mut mended) = Self::read_from_bytes(record) else { return false };
        mended.magic = LOOP_MAGIC;
        record.starts_with(&LOOP_MAGIC) || Self::check(mended.as_bytes()).is_ok()
    }

    fn seal(&mut self) {
        self.crc32 = checksum(self.as_bytes());
    }
}

impl Default for CrashLoop {
    fn default() -> Self {
        Self::new()
    }
}
