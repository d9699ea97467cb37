//! Longer than most, because every test of a stage reads its dump back with the same checks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use handoff::{BootFacts, Handoff};
use storage::fake::{Event, FakeDisk};
use vmcore_format::PAGE_BYTES;
use vmcore_format::area::{
    AreaHeader, ChunkEntry, MAX_CHUNK_BYTES, SlotOpen, chunk_area, chunk_kind,
};
use vmcore_format::reader::CoreReader;
use zerocopy::FromBytes;

use helpers::{crew, find_place};

use super::*;
use crate::auto::Auto;
use crate::chunk_sizes::ChunkSizes;
use crate::close::{Case, Cause, CloseError, close};
use crate::extents::UsedPages;
use crate::fake::{FakeHost, appliance, described};
use crate::input::InputError;
use crate::lanes::{Lane, Lanes};
use crate::ledger::Ledger;
use crate::rate::StageProgress;
use crate::stream::{Lists, Memory, Moving, Piece};
use crate::worker_pool::WorkerPool;

mod closing;
mod moving;

const PAGE: usize = PAGE_BYTES as usize;
/// Physical memory of the tests: 8 MiB from here.
const START: u64 = 0x10_0000;
const BYTES: u64 = 8 << 20;
/// Of the first stage, and in use.
const MINI: [Range; 2] =
    [Range { start: START + 0x1_0000, bytes: 0x3000 }, Range { start: START, bytes: 0x1000 }];
const USED: Range = Range { start: START + 0x20_0000, bytes: 0x40_0000 };

/// Memory where every page but those of long zero runs has a pattern of its own.
struct FakeMemory {
    words: Rc<Vec<u64>>,
    /// No page from here on can be read.
    unreadable: Range,
    /// A device may write here.
    moving: &'static [Range],
    /// What becomes of the chunks listed so far, and those of them that are sealed, when the
    /// stage is interrupted.
    spoil: fn(&mut [ChunkEntry], usize),
    /// When the machine is paused and for how long, as in [`FakeHost::pause`].
    pause: Option<(u64, u64)>,
    /// Sizes of chunks, and how many pieces are listed.
    sizes: (ChunkSizes, u64),
}

impl FakeMemory {
    fn new() -> Self {
        let mut words = vec![0; BYTES as usize / 8];
        for (index, word) in words.iter_mut().enumerate() {
            let page = index / (PAGE / 8);
            // A long run of zero pages in each MiB, and short ones.
            let zero = (40..90).contains(&(page % 256)) || page % 7 == 3;
            *word = if zero { 0 } else { (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) };
        }
        Self {
            words: Rc::new(words),
            unreadable: Range::default(),
            moving: &[],
            spoil: |_, _| (),
            pause: None,
            sizes: (ChunkSizes::new(BYTES, true, u64::MAX), 8192),
        }
    }

    /// Memory that shrinks by half.
    fn shrinking() -> Self {
        let mut memory = Self::new();
        for (index, word) in Rc::make_mut(&mut memory.words).iter_mut().enumerate() {
            if index % 2 == 1 {
                *word = 0;
            }
        }
        memory
    }

    /// The same memory, for ever.
    fn leaked(&self) -> &'static Self {
        Box::leak(Box::new(Self { words: Rc::clone(&self.words), ..*self }))
    }

    fn page(&self, address: u64) -> &[u8] {
        &self.words.as_bytes()[(address - START) as usize..][..PAGE]
    }
}

impl Memory for FakeMemory {
    fn readable(&self, range: Range) -> u64 {
        if !range.overlaps(&self.unreadable) {
            return range.bytes;
        }
        self.unreadable.start.saturating_sub(range.start)
    }

    fn bytes(&self, range: Range) -> &[u8] {
        &self.words.as_bytes()[(range.start - START) as usize..][..range.bytes as usize]
    }
}

struct Some4;

impl UsedPages for Some4 {
    fn any_used(&self, range: Range) -> bool {
        range.overlaps(&USED)
    }
}

/// What a run of the stages left.
struct Run {
    disk: FakeDisk,
    other: Option<FakeDisk>,
    outcomes: Vec<Result<Outcome, StorageError>>,
    /// What came of closing the stage in which it was interrupted.
    closed: Option<Result<StageSeal, CloseError>>,
    /// What came of closing the stage in which a disk failed.
    salvaged: Option<Result<StageSeal, CloseError>>,
    open: SlotOpen,
    slot: u64,
}

