//! What the crashing CPU leaves behind.

use core::mem::{offset_of, size_of};
use core::ops::RangeInclusive;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cpus::{self, CpuRecord, CpuRecords, MAX_CPU_RECORD_BYTES};
use crate::devices::InFlight;
use crate::tables::{MAX_LOCKS, MAX_WORDS, Table, WorkloadTable};
use crate::{MAX_CPUS, Range, RecordError, crc32_with_hole};

/// First eight bytes of [`Handoff`].
pub const HANDOFF_MAGIC: [u8; 8] = *b"EPIHAND\x01";
/// Version of the layout below.
///
/// Up to version 4 the record ended before [`Handoff::unix_time`], with zeros in every word that
/// came later: version 2 added [`Handoff`] from `locks` on, version 3 `given_up`, version 4
/// `log_held`.
pub const HANDOFF_VERSION: u32 = 5;
/// First version from which on a record may be longer than its reader knows: what is known is
/// read, and the rest left alone.
pub const OPEN_VERSION: u32 = 5;
/// Most bytes that a hand-off of a later version may have.
pub const MAX_HANDOFF_BYTES: u32 = 8 << 10;
/// Bytes of a hand-off of versions 1 to 4.
const V4_BYTES: usize = offset_of!(Handoff, unix_time);
/// Rung records the hand-off has room for.
pub const MAX_RUNGS: usize = 8;
/// PCI functions with requests in flight that the hand-off has room for.
pub const MAX_IN_FLIGHT: usize = 64;
/// Bytes of the cause's message, zero padded.
pub const MESSAGE_BYTES: usize = 256;

record::open_enum! {
    /// Values of [`Cause::kind`].
    pub struct CauseKind(u32) {
        /// `panic!` and everything that ends in it.
        PANIC = 1, "panic";
        /// A CPU exception.
        EXCEPTION = 2, "exception";
        /// A machine check.
        MCE = 3, "mce";
        /// An NMI that nobody asked for.
        NMI = 4, "nmi";
        /// Interrupts off for too long.
        HARD_LOCKUP = 5, "hard-lockup";
        /// A workload that stopped beating.
        SOFT_LOCKUP = 6, "soft-lockup";
        /// Out of memory.
        OOM = 7, "oom";
    }
}

record::open_enum! {
    /// Values of [`CpuRecord::stopped_by`].
    pub struct StoppedBy(u32) {
        /// No CPU ever ran here.
        NEVER_STARTED = 0, "never-started";
        /// The CPU that crashed and stopped the others.
        CRASH = 1, "crash";
        /// By the first rung, a maskable interrupt.
        IRQ = 2, "irq";
        /// By the second rung.
        NMI = 3, "nmi";
        /// By INIT; its registers are lost.
        INIT = 4, "init";
        /// It stopped itself, having lost a race of panics.
        SELF = 5, "self";
        /// Nothing reached it: it may still be running.
        NOT_STOPPED = 6, "not-stopped";
    }
}

record::open_enum! {
    /// Values of [`CpuRecord::registers_from`].
    pub struct RegistersFrom(u32) {
        /// There are none.
        NONE = 0, "none";
        /// From the frame of the interrupt, NMI or exception that stopped it.
        INTERRUPTED = 1, "interrupted";
        /// Taken by the CPU itself, inside the code that stopped it.
        SELF = 2, "self";
        /// Saved at an earlier NMI; the CPU went on after it.
        LAST_KNOWN = 3, "last-known";
    }
}

/// Bits of [`CpuRecord::flags`].
pub mod cpu_flags {
    /// The record says how many locks were held and tells kinds of NMI apart.
    pub const COUNTED: u32 = 1;
    /// It is known whether interrupts were on when the stop, or the crash, reached the CPU.
    pub const INTERRUPTS_KNOWN: u32 = 2;
    /// They were.
    pub const INTERRUPTS_ON: u32 = 4;
    /// It was stopped by an interrupt and waits where it can be called back to work.
    pub const RECLAIMABLE: u32 = 8;
}

record::open_enum! {
    /// Values of [`RungRecord::kind`].
    pub struct RungSignal(u32) {
        /// A maskable interrupt on its own vector.
        IRQ = 1, "irq";
        /// A non-maskable interrupt.
        NMI = 2, "nmi";
        /// INIT, to started application processors only.
        INIT = 3, "init";
    }
}

