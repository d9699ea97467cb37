//! A crash as the engine sees it, whatever system has crashed.
//!
//! A receiver ([`crate::input`]) checks what it was given and fills a [`Crash`] in. Planning and
//! writing know nothing else: no record format, no kernel. An appliance is described in
//! `input/appliance.rs`; an ELF core header of another kernel in the tests
//! (`tests/foreign.rs`).
//!
//! Addresses are those of the crashed system. Where the bytes of an address are read is a
//! separate statement ([`MemoryRange::source`]): a system may have copied memory away before
//! the engine runs, for example the low megabyte that a boot protocol needs.

use addrspace::{AArch64, AddressSpace, X86, x86};
pub use handoff::Range;
use vmcore_format::notes::excluded_reason;

use crate::dump_options::DumpOptions;
use crate::stage;
use crate::stream::{Memory, Moving};

/// Most memory ranges of a crash.
pub const MAX_RANGES: usize = 128;
/// Most ranges that are withheld from every dump.
pub const MAX_WITHHELD: usize = 32;
/// Most virtual segments of a crash.
pub const MAX_VIRTUAL_SEGMENTS: usize = 16;

/// Everything that planning and writing a dump take from the crashed system.
#[derive(Clone, Copy)]
pub struct Crash<'a> {
    /// ELF `e_machine` of the dump, for example 62 for x86-64.
    pub machine: u16,
    /// Cause of the crash.
    pub cause: Cause<'a>,
    /// Crashed program; `None` when nothing is known of it.
    pub image: Option<Image<'a>>,
    /// CPUs of the machine.
    pub cpus: &'a dyn Cpus,
    /// Memory map by address, without overlaps; at most [`MAX_RANGES`].
    pub memory: &'a [MemoryRange],
    /// Ranges that are in no dump; at most [`MAX_WITHHELD`], in any order.
    pub withheld: &'a [Withheld],
    /// Virtual addresses of parts of physical memory; at most [`MAX_VIRTUAL_SEGMENTS`], by
    /// physical address, without overlaps.
    pub virtual_segments: &'a [VirtualSegment],
    /// Memory outside of `virtual_segments` has its physical address as virtual address.
    pub identity: bool,
    /// Ranges for the first stage beside stacks, registers' targets and page tables.
    pub mini: &'a [Range],
    /// Bitmap of the pages in use; `None` when there is none.
    pub used: Option<UsedBitmap>,
    /// Notes that go into the dump as they are, in this order.
    pub notes: &'a [Note<'a>],
    /// Memory that a device may change while it is dumped. A CPU that may still run
    /// ([`Stop::MayRun`]) may change all of it.
    pub moving: Moving<'a>,
    /// Extent and form of the dump.
    pub options: DumpOptions,
    /// Times of the crash.
    pub time: Time,
}

/// Cause of a crash.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    /// Kind for the record of the slot, one of `handoff::crash::CauseKind`; 0 when unknown.
    pub kind: u32,
    /// Index of the CPU that crashed.
    pub cpu: u32,
    /// Signal that debuggers show, the same for every CPU.
    pub signal: u16,
    /// Address of the fault; 0 for none.
    pub address: u64,
    /// The cause in one line.
    pub line: &'a str,
}

/// Crashed program, as its ELF file describes it.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Name of the file without a folder; empty when unknown.
    pub name: &'a str,
    /// GNU build-id; empty when unknown.
    pub build_id: &'a [u8],
    /// Physical address of the ELF header; memory is cut there, so that a debugger finds the
    /// image at the start of a segment.
    pub elf_header: u64,
    /// Program headers behind the ELF header.
    pub program_headers: u32,
    /// Entry point.
    pub entry: u64,
    /// Segments in memory.
    pub segments: &'a [ImageSegment],
}

/// Segment of the crashed program.
#[derive(Clone, Copy, Debug)]
pub struct ImageSegment {
    /// Physical memory of the segment.
    pub range: Range,
    /// Offset in the ELF file.
    pub file_offset: u64,
}

/// Entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Physical addresses that the bytes belong to.
    pub range: Range,
    /// Physical address at which the first byte is read; that of `range` unless the system
    /// has copied the memory elsewhere.
    pub source: u64,
    /// Class of the memory.
    pub class: MemoryClass,
}

/// Class of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryClass {
    /// RAM: dumped, unless it is withheld.
    Ram,
    /// Tables of the firmware.
    Firmware,
    /// Memory that the firmware reports as bad.
    Bad,
    /// Anything else, for example devices.
    NotRam,
}

