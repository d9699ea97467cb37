//! From the loader's jump to the verdict, one named step after the other.

use epitaph_firmware::clock::{Source, Timers, find};
use epitaph_workload::Workload;
use handoff::Range;
use handoff::facts::MemoryKind;
use handoff::last_words::BuildIdLine;
use handoff::trace::EventKind;
use machine::boot::{Layout, STACK_BLOCK_BYTES, Stacks, boot_stacks, crash_stacks, layout};
use machine::cell::SetOnce;
use machine::paging::PAGE;
use machine::trap::{TrapFrame, vector};
use machine::{apic, cpu, smp, tables, trace, trap};

use crate::arming::arm::{self, Arming};
use crate::arming::{keys, last_run, rehearsal, target};
use crate::base::memory::Memory;
use crate::base::windows::worst_case_ns;
use crate::base::{clock, console, cpus, devices, heap, memory, power, recorder, screen, xcall};
use crate::firmware::acpi::Acpi;
use crate::firmware::boot::BootInfo;
use crate::firmware::cmdline::{Options, Switch};
use crate::trial::{self, bench, faults};
use crate::watch::{hw_watchdog, lockup};
use crate::work::workload;
use crate::{crash, log};

static OPTIONS: SetOnce<Options> = SetOnce::new();

/// The command line's values, once they are read.
pub fn options() -> Option<&'static Options> {
    OPTIONS.get()
}

/// Runs the appliance. `magic` and `information` are what the loader left in EAX and EBX,
/// `workloads` what it can run.
pub fn start(magic: u32, information: u32, workloads: &'static [&'static dyn Workload]) -> ! {
    clock::start();
    console::init();
    let stacks = boot_stacks();
    cpus::enter_boot_processor(stacks);
    trap::set_dispatcher(dispatch);
    tables::fill_idt();
    tables::install(0, &stacks);
    machine::paging::allow_write_combining();
    apic::mask_8259();

    let mut image = layout();
    arm::identify(&image);
    let boot = match BootInfo::detect(magic, information, &Memory) {
        Ok(boot) => boot,
        Err(error) => panic!("boot: {error}"),
    };
    // First of all the way to switch off: a crash may need it from here on.
    let acpi = read_acpi(&boot);
    let power = acpi.as_ref().map_or_else(Default::default, |acpi| acpi.power);
    power::set_facts(power);
    if let Some(acpi) = &acpi {
        devices::find(&acpi.pci);
    }
    let options = read_options(&boot);
    screen::find(&boot);
    last_run::begin(hw_watchdog::find());
    trial::stage("options");
    let mut arming = match Arming::begin(image, &boot, power) {
        Ok(arming) => Some(arming),
        Err(reason) => {
            log!("not armed: {reason}");
            None
        }
    };
    image.region = memory::region();
    trial::stage("armed");

    find_clock(acpi.as_ref());
    reseal(&mut arming, &boot, 1);
    trial::stage("facts-complete");
    find_cpus(acpi.as_ref(), stacks);
    let root = match bring_up_memory(&boot, &image, &mut arming, options) {
        Ok(ready) => ready,
        Err(reason) => panic!("memory: {reason}"),
    };
    let armed = target::look_at_boot();
    trial::stage("target");
    if let Some(arming) = arming.as_mut().filter(|_| armed) {
        rehearsal::at_boot(arming);
    }
    trial::stage("rehearsed");
    start_cpus(root);
    faults::plan(options);
    trial::stage("plan");

    let right = workload::run(workloads, &options.workloads);
    log!("heap: {}", heap::Figures);
    if right {
        log!("verdict: finished");
    } else {
        log!("verdict: FAILED see above");
    }
    trial::stage("verdict");
    power::after_finish();
    loop {
        trial::idle_beat();
        cpu::interrupts_off();
        cpu::interrupts_on_and_halt();
    }
}

fn read_options(boot: &BootInfo) -> &'static Options {
    let parsed = Options::parse(&boot.command_line, &mut |text| log!("warning: {text}"));
    OPTIONS.set(parsed);
    let Some(options) = OPTIONS.get() else { panic!("the command line was read twice") };
    log!("epitaph: booted by {}, {}", boot.loader.name(), BuildIdLine(arm::build_id()));
    log!("options: {options}");
    for key in options.not_yet() {
        log!("warning: {key}: not yet");
    }
    let ram = || boot.memory.iter().filter(|entry| entry.kind == MemoryKind::RAM);
    let bytes = ram().map(|entry| entry.range.bytes).sum::<u64>();
    log!("boot: {} MiB of RAM in {} ranges", bytes >> 20, ram().count());
    for module in &boot.modules {
        log!("boot: module `{}`, {} KiB", module.name, module.range.bytes >> 10);
    }
    let lost = boot.left_out;
    if lost.ranges > 0 {
        log!(
            "warning: boot: the memory map has {} ranges more than fit: {} MiB of RAM, neither \
             used nor dumped",
            lost.ranges,
            lost.ram.div_ceil(1 << 20)
        );
    }
    if lost.modules > 0 {
        log!("warning: boot: {} modules too many: their memory may be overwritten", lost.modules);
    }
    if lost.command_line > 0 {
        log!(
            "warning: boot: the command line is {} bytes too long: the options behind `{}` are \
             not read",
            lost.command_line,
            tail(&boot.command_line)
        );
    }
    options
}

