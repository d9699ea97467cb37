//! What is known, and sealed, before anything goes wrong.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::crash::OPEN_VERSION;
use crate::devices::{ConfigSpace, FrameMap, Framebuffer, Mailboxes, PowerFacts, WatchdogFacts};
use crate::trace::TraceRange;
use crate::{RecordError, crc32_with_hole};

/// First eight bytes of [`BootFacts`].
pub const FACTS_MAGIC: [u8; 8] = *b"EPIFACT\x01";
/// Version of the layout below, which is that of the hand-off. Version 1 ended before
/// [`BootFacts::pages`], version 2 before [`BootFacts::config_spaces`]; there is no 3 and no 4.
pub const FACTS_VERSION: u32 = 5;
/// Most bytes that facts of a later version may have.
pub const MAX_FACTS_BYTES: u32 = 12 << 10;
/// Bytes of version 1.
const VERSION_1_BYTES: usize = offset_of!(BootFacts, pages);
/// Bytes of version 2.
const VERSION_2_BYTES: usize = offset_of!(BootFacts, config_spaces);
/// Memory ranges the facts have room for.
pub const MAX_RANGES: usize = 128;
/// Segments of the appliance's ELF the facts have room for.
pub const MAX_SEGMENTS: usize = 8;
/// Ranges that are never dumped the facts have room for.
pub const MAX_NEVER_DUMP: usize = 16;
/// PCI segments the facts have room for.
pub const MAX_CONFIG_SPACES: usize = 16;
/// Virtual segments the facts have room for.
pub const MAX_VIRTUAL_SEGMENTS: usize = 16;
/// Bytes of the image's name, zero padded.
pub const IMAGE_NAME_BYTES: usize = 32;
/// Bytes of command line kept, zero padded.
pub const COMMAND_LINE_BYTES: usize = 1024;

/// Physical memory `[start, start + bytes)`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Range {
    /// Physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Range {
    /// The range from `start` to the byte before `end`.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, bytes: end.saturating_sub(start) }
    }

    /// First address behind the range; saturates.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }

    /// Whether `[start, start + bytes)` lies inside.
    #[must_use]
    pub const fn holds(&self, start: u64, bytes: u64) -> bool {
        match start.checked_add(bytes) {
            Some(end) => start >= self.start && end <= self.end(),
            None => false,
        }
    }

    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

record::open_enum! {
    /// Memory kinds in [`MemoryRange::kind`]; other values are legal and mean "not RAM".
    pub struct MemoryKind(u32) {
        /// Ordinary RAM: goes into the dump.
        RAM = 1, "ram";
        /// Firmware or device memory, never touched.
        RESERVED = 2, "reserved";
        /// ACPI tables (reclaimable).
        ACPI = 3, "acpi";
        /// ACPI non-volatile storage.
        ACPI_NVS = 4, "acpi-nvs";
        /// Reported bad by the firmware.
        BAD = 5, "bad";
    }
}

/// One entry of the firmware's memory map.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MemoryRange {
    /// Where.
    pub range: Range,
    /// One of [`MemoryKind`].
    pub kind: MemoryKind,
    /// Zero.
    pub reserved: u32,
}

/// One PT_LOAD of the appliance's ELF, as it lies in memory.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// Physical address in memory; [`BootFacts::virtual_segments`] has the virtual one.
    pub range: Range,
    /// Offset in the ELF file.
    pub file_offset: u64,
    /// Bytes in the file; the rest is `.bss`.
    pub file_bytes: u64,
    /// ELF `p_flags`: 1 execute, 2 write, 4 read.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Memory that the image runs from at a virtual address.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VirtualSegment {
    /// Virtual address of the first byte.
    pub virtual_start: u64,
    /// Physical address of the first byte.
    pub physical_start: u64,
    /// Length in bytes, whole pages.
    pub bytes: u64,
    /// ELF `p_flags`: 1 execute, 2 write, 4 read.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

record::open_enum! {
    /// Values of [`BootFacts::policy`]: what to do once the dump is sealed.
    pub struct Policy(u32) {
        /// Reset the machine.
        REBOOT = 0, "reboot";
        /// Switch it off.
        POWEROFF = 1, "poweroff";
        /// Stay halted, with the message on the console.
        HALT = 2, "halt";
    }
}

