//! A crash of another kernel, as an ELF core header in its memory describes it, written by the
//! engine and read back by a reader that is not ours.
//!
//! The header is like the one that Linux leaves for a crash kernel: a PT_NOTE for each CPU and
//! one for VMCOREINFO, whose `p_offset` is a physical address; PT_LOADs whose bytes lie at
//! `p_offset` and belong to `p_paddr`, of which the low memory was copied away and the kernel's
//! text lies in another one. Nothing here is of an appliance: the test reads the header by hand.

use std::fmt;
use std::rc::Rc;

use capture_engine::chunk_sizes::ChunkSizes;
use capture_engine::crash::{
    Cause, Cpu, Cpus, Crash, MemoryClass, MemoryRange, MemoryWords, Note, Origin, Range, Registers,
    SourcedMemory, Stop, Time, VirtualSegment,
};
use capture_engine::dump_options::DumpOptions;
use capture_engine::host::Host;
use capture_engine::lanes::{Lane, Lanes};
use capture_engine::ledger::Ledger;
use capture_engine::plan::Plan;
use capture_engine::rate::StageProgress;
use capture_engine::stage::{MAX_EXCLUDED, Writer};
use capture_engine::stream::{Counts, Lists, Memory, Moving, Piece, Stream};
use capture_engine::{mini, notes};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use goblin::elf::{Elf, ProgramHeader};
use storage::area::{choose_place, find_area};
use storage::fake::FakeDisk;
use vmcore_format::area::{
    AreaHeader, ChunkEntry, MAX_CHUNK_BYTES, SlotOpen, StageSeal, chunk_kind, stage_kind,
};
use vmcore_format::notes::{CaptureMetrics, ExcludedRange};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;
/// Memory of the machine: 16 MiB from address 0.
const BYTES: u64 = 16 << 20;
/// The memory that belongs to the crash kernel, and in it the header and the copy of the low
/// memory.
const REGION: Range = Range { start: 0xe0_0000, bytes: 0x20_0000 };
const HEADER_AT: u64 = 0xf0_0000;
const BACKUP_AT: u64 = 0xe8_0000;
/// Low memory, whose bytes lie at `BACKUP_AT`.
const LOW: Range = Range { start: 0x1000, bytes: 0x9_e000 };
/// Text of the kernel, and where it is mapped.
const TEXT: Range = Range { start: 0x20_0000, bytes: 0x10_0000 };
const TEXT_VIRTUAL: u64 = 0xffff_ffff_8100_0000;
/// The other memory; all of it is in the direct map.
const HIGH: Range = Range { start: 0x10_0000, bytes: 0xd0_0000 };
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Stack pointers of two CPUs: in memory that is read where it lies, and in the copied memory.
const TOPS: [u64; 2] = [DIRECT_MAP + 0x81_2340, DIRECT_MAP + 0x5_0ff8];
/// Where the notes lie.
const STATUS_AT: [u64; 3] = [0x30_0000, 0x30_1000, 0x30_2000];
const INFO_AT: u64 = 0x30_3000;
const INFO: &[u8] = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nCRASHTIME=1700000000\n";

/// Physical memory.
struct Ram(Rc<Vec<u64>>);

impl Ram {
    fn range(&self, range: Range) -> &[u8] {
        &self.0.as_bytes()[range.start as usize..][..range.bytes as usize]
    }
}

impl Memory for Ram {
    fn readable(&self, range: Range) -> u64 {
        BYTES.saturating_sub(range.start).min(range.bytes)
    }

    fn bytes(&self, range: Range) -> &[u8] {
        self.range(range)
    }
}

impl MemoryWords for Ram {
    fn word(&self, address: u64) -> Option<u64> {
        self.0.get((address / 8) as usize).copied()
    }

    fn words(&self, page: u64, each: &mut dyn FnMut(u64)) {
        let words = self.0.get((page / 8) as usize..).unwrap_or_default();
        words.iter().take(512).copied().for_each(each);
    }
}