/// Returns the last characters of a command line that was cut, for the warning.
fn tail(line: &str) -> &str {
    let from = line.len().saturating_sub(24);
    (from..=line.len()).find_map(|from| line.get(from..)).unwrap_or_default()
}

/// Reads the firmware's tables.
fn read_acpi(boot: &BootInfo) -> Option<Acpi> {
    match Acpi::read(boot.rsdp, &Memory) {
        Ok(acpi) => Some(acpi),
        Err(error) => {
            log!("acpi: {error}; going on with one CPU");
            None
        }
    }
}

/// Learns how fast the clock runs.
fn find_clock(acpi: Option<&Acpi>) {
    let pm_timer = acpi.and_then(|acpi| acpi.pm_timer);
    let rate = find(&machine::clock::Hardware, pm_timer, Timers::All);
    clock::set_rate(rate);
    if rate.source == Source::Assumed {
        log!("warning: clock: nothing here to measure it by: all times are a guess");
    } else if let Some(error) = rate.unsure {
        let mhz = error / 1_000_000;
        log!("warning: clock: no two measurements agreed; off by up to {mhz} MHz");
    }
    log!("clock: {} MHz ({})", rate.hz / 1_000_000, rate.source.name());
    clock::read_calendar();
    trial::stage("clock");
}

/// Seals the facts as they are known now, for `cpus` CPUs.
fn reseal(arming: &mut Option<Arming>, boot: &BootInfo, cpus: usize) {
    if let Some(Err(reason)) = arming.as_mut().map(|arming| arming.seal(boot, cpus)) {
        log!("warning: the boot facts could not be sealed: {reason}");
    }
}

/// Enters every CPU the firmware lists, and unmasks interrupts on this one.
fn find_cpus(acpi: Option<&Acpi>, stacks: Stacks) {
    if let Err(reason) = apic::enable() {
        panic!("cpus: {reason}");
    }
    if !cpu::has_nx() {
        log!("warning: cpu: no NX: memory that is not code could be executed");
    }
    if apic::registers().is_some() {
        log!("cpus: no x2APIC, the local APIC is in xAPIC mode");
    }
    cpus::enter_boot_processor(stacks);
    if let Some(acpi) = acpi {
        if acpi.cpus.is_empty() {
            log!("acpi: no list of CPUs (MADT); going on with one CPU");
        }
        cpus::enter_all(acpi);
    }
    cpus::open_nmi_pin();
    cpus::report_errors();
    lockup::calibrate();
    lockup::start();
    trial::stage("apic");
    cpu::interrupts_on();
    hw_watchdog::arm();
    trial::stage("interrupts");
}

/// What the frame allocator must keep off: the image, the region, what the loader left.
fn reserved(boot: &BootInfo, image: &Layout) -> heapless::Vec<Range, 16> {
    let whole_image = Range::between(image.headers.start, image.data.end());
    let fixed = [whole_image, image.region, boot.information];
    let modules = boot.modules.iter().map(|module| module.range);
    let mut reserved = heapless::Vec::new();
    for range in fixed.into_iter().chain(modules) {
        if reserved.push(range).is_err() {
            log!("warning: boot: too many modules, the rest may be overwritten");
        }
    }
    reserved
}

/// Memory for everyone, stacks for every CPU, then the complete facts, then protection.
/// Returns the page-table root and the start-up page.
fn bring_up_memory(
    boot: &BootInfo,
    image: &Layout,
    arming: &mut Option<Arming>,
    options: &Options,
) -> Result<(u64, Option<u64>), &'static str> {
    memory::init(&boot.memory, &reserved(boot, image))?;
    trial::stage("frames");
    for index in 1..cpus::count() {
        match memory::allocate(STACK_BLOCK_BYTES / PAGE) {
            Some(base) => cpus::assign_stacks(index, Stacks::at(base)),
            None => {
                log!(
                    "cpus: no memory for CPU {index} and those behind it: each needs {} KiB",
                    STACK_BLOCK_BYTES >> 10
                );
                break;
            }
        }
    }
    trial::stage("stacks");
    if options.trace == Switch::On {
        recorder::begin();
    }
    keys::reserve();
    let page = (cpus::count() > 1).then(memory::allocate_low).flatten();
    let park_page = page.and_then(|_| memory::allocate_low());
    reseal(arming, boot, cpus::count());
    if let Some(arming) = arming {
        if faults::damages_image(options) {
            arming.damage_image();
        }
        log!("capture image: {}", arm::Loaded);
    }
    trial::stage("sealed");
    let stacks = cpus::all().iter().filter_map(cpus::Cpu::stacks).chain([crash_stacks()]);
    // Written now: once memory is protected, the page can be executed and not written.
    if let Some(page) = page {
        smp::prepare(page, cpus::secondary_main);
    }
    if let (Some(page), Some(park)) = (park_page, arm::park()) {
        park.prepare_start(page);
        crash::stop::park_by(page);
    }
    trial::stage("start-up-code");
    let root = memory::protect(&boot.memory, image, cpus::count(), stacks, [page, park_page])
        .map_err(|_| "no memory left for page tables")?;
    screen::all_memory_is_mapped();
    devices::map(&power::facts());
    trial::stage("protected");
    let (free, total) = memory::counts();
    log!("memory: {} of {} MiB free", free >> 8, total >> 8);
    Ok((root, page))
}