impl MemoryClass {
    /// Returns the reason why memory of this class is in no dump, one of [`excluded_reason`].
    #[must_use]
    pub const fn excluded(self) -> u64 {
        match self {
            Self::Firmware => excluded_reason::FIRMWARE,
            Self::Bad => excluded_reason::BAD,
            Self::Ram | Self::NotRam => excluded_reason::NOT_RAM,
        }
    }
}

/// Memory that must be in no dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// The memory; rounded outwards to whole pages.
    pub range: Range,
    /// Reason, one of [`excluded_reason`].
    pub reason: u64,
}

/// Physical memory with a virtual address. A segment that is not whole pages is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualSegment {
    /// Virtual address of the first byte.
    pub virtual_start: u64,
    /// Physical memory.
    pub range: Range,
}

/// Bitmap of the pages in use, 64 pages to a little-endian word.
///
/// Bit 0 is the first whole page of the first RAM entry of the memory map; the bits go on
/// through all RAM entries in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedBitmap {
    /// Physical address of the first word.
    pub address: u64,
    /// Bits that mean something. Pages behind them count as in use.
    pub pages: u64,
}

/// Note that is copied into the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    /// Owner ("name" in ELF), without the zero at its end.
    pub owner: &'a str,
    /// Type.
    pub kind: u32,
    /// Descriptor.
    pub bytes: &'a [u8],
}

/// Times of a crash, in ticks of the time-stamp counter but for the date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Time of the crash; 0 when unknown.
    pub crash_tsc: u64,
    /// Time of the jump into the capture image.
    pub jump_tsc: u64,
    /// Date of the crash in seconds of Unix time; 0 when unknown.
    pub unix_time: u64,
    /// Ticks per second; 0 when unknown.
    pub tsc_hz: u64,
}

/// Words of the crashed memory, by the addresses where they are read.
pub trait MemoryWords {
    /// Returns the word at `address`, a multiple of 8, as it is at this moment; `None` when it is
    /// no memory.
    fn word(&self, address: u64) -> Option<u64>;

    /// Calls `each` with the words of the page at `page`, as they are at this moment; not at
    /// all when it is no memory.
    fn words(&self, page: u64, each: &mut dyn FnMut(u64));
}

/// List of the CPUs. A trait, since there may be hundreds with half a KiB of registers each.
pub trait Cpus: Sync {
    /// Returns how many CPUs there are. Each is a thread of the dump, unless
    /// [`Cpus::get`] says that it never ran.
    fn count(&self) -> usize;

    /// Returns CPU number `number` of the list; `None` when nothing is known of it but that
    /// it exists.
    fn get(&self, number: usize) -> Option<Cpu>;
}

/// State of a CPU when it was stopped.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Index of the CPU, unique in the dump.
    pub index: u32,
    /// Number by which the hardware knows the CPU; `u64::MAX` when unknown.
    pub hardware_id: u64,
    /// Way in which it was stopped.
    pub stop: Stop,
    /// Origin of the registers.
    pub origin: Origin,
    /// Registers.
    pub registers: Registers,
    /// Virtual addresses of the stack that the CPU was given; empty when unknown.
    pub stack: Range,
}

/// Way in which a CPU was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No program ever ran there.
    NeverRan,
    /// The CPU crashed.
    Crashed,
    /// The CPU was stopped, or stopped itself.
    Stopped,
    /// Nothing has stopped the CPU: it may still be running.
    MayRun,
}

/// Origin of the registers of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There are none.
    Nowhere,
    /// They are those of the stop: taken from an interrupt's frame, or by the CPU itself.
    Stop,
    /// They are those of an earlier moment, after which the CPU went on.
    Earlier,
}

/// Registers of a CPU, by architecture.
#[derive(Clone, Copy, Debug)]
pub enum Registers {
    /// x86-64.
    X86 {
        /// General registers in the order of Linux's `user_regs_struct`.
        general: [u64; 27],
        /// Control registers; `None` when they are not known.
        control: Option<X86Control>,
    },
    /// AArch64.
    AArch64 {
        /// x0 to x30, SP, PC and PSTATE.
        general: [u64; 34],
        /// System registers of EL1; `None` when they are not known.
        control: Option<AArch64Control>,
    },
    /// Another architecture, by its ELF `e_machine`.
    Unknown(u32),
}

/// Control registers of an x86-64 CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the registers they are named after")]
pub struct X86Control {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt_base: u64,
    pub idt_base: u64,
}

/// System registers of an AArch64 CPU, those of EL1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the registers they are named after")]
pub struct AArch64Control {
    pub sctlr: u64,
    pub tcr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub id_aa64mmfr0: u64,
}

