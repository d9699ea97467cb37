//! The notes of a vmcore.
//!
//! Two kinds. The ones under `CORE` and `LINUX` are what gdb, lldb, drgn, elfutils,
//! libkdumpfile and makedumpfile look for; their layouts are Linux's (`elfcore.h`,
//! `fs/binfmt_elf.c`) and their order is Linux's: the crashing CPU's PRSTATUS, then
//! PRPSINFO, SIGINFO, AUXV and FILE, then the other CPUs. The ones under [`EPITAPH_OWNER`]
//! hold what no standard note has a place for.
//!
//! There is no FPREGSET and no XSTATE: the appliance never enables the FPU and saves none of
//! its state, and a debugger shows a note of zeros as registers that were measured.
//!
//! What to keep in mind, each found out the hard way with the real programs:
//! * Never a note named `VMCOREINFO` or `QEMU`: drgn and makedumpfile then insist on
//!   the rest of what they stand for.
//! * `pr_pid` is CPU index + 1: with a zero, or one twice, gdb and drgn lose CPUs.
//! * The same signal in every PRSTATUS: BFD keeps the last it sees.
//! * Own types are high numbers: BFD takes types 1, 3 and 6 for its own whoever owns
//!   them.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Owner of the standard notes.
pub const CORE_OWNER: &str = "CORE";
/// Owner of [`NT_LINUX`], and of the XSTATE notes in older dumps.
pub const LINUX_OWNER: &str = "LINUX";
/// Owner of our own notes.
pub const EPITAPH_OWNER: &str = "EPITAPH";

/// One CPU: signal, identity and general registers.
pub const NT_PRSTATUS: u32 = 1;
/// x87 and SSE registers, FXSAVE layout, 512 bytes. Only older dumps have it, all zero.
pub const NT_FPREGSET: u32 = 2;
/// Name and arguments of what ran.
pub const NT_PRPSINFO: u32 = 3;
/// Auxiliary vector: how a debugger finds the image in memory.
pub const NT_AUXV: u32 = 6;
/// `siginfo_t` of the signal ("SIGI").
pub const NT_SIGINFO: u32 = 0x5349_4749;
/// Mapped files ("FILE").
pub const NT_FILE: u32 = 0x4649_4c45;
/// An empty note of owner [`LINUX_OWNER`], once in a dump: lldb opens a core as Linux's when
/// any note has that owner, and refuses it otherwise ("Unsupported OS", lldb 14).
pub const NT_LINUX: u32 = 0x4550_0000;
/// XSAVE area. Only older dumps have it, all zero but for XCR0 at [`XSTATE_XCR0`].
pub const NT_X86_XSTATE: u32 = 0x202;

/// `handoff::Handoff`, as it was found in memory.
pub const NT_EPITAPH_HANDOFF: u32 = 0x4550_0001;
/// Array of `handoff::CpuRecord`, in index order.
pub const NT_EPITAPH_CPUS: u32 = 0x4550_0002;
/// `handoff::BootFacts`, as it was found in memory.
pub const NT_EPITAPH_FACTS: u32 = 0x4550_0003;
/// The table that `handoff::WorkloadTable` names, byte for byte. The workload `memstamp` has
/// its `StampSlice`s there.
pub const NT_EPITAPH_STAMPS: u32 = 0x4550_0004;
/// Array of [`ExcludedRange`]: memory that is in no PT_LOAD.
pub const NT_EPITAPH_EXCLUDED: u32 = 0x4550_0005;
/// [`CaptureMetrics`].
pub const NT_EPITAPH_CAPTURE: u32 = 0x4550_0006;
/// GNU build-id of the crashed image, raw bytes.
pub const NT_EPITAPH_BUILD_ID: u32 = 0x4550_0007;
/// Array of [`ZeroRange`]: memory that was read and was all zero.
pub const NT_EPITAPH_ZERO: u32 = 0x4550_0008;
/// Array of `handoff::LockRecord`.
pub const NT_EPITAPH_LOCKS: u32 = 0x4550_0009;
/// Array of `handoff::WorkloadWords`.
pub const NT_EPITAPH_WORDS: u32 = 0x4550_000a;
/// What went wrong in the capture itself, so that the dump ends there: one line, UTF-8, up to
/// [`FAULT_BYTES`]. Only in a dump whose last stage was closed after a fault.
pub const NT_EPITAPH_FAULT: u32 = 0x4550_000b;
/// A [`Checksums`], then one [`ChunkChecksum`] for each chunk of the dump, by address. Only in
/// a core file that the host has extracted from a dump area.
pub const NT_EPITAPH_CHECKSUMS: u32 = 0x4550_000c;

/// Bytes of the text in [`NT_EPITAPH_FAULT`], at most.
pub const FAULT_BYTES: usize = 256;

