//! Planning the dump and writing it to a disk, or to two that share the work.

use core::fmt;

use block::{BlockDevice, Error};
use capture_engine::auto::Auto;
use capture_engine::chunk_sizes::{ChunkSizes, ListSizes};
use capture_engine::close::Case;
use capture_engine::crash::{Crash, SourcedMemory};
use capture_engine::extents::TooManyRangesError;
use capture_engine::input::{Appliance, ApplianceLists};
use capture_engine::lanes::{Lane, Lanes};
use capture_engine::mini;
use capture_engine::notes;
use capture_engine::plan::Plan;
use capture_engine::rate::StageProgress;
use capture_engine::stage::{self, Outcome, Salvage, Writer};
use capture_engine::stream::{Buffers, Counts, End, Lists, Piece, Stream};
use capture_engine::used::UsedFrames;
use capture_engine::worker_pool::{self, WorkerPool};
use handoff::BootFacts;
use lz4_flex::block::CompressTable;
use machine::breadcrumb::RunProgress as Reached;
use machine::capture::{layout, memory};
use machine::cell::{SetOnce, TakeOnce};
use machine::cpu;
use storage::amount::{Mib, Ms, mib_per_second};
use storage::area::StorageError;
use vmcore_format::PAGE_BYTES;
use vmcore_format::area::{ChunkEntry, MAX_CHUNK_BYTES, SlotOpen, StageSeal, stage_kind, storing};
use vmcore_format::notes::{CaptureMetrics, ExcludedRange};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::bare::Bare;
use crate::clock;
use crate::console::{self, say};
use crate::in_flight::InFlightList;
use crate::physical::{Dumped, Old};
use crate::{finish, helpers, hw_watchdog, rehearsal, rescue, screen};

pub use slots::write_to;

mod slots;

/// Scratch memory that buffers leave for the drivers of disks.
const KEPT_BYTES: u64 = 1 << 20;
/// Scratch memory that the lists leave for the driver of one disk, the list of what is left out
/// and the map of used memory.
const LISTS_KEEP: u64 = 512 << 10;
/// Bytes that three lists take at most for being whole pages.
const LISTS_ROUND: u64 = 3 * PAGE_BYTES;

/// Why there is no dump.
pub enum NoDumpError {
    /// The memory map has too many pieces.
    Plan(TooManyRangesError),
    /// There is one plan, and it was made already.
    PlannedTwice,
    /// There is no memory for what is written beside the memory itself.
    Memory,
    /// A page that is to be dumped could not be read.
    ZeroPage,
    /// There is no disk.
    NoDisk,
    /// No disk took it; holds the last one's number and what was wrong with it.
    Disks(usize, StorageError),
}

impl fmt::Display for NoDumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(error) => error.fmt(f),
            Self::PlannedTwice => f.write_str("the dump was planned twice"),
            Self::Memory => f.write_str("no memory for the dump's header and lists"),
            Self::ZeroPage => f.write_str("the page at address 0 could not be read"),
            Self::NoDisk => {
                f.write_str("no disk found that there is a driver for (virtio-blk, NVMe, AHCI)")
            }
            Self::Disks(number, problem) => {
                write!(f, "no disk took the dump; disk {number}: {problem}")
            }
        }
    }
}

/// A dump ready to be written.
pub struct Prepared {
    /// What the appliance handed over, for what is not of the dump: devices and the policy.
    pub appliance: Appliance,
    /// What happened.
    pub crash: Crash<'static>,
    plan: &'static Plan,
    memory: &'static SourcedMemory<Dumped>,
    chunks: &'static mut [ChunkEntry],
    pieces: &'static mut [Piece],
    excluded: &'static mut [ExcludedRange],
    header: &'static mut [u8],
    sizes: ChunkSizes,
    /// `None` before the first stage is sealed, and when any memory may be written while it is
    /// dumped.
    crew: Option<WorkerPool>,
    /// The functions that had requests in flight.
    pub in_flight: InFlightList,
    /// `Some` when some memory may be written while it is dumped.
    still: Option<Buffers<'static>>,
    /// What its header will say of the capture.
    pub metrics: CaptureMetrics,
}