record::open_enum! {
    /// Values of [`BootFacts::pages`]: how far a dump was to go.
    pub struct DumpPages(u32) {
        /// Not said.
        UNSET = 0, "unset";
        /// What matters most.
        MINI = 1, "mini";
        /// What is in use.
        USED = 2, "used";
        /// Everything.
        ALL = 3, "all";
    }
}

record::open_enum! {
    /// Values of [`BootFacts::storing`]: how pages were to be stored.
    pub struct DumpStoring(u32) {
        /// Not said.
        UNSET = 0, "unset";
        /// As they are.
        RAW = 1, "raw";
        /// Compressed.
        LZ4 = 2, "lz4";
        /// Whichever is faster.
        AUTO = 3, "auto";
    }
}

/// Memory that goes into no dump, and is written over before any disk is touched.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NeverDump {
    /// Where; whole pages.
    pub range: Range,
    /// What it is for, zero padded.
    pub name: [u8; 16],
}

/// Everything the capture image needs that was known before the crash.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootFacts {
    /// [`FACTS_MAGIC`].
    pub magic: [u8; 8],
    /// [`FACTS_VERSION`].
    pub version: u32,
    /// `size_of::<BootFacts>()`.
    pub size: u32,
    /// CRC32 of the whole record with this field zero.
    pub crc32: u32,
    /// ELF `e_machine` of the appliance (62 for x86_64).
    pub machine: u32,
    /// The whole reserved region; in no dump.
    pub region: Range,
    /// The capture image as loaded, `.bss` included, before it relocates itself.
    pub image: Range,
    /// Where to jump.
    pub image_entry: u64,
    /// CRC32 of `image` as loaded.
    pub image_crc32: u32,
    /// One of [`Policy`].
    pub policy: Policy,
    /// Code, stacks and tables of parked CPUs; the capture image writes the
    /// [mailboxes](crate::devices::Mailbox) in it and nothing else.
    pub park: Range,
    /// Memory the capture image may use as it likes.
    pub scratch: Range,
    /// Physical address of the appliance's ELF header; 0 when it is not in memory.
    pub elf_header: u64,
    /// `e_entry` of the appliance's ELF file.
    pub elf_entry: u64,
    /// Program headers behind `elf_header`.
    pub elf_program_headers: u32,
    /// Bytes of `build_id` in use.
    pub build_id_bytes: u32,
    /// GNU build-id of the appliance.
    pub build_id: [u8; 32],
    /// Time-stamp counter rate in Hz; 0 when it could not be calibrated.
    pub tsc_hz: u64,
    /// Unix time of the boot in seconds; 0 when unknown.
    pub boot_unix_time: u64,
    /// Time-stamp counter at `boot_unix_time`.
    pub boot_tsc: u64,
    /// Physical address of the RSDP, 0 when there is none.
    pub rsdp: u64,
    /// I/O port of the console UART, 0 for none.
    pub serial_port: u32,
    /// CPUs found (the appliance may still be starting them).
    pub cpu_count: u32,
    /// How to reset and switch off.
    pub power: PowerFacts,
    /// Stop extending the dump after so many ms; 0 for no deadline.
    pub dump_deadline_ms: u64,
    /// Zero.
    pub reserved: [u64; 8],
    /// Entries of `memory` in use.
    pub memory_count: u32,
    /// Entries of `segments` in use.
    pub segment_count: u32,
    /// The memory map, sorted by address, without overlaps.
    pub memory: [MemoryRange; MAX_RANGES],
    /// The appliance's PT_LOADs, without the reserved region's.
    pub segments: [Segment; MAX_SEGMENTS],
    /// The kernel command line, zero padded.
    pub command_line: [u8; COMMAND_LINE_BYTES],
    /// One of [`DumpPages`].
    pub pages: DumpPages,
    /// One of [`DumpStoring`].
    pub storing: DumpStoring,
    /// Beyond so many crashes within `crash_loop_minutes` there are last words only; 0 for
    /// no limit.
    pub crash_loop: u32,
    /// See `crash_loop`.
    pub crash_loop_minutes: u32,
    /// Which frames are in use.
    pub frames: FrameMap,
    /// The flight recorder's rings.
    pub trace: TraceRange,
    /// How to call parked CPUs back.
    pub mailboxes: Mailboxes,
    /// A screen.
    pub framebuffer: Framebuffer,
    /// A hardware watchdog.
    pub watchdog: WatchdogFacts,
    /// Version 2: PCI configuration space in memory, of segment 0. Zero from version 5 on,
    /// which has `config_spaces`.
    pub config_space: ConfigSpace,
    /// I/O port of QEMU's pvpanic device, 0 for none.
    pub pvpanic_port: u32,
    /// Entries of `never_dump` in use.
    pub never_dump_count: u32,
    /// Zero.
    pub reserved_tail: [u64; 24],
    /// Memory that goes into no dump.
    pub never_dump: [NeverDump; MAX_NEVER_DUMP],
    /// PCI configuration space in memory, a part of a segment each. Segment 0 is reached by
    /// I/O ports when it is not among them.
    pub config_spaces: [ConfigSpace; MAX_CONFIG_SPACES],
    /// Entries of `config_spaces` in use.
    pub config_space_count: u32,
    /// Entries of `virtual_segments` in use.
    pub virtual_segment_count: u32,
    /// The image's segments by virtual address, and a linear map of other memory where there is
    /// one, in the order of their physical addresses, without overlaps. Memory outside
    /// of them has its physical address.
    pub virtual_segments: [VirtualSegment; MAX_VIRTUAL_SEGMENTS],
    /// Name of the image's file without a folder, UTF-8, zero padded.
    pub image_name: [u8; IMAGE_NAME_BYTES],
    /// Root buses of PCI segment 0 beside its first bus, which no bridge leads to: bit n of
    /// word n / 64 for bus n.
    pub root_buses: [u64; 4],
    /// Zero.
    pub reserved_end: [u64; 34],
}