/// Signal of a panic (SIGABRT).
pub const SIGNAL_PANIC: u16 = 6;
/// Signal of a CPU exception (SIGSEGV).
pub const SIGNAL_FAULT: u16 = 11;

/// Auxiliary vector: end.
pub const AT_NULL: u64 = 0;
/// Auxiliary vector: address of the image's program headers.
pub const AT_PHDR: u64 = 3;
/// Auxiliary vector: bytes of one program header.
pub const AT_PHENT: u64 = 4;
/// Auxiliary vector: how many program headers.
pub const AT_PHNUM: u64 = 5;
/// Auxiliary vector: page size.
pub const AT_PAGESZ: u64 = 6;
/// Auxiliary vector: entry point of the image.
pub const AT_ENTRY: u64 = 9;

/// Bytes of an NT_PRSTATUS descriptor; gdb finds no registers in any other size.
pub const PRSTATUS_BYTES: usize = 336;
/// Bytes of an NT_PRPSINFO descriptor.
pub const PRPSINFO_BYTES: usize = 136;
/// Bytes of an NT_SIGINFO descriptor.
pub const SIGINFO_BYTES: usize = 128;
/// Offset of XCR0, eight bytes, in an NT_X86_XSTATE descriptor.
pub const XSTATE_XCR0: usize = 464;

/// Offset of `pr_cursig` in NT_PRSTATUS.
pub const PRSTATUS_SIGNAL: usize = 12;
/// Offset of `pr_pid` in NT_PRSTATUS.
pub const PRSTATUS_PID: usize = 32;
/// Offset of the 27 registers in NT_PRSTATUS.
pub const PRSTATUS_REGISTERS: usize = 112;

/// An NT_PRSTATUS descriptor.
///
/// `pid` is the CPU's index + 1, `signal` the same for all CPUs of a dump, `words` the
/// registers in the order of Linux's `user_regs_struct`.
#[must_use]
pub fn prstatus(pid: i32, signal: u16, words: &[u64; 27]) -> [u8; PRSTATUS_BYTES] {
    let mut desc = [0; PRSTATUS_BYTES];
    desc[..4].copy_from_slice(&u32::from(signal).to_le_bytes());
    desc[PRSTATUS_SIGNAL..PRSTATUS_SIGNAL + 2].copy_from_slice(&signal.to_le_bytes());
    desc[PRSTATUS_PID..PRSTATUS_PID + 4].copy_from_slice(&pid.to_le_bytes());
    desc[PRSTATUS_REGISTERS..PRSTATUS_REGISTERS + 27 * 8].copy_from_slice(words.as_bytes());
    desc
}

/// An NT_PRPSINFO descriptor.
///
/// `name` is the image's file name (15 bytes are kept; gdb compares them with the file
/// it is given), `args` one line about the crash (79 bytes are kept), which gdb shows as
/// "Core was generated by". Its `pr_pid` is 1, the boot processor.
#[must_use]
pub fn prpsinfo(name: &str, args: &str) -> [u8; PRPSINFO_BYTES] {
    const PID: usize = 24;
    const NAME: usize = 40;
    const ARGS: usize = 56;
    let mut desc = [0; PRPSINFO_BYTES];
    desc[1] = b'R';
    desc[PID..PID + 4].copy_from_slice(&1i32.to_le_bytes());
    put_text(&mut desc[NAME..NAME + 15], name);
    put_text(&mut desc[ARGS..ARGS + 79], args);
    desc
}

/// An NT_SIGINFO descriptor: `signal` and the address of the fault, 0 for none.
#[must_use]
pub fn siginfo(signal: u16, address: u64) -> [u8; SIGINFO_BYTES] {
    let mut desc = [0; SIGINFO_BYTES];
    desc[..4].copy_from_slice(&u32::from(signal).to_le_bytes());
    desc[16..24].copy_from_slice(&address.to_le_bytes());
    desc
}

/// Writes an auxiliary vector of `entries` and its AT_NULL into `buffer`.
///
/// Returns the bytes written, 0 when the buffer is too small.
#[must_use]
pub fn write_auxv(buffer: &mut [u8], entries: &[(u64, u64)]) -> usize {
    let mut writer = Words::new(buffer);
    for &(key, value) in entries {
        writer.word(key);
        writer.word(value);
    }
    writer.word(AT_NULL);
    writer.word(0);
    writer.finish()
}