fn start_cpus((root, page): (u64, Option<u64>)) {
    if let Some(page) = page {
        smp::set_root(root);
        let started = cpus::start_others(page);
        log!("cpus: {started} of {} started", cpus::count());
        trial::stage("cpus-started");
        cpus::seal();
        protect_tables();
        let (usual, worst) = cpus::measure_round_trip();
        let windows = crash::stop::windows_ns();
        let [irq, nmi, init] = windows.map(|ns| ns / 1_000_000);
        log!(
            "stop: round trip {} us, {} us at worst; windows irq {irq} ms, nmi {nmi} ms twice, \
             init {init} ms",
            usual / 1000,
            worst / 1000
        );
        match worst_case_ns(windows) {
            Some(ns) => {
                log!("stop: a CPU that is stuck costs a crash {} ms at most", ns / 1_000_000)
            }
            None => log!("stop: a CPU that is stuck keeps a crash waiting without a limit"),
        }
        rehearsal::of_the_stop();
        trial::stage("round-trip");
        if let Some((pairs, load)) = options().and_then(|options| options.bench_stop) {
            bench::stops(pairs as usize, load);
        }
        cpus::release();
        trial::stage("cpus-released");
    } else {
        log!("cpus: one");
        cpus::seal();
        protect_tables();
    }
}

fn protect_tables() {
    if let Err(error) = memory::protect_tables() {
        log!("warning: the descriptor tables stay writable: {error}");
    }
}

/// Every interrupt vector in use. The stop's is the highest that is maskable and ours, so
/// that nothing pending goes before it.
const VECTORS: [u8; 9] = [
    crash::stop::VECTOR_STOP,
    crash::VECTOR_DEADLINE,
    apic::VECTOR_TIMER,
    trial::VECTOR_FAULT,
    workload::VECTOR_CALL,
    workload::VECTOR_WAKE,
    cpus::VECTOR_PING,
    xcall::VECTOR,
    apic::VECTOR_SPURIOUS,
];

const _: () = {
    let mut one = 0;
    while one < VECTORS.len() {
        let mut other = one + 1;
        while other < VECTORS.len() {
            assert!(VECTORS[one] != VECTORS[other], "two uses of one vector");
            other += 1;
        }
        one += 1;
    }
};

/// From every interrupt, NMI and exception to the code it concerns.
fn dispatch(frame: &mut TrapFrame) {
    // NMIs and exceptions are recorded where it is known what they are.
    let interrupt = frame.vector >= vector::FIRST_INTERRUPT;
    if interrupt {
        trace::record(EventKind::INTERRUPT, frame.vector, frame.rip);
    }
    match frame.vector {
        vector::NMI => crash::on_nmi(frame),
        vector::MACHINE_CHECK => crash::machine_check::on_machine_check(frame),
        number if number < vector::FIRST_INTERRUPT => crash::on_exception(frame),
        number if number == u64::from(crash::stop::VECTOR_STOP) => crash::on_stop_interrupt(frame),
        number if number == u64::from(crash::VECTOR_DEADLINE) => crash::on_deadline(frame),
        number => on_interrupt(number),
    }
    if interrupt {
        trace::record(EventKind::INTERRUPT_END, frame.vector, 0);
    }
}

/// The interrupts of a system that is well. Nothing from here on is crash code, though the
/// tick may end in a crash.
#[inline(never)] // A boundary, which the proof about crash code finds by name.
fn on_interrupt(number: u64) {
    match number {
        number if number == u64::from(cpus::VECTOR_PING) => cpus::on_ping(),
        number if number == u64::from(xcall::VECTOR) => xcall::on_call(),
        number if number == u64::from(apic::VECTOR_TIMER) => lockup::on_tick(),
        number if number == u64::from(workload::VECTOR_CALL) => workload::on_call(),
        number if number == u64::from(trial::VECTOR_FAULT) => faults::on_interrupt(),
        number if number == u64::from(apic::VECTOR_SPURIOUS) => {}
        // The wake-up, whose work is done by arriving, and anything unexpected.
        _ => apic::end_of_interrupt(),
    }
}