const _: () = {
    assert!(size_of::<MemoryRange>() == 24);
    assert!(size_of::<Segment>() == 40);
    assert!(offset_of!(BootFacts, region) == 24);
    assert!(offset_of!(BootFacts, image_entry) == 56);
    assert!(offset_of!(BootFacts, build_id) == 128);
    assert!(offset_of!(BootFacts, memory_count) == 304);
    assert!(offset_of!(BootFacts, memory) == 312);
    assert!(offset_of!(BootFacts, pages) == 312 + 128 * 24 + 8 * 40 + 1024);
    assert!(size_of::<NeverDump>() == 32);
    assert!(offset_of!(BootFacts, never_dump_count) == VERSION_1_BYTES + 140);
    assert!(offset_of!(BootFacts, never_dump) == VERSION_1_BYTES + 336);
    assert!(VERSION_2_BYTES == VERSION_1_BYTES + 336 + 16 * 32);
    assert!(size_of::<VirtualSegment>() == 32);
    assert!(offset_of!(BootFacts, virtual_segments) == VERSION_2_BYTES + 264);
    assert!(offset_of!(BootFacts, image_name) == VERSION_2_BYTES + 776);
    assert!(offset_of!(BootFacts, root_buses) == VERSION_2_BYTES + 808);
    assert!(size_of::<BootFacts>() == VERSION_2_BYTES + 856 + 256);
    assert!(size_of::<BootFacts>() <= MAX_FACTS_BYTES as usize);
};

impl BootFacts {
    /// An empty record: to be filled and then [sealed](Self::seal).
    #[must_use]
    pub fn new() -> Self {
        let mut facts = <Self as zerocopy::FromZeros>::new_zeroed();
        facts.magic = FACTS_MAGIC;
        facts.version = FACTS_VERSION;
        facts.size = size_of::<Self>() as u32;
        facts
    }

    /// Writes the checksum over what stands in the record now.
    pub fn seal(&mut self) {
        self.crc32 = crc32_with_hole(self.as_bytes(), offset_of!(Self, crc32));
    }

    /// Returns how many bytes the record has that begins with `head`, which holds at least its
    /// first 16 bytes; `None` when that is no length of a record this build knows how to read.
    #[must_use]
    pub fn length(head: &[u8]) -> Option<usize> {
        crate::length(head, FACTS_MAGIC, size_of::<Self>(), MAX_FACTS_BYTES)
    }