/// Plans the dump and finds memory for what is written beside the memory itself.
pub fn plan(
    appliance: &Appliance,
    zero_page: Option<&'static [u8]>,
    [entered_tsc, settled_tsc]: [u64; 2],
) -> Result<Prepared, NoDumpError> {
    static LISTS: TakeOnce<ApplianceLists> = TakeOnce::new(ApplianceLists::new());
    let mut crash = appliance.describe(LISTS.take().ok_or(NoDumpError::PlannedTwice)?);
    say!("capture: {}", crash.cause.line);
    static PLAN: TakeOnce<Plan> = TakeOnce::new(Plan::empty());
    let plan = PLAN.take().ok_or(NoDumpError::PlannedTwice)?;
    plan.fill(&crash).map_err(NoDumpError::Plan)?;
    mini::add(&mut plan.extents, &crash, &Old);
    let plan: &'static Plan = plan;
    let zero_page = match plan.extents.ram().first() {
        Some(range) if range.start == 0 => zero_page.ok_or(NoDumpError::ZeroPage)?,
        _ => &[],
    };
    let bytes = plan.extents.bytes();
    if rehearsal::under_way() {
        (crash.options.pages, crash.options.bench) = (stage_kind::MINI, false);
    }
    let mut metrics = CaptureMetrics::new();
    metrics.stages = crash.stages().len() as u32;
    metrics.tsc_hz = crash.time.tsc_hz;
    metrics.jump_tsc = crash.time.jump_tsc;
    (metrics.entered_tsc, metrics.settled_tsc) = (entered_tsc, settled_tsc);
    metrics.cpus_working = 1;
    say!("capture: {} of memory in {} ranges", Mib(bytes), plan.extents.ram().len());
    static DUMPED: SetOnce<SourcedMemory<Dumped>> = SetOnce::new();
    DUMPED.set(SourcedMemory::new(Dumped { zero_page }, crash.sources()));
    metrics.planned_tsc = cpu::rdtsc();
    let packed = crash.options.storing != storing::RAW;
    let header = |pieces: u64| {
        notes::bytes_needed(&crash, pieces as usize, stage::MAX_EXCLUDED) + LISTS_ROUND
    };
    let left = memory::left().saturating_sub(LISTS_KEEP);
    let sizes = ListSizes::fit(bytes, packed, left, header).ok_or(NoDumpError::Memory)?;
    if packed && sizes.chunks.packed_budget(bytes) < bytes {
        say!("capture: room to list {} compressed", Mib(sizes.chunks.packed_budget(bytes)));
    }
    let mut chunks = list(sizes.chunks.chunks as usize)?;
    let mut pieces = list(sizes.pieces as usize)?;
    let memory = DUMPED.get().ok_or(NoDumpError::PlannedTwice)?;
    rescue::remember(&mut chunks, &mut pieces, memory);
    let moving = crash.moves();
    Ok(Prepared {
        appliance: *appliance,
        crash,
        plan,
        memory,
        chunks,
        pieces,
        excluded: list(stage::MAX_EXCLUDED)?,
        header: memory::pages(header(sizes.pieces).div_ceil(PAGE_BYTES) as usize)
            .ok_or(NoDumpError::Memory)?,
        sizes: sizes.chunks,
        crew: None,
        still: if moving.all || !moving.ranges.is_empty() { still(moving.all) } else { None },
        in_flight: InFlightList::of(appliance.handoff),
        metrics,
    })
}