/// Writes all three stages into a disk of `slots` slots, until one ends early.
fn run(memory: &FakeMemory, slots: u32, deadline_ns: u64, fail_at: Option<usize>) -> Run {
    run_with(memory, slots, deadline_ns, fail_at, None, None, None)
}

/// The same with a crew, and with something that decides.
fn run_with(
    memory: &FakeMemory,
    slots: u32,
    deadline_ns: u64,
    fail_at: Option<usize>,
    crew: Option<&mut WorkerPool>,
    auto: Option<Auto>,
    interrupt_at: Option<u64>,
) -> Run {
    let mut disk = FakeDisk::prepared(slots);
    disk.memory.push(Rc::clone(&memory.words));
    disk.fail_at = fail_at;
    run_on(memory, disk, None, deadline_ns, crew, auto, interrupt_at)
}

/// The same on a disk, and on another that shares the work.
fn run_on(
    memory: &FakeMemory,
    mut disk: FakeDisk,
    mut other: Option<FakeDisk>,
    deadline_ns: u64,
    mut crew: Option<&mut WorkerPool>,
    auto: Option<Auto>,
    interrupt_at: Option<u64>,
) -> Run {
    let mut facts = BootFacts::new();
    facts.cpu_count = 2;
    let crash = described(&appliance(Handoff::new(), facts, Err(InputError::Kind(0))));
    let plan = Box::leak(Box::new(Plan::empty()));
    plan.extents.add_ram(Range { start: START, bytes: BYTES }).unwrap();
    for range in MINI {
        plan.extents.add_mini(range);
    }
    plan.extents.settle();
    let plan: &'static Plan = plan;
    let used = plan.extents.adapt(&Some4);
    let mut lane = None;
    let begin = SlotOpen { nonce: 77, stages: 3, ..SlotOpen::new() };
    let place = find_place(&mut disk, false).unwrap();
    let opened = match &mut other {
        None => place.open(&mut disk, begin),
        Some(other) => {
            let second = find_place(other, false).unwrap();
            place.open_with(&mut disk, (&second, other), begin).map(|(open, memory)| {
                lane = memory.ok().map(|memory| (second, memory));
                open
            })
        }
    };
    let open = match opened {
        Ok(open) => open,
        Err(problem) => {
            let (outcomes, slot) = (vec![Err(problem)], place.offset());
            return Run { disk, other, outcomes, closed: None, salvaged: None, open: begin, slot };
        }
    };
    let second = other.as_mut().zip(lane).map(|(disk, (place, open))| Lane::new(disk, place, open));
    let host = FakeHost { interrupt_at, pause: memory.pause, ..FakeHost::default() };
    let ledger = Ledger::new();
    let (sizes, pieces) = memory.sizes;
    let mut chunks = vec![ChunkEntry::default(); sizes.chunks as usize];
    let mut pieces = vec![Piece::default(); pieces as usize];
    let mut excluded = vec![ExcludedRange::default(); MAX_EXCLUDED];
    let buffers = || [(); 2].map(|()| vec![0; MAX_CHUNK_BYTES as usize]);
    let mut still = (!memory.moving.is_empty()).then(buffers);
    let mut header = vec![0xaa; notes::bytes_needed(&crash, pieces.len(), MAX_EXCLUDED) as usize];
    let stream = Stream {
        lanes: Lanes::new(Lane::new(&mut disk, place, open), second),
        host: &host,
        memory: memory.leaked(),
        deadline_ns,
        chunk_bytes: sizes.raw_bytes,
        ledger: &ledger,
        lists: Lists { chunks: &mut chunks, pieces: &mut pieces },
        chunk_count: 0,
        piece_count: 0,
        counts: Counts::default(),
        total: BYTES,
        finished: 0,
        progress: StageProgress::new(BYTES, 0),
        crew: crew.take(),
        pack_bytes: sizes.packed_bytes,
        sharing: false,
        promised: 0,
        packed_ns: 0,
        moving: Moving { all: false, ranges: memory.moving },
        still: still.as_mut().map(|still| still.each_mut().map(|buffer| &mut buffer[..])),
        auto,
        loss_told: false,
        budget_told: false,
        holes: heapless::Vec::new(),
    };
    let mut writer = Writer {
        crash: &crash,
        plan,
        used: Some(used),
        stream,
        excluded: &mut excluded,
        excluded_count: 0,
        header: &mut header,
        metrics: CaptureMetrics::new(),
        region_bytes_used: 0,
    };
    let case = Case { crash, plan, place, open, metrics: CaptureMetrics::new() };
    let memory_of = |bytes: usize| Some(closing::zeroed(bytes));
    let salvage = Salvage { case: &case, memory: &memory_of };
    let mut salvaged = None;
    let mut outcomes = Vec::new();
    let whole = catch_unwind(AssertUnwindSafe(|| {
        for (index, &kind) in (0..).zip(planned(stage_kind::ALL)) {
            outcomes.push(writer.stage(index, kind));
            if let Some(Err(problem)) = outcomes.last()
                && index > 0
            {
                salvaged = Some(writer.close_after(index, kind, problem, &salvage));
            }
            if !matches!(outcomes.last(), Some(Ok(Outcome { end: None, .. }))) {
                break;
            }
        }
    }));
    let closed = whole.is_err().then(|| {
        if let Some(open) = ledger.open() {
            (memory.spoil)(&mut chunks[..open.mark.chunks], open.sealed.mark.chunks);
        }
        let left = closing::Lists { chunks: &chunks, pieces: &pieces };
        let host = FakeHost::default();
        close(&mut disk, &host, &case, &ledger, &left, Some(used), Cause::Fault(closing::FAULT))
    });
    Run { disk, other, outcomes, closed, salvaged, open, slot: place.offset() }
}