/// Why the machine stopped.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cause {
    /// One of [`CauseKind`].
    pub kind: CauseKind,
    /// Index of the crashing CPU.
    pub cpu: u32,
    /// Exception vector; `u32::MAX` when it was none.
    pub vector: u32,
    /// Line of the panic, 0 when there is none.
    pub line: u32,
    /// Error code of the exception.
    pub error_code: u64,
    /// Fault address (CR2) of a page fault.
    pub address: u64,
    /// Time-stamp counter when the crash path was entered.
    pub tsc: u64,
    /// Zero.
    pub reserved: [u64; 3],
    /// One line of text, UTF-8, zero padded.
    pub message: [u8; MESSAGE_BYTES],
    /// Source file of the panic, UTF-8, zero padded.
    pub file: [u8; 128],
}

/// One rung of the ladder as it was used.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RungRecord {
    /// One of [`RungSignal`].
    pub kind: RungSignal,
    /// How many CPUs it was sent to.
    pub targets: u32,
    /// Time-stamp counter when it was sent.
    pub sent_tsc: u64,
    /// Time-stamp counter when its window closed or all had acknowledged.
    pub closed_tsc: u64,
    /// Its window in nanoseconds; `u64::MAX` for "for ever".
    pub window_ns: u64,
    /// Whom it was sent to, one bit per CPU index.
    pub mask: [u64; MAX_CPUS / 64],
}

/// The appliance's log: a ring of bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LogRange {
    /// Physical address of the ring.
    pub address: u64,
    /// Bytes of the ring.
    pub capacity: u64,
    /// Bytes ever written; the next one goes to `written % capacity`.
    pub written: u64,
}

impl LogRange {
    /// The last `bytes` of the log, or as many as there are, as stretches of memory: one of
    /// them is empty unless they go round the end of the ring.
    #[must_use]
    pub fn tail(&self, bytes: u64) -> [Range; 2] {
        let Self { address, capacity, written } = *self;
        let tail = written.min(capacity).min(bytes);
        let end = written.checked_rem(capacity).unwrap_or(0);
        let behind = tail.min(end);
        [(capacity - (tail - behind), tail - behind), (end - behind, behind)]
            .map(|(offset, bytes)| Range { start: address.saturating_add(offset), bytes })
    }
}

/// What the crashing CPU hands to the capture image.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Handoff {
    /// [`HANDOFF_MAGIC`].
    pub magic: [u8; 8],
    /// [`HANDOFF_VERSION`].
    pub version: u32,
    /// `size_of::<Handoff>()`.
    pub size: u32,
    /// CRC32 of the whole record with this field zero.
    pub crc32: u32,
    /// CRC32 of the CPU records.
    pub cpus_crc32: u32,
    /// Physical address of the sealed [`crate::BootFacts`].
    pub facts: u64,
    /// Physical address of the first [`CpuRecord`].
    pub cpus: u64,
    /// How many records.
    pub cpu_count: u32,
    /// Bytes from one CPU record to the next; `size_of::<CpuRecord>()` in this version.
    pub cpu_record_bytes: u32,
    /// Entries of `timeline` in use.
    pub timeline_count: u32,
    /// How often the crash path was entered again while it ran.
    pub nested: u32,
    /// Time-stamp counter just before the jump.
    pub jump_tsc: u64,
    /// The log ring.
    pub log: LogRange,
    /// A table of the workload's own, for the workload's tool on the host.
    pub workload_table: WorkloadTable,
    /// The [`crate::LockRecord`]s.
    pub locks: Table,
    /// The [`crate::WorkloadWords`].
    pub words: Table,
    /// Time-stamp counter when the ladder had been climbed; 0 when it was not.
    pub stopped_tsc: u64,
    /// Locks there are; more than `locks` has when it had no room for all.
    pub locks_known: u32,
    /// Bytes at the end of the log that the console has not shown: lines that were not to hold
    /// up the dump. 0 in hand-offs that were made before there was such a thing.
    pub log_held: u32,
    /// Versions 3 and 4: PCI functions of disks that missed a deadline, as bus, device and
    /// function in bits 15:8, 7:3 and 2:0; 0 for none. Zero from version 5 on, which has
    /// `in_flight`.
    pub given_up: [u16; 8],
    /// What happened.
    pub cause: Cause,
    /// The rungs used, in order.
    pub timeline: [RungRecord; MAX_RUNGS],
    /// Time of the crash in seconds of Unix time; 0 when the machine had no clock.
    pub unix_time: u64,
    /// Entries of `in_flight` in use.
    pub in_flight_count: u32,
    /// Functions with requests in flight that found no place in `in_flight`. With one or more
    /// of them, any function may have requests in flight.
    pub in_flight_lost: u32,
    /// Zero.
    pub reserved: [u64; 8],
    /// PCI functions that had requests in flight when the machine stopped.
    pub in_flight: [InFlight; MAX_IN_FLIGHT],
}

