//! The bytes one image leaves in memory for the next.
//!
//! Three records, each with magic, version, size and a CRC32 of its own:
//!
//! * [`facts::BootFacts`] — what was known when the appliance armed itself: the memory
//!   map, the capture image and its checksum, where everything in the reserved region
//!   lies. Written into the reserved region at boot and sealed there, long before
//!   anything goes wrong.
//! * [`crash::Handoff`] — what happened: cause, ladder timeline, where the CPU records
//!   and the log are. Written last, by the crashing CPU, in the appliance's own memory;
//!   its address is the only argument of the jump.
//! * [`cpus::CpuRecord`] — one per CPU: identity, how it was stopped, its registers, tagged
//!   with their architecture.
//!
//! The hand-off points at [`tables`] of what else the crashing CPU found (locks, what the
//! workload said), the facts at the rings of the flight recorder ([`trace`]) and at what
//! there is of [`devices`].
//!
//! A later version adds at the end or gives a meaning to what was zero. From version 5 on a
//! reader takes every later hand-off as far as it knows it: [`Handoff::check`],
//! [`BootFacts::check`], and of the CPU records each by itself, [`CpuRecords`]. A reader of
//! dumps takes every older version as well: [`Handoff::lift`], [`BootFacts::lift`].
//!
//! [`module`] is the checksum that the capture image's file carries.
//!
//! [`stamp`] holds the page pattern of the `memstamp` workload, which is a contract
//! between the appliance that writes it and the host CLI that checks it.
//!
//! Promises: `no_std`, no allocation, no `unsafe`, no global state; every struct is
//! `repr(C)` without padding, little endian, with its size and the offsets of its parts
//! asserted at compile time. Enumerations are integers in a type of their own: an unknown
//! value is legal and is shown with its number.
#![no_std]
#![forbid(unsafe_code)]

pub mod cpus;
pub mod crash;
pub mod devices;
pub mod facts;
pub mod last_words;
pub mod module;
pub mod registers;
pub mod stamp;
pub mod tables;
pub mod trace;

pub use cpus::{CpuRecord, CpuRecords};
pub use crash::{Cause, Handoff, LogRange, RungRecord, StampRange};
pub use devices::{
    ConfigSpace, FrameMap, Framebuffer, InFlight, Mailboxes, PowerFacts, WatchdogFacts,
};
pub use facts::{BootFacts, MemoryRange, NeverDump, Range, Segment, VirtualSegment};
pub use registers::X86Registers;
pub use tables::{LockRecord, Table, WorkloadWords};
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