impl Run {
    fn outcome(&self, index: usize) -> &Outcome {
        self.outcomes[index].as_ref().unwrap()
    }

    fn part(&self, offset: u64, bytes: u64) -> &[u8] {
        &self.disk.bytes[(self.slot + offset) as usize..][..bytes as usize]
    }

    /// Reads the file of a stage off the disks as they are at the end.
    fn verify(&self, index: usize, memory: &FakeMemory) -> Vec<u64> {
        let other = self.other.as_ref().map(|other| other.bytes.as_slice());
        self.verify_on(&self.disk.bytes, other, index, memory).expect("a seal")
    }

    /// Reads the file of a stage off disks with these bytes, checks all there is to check, and
    /// returns what it says of each page: the address, and whether its content is in the file.
    /// `None` where the stage is not sealed.
    fn verify_on(
        &self,
        disk: &[u8],
        other: Option<&[u8]>,
        index: usize,
        memory: &FakeMemory,
    ) -> Option<Vec<u64>> {
        let part =
            |offset: u64, bytes: u64| &disk[(self.slot + offset) as usize..][..bytes as usize];
        let area = AreaHeader::check(disk).unwrap();
        let seal = StageSeal::check(part((index as u64 + 1) * 4096, 4096), &area).ok()?;
        let open = SlotOpen::check(part(0, 4096)).unwrap();
        assert!(seal.belongs_to(&self.open) && seal.belongs_to(&open));
        // The slot of the other disk, which has to be sealed when anything in it counts.
        let second = |offset: u64, bytes: u64| {
            let other = other.expect("another disk");
            let area = AreaHeader::check(other).unwrap();
            let slot = &other[area.slot_offset(open.other_slot).unwrap() as usize..];
            let memory = SlotOpen::check(slot).unwrap();
            assert!(open.is_pair_with(&memory));
            let sealed = StageSeal::check(&slot[(index + 1) * 4096..], &area).unwrap();
            assert!(sealed.belongs_to(&memory) && offset + bytes <= sealed.log_end);
            &slot[offset as usize..][..bytes as usize]
        };
        let header = part(seal.header_offset, seal.header_bytes);
        assert_eq!(crc32fast::hash(header), seal.header_crc32);
        let table = part(seal.table_offset, seal.table_bytes);
        assert_eq!(crc32fast::hash(table), seal.table_crc32);
        let mut file = header.to_vec();
        let mut taken = Vec::new();
        for entry in <[ChunkEntry]>::ref_from_bytes(table).unwrap() {
            let home = match entry.area {
                chunk_area::OWN => area.slot_bytes,
                _ => AreaHeader::check(other.expect("another disk")).unwrap().slot_bytes,
            };
            assert!(entry.is_sound(home), "{entry:?}");
            if entry.kind == chunk_kind::ZERO {
                file.resize(file.len() + entry.memory_bytes as usize, 0);
                continue;
            }
            let place = (entry.address - START) as usize;
            let memory = &memory.words.as_bytes()[place..][..entry.memory_bytes as usize];
            assert_eq!(entry.bind(ChunkEntry::hash(memory), &self.open), entry.checksum);
            taken.push((entry.area, entry.offset, entry.offset + entry.log_bytes()));
            let stored = u64::from(entry.stored_bytes);
            let bytes = match entry.area {
                chunk_area::OWN => part(entry.offset, stored),
                _ => second(entry.offset, stored),
            };
            if entry.kind == chunk_kind::LZ4 {
                // What the disk got from the compressor is nothing that this fake can see.
                file.extend(memory);
                continue;
            }
            assert!(bytes == memory, "{entry:?}");
            file.extend(bytes);
        }
        assert_eq!(file.len() as u64, seal.elf_bytes);
        taken.sort_unstable();
        assert!(taken.windows(2).all(|two| two[0].0 != two[1].0 || two[0].2 <= two[1].1));
        let core = CoreReader::new(header, seal.elf_bytes).unwrap();
        let mut pages = Vec::new();
        for segment in core.segments() {
            for at in (0..segment.load.memory_bytes).step_by(PAGE) {
                let address = segment.load.physical_address + at;
                let found = match file.get((segment.offset + at) as usize..) {
                    Some(bytes) if at < segment.load.file_bytes => &bytes[..PAGE],
                    _ => &[0; PAGE],
                };
                assert!(found == memory.page(address), "{address:#x}");
                pages.push(address);
            }
        }
        pages.sort_unstable();
        assert!(pages.windows(2).all(|two| two[0] != two[1]), "a page is in it twice");
        Some(pages)
    }
}