const _: () = {
    assert!(size_of::<Cause>() == 448);
    assert!(size_of::<RungRecord>() == 32 + MAX_CPUS / 8);
    assert!(offset_of!(Handoff, facts) == 24);
    assert!(offset_of!(Handoff, workload_table) == 88);
    assert!(offset_of!(Handoff, locks) == 104);
    assert!(offset_of!(Handoff, given_up) == 152);
    assert!(offset_of!(Handoff, cause) == 168);
    assert!(offset_of!(Handoff, timeline) == 168 + 448);
    assert!(V4_BYTES == 168 + 448 + MAX_RUNGS * (32 + MAX_CPUS / 8));
    assert!(offset_of!(Handoff, in_flight) == V4_BYTES + 80);
    assert!(size_of::<Handoff>() == V4_BYTES + 80 + MAX_IN_FLIGHT * 24);
    assert!(size_of::<Handoff>() <= MAX_HANDOFF_BYTES as usize);
};

impl Handoff {
    /// An empty record: to be filled and then [sealed](Self::seal).
    #[must_use]
    pub fn new() -> Self {
        let mut handoff = <Self as zerocopy::FromZeros>::new_zeroed();
        handoff.magic = HANDOFF_MAGIC;
        handoff.version = HANDOFF_VERSION;
        handoff.size = size_of::<Self>() as u32;
        handoff.cpu_record_bytes = size_of::<CpuRecord>() as u32;
        handoff
    }

    /// Writes both checksums over what stands in the records now.
    pub fn seal(&mut self, cpus: &[CpuRecord]) {
        self.cpu_count = cpus.len() as u32;
        self.cpus_crc32 = crc32fast::hash(cpus.as_bytes());
        self.crc32 = crc32_with_hole(self.as_bytes(), offset_of!(Self, crc32));
    }

    /// Returns how many bytes the record has that begins with `head`, which holds at least its
    /// first 16 bytes; `None` when that is no length of a record this build knows how to read.
    #[must_use]
    pub fn length(head: &[u8]) -> Option<usize> {
        crate::length(head, HANDOFF_MAGIC, size_of::<Self>(), MAX_HANDOFF_BYTES)
    }

    /// Checks `bytes` and views them as the record, of version 5 or any later one. The CPU
    /// records are checked apart, with [`Handoff::check_cpus`], once their bytes are at hand.
    ///
    /// # Errors
    /// Says what is wrong; nothing of the record may then be believed.
    pub fn check(bytes: &[u8]) -> Result<&Self, RecordError> {
        let known = bytes.get(..size_of::<Self>()).ok_or(RecordError::TooShort)?;
        let handoff = Self::ref_from_bytes(known).map_err(|_| RecordError::Misaligned)?;
        if handoff.magic != HANDOFF_MAGIC {
            return Err(RecordError::Magic);
        }
        if handoff.version < OPEN_VERSION {
            return Err(RecordError::Version(handoff.version));
        }
        let size = Self::length(bytes).ok_or(RecordError::Size)?;
        let bytes = bytes.get(..size).ok_or(RecordError::TooShort)?;
        handoff.check_sealed(bytes, size_of::<CpuRecord>() as u32..=MAX_CPU_RECORD_BYTES)?;
        Ok(handoff)
    }

