#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

mod cause;
pub mod cpus;
pub mod crash;
pub mod devices;
pub mod entry;
pub mod facts;
pub mod image;
pub mod last_words;
pub mod module;
pub mod registers;
pub mod tables;
pub mod trace;

pub use cpus::{CpuRecord, CpuRecords};
pub use crash::{Cause, Handoff, LogRange, RungRecord};
pub use devices::{
    ConfigSpace, FrameMap, Framebuffer, InFlight, Mailboxes, PowerFacts, WatchdogFacts,
};
pub use facts::{BootFacts, MemoryRange, NeverDump, Range, Segment, VirtualSegment};
pub use registers::X86Registers;
pub use tables::{LockRecord, Table, WorkloadTable, WorkloadWords};
pub use trace::{RingHeader, TraceEvent, TraceRange};

/// Most CPUs the records have room for.
pub const MAX_CPUS: usize = 512;

/// Why a record was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Fewer bytes than the record needs.
    TooShort,
    /// The bytes do not begin on a word.
    Misaligned,
    /// The first eight bytes are not the record's magic.
    Magic,
    /// A version this build does not know; holds the version found.
    Version(u32),
    /// The size field does not fit the version.
    Size,
    /// The checksum does not match: stored and computed.
    Checksum(u32, u32),
    /// A count is larger than its table, or an address range wraps around.
    Bounds,
}

impl core::fmt::Display for RecordError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooShort => f.write_str("record cut short"),
            Self::Misaligned => f.write_str("record not on an 8-byte boundary"),
            Self::Magic => f.write_str("wrong magic"),
            Self::Version(found) => write!(f, "unknown version {found}"),
            Self::Size => f.write_str("wrong size field"),
            Self::Checksum(stored, computed) => {
                write!(f, "checksum {stored:08x} stored, {computed:08x} computed")
            }
            Self::Bounds => f.write_str("a count or range is out of bounds"),
        }
    }
}

impl core::error::Error for RecordError {}

/// CRC32 (IEEE) of `bytes` as if the four bytes at `hole` were zero.
///
/// This is how every record checks itself: the checksum field is part of the record.
#[must_use]
pub fn crc32_with_hole(bytes: &[u8], hole: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let (before, rest) = bytes.split_at_checked(hole).unwrap_or((bytes, &[]));
    hasher.update(before);
    hasher.update(&[0; 4]);
    hasher.update(rest.get(4..).unwrap_or_default());
    hasher.finalize()
}

/// CRC32 (IEEE) of `bytes`: [`BootFacts::image_crc32`] is that of the image as loaded.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Returns how many bytes the record has that begins with `head`, by its magic, version and
/// size: `known` bytes up to the first version that may be longer, and at most `most`.
fn length(head: &[u8], magic: [u8; 8], known: usize, most: u32) -> Option<usize> {
    let word = |at: usize| {
        let bytes = head.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let (version, size) = (word(8)?, word(12)?);
    let fits = match version {
        crash::OPEN_VERSION => size as usize == known,
        _ => version > crash::OPEN_VERSION && size as usize >= known && size <= most,
    };
    (head.starts_with(&magic) && fits && size.is_multiple_of(8)).then_some(size as usize)
}

/// Copies as many bytes as both have.
fn copy(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}