impl Registers {
    /// Returns stack pointer and frame pointer.
    #[must_use]
    pub const fn stack_pointers(&self) -> Option<[u64; 2]> {
        match self {
            Self::X86 { general, .. } => Some([general[19], general[4]]),
            Self::AArch64 { general, .. } => Some([general[31], general[29]]),
            Self::Unknown(_) => None,
        }
    }

    /// Returns the address space that the registers select; `None` when they are not known or
    /// select one that is not supported.
    #[must_use]
    pub fn space(&self) -> Option<AddressSpace> {
        match *self {
            Self::X86 { control: Some(X86Control { cr0, cr3, cr4, efer, .. }), .. } => {
                X86::from_registers(cr0, cr3, cr4, efer, x86::Limits::default()).ok()
            }
            Self::AArch64 { control: Some(control), .. } => {
                let AArch64Control { sctlr, tcr, ttbr0, ttbr1, id_aa64mmfr0 } = control;
                AArch64::from_registers(ttbr0, ttbr1, tcr, sctlr, id_aa64mmfr0).ok()
            }
            _ => None,
        }
    }
}

impl<'a> Crash<'a> {
    /// Returns the stages of the dump in their order, each one of
    /// [`stage_kind`](vmcore_format::area::stage_kind).
    #[must_use]
    pub const fn stages(&self) -> &'static [u32] {
        stage::planned(self.options.pages)
    }

    /// Returns how many CPUs there are.
    #[must_use]
    pub fn cpu_count(&self) -> usize {
        self.cpus.count()
    }

    /// Returns the CPU with this index. The list is in the order of the indices, unless it is
    /// damaged: then all of it is searched.
    #[must_use]
    pub fn cpu(&self, index: u32) -> Option<Cpu> {
        let direct = self.cpus.get(index as usize)?;
        if direct.index == index {
            return Some(direct);
        }
        self.known_cpus().find(|cpu| cpu.index == index)
    }

    /// Returns each CPU of which something is known.
    pub fn known_cpus(&self) -> impl Iterator<Item = Cpu> {
        let cpus = self.cpus;
        (0..self.cpu_count()).map_while(move |number| cpus.get(number))
    }

    /// Returns the memory that may change while it is dumped.
    #[must_use]
    pub fn moves(&self) -> Moving<'a> {
        let all = self.moving.all || self.known_cpus().any(|cpu| cpu.stop == Stop::MayRun);
        Moving { all, ranges: self.moving.ranges }
    }

    /// Returns the ranges of RAM.
    pub fn ram(&self) -> impl Iterator<Item = &MemoryRange> {
        self.memory.iter().filter(|entry| entry.class == MemoryClass::Ram)
    }

    /// Returns true if `range` lies in one range of RAM.
    #[must_use]
    pub fn is_ram(&self, range: Range) -> bool {
        self.ram().any(|entry| entry.range.holds(range.start, range.bytes))
    }

    /// Returns true if one byte of `range` is in no dump.
    #[must_use]
    pub fn is_withheld(&self, range: Range) -> bool {
        self.withheld.iter().any(|withheld| withheld.range.overlaps(&range))
    }

    /// Returns where memory is read: where it lies unless the map says otherwise.
    #[must_use]
    pub const fn sources(&self) -> Sources<'a> {
        Sources { ranges: self.memory }
    }
}

/// Translation of an address into the address where its bytes are read.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    ranges: &'a [MemoryRange],
}

impl Sources<'_> {
    /// Returns where the bytes of `range` are read: as many as are in the entry of the map that
    /// its first byte is in. What is in no entry is read where it lies.
    #[must_use]
    pub fn find(&self, range: Range) -> Range {
        let holds = |entry: &&MemoryRange| entry.range.holds(range.start, 1);
        let Some(entry) = self.ranges.iter().find(holds) else { return range };
        let offset = range.start - entry.range.start;
        Range {
            start: entry.source.saturating_add(offset),
            bytes: range.bytes.min(entry.range.bytes - offset),
        }
    }
}

/// Memory that is read where the map says.
pub struct SourcedMemory<M> {
    memory: M,
    sources: Sources<'static>,
}

impl<M: Memory> SourcedMemory<M> {
    /// Returns `memory`, which is asked for the addresses where bytes are read, by the addresses
    /// that the bytes belong to.
    pub const fn new(memory: M, sources: Sources<'static>) -> Self {
        Self { memory, sources }
    }
}

impl<M: Memory> Memory for SourcedMemory<M> {
    fn readable(&self, range: Range) -> u64 {
        self.memory.readable(self.sources.find(range))
    }

    fn unreadable(&self, range: Range) -> u64 {
        self.memory.unreadable(self.sources.find(range))
    }

    fn bytes(&self, range: Range) -> &[u8] {
        self.memory.bytes(self.sources.find(range))
    }
}