    /// Returns a copy of a record of this version or an older one, for readers of dumps. What
    /// an older one did not have is zero in it; `version`, `size` and `cpu_record_bytes` say
    /// what it was.
    ///
    /// # Errors
    /// As [`Handoff::check`].
    pub fn lift(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut handoff = Self::new();
        let start = bytes.get(..V4_BYTES).ok_or(RecordError::TooShort)?;
        crate::copy(handoff.as_mut_bytes(), start);
        if handoff.magic != HANDOFF_MAGIC {
            return Err(RecordError::Magic);
        }
        let old = cpus::V4_BYTES as u32;
        let (size, strides) = match handoff.version {
            1..OPEN_VERSION => (V4_BYTES, old..=old),
            HANDOFF_VERSION => {
                (size_of::<Self>(), size_of::<CpuRecord>() as u32..=MAX_CPU_RECORD_BYTES)
            }
            other => return Err(RecordError::Version(other)),
        };
        let bytes = bytes.get(..size).ok_or(RecordError::TooShort)?;
        crate::copy(handoff.as_mut_bytes(), bytes);
        handoff.check_sealed(bytes, strides)?;
        Ok(handoff)
    }

    /// Checks what the version leaves to check; `bytes` are the record's own, and `strides`
    /// the lengths that a CPU record may have.
    fn check_sealed(&self, bytes: &[u8], strides: RangeInclusive<u32>) -> Result<(), RecordError> {
        let stride = self.cpu_record_bytes;
        if self.size as usize != bytes.len()
            || !strides.contains(&stride)
            || !stride.is_multiple_of(8)
        {
            return Err(RecordError::Size);
        }
        let computed = crc32_with_hole(bytes, offset_of!(Self, crc32));
        if self.crc32 != computed {
            return Err(RecordError::Checksum(self.crc32, computed));
        }
        if self.cpu_count as usize > MAX_CPUS
            || self.timeline_count as usize > MAX_RUNGS
            || self.in_flight_count as usize > MAX_IN_FLIGHT
            || self.locks.count as usize > MAX_LOCKS
            || self.words.count as usize > MAX_WORDS
            || self.cpus.checked_add(self.cpus_bytes() as u64).is_none()
        {
            return Err(RecordError::Bounds);
        }
        Ok(())
    }

    /// Returns the bytes of all CPU records.
    #[must_use]
    pub const fn cpus_bytes(&self) -> usize {
        // At most 512 records of 16 KiB, once the record was checked.
        (self.cpu_count as usize).saturating_mul(self.cpu_record_bytes as usize)
    }

    /// Checks the CPU records' bytes, and returns the records to be read one by one.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check_cpus<'a>(&self, bytes: &'a [u8]) -> Result<CpuRecords<'a>, RecordError> {
        let bytes = bytes.get(..self.cpus_bytes()).ok_or(RecordError::TooShort)?;
        let computed = crc32fast::hash(bytes);
        if self.cpus_crc32 != computed {
            return Err(RecordError::Checksum(self.cpus_crc32, computed));
        }
        Ok(CpuRecords::new(bytes, self.cpu_record_bytes as usize, self.version))
    }

    /// Returns the PCI functions that had requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> &[InFlight] {
        self.in_flight.get(..self.in_flight_count as usize).unwrap_or(&self.in_flight)
    }

    /// The rungs used.
    #[must_use]
    pub fn timeline(&self) -> &[RungRecord] {
        self.timeline.get(..self.timeline_count as usize).unwrap_or(&self.timeline)
    }
}

impl Default for Handoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Cause {
    /// The message without its padding.
    #[must_use]
    pub fn message(&self) -> &str {
        text(&self.message)
    }

    /// The source file without its padding.
    #[must_use]
    pub fn file(&self) -> &str {
        text(&self.file)
    }
}

/// A zero-padded text field up to its padding; what is not UTF-8 is cut off.
#[must_use]
pub fn text(field: &[u8]) -> &str {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let bytes = field.get(..end).unwrap_or_default();
    let text = |bytes| core::str::from_utf8(bytes);
    match text(bytes) {
        Ok(text) => text,
        Err(error) => {
            bytes.get(..error.valid_up_to()).and_then(|good| text(good).ok()).unwrap_or("")
        }
    }
}

/// Writes `value` into a zero-padded text field, cut at a character boundary.
pub fn set_text(field: &mut [u8], value: &str) {
    let mut end = value.len().min(field.len());
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    field.fill(0);
    for (to, from) in field.iter_mut().zip(value.as_bytes().iter().take(end)) {
        *to = *from;
    }
}