/// Writes an NT_FILE descriptor into `buffer`: every entry is `(start, end, page in the
/// file)` of the file `name`.
///
/// Returns the bytes written, 0 when the buffer is too small.
#[must_use]
pub fn write_file_note(
    buffer: &mut [u8],
    entries: impl Iterator<Item = (u64, u64, u64)>,
    name: &str,
) -> usize {
    let mut count = 0u64;
    let mut writer = Words::new(buffer);
    writer.word(0);
    writer.word(crate::PAGE_BYTES);
    for (start, end, page) in entries {
        count += 1;
        writer.word(start);
        writer.word(end);
        writer.word(page);
    }
    for _ in 0..count {
        writer.bytes(name.as_bytes());
        writer.bytes(&[0]);
    }
    let written = writer.finish();
    if written > 0 {
        buffer[..8].copy_from_slice(&count.to_le_bytes());
    }
    written
}

/// Fills a buffer front to back and remembers whether everything fitted.
struct Words<'a> {
    buffer: &'a mut [u8],
    at: usize,
    fits: bool,
}

impl<'a> Words<'a> {
    fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, at: 0, fits: true }
    }

    fn word(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        match self.buffer.get_mut(self.at..self.at + bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.at += bytes.len();
            }
            None => self.fits = false,
        }
    }

    fn finish(self) -> usize {
        if self.fits { self.at } else { 0 }
    }
}

/// Copies `text` into a zeroed field, cut at a character boundary; control characters
/// become spaces, since the field is one line.
pub(crate) fn put_text(field: &mut [u8], text: &str) {
    let mut at = 0;
    for character in text.chars() {
        let character = if character.is_control() { ' ' } else { character };
        let Some(place) = field.get_mut(at..at + character.len_utf8()) else { return };
        character.encode_utf8(place);
        at += character.len_utf8();
    }
}

/// Why memory is in no PT_LOAD: values of [`ExcludedRange::reason`]. Others are legal.
pub mod excluded_reason {
    /// The reserved region: the capture image and its working memory.
    pub const CAPTURE_REGION: u64 = 1;
    /// Firmware or device memory, not RAM.
    pub const NOT_RAM: u64 = 2;
    /// RAM that holds the firmware's own tables.
    pub const FIRMWARE: u64 = 3;
    /// RAM the firmware reported bad.
    pub const BAD: u64 = 4;
    /// RAM that this stage of the dump leaves to a later one.
    pub const LATER_STAGE: u64 = 5;
    /// RAM there was no room for on the medium.
    pub const NO_ROOM: u64 = 6;
    /// RAM left out because the deadline had passed.
    pub const DEADLINE: u64 = 7;
    /// RAM that is never dumped, because of what it holds.
    pub const NEVER_DUMP: u64 = 8;
    /// RAM that could not be read.
    pub const UNREADABLE: u64 = 9;
    /// RAM that was not written any more after a fault of the capture.
    pub const FAULT: u64 = 10;
    /// RAM that was dumped, and was damaged on the disk: left out by `vmcore extract --partial` or
    /// `vmcore collect --salvage`.
    pub const DAMAGED: u64 = 11;
    /// RAM that a disk did not keep, or that was not written any more after a disk had failed.
    pub const DISK: u64 = 12;

    /// The word for a reason.
    #[must_use]
    pub const fn name(reason: u64) -> &'static str {
        match reason {
            CAPTURE_REGION => "capture-region",
            NOT_RAM => "not-ram",
            FIRMWARE => "firmware",
            BAD => "bad",
            LATER_STAGE => "later-stage",
            NO_ROOM => "no-room",
            DEADLINE => "deadline",
            UNREADABLE => "unreadable",
            NEVER_DUMP => "never-dump",
            FAULT => "fault",
            DAMAGED => "damaged",
            DISK => "disk",
            _ => "unknown",
        }
    }
}

/// Memory that is in no PT_LOAD. A debugger says "cannot access" and shows no invented
/// zeros.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ExcludedRange {
    /// Physical address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// One of [`excluded_reason`].
    pub reason: u64,
}

/// Memory that was read and was all zero; its PT_LOAD has fewer bytes in the file than
/// in memory.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ZeroRange {
    /// Physical address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// [`Checksums::version`] of the layout below.
pub const CHECKSUMS_VERSION: u32 = 1;
/// [`Checksums::hash`] of the checksums of a dump area, see
/// [`crate::area::ChunkEntry::bind`].
pub const HASH_NAME: [u8; 16] = *b"rapidhash-v3p\0\0\0";
/// Largest [`NT_EPITAPH_CHECKSUMS`] descriptor, in bytes, that stands among the other notes. A
/// larger one is in a second PT_NOTE, behind the memory, so that the headers stay small: a
/// debugger reads all of them at once.
pub const CHECKSUMS_IN_HEADER: usize = 64 << 10;