/// Calls as many as there are cores for, or `all`, and finds what it takes to compress chunks of
/// `chunk_bytes`. Without the memory for it the dump is stored as it is.
fn crew(facts: &BootFacts, chunk_bytes: u64, all: bool) -> WorkerPool {
    helpers::call(facts, all);
    static TABLE: TakeOnce<CompressTable> = TakeOnce::new(CompressTable::large());
    let mut crew = helpers::crew(TABLE.take());
    let bytes = worker_pool::buffer_bytes(chunk_bytes);
    // One that is worked on and three that wait for each CPU, since whoever gives the work out
    // may be kept waiting itself by a hypervisor; and two that the disk fetches.
    for _ in 0..(4 * crew.cpus() + 2).min(worker_pool::DESKS) {
        if memory::left() < bytes as u64 + KEPT_BYTES {
            break;
        }
        if let Some(buffer) = memory::pages(bytes.div_ceil(PAGE_BYTES as usize)) {
            crew.give_back(buffer);
        }
    }
    if !crew.can_pack() {
        say!("capture: no memory to compress in: raw");
    }
    crew
}

/// Where memory is copied to that may change while it is dumped: `all` of it, or some parts.
fn still(all: bool) -> Option<Buffers<'static>> {
    if all {
        say!("capture: a CPU or a device may be running on: memory is copied before it is stored");
    }
    let buffer = || memory::pages((MAX_CHUNK_BYTES / PAGE_BYTES) as usize);
    let buffers = buffer().zip(buffer()).map(|(one, other)| [one, other]);
    if buffers.is_none() {
        say!("capture: no memory to copy to: checksums of what changes will not match");
    }
    buffers
}

/// Memory of the region for `count` records, which hold nothing that means anything.
fn list<T>(count: usize) -> Result<&'static mut [T], NoDumpError>
where
    T: FromBytes + IntoBytes + Immutable + KnownLayout,
{
    let bytes = count.saturating_mul(size_of::<T>());
    let pages = memory::pages(bytes.div_ceil(PAGE_BYTES as usize)).ok_or(NoDumpError::Memory)?;
    let pages = pages.get_mut(..bytes).ok_or(NoDumpError::Memory)?;
    <[T]>::mut_from_bytes(pages).map_err(|_| NoDumpError::Memory)
}

/// Writes the dump of `case` to a disk that a fault handler can get at, and to one that shares
/// the work.
fn write_logs(
    dump: &mut Prepared,
    number: usize,
    disk: &mut dyn BlockDevice,
    second: Option<Lane<'_>>,
    case: &Case,
) -> (Result<(), StorageError>, Option<Error>) {
    let facts = dump.appliance.facts;
    let used = UsedFrames::find(&dump.crash, dump.memory);
    let Case { place, open, .. } = *case;
    // One lifetime for both.
    let second = second.map(|Lane { device, place, open, .. }| Lane::new(device, place, open));
    let limit = dump.crash.options.deadline_ms.map_or(u64::MAX, |ms| ms.saturating_mul(1_000_000));
    let memory_bytes = dump.plan.extents.bytes();
    let stream = Stream {
        lanes: Lanes::new(Lane::new(disk, place, open), second),
        host: &Bare,
        memory: dump.memory,
        // Counted from the image's first instructions on, right behind the jump.
        deadline_ns: limit,
        chunk_bytes: dump.sizes.raw_bytes,
        ledger: &rescue::LEDGER,
        lists: Lists { chunks: dump.chunks, pieces: dump.pieces },
        chunk_count: 0,
        piece_count: 0,
        counts: Counts::default(),
        total: memory_bytes,
        finished: 0,
        progress: StageProgress::new(memory_bytes, clock::now_ns()),
        crew: None,
        pack_bytes: dump.sizes.packed_bytes,
        sharing: false,
        promised: 0,
        packed_ns: 0,
        moving: dump.crash.moves(),
        still: dump.still.as_mut().map(|still| still.each_mut().map(|buffer| &mut **buffer)),
        auto: None,
        loss_told: false,
        budget_told: false,
        holes: heapless::Vec::new(),
    };
    let mut writer = Writer {
        crash: &dump.crash,
        plan: dump.plan,
        used: None,
        stream,
        excluded: dump.excluded,
        excluded_count: 0,
        header: dump.header,
        metrics: dump.metrics,
        region_bytes_used: region_bytes_used(facts),
    };
    let crew = Some(&mut dump.crew).filter(|_| !dump.crash.moves().all);
    let salvage = Salvage { case, memory: &rescue::memory };
    let written = write_stages(&mut writer, facts, used.as_ref(), crew, (number, &salvage));
    (written, writer.stream.lanes.lost())
}