struct Clock;

impl Host for Clock {
    fn tsc(&self) -> u64 {
        5000
    }

    fn ns(&self, ticks: u64) -> u64 {
        ticks
    }

    fn say(&self, _: fmt::Arguments<'_>) {}

    fn progress(&self, _: u64, _: u64) {}

    fn helpers(&self) -> (u32, u32) {
        (0, 0)
    }

    fn running_ns(&self) -> u64 {
        0
    }
}

fn note(owner: &str, kind: u32, desc: &[u8]) -> Vec<u8> {
    let sizes = [owner.len() as u32 + 1, desc.len() as u32, kind];
    let mut bytes = sizes.map(u32::to_le_bytes).concat();
    for part in [[owner.as_bytes(), &[0]].concat(), desc.to_vec()] {
        bytes.extend(&part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// `struct elf_prstatus` of x86-64: the registers stand from byte 112 on, the stack pointer is
/// word 19, the instruction pointer word 16.
fn status(cpu: u64) -> Vec<u8> {
    let mut words = [0u64; 42];
    for (index, word) in words[14..41].iter_mut().enumerate() {
        *word = cpu << 32 | index as u64;
    }
    (words[14 + 19], words[14 + 4]) = (TOPS[cpu as usize], TOPS[cpu as usize] + 0x40);
    words.as_bytes().to_vec()
}

fn program_header(kind: u32, offset: u64, virtual_address: u64, range: Range) -> Vec<u8> {
    let mut bytes = [kind, 7].map(u32::to_le_bytes).concat();
    let words = [offset, virtual_address, range.start, range.bytes, range.bytes, 0];
    bytes.extend(words.map(u64::to_le_bytes).concat());
    bytes
}

/// Memory that is full of patterns, with the notes and the header in it.
fn machine() -> Ram {
    let mut words: Vec<u64> =
        (0..BYTES / 8).map(|index| (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let mut put = |at: u64, bytes: &[u8]| {
        words.as_mut_bytes()[at as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    let mut headers = Vec::new();
    // The third CPU was online and left nothing.
    let statuses = [note("CORE", 1, &status(0)), note("CORE", 1, &status(1)), vec![0; 356]];
    for (at, bytes) in STATUS_AT.into_iter().zip(&statuses) {
        put(at, bytes);
        let range = Range { start: at, bytes: bytes.len() as u64 };
        headers.push(program_header(PT_NOTE, at, 0, range));
    }
    let info = note("VMCOREINFO", 0, INFO);
    put(INFO_AT, &info);
    let range = Range { start: INFO_AT, bytes: info.len() as u64 };
    headers.push(program_header(PT_NOTE, INFO_AT, 0, range));
    headers.push(program_header(PT_LOAD, TEXT.start, TEXT_VIRTUAL, TEXT));
    headers.push(program_header(PT_LOAD, BACKUP_AT, DIRECT_MAP + LOW.start, LOW));
    headers.push(program_header(PT_LOAD, HIGH.start, DIRECT_MAP + HIGH.start, HIGH));
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0\x01\0\0\0".to_vec();
    header.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
    header.extend([0, 0, 64, 56, headers.len() as u16, 0, 0, 0].map(u16::to_le_bytes).concat());
    header.extend(headers.concat());
    put(HEADER_AT, &header);
    Ram(Rc::new(words))
}

/// Everything that the header says, in lists of its own.
#[derive(Default)]
struct Source {
    memory: Vec<MemoryRange>,
    segments: Vec<VirtualSegment>,
    cpus: Vec<Cpu>,
    notes: Vec<Note<'static>>,
}

impl Cpus for Source {
    fn count(&self) -> usize {
        self.cpus.len()
    }

    fn get(&self, number: usize) -> Option<Cpu> {
        self.cpus.get(number).copied()
    }
}

/// Reads the header at `HEADER_AT`. A CPU without a note was not stopped when it was `online`.
fn read(ram: &'static Ram, online: bool) -> Source {
    let header = ram.range(Range { start: HEADER_AT, bytes: PAGE });
    let word = |bytes: &[u8], at: usize| u64::read_from_prefix(&bytes[at..]).unwrap().0;
    let count = u16::from_le_bytes(header[56..58].try_into().unwrap());
    let mut source = Source::default();
    for header in header[64..].chunks(56).take(count.into()) {
        let kind = u32::read_from_prefix(header).unwrap().0;
        let [offset, virtual_start] = [word(header, 8), word(header, 16)];
        let range = Range { start: word(header, 24), bytes: word(header, 32) };
        if kind == PT_LOAD {
            source.segments.push(VirtualSegment { virtual_start, range });
            let class = MemoryClass::Ram;
            source.memory.push(MemoryRange { range, source: offset, class });
            continue;
        }
        let bytes = ram.range(Range { start: offset, bytes: range.bytes });
        let owner_bytes = u32::read_from_prefix(bytes).unwrap().0 as usize;
        let desc = &bytes[12 + owner_bytes.next_multiple_of(4)..];
        if owner_bytes == "VMCOREINFO".len() + 1 {
            let bytes = &desc[..INFO.len()];
            source.notes.push(Note { owner: "VMCOREINFO", kind: 0, bytes });
            continue;
        }
        let known = owner_bytes > 0;
        let general = std::array::from_fn(|index| word(desc, 112 + index * 8));
        source.cpus.push(Cpu {
            index: source.cpus.len() as u32,
            hardware_id: u64::MAX,
            stop: match known {
                true => Stop::Stopped,
                false if online => Stop::MayRun,
                false => Stop::NeverRan,
            },
            origin: if known { Origin::Stop } else { Origin::Nowhere },
            registers: Registers::X86 { general, control: None },
            stack: Range::default(),
        });
    }
    // The text lies in the memory behind it as well: once as RAM, by two addresses.
    let text = source.memory.remove(0);
    assert_eq!((text.range, text.source), (TEXT, TEXT.start));
    let [text, low, high] = source.segments[..] else { panic!() };
    let part = |start, end| VirtualSegment {
        virtual_start: high.virtual_start + (start - high.range.start),
        range: Range::between(start, end),
    };
    let before = part(HIGH.start, TEXT.start);
    source.segments = vec![low, before, text, part(TEXT.end(), HIGH.end())];
    source
}

/// Describes the crash that the header is about.
fn describe(source: &'static Source) -> Crash<'static> {
    Crash {
        machine: 62,
        cause: Cause { kind: 0, cpu: 1, signal: 6, address: 0, line: "kernel panic on CPU 1" },
        image: None,
        cpus: source,
        memory: &source.memory,
        withheld: &[],
        virtual_segments: &source.segments,
        identity: false,
        mini: &[],
        used: None,
        notes: &source.notes,
        moving: Moving::default(),
        options: DumpOptions::read(""),
        time: Time { crash_tsc: 1000, jump_tsc: 2000, unix_time: 1_700_000_000, tsc_hz: 0 },
    }
}

/// A stage as a reader of the disk finds it.
struct Stage {
    file: Vec<u8>,
    chunks: Vec<ChunkEntry>,
}

/// Writes the dump of `crash` and returns its stages.
fn write(ram: &'static Ram, crash: &Crash<'static>) -> (Vec<Stage>, SlotOpen) {
    let plan = Box::leak(Box::new(Plan::empty()));
    plan.fill(crash).unwrap();
    mini::add(&mut plan.extents, crash, ram);
    let plan: &'static Plan = plan;
    let mut disk = FakeDisk::prepared(1);
    disk.memory.push(Rc::clone(&ram.0));
    let area = find_area(&mut disk).unwrap().header;
    let place = choose_place(&mut disk, &area, false, &mut |_| ()).unwrap();
    let open = place.open(&mut disk, SlotOpen { stages: 2, ..SlotOpen::new() }).unwrap();
    let sizes = ChunkSizes::new(BYTES, false, u64::MAX);
    let mut chunks = vec![ChunkEntry::default(); sizes.chunks as usize];
    let mut pieces = vec![Piece::default(); 512];
    let mut excluded = vec![ExcludedRange::default(); MAX_EXCLUDED];
    let mut header = vec![0; notes::bytes_needed(crash, pieces.len(), MAX_EXCLUDED) as usize];
    let mut still = [(); 2].map(|()| vec![0; MAX_CHUNK_BYTES as usize]);
    let ledger = Ledger::new();
    let stream = Stream {
        lanes: Lanes::new(Lane::new(&mut disk, place, open), None),
        host: &Clock,
        memory: Box::leak(Box::new(SourcedMemory::new(Ram(Rc::clone(&ram.0)), crash.sources()))),
        deadline_ns: u64::MAX,
        chunk_bytes: sizes.raw_bytes,
        ledger: &ledger,
        lists: Lists { chunks: &mut chunks, pieces: &mut pieces },
        chunk_count: 0,
        piece_count: 0,
        counts: Counts::default(),
        total: plan.extents.bytes(),
        finished: 0,
        progress: StageProgress::new(BYTES, 0),
        crew: None,
        pack_bytes: sizes.packed_bytes,
        sharing: false,
        promised: 0,
        packed_ns: 0,
        moving: crash.moves(),
        still: crash.moves().all.then(|| still.each_mut().map(|buffer| &mut buffer[..])),
        auto: None,
        loss_told: false,
        budget_told: false,
        holes: Default::default(),
    };
    let mut writer = Writer {
        crash,
        plan,
        used: None,
        stream,
        excluded: &mut excluded,
        excluded_count: 0,
        header: &mut header,
        metrics: CaptureMetrics::new(),
        region_bytes_used: 0,
    };
    for (index, &kind) in (0..).zip(crash.stages()) {
        let outcome = writer.stage(index, kind).unwrap();
        assert_eq!((outcome.seal.complete, outcome.end), (1, None));
    }
    let slot = &disk.bytes[place.offset() as usize..];
    let stages = (0..crash.stages().len()).map(|index| {
        let area = AreaHeader::check(&disk.bytes).unwrap();
        let seal = StageSeal::check(&slot[(index + 1) * 4096..][..4096], &area).unwrap();
        let part = |offset: u64, bytes: u64| &slot[offset as usize..][..bytes as usize];
        let mut file = part(seal.header_offset, seal.header_bytes).to_vec();
        let table = part(seal.table_offset, seal.table_bytes);
        let chunks = <[ChunkEntry]>::ref_from_bytes(table).unwrap().to_vec();
        for entry in &chunks {
            assert_eq!(entry.kind, chunk_kind::RAW);
            file.extend(part(entry.offset, entry.stored_bytes.into()));
        }
        assert_eq!(file.len() as u64, seal.elf_bytes);
        Stage { file, chunks }
    });
    (stages.collect(), open)
}

/// Returns what lies at physical addresses: the low memory lies in its copy.
fn truth(ram: &Ram, range: Range) -> &[u8] {
    let copied = LOW.holds(range.start, range.bytes);
    let start = if copied { range.start - LOW.start + BACKUP_AT } else { range.start };
    ram.range(Range { start, ..range })
}

/// Returns the virtual address that memory has in the dump.
fn virtual_address(address: u64) -> u64 {
    if TEXT.holds(address, 1) { address - TEXT.start + TEXT_VIRTUAL } else { DIRECT_MAP + address }
}

fn loads(elf: &Elf<'_>) -> Vec<ProgramHeader> {
    elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD).cloned().collect()
}

/// Checks the notes of a file: the status of each of `threads`, and VMCOREINFO.
fn check_notes(file: &[u8], threads: &[u8]) {
    let elf = Elf::parse(file).unwrap();
    let notes: Vec<_> = elf.iter_note_headers(file).unwrap().map(Result::unwrap).collect();
    let statuses: Vec<_> = notes.iter().filter(|note| note.n_type == 1).collect();
    // The CPU that crashed comes first.
    assert!(statuses.iter().map(|note| note.desc[32]).eq(threads.iter().copied()));
    assert_eq!(statuses[0].desc[112..][..216], status(1)[112..][..216]);
    assert_eq!(statuses[1].desc[112..][..216], status(0)[112..][..216]);
    assert!(statuses[2..].iter().all(|note| note.desc[112..][..216] == [0; 216]));
    let info = notes.iter().find(|note| note.name == "VMCOREINFO").unwrap();
    assert_eq!((info.n_type, info.desc), (0, INFO));
}

#[test]
fn the_core_header_of_another_kernel_becomes_a_dump() {
    let ram: &'static Ram = Box::leak(Box::new(machine()));
    let crash = describe(Box::leak(Box::new(read(ram, false))));
    assert_eq!(crash.stages(), [stage_kind::MINI, stage_kind::USED]);
    assert!(!crash.moves().all);
    let (stages, _) = write(ram, &crash);

    // The first stage holds the stack that each stopped CPU stands on.
    let file = &stages[0].file;
    let elf = Elf::parse(file).unwrap();
    for top in TOPS {
        let page = (top - DIRECT_MAP) / PAGE * PAGE;
        let holds = |load: &ProgramHeader| {
            Range { start: load.p_paddr, bytes: load.p_filesz }.holds(page, PAGE)
        };
        assert!(loads(&elf).iter().any(holds), "{page:#x}");
    }
    let bytes: u64 = loads(&elf).iter().map(|load| load.p_memsz).sum();
    assert!(bytes < 1 << 20, "{bytes:#x}");

    // The second one is all memory, each page once and as it was.
    let file = &stages[1].file;
    let elf = Elf::parse(file).unwrap();
    let mut pages = Vec::new();
    for load in loads(&elf) {
        assert_eq!(load.p_filesz, load.p_memsz);
        assert_eq!(load.p_vaddr, virtual_address(load.p_paddr), "{:#x}", load.p_paddr);
        let range = Range { start: load.p_paddr, bytes: load.p_memsz };
        assert!(file[load.p_offset as usize..][..load.p_filesz as usize] == *truth(ram, range));
        pages.extend((range.start..range.end()).step_by(PAGE as usize));
    }
    pages.sort_unstable();
    let all = [LOW, HIGH].map(|range| (range.start..range.end()).step_by(PAGE as usize));
    assert!(pages.into_iter().eq(all.into_iter().flatten()));
    assert!(loads(&elf).iter().all(|load| !REGION.holds(load.p_paddr, 1)));
    check_notes(file, &[2, 1]);
}

#[test]
fn a_cpu_that_was_not_stopped_has_all_memory_copied_before_it_is_stored() {
    let ram: &'static Ram = Box::leak(Box::new(machine()));
    let crash = describe(Box::leak(Box::new(read(ram, true))));
    assert!(crash.moves().all);
    let (stages, open) = write(ram, &crash);
    let chunks = &stages[1].chunks;
    let bytes: u64 = chunks.iter().map(|chunk| u64::from(chunk.memory_bytes)).sum();
    assert_eq!(bytes, LOW.bytes + HIGH.bytes);
    for chunk in chunks {
        let range = Range { start: chunk.address, bytes: chunk.memory_bytes.into() };
        let hash = ChunkEntry::hash(truth(ram, range));
        assert_eq!(chunk.bind(hash, &open), chunk.checksum, "{:#x}", range.start);
    }
    // What the disk was sent is no memory of the machine: it was copied.
    let file = &stages[1].file;
    for load in loads(&Elf::parse(file).unwrap()) {
        let stored = &file[load.p_offset as usize..][..load.p_filesz as usize];
        assert!(stored.iter().all(|&byte| byte == 0xcc));
    }
    // A CPU of which nothing is known is a thread all the same.
    check_notes(file, &[2, 1, 3]);
}