    /// Checks `bytes` and views them as the record, of version 5 or any later one.
    ///
    /// # Errors
    /// Says what is wrong; nothing of the record may then be believed.
    pub fn check(bytes: &[u8]) -> Result<&Self, RecordError> {
        let known = bytes.get(..size_of::<Self>()).ok_or(RecordError::TooShort)?;
        let facts = Self::ref_from_bytes(known).map_err(|_| RecordError::Misaligned)?;
        if facts.magic != FACTS_MAGIC {
            return Err(RecordError::Magic);
        }
        if facts.version < OPEN_VERSION {
            return Err(RecordError::Version(facts.version));
        }
        let size = Self::length(bytes).ok_or(RecordError::Size)?;
        facts.check_sealed(bytes.get(..size).ok_or(RecordError::TooShort)?)
    }

    /// A copy of a record of this version or an older one, for readers of dumps. What an
    /// older one did not have is zero in it, but for the configuration space, which stands
    /// where the newer ones have it; `version` and `size` say what it was.
    ///
    /// # Errors
    /// As [`BootFacts::check`].
    pub fn lift(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut facts = Self::new();
        let start = bytes.get(..VERSION_1_BYTES).ok_or(RecordError::TooShort)?;
        crate::copy(facts.as_mut_bytes(), start);
        if facts.magic != FACTS_MAGIC {
            return Err(RecordError::Magic);
        }
        let size = match facts.version {
            1 => VERSION_1_BYTES,
            2 => VERSION_2_BYTES,
            FACTS_VERSION => size_of::<Self>(),
            other => return Err(RecordError::Version(other)),
        };
        let bytes = bytes.get(..size).ok_or(RecordError::TooShort)?;
        crate::copy(facts.as_mut_bytes(), bytes);
        facts.check_sealed(bytes)?;
        if facts.version < FACTS_VERSION && facts.config_space.address != 0 {
            (facts.config_spaces[0], facts.config_space_count) = (facts.config_space, 1);
        }
        Ok(facts)
    }

    /// Checks what the version leaves to check; `bytes` are the record's own.
    fn check_sealed(&self, bytes: &[u8]) -> Result<&Self, RecordError> {
        if self.size as usize != bytes.len() {
            return Err(RecordError::Size);
        }
        let computed = crc32_with_hole(bytes, offset_of!(Self, crc32));
        if self.crc32 != computed {
            return Err(RecordError::Checksum(self.crc32, computed));
        }
        let inside = |part: &Range| part.bytes == 0 || self.region.holds(part.start, part.bytes);
        if self.memory_count as usize > MAX_RANGES
            || self.segment_count as usize > MAX_SEGMENTS
            || self.never_dump_count as usize > MAX_NEVER_DUMP
            || self.config_space_count as usize > MAX_CONFIG_SPACES
            || self.virtual_segment_count as usize > MAX_VIRTUAL_SEGMENTS
            || self.build_id_bytes as usize > self.build_id.len()
            || !inside(&self.image)
            || !inside(&self.park)
            || !inside(&self.scratch)
        {
            return Err(RecordError::Bounds);
        }
        Ok(self)
    }

    /// The memory map in use.
    #[must_use]
    pub fn memory(&self) -> &[MemoryRange] {
        &self.memory[..(self.memory_count as usize).min(MAX_RANGES)]
    }

    /// The appliance's segments in use.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..(self.segment_count as usize).min(MAX_SEGMENTS)]
    }

    /// The ranges that go into no dump.
    #[must_use]
    pub fn never_dump(&self) -> &[NeverDump] {
        &self.never_dump[..(self.never_dump_count as usize).min(MAX_NEVER_DUMP)]
    }

    /// Returns PCI configuration space in memory, by its parts.
    #[must_use]
    pub fn config_spaces(&self) -> &[ConfigSpace] {
        self.config_spaces.get(..self.config_space_count as usize).unwrap_or_default()
    }

    /// Returns the image's segments by virtual address.
    #[must_use]
    pub fn virtual_segments(&self) -> &[VirtualSegment] {
        self.virtual_segments.get(..self.virtual_segment_count as usize).unwrap_or_default()
    }

    /// Returns the name of the image's file; empty when it is not known.
    #[must_use]
    pub fn image_name(&self) -> &str {
        crate::crash::text(&self.image_name)
    }

    /// The build-id's bytes.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id[..(self.build_id_bytes as usize).min(self.build_id.len())]
    }

    /// The command line up to its padding; what is not UTF-8 is cut off.
    #[must_use]
    pub fn command_line(&self) -> &str {
        crate::crash::text(&self.command_line)
    }
}

impl Default for BootFacts {
    fn default() -> Self {
        Self::new()
    }
}