/// Writes one stage after the other; `crew` is where helpers are, or will be once there is time
/// to call them, and `None` when they must not be.
fn write_stages<'a>(
    writer: &mut Writer<'a>,
    facts: &BootFacts,
    used: Option<&'a UsedFrames<'a>>,
    crew: Option<&'a mut Option<WorkerPool>>,
    (number, salvage): (usize, &Salvage<'_>),
) -> Result<(), StorageError> {
    let (wishes, place) = (writer.crash.options, writer.stream.lanes.main.place);
    let mut kept = 0;
    let mut last = None;
    // What may still change is not compressed.
    let mut crew = crew.filter(|_| wishes.storing != storing::RAW);
    for (index, &kind) in (0..).zip(writer.crash.stages()) {
        // From here on a fault closes this stage, in which it has come nowhere yet.
        writer.stream.begin_stage(index, kind);
        // The first stage has no need of any of this, and no time for it.
        if index > 0 {
            if let (None, Some(used)) = (&writer.used, used) {
                writer.used = Some(writer.plan.extents.adapt(used));
            }
            if let Some(crew) = crew.take() {
                let (wanted, bytes) = (wishes.storing, writer.stream.pack_bytes);
                let crew = crew.get_or_insert_with(|| self::crew(facts, bytes, wishes.all_cpus));
                // What is still under way was meant for a disk before this one.
                crew.recall(&Bare);
                let auto = (wanted == storing::AUTO).then(|| Auto::new(crew.cpus() as u64));
                (writer.stream.auto, writer.stream.crew) = (auto, Some(crew));
            }
        }
        // Compressing has taken some by now.
        writer.region_bytes_used = region_bytes_used(facts);
        let written = writer.stage(index, kind);
        if let Err(problem) = written
            && index > 0
            && slots::close_after(writer, (index, kind), &problem, (number, salvage))
        {
            match problem {
                // The first of two disks is full, and the other is gone.
                StorageError::SlotTooSmall(_) => break,
                // Another disk may take all of it.
                problem => return Err(problem),
            }
        }
        let outcome = match written {
            // What is sealed is a dump; what did not even have room for a header is not.
            Err(StorageError::SlotTooSmall(_)) if index > 0 => {
                too_small(kind, kept, 0);
                break;
            }
            outcome => outcome?,
        };
        finish::keep(number, kind);
        console::release();
        tell(&outcome);
        last = Some(outcome);
        if let Some(end) = outcome.end {
            match end {
                // Not even the first stage: the next disk may have room for all of it.
                End::SlotFull if index == 0 => {
                    return Err(StorageError::SlotTooSmall(place.bytes()));
                }
                End::Deadline => say!("capture: the deadline of dump_deadline_ms= has passed"),
                End::SlotFull => too_small(kind, kept, outcome.counts.stored),
                End::TooMany => say!("capture: too many chunks for the memory there is"),
            }
            break;
        }
        kept = kind;
    }
    // What comes now writes no dump.
    rescue::LEDGER.hold();
    hw_watchdog::mark(Reached::Sealed);
    if let Some(Outcome { seal, .. }) = last {
        screen::good(
            format_args!("captured: dump {} on disk {number}", place.choice().sequence),
            format_args!("{}, `{}`", Mib(seal.elf_bytes), stage_kind::name(seal.kind)),
        );
    }
    say!(
        "capture: reserved region: {} of {} used",
        Mib(region_bytes_used(facts)),
        Mib(facts.region.bytes),
    );
    if wishes.bench
        && let Some(last) = last
    {
        bench(writer, last.seal)?;
    }
    Ok(())
}