/// What a core file can be verified by: the head of [`NT_EPITAPH_CHECKSUMS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Checksums {
    /// [`CHECKSUMS_VERSION`].
    pub version: u32,
    /// `size_of::<Checksums>()`.
    pub size: u32,
    /// `size_of::<ChunkChecksum>()`.
    pub entry_bytes: u32,
    /// CRC32 of this note's descriptor, with these four bytes as zero.
    pub own_crc32: u32,
    /// CRC32 of the file in front of its memory (ELF header, program headers, notes, padding)
    /// without this note's descriptor, if that stands there.
    pub header_crc32: u32,
    /// Zero.
    pub reserved: u32,
    /// Name of the hash, padded with zeros: [`HASH_NAME`].
    pub hash: [u8; 16],
    /// Sequence number of the dump in its area; part of every checksum.
    pub sequence: u64,
    /// Nonce of the dump; part of every checksum.
    pub nonce: u64,
    /// Number of [`ChunkChecksum`]s that follow.
    pub chunks: u64,
}

/// Values of [`ChunkChecksum::state`]. A reader takes others for damage.
pub mod chunk_state {
    /// The memory is in a PT_LOAD.
    pub const PRESENT: u32 = 0;
    /// The memory was damaged when the core was extracted, and is in no PT_LOAD.
    pub const LEFT_OUT: u32 = 1;
}

/// A chunk of memory and its checksum. It may lie in several PT_LOADs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ChunkChecksum {
    /// Physical address.
    pub address: u64,
    /// Length in bytes; whole pages.
    pub bytes: u64,
    /// Checksum as in the dump area; 0 where `kind` is [`crate::area::chunk_kind::ZERO`]: all
    /// bytes are zero then.
    pub checksum: u64,
    /// How the dump area stored it, one of [`crate::area::chunk_kind`]; part of the checksum.
    pub kind: u32,
    /// One of [`chunk_state`].
    pub state: u32,
}

/// [`CaptureMetrics::version`] of the layout below. Version 1 has zeros where version 2 says
/// which CPUs worked and when each step was done.
pub const CAPTURE_VERSION: u32 = 2;

/// How the capture went, as far as it was known when the header was written.
///
/// What is known later (when the dump was sealed, how fast the raw medium is) stands in
/// the stage's [`crate::area::StageSeal`] on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CaptureMetrics {
    /// [`CAPTURE_VERSION`].
    pub version: u32,
    /// `size_of::<CaptureMetrics>()`.
    pub size: u32,
    /// Stages this dump was planned to have.
    pub stages: u32,
    /// Which of them this file is, from 1. Smaller than `stages`: it was cut short.
    pub stage: u32,
    /// What the stage holds, one of [`crate::area::stage_kind`].
    pub stage_kind: u32,
    /// CPUs that compressed memory or wrote it so far, the one that crashed included;
    /// 0 in version 1.
    pub cpus_working: u32,
    /// Time-stamp counter rate in Hz, 0 when unknown.
    pub tsc_hz: u64,
    /// Time-stamp counter just before the crashing CPU jumped.
    pub jump_tsc: u64,
    /// Time-stamp counter when the capture image was entered.
    pub entered_tsc: u64,
    /// Time-stamp counter when the first byte was about to be written.
    pub write_begin_tsc: u64,
    /// Bytes this stage writes, header included.
    pub bytes_written: u64,
    /// Pages of memory it holds.
    pub pages: u64,
    /// High-water mark of the reserved region in bytes.
    pub region_bytes_used: u64,
    /// Stopped CPUs that waited to be called back to work; 0 in the first stage, which is sealed
    /// before anybody is called.
    pub cpus_waiting: u32,
    /// Those of them that had answered a call when the stage's memory was written.
    pub cpus_answered: u32,
    /// Time-stamp counter when the capture image ran in page tables of its own, what is never
    /// dumped written over; 0 in version 1, as the next two.
    pub settled_tsc: u64,
    /// Time-stamp counter when it was known which memory is dumped.
    pub planned_tsc: u64,
    /// Time-stamp counter when the disk that took the dump had been brought up.
    pub disk_tsc: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

const _: () = {
    assert!(size_of::<ExcludedRange>() == 24);
    assert!(size_of::<ZeroRange>() == 16);
    assert!(size_of::<Checksums>() == 64);
    assert!(core::mem::offset_of!(Checksums, own_crc32) == 12);
    assert!(core::mem::offset_of!(Checksums, sequence) == 40);
    assert!(size_of::<ChunkChecksum>() == 32);
    assert!(core::mem::offset_of!(ChunkChecksum, kind) == 24);
    assert!(size_of::<CaptureMetrics>() == 128);
    assert!(core::mem::offset_of!(CaptureMetrics, settled_tsc) == 88);
};

impl CaptureMetrics {
    /// A record with version and size, and zero everywhere else.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = <Self as zerocopy::FromZeros>::new_zeroed();
        metrics.version = CAPTURE_VERSION;
        metrics.size = size_of::<Self>() as u32;
        metrics
    }
}

impl Default for CaptureMetrics {
    fn default() -> Self {
        Self::new()
    }
}