#[test]
fn each_stage_holds_the_ones_before_and_writes_nothing_twice() {
    let memory = FakeMemory::new();
    let run = run(&memory, 1, u64::MAX, None);
    let pages = [0, 1, 2].map(|index| run.verify(index, &memory));
    assert_eq!(pages[0].len(), 4);
    let used = pages[0].len() + (USED.bytes / PAGE_BYTES) as usize;
    assert_eq!(pages[1].len(), used);
    assert_eq!(pages[2].len() as u64, BYTES / PAGE_BYTES);
    let mut stored = 0;
    for (index, kind) in (0..3).zip(planned(stage_kind::ALL)) {
        let Outcome { seal, counts, end } = run.outcome(index);
        assert_eq!((seal.kind, seal.complete, *end), (*kind, 1, None));
        assert_eq!(counts.memory, counts.zero + counts.stored);
        stored += counts.stored;
    }
    // Fifty pages of every 256 are zero in one run, but for what is cut off by stages.
    let zero = BYTES / (256 * PAGE_BYTES) * 50 * PAGE_BYTES;
    assert!(stored <= BYTES - zero && stored >= BYTES - zero - (1 << 16), "{stored:#x}");
    let sent: u64 = run
        .disk
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Sent(_, bytes) => Some(*bytes),
            _ => None,
        })
        .sum();
    assert_eq!(sent, stored);
}

#[test]
fn a_seal_comes_last_and_behind_a_flush() {
    let memory = FakeMemory::new();
    let run = run(&memory, 1, u64::MAX, None);
    for index in 0..3u64 {
        let seal = Event::Wrote(run.slot + (index + 1) * 4096, 4096);
        let at = run.disk.events.iter().position(|event| *event == seal).unwrap();
        assert_eq!(run.disk.events[at - 1], Event::Flushed);
        assert!(matches!(run.disk.events[at - 2], Event::Wrote(..)));
        assert_eq!(run.disk.events[at + 1], Event::Flushed);
    }
}

#[test]
fn wherever_the_disk_fails_only_whole_stages_are_sealed() {
    let memory = FakeMemory::new();
    let whole = run(&memory, 1, u64::MAX, None).disk.events.len();
    for fail_at in 1..=whole {
        let run = run(&memory, 1, u64::MAX, Some(fail_at));
        assert_eq!(
            run.outcomes.last().unwrap().as_ref().unwrap_err(),
            &StorageError::Disk(block::Error::Io(0))
        );
        for index in 0..run.outcomes.len() - 1 {
            run.verify(index, &memory);
        }
    }
}