fn too_small(kind: u32, kept: u32, stored: u64) {
    let (kind, kept) = (stage_kind::name(kind), stage_kind::name(kept));
    say!("capture: too small for `{kind}`, kept `{kept}` and {} of `{kind}`", Mib(stored));
}

/// Says how a stage went.
fn tell(outcome: &Outcome) {
    let Outcome { seal, counts, .. } = outcome;
    say!(
        "capture: sealed {} `{}`: {} of memory, {} stored, {} zero, {} compressed, in {}, {} MiB/s; \
         {} after the crash",
        if seal.complete == 1 { "stage" } else { "INCOMPLETE stage" },
        stage_kind::name(seal.kind),
        Mib(counts.memory),
        Mib(counts.stored),
        Mib(counts.zero),
        Mib(counts.compressed),
        Ms(seal.write_ns),
        mib_per_second(counts.memory, seal.write_ns),
        Ms(seal.crash_ns),
    );
    if seal.other_bytes > 0 {
        say!("capture: {} of that on the other disk", Mib(seal.other_bytes));
    }
    if counts.unreadable > 0 {
        say!("capture: {} bytes of it could not be read", counts.unreadable);
    }
}

/// Writes what stands in the log to the same place once more, as a measure of what the
/// medium can do without any of the work of a dump: in requests of several sizes, since
/// which is the best is the medium's affair. The fastest goes into the last seal. Then takes all
/// checksums once more.
fn bench(writer: &mut Writer<'_>, mut seal: StageSeal) -> Result<(), StorageError> {
    const REQUESTS: [usize; 3] = [1 << 20, 512 << 10, 256 << 10];
    for most in REQUESTS {
        let start = cpu::rdtsc();
        let bytes = writer.stream.send_again(most)?;
        let ns = clock::ns(cpu::rdtsc().wrapping_sub(start));
        say!(
            "capture: raw write {} bytes in {}, {} MiB/s, requests of {} KiB",
            bytes,
            Ms(ns),
            mib_per_second(bytes, ns),
            most >> 10,
        );
        if seal.raw_ns == 0 || ns < seal.raw_ns {
            (seal.raw_bytes, seal.raw_ns) = (bytes, ns);
        }
    }
    let start = cpu::rdtsc();
    let (bytes, changed) = writer.stream.check_again();
    let ns = clock::ns(cpu::rdtsc().wrapping_sub(start));
    say!(
        "capture: checksums of {bytes} bytes in {}, {} MiB/s, {changed} changed",
        Ms(ns),
        mib_per_second(bytes, ns),
    );
    let index = writer.metrics.stage.saturating_sub(1);
    writer.stream.lanes.main.seal(index, &mut seal)
}

fn slot_open(dump: &Prepared) -> SlotOpen {
    let Crash { cause, image, time, options, .. } = dump.crash;
    let mut open = SlotOpen::new();
    open.cause_kind = cause.kind;
    open.nonce = cpu::rdtsc();
    open.unix_time = time.unix_time;
    open.cpu = cause.cpu;
    open.stages = dump.metrics.stages;
    open.storing = options.storing;
    open.set_build_id(image.map_or(&[], |image| image.build_id));
    open.set_message(cause.line);
    open
}

/// How much of the reserved region is in use: the image, what it took of the scratch
/// memory, the facts and the parked CPUs.
fn region_bytes_used(facts: &BootFacts) -> u64 {
    layout().image.bytes + memory::used() + size_of::<BootFacts>() as u64 + facts.park.bytes
}
