//! Planning the dump and writing it to the first disk that takes it.

use core::fmt;

use block::BlockDevice;
use capture_image::dump::{self, Core, Host, Place, Problem};
use capture_image::input::Appliance;
use capture_image::notes;
use capture_image::plan::{Plan, TooMany};
use capture_image::rate::{Mib, Ms, mib_per_second};
use capture_image::target;
use capture_image::words::cause_line;
use handoff::BootFacts;
use machine::breadcrumb::Progress;
use machine::capture::{layout, memory};
use machine::cell::TakeOnce;
use machine::cpu;
use vmcore_format::PAGE_BYTES;
use vmcore_format::area::{DATA_OFFSET, SlotOpen, StageSeal, stage_kind};
use vmcore_format::core::{CoreError, Layout};
use vmcore_format::notes::CaptureMetrics;

use crate::clock;
use crate::console::{line, say};
use crate::physical::use_config_space;
use crate::{disks, guard, screen};

/// Why there is no dump.
pub enum NoDump {
    /// The memory map has too many pieces.
    Plan(TooMany),
    /// There is one plan, and it was made already.
    PlannedTwice,
    /// The header does not fit the scratch memory.
    Header(Option<CoreError>),
    /// A page that is to be dumped could not be read.
    ZeroPage,
    /// There is no disk.
    NoDisk,
    /// No disk took it; holds the last one's number and what was wrong with it.
    Disks(usize, Problem),
}

impl fmt::Display for NoDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(error) => error.fmt(f),
            Self::PlannedTwice => f.write_str("the dump was planned twice"),
            Self::Header(Some(error)) => error.fmt(f),
            Self::Header(None) => f.write_str("no memory for the dump's header"),
            Self::ZeroPage => f.write_str("the page at address 0 could not be read"),
            Self::NoDisk => f.write_str("no disk found"),
            Self::Disks(number, problem) => {
                write!(f, "no disk took the dump; disk {number}: {problem}")
            }
        }
    }
}

/// A dump ready to be written.
pub struct Prepared {
    crash: Appliance,
    plan: &'static Plan,
    zero_page: &'static [u8],
    /// Holds the header, once it is built.
    header: &'static mut [u8],
    layout: Layout,
    metrics: CaptureMetrics,
}

/// Plans the dump and finds memory for its header.
pub fn plan(
    crash: &Appliance,
    zero_page: Option<&'static [u8]>,
    entered_tsc: u64,
) -> Result<Prepared, NoDump> {
    let (facts, handoff) = (crash.facts, crash.handoff);
    say!("capture: {}", cause_line(&handoff.cause));
    static PLAN: TakeOnce<Plan> = TakeOnce::new(Plan::empty());
    let plan = PLAN.take().ok_or(NoDump::PlannedTwice)?;
    plan.fill(facts.memory(), facts.region, facts.elf_header).map_err(NoDump::Plan)?;
    let zero_page = match plan.segments.first() {
        Some(segment) if segment.physical_address == 0 => zero_page.ok_or(NoDump::ZeroPage)?,
        _ => &[],
    };
    let bytes = notes::bytes_needed(crash, plan);
    let header = memory::pages(bytes.div_ceil(PAGE_BYTES) as usize).ok_or(NoDump::Header(None))?;
    let mut metrics = CaptureMetrics::new();
    metrics.stages = 1;
    metrics.stage = 1;
    metrics.stage_kind = stage_kind::ALL;
    metrics.tsc_hz = facts.tsc_hz;
    metrics.jump_tsc = handoff.jump_tsc;
    metrics.entered_tsc = entered_tsc;
    metrics.pages = plan.memory_bytes() / PAGE_BYTES;
    let layout =
        notes::build(header, crash, plan, &metrics).map_err(|error| NoDump::Header(Some(error)))?;
    metrics.bytes_written = layout.file_bytes;
    say!(
        "capture: {} of memory in {} segments, {} KiB of header",
        Mib(plan.memory_bytes()),
        plan.segments.len(),
        layout.header_bytes >> 10,
    );
    Ok(Prepared { crash: *crash, plan, zero_page, header, layout, metrics })
}

/// Writes the dump to the first disk that takes it, in the order the command line wants.
pub fn write(mut dump: Prepared) -> Result<(), NoDump> {
    let command_line = dump.crash.facts.command_line();
    let targets = target::wanted(command_line, |why| say!("capture: {why}"));
    if !use_config_space(dump.crash.facts) {
        say!("capture: no memory to map the configuration space of PCI");
    }
    disks::silence();
    let mut number = 0;
    let mut end = Err(NoDump::NoDisk);
    disks::each(&targets, &mut |address, opened| {
        let opened = opened.map_err(Problem::Disk);
        end = opened.and_then(|disk| write_to(&mut dump, number, disk)).map_err(|problem| {
            say!("capture: disk {number} at {address}: {problem}");
            NoDump::Disks(number, problem)
        });
        number += 1;
        end.is_ok()
    });
    end
}