#[test]
fn when_the_slot_is_full_the_stages_before_stand() {
    let memory = FakeMemory::new();
    // Slots of 3 MiB.
    let run = run(&memory, 20, u64::MAX, None);
    assert_eq!(run.outcomes.len(), 2);
    assert_eq!(run.outcome(0).end, None);
    assert_eq!(run.verify(0, &memory).len(), 4);
    let Outcome { seal, end, .. } = run.outcome(1);
    assert_eq!((*end, seal.incomplete), (Some(End::SlotFull), incomplete::SLOT_FULL));
    assert!(run.verify(1, &memory).len() > 100);
    // The slots beside it are untouched.
    let (before, behind) = (run.slot as usize, (run.slot + (3 << 20)) as usize);
    assert!(run.disk.bytes[128..before].iter().all(|&byte| byte == 0));
    assert!(run.disk.bytes[behind..63 << 20].iter().all(|&byte| byte == 0));
}

#[test]
fn memory_that_cannot_be_read_is_left_out_and_said() {
    let unreadable = Range { start: START + 0x30_2000, bytes: 0x3000 };
    let memory = FakeMemory { unreadable, ..FakeMemory::new() };
    let run = run(&memory, 1, u64::MAX, None);
    let Outcome { seal, counts, end } = run.outcome(1);
    assert_eq!((seal.complete, seal.incomplete), (0, incomplete::UNREADABLE));
    assert_eq!((counts.unreadable, *end), (unreadable.bytes, None));
    let pages = run.verify(2, &memory);
    assert_eq!(pages.len() as u64, (BYTES - unreadable.bytes) / PAGE_BYTES);
    assert!(pages.iter().all(|&page| !unreadable.holds(page, 1)));
}

#[test]
fn with_a_crew_the_stages_are_the_same() {
    let memory = FakeMemory::shrinking();
    let plain = run(&memory, 1, u64::MAX, None);
    for stuck_every in [usize::MAX, 12, 1] {
        let mut crew = crew(stuck_every);
        let run = run_with(&memory, 1, u64::MAX, None, Some(&mut crew), None, None);
        assert_eq!(crew.outstanding(), 0);
        assert_eq!(crew.cpus() < 4, stuck_every < usize::MAX, "{stuck_every}");
        for index in 0..3 {
            assert_eq!(run.verify(index, &memory), plain.verify(index, &memory));
            let Outcome { seal, counts, end } = run.outcome(index);
            assert_eq!((seal.complete, *end), (1, None));
            assert_eq!(counts.memory, plain.outcome(index).counts.memory);
            let packed = index > 0 && stuck_every > 1;
            assert_eq!(counts.compressed > 0, packed, "{index} {stuck_every}");
        }
    }
}

#[test]
fn a_crew_keeps_what_it_promised_when_the_slot_is_full() {
    let memory = FakeMemory::shrinking();
    for stuck_every in [usize::MAX, 7] {
        let mut crew = crew(stuck_every);
        let run = run_with(&memory, 30, u64::MAX, None, Some(&mut crew), None, None);
        let last = run.outcomes.len() - 1;
        assert_eq!(run.outcome(last).end, Some(End::SlotFull));
        assert!(run.verify(last, &memory).len() > 100);
        let (before, behind) = (run.slot as usize, (run.slot + (2 << 20)) as usize);
        assert!(run.disk.bytes[128..before].iter().all(|&byte| byte == 0));
        assert!(run.disk.bytes[behind..63 << 20].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_crew_goes_on_with_the_next_disk() {
    let memory = FakeMemory::shrinking();
    let mut crew = crew(usize::MAX);
    let auto = || Some(Auto::new(4));
    for fail_at in 3..40 {
        let run = run_with(&memory, 1, u64::MAX, Some(fail_at), Some(&mut crew), auto(), None);
        if run.outcomes.last().unwrap().is_ok() {
            assert!(fail_at > 25, "only {fail_at} calls to the disk");
            break;
        }
        crew.recall(&FakeHost::default());
        let run = run_with(&memory, 1, u64::MAX, None, Some(&mut crew), auto(), None);
        assert_eq!(run.verify(2, &memory).len() as u64, BYTES / PAGE_BYTES);
        assert!(crew.can_pack());
    }
}

mod helpers;
mod limits;
mod pair;
mod salvage;