fn write_to(dump: &mut Prepared, number: usize, disk: &mut dyn BlockDevice) -> Result<(), Problem> {
    let identity = disk.identity();
    say!(
        "capture: disk {number}: {} at {}, serial \"{}\", {}{}",
        identity.driver,
        identity.location,
        identity.serial,
        Mib(identity.capacity),
        if identity.can_flush { "" } else { ", cannot flush: durable only if it says so" },
    );
    guard::feed();
    guard::mark(Progress::Capturing);
    screen::busy(
        format_args!("capturing to disk {number}"),
        format_args!("{} at {}, {}", identity.driver, identity.location, Mib(identity.capacity)),
    );
    let place = dump::find_place(disk, dump.layout.file_bytes)?;
    let choice = place.choice();
    say!(
        "capture: disk {number}: slot {}, dump {}, {}",
        choice.slot,
        choice.sequence,
        choice.replaces,
    );
    let open = place.open(disk, slot_open(dump))?;
    dump.metrics.write_begin_tsc = cpu::rdtsc();
    dump.metrics.region_bytes_used = region_bytes_used(dump.crash.facts);
    // The layout depends on sizes only, and none has changed: this cannot fail where
    // planning did not, and cannot move anything.
    let built = notes::build(dump.header, &dump.crash, dump.plan, &dump.metrics);
    debug_assert_eq!(built, Ok(dump.layout));
    let core = Core {
        header: &dump.header[..dump.layout.header_bytes as usize],
        segments: &dump.plan.segments,
        zero_page: dump.zero_page,
    };
    let write_ns = place.write(disk, &core, &Bare)?;
    let mut seal = stage_seal(dump, &open, &core, write_ns);
    place.seal(disk, seal)?;
    say!(
        "capture: sealed {} bytes in {}, {} MiB/s; {} after the jump",
        core.bytes(),
        Ms(write_ns),
        mib_per_second(core.bytes(), write_ns),
        Ms(seal.duration_ns),
    );
    guard::mark(Progress::Sealed);
    screen::good(
        format_args!("captured: dump {} on disk {number}", choice.sequence),
        format_args!(
            "{} in {}, {} MiB/s",
            Mib(core.bytes()),
            Ms(write_ns),
            mib_per_second(core.bytes(), write_ns)
        ),
    );
    say!(
        "capture: reserved region: {} of {} used",
        Mib(seal.region_bytes_used),
        Mib(dump.crash.facts.region.bytes),
    );
    if dump.crash.facts.command_line().split(' ').any(|word| word == "capture_bench=raw") {
        bench(&place, disk, &core, &mut seal)?;
    }
    Ok(())
}

/// Writes the same bytes to the same place once more, as a measure of what the medium can
/// do without any of the work of a dump. The result goes into the seal.
fn bench(
    place: &Place,
    disk: &mut dyn BlockDevice,
    core: &Core<'_>,
    seal: &mut StageSeal,
) -> Result<(), Problem> {
    seal.raw_bytes = core.bytes();
    seal.raw_ns = place.write(disk, core, &Bare)?;
    place.seal(disk, *seal)?;
    say!(
        "capture: raw write {} bytes in {}, {} MiB/s",
        seal.raw_bytes,
        Ms(seal.raw_ns),
        mib_per_second(seal.raw_bytes, seal.raw_ns),
    );
    Ok(())
}

fn slot_open(dump: &Prepared) -> SlotOpen {
    let (facts, cause) = (dump.crash.facts, &dump.crash.handoff.cause);
    let mut open = SlotOpen::new();
    open.cause_kind = cause.kind;
    open.nonce = cpu::rdtsc();
    if facts.boot_unix_time != 0 {
        let since_boot = clock::ns(cause.tsc.saturating_sub(facts.boot_tsc)) / 1_000_000_000;
        open.unix_time = facts.boot_unix_time.saturating_add(since_boot);
    }
    open.cpu = cause.cpu;
    open.stages = 1;
    open.set_build_id(facts.build_id());
    open.set_message(&cause_line(cause));
    open
}

fn stage_seal(dump: &Prepared, open: &SlotOpen, core: &Core<'_>, write_ns: u64) -> StageSeal {
    let mut seal = StageSeal::new(open);
    seal.kind = stage_kind::ALL;
    seal.elf_offset = DATA_OFFSET;
    seal.elf_bytes = core.bytes();
    seal.header_bytes = core.header.len() as u64;
    seal.header_crc32 = crc32fast::hash(core.header);
    seal.complete = 1;
    seal.sealed_tsc = cpu::rdtsc();
    seal.duration_ns = clock::ns(seal.sealed_tsc.saturating_sub(dump.crash.handoff.jump_tsc));
    seal.write_ns = write_ns;
    seal.region_bytes_used = region_bytes_used(dump.crash.facts);
    seal
}

/// How much of the reserved region is in use: the image, what it took of the scratch
/// memory, the facts and the parked CPUs.
fn region_bytes_used(facts: &BootFacts) -> u64 {
    layout().image.bytes + memory::used() + size_of::<BootFacts>() as u64 + facts.park.bytes
}

/// Time and console of the real machine.
struct Bare;

impl Host for Bare {
    fn tsc(&self) -> u64 {
        cpu::rdtsc()
    }

    fn ns(&self, ticks: u64) -> u64 {
        clock::ns(ticks)
    }

    fn say(&self, text: fmt::Arguments<'_>) {
        line(text);
    }

    fn progress(&self, done: u64, total: u64) {
        screen::progress(done, total);
        guard::progress(done);
    }
}
