//! Faults on request: `crash=` and `wedge=` of the command line.
//!
//! Both strike where a workload gives a sign of life, so that a backtrace leads through
//! real work. The crash waits until every workload has done a full round, every wedge is in
//! place, and every other CPU has shown a sign of life.

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use machine::apic::{self, Ipi};
use machine::cell::SetOnce;
use machine::cpu;

use crate::cmdline::Options;
use crate::{clock, cpus, log, options};

/// How long a CPU that is to be struck may stay without work, in nanoseconds.
const IDLE_STRIKE_NS: u64 = 3_000_000_000;
/// Wedges at once.
const MAX_WEDGES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    Panic,
    Assert,
    PageFault,
    NullCall,
    GeneralProtection,
    UndefinedInstruction,
    Divide,
    StackOverflow,
    DamagedImage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wedge {
    IrqsOff,
    NmiBlocked,
}

#[derive(Debug)]
struct Plan {
    crash: Option<(Crash, usize)>,
    wedges: heapless::Vec<(Wedge, usize), MAX_WEDGES>,
}

static PLAN: SetOnce<Plan> = SetOnce::new();
static WARM: AtomicBool = AtomicBool::new(false);
static WARM_NS: AtomicU64 = AtomicU64::new(0);
static IN_PLACE: AtomicU32 = AtomicU32::new(0);
/// What wedged CPUs count, each kind its own, so that their loops stay two functions: a
/// stopped CPU no longer counts.
static IRQS_OFF_SPINS: AtomicU64 = AtomicU64::new(0);
static NMI_BLOCKED_SPINS: AtomicU64 = AtomicU64::new(0);

fn crash_named(name: &str) -> Option<Crash> {
    Some(match name {
        "panic" => Crash::Panic,
        "assert" => Crash::Assert,
        "page-fault" => Crash::PageFault,
        "null-call" => Crash::NullCall,
        "gp" => Crash::GeneralProtection,
        "ud" => Crash::UndefinedInstruction,
        "divide" => Crash::Divide,
        "stack-overflow" => Crash::StackOverflow,
        "damaged-image" => Crash::DamagedImage,
        _ => return None,
    })
}

fn wedge_named(name: &str) -> Option<Wedge> {
    Some(match name {
        "irqs-off" => Wedge::IrqsOff,
        "nmi-blocked" => Wedge::NmiBlocked,
        _ => return None,
    })
}

/// Whether the capture image is to be damaged after its checksum was taken.
pub fn damages_image(options: &Options) -> bool {
    options.crash.as_ref().is_some_and(|crash| crash.name == "damaged-image")
}

/// The stages of the boot at which `crash=NAME,at=STAGE` can strike, in their order. From
/// `armed` on a crash is captured; before it there are last words.
pub const STAGES: [&str; 22] = [
    "options",
    "region",
    "park-area",
    "image-loaded",
    "armed",
    "clock",
    "facts-complete",
    "apic",
    "interrupts",
    "frames",
    "stacks",
    "sealed",
    "start-up-code",
    "protected",
    "cpus-started",
    "round-trip",
    "cpus-released",
    "plan",
    "workload-chosen",
    "workload-prepared",
    "round-done",
    "verdict",
];

/// The boot has come to `stage`, one of [`STAGES`]: strikes if it was asked to.
pub fn stage(stage: &'static str) {
    debug_assert!(STAGES.contains(&stage));
    let Some(asked) = options().and_then(|options| options.crash.as_ref()) else { return };
    if asked.at.as_ref().is_some_and(|at| at == stage)
        && let Some(kind) = crash_named(&asked.name)
    {
        log!("stage: {stage}");
        strike(kind, cpus::current_index());
    }
}

/// Reads the plan from the command line, now that the number of CPUs is known. What cannot
/// be done is said and left out.
pub fn plan(options: &Options) {
    let count = cpus::count();
    let exists = |cpu: usize, what: &str| {
        if cpu >= count {
            log!("warning: {what} names CPU {cpu}, but there are {count}: ignored");
        }
        cpu < count
    };
    let crash = options.crash.as_ref().and_then(|asked| {
        let cpu = asked.cpu.map_or(usize::from(count > 1), |cpu| cpu as usize);
        let kind = crash_named(&asked.name);
        if kind.is_none() {
            log!("warning: crash={}: not yet", asked.name);
        }
        if let Some(stage) = &asked.at {
            if !STAGES.contains(&stage.as_str()) {
                log!("warning: at={stage} is no stage of the boot; those are {}", List(&STAGES));
            }
            return None;
        }
        kind.filter(|_| exists(cpu, "crash=")).map(|kind| (kind, cpu))
    });
    let mut wedges = heapless::Vec::new();
    for asked in &options.wedges {
        let taken = |cpu: usize, wedges: &heapless::Vec<(Wedge, usize), MAX_WEDGES>| {
            crash.is_some_and(|(_, crashing)| crashing == cpu)
                || wedges.iter().any(|&(_, wedged)| wedged == cpu)
        };
        let highest_free = (0..count).rev().find(|&cpu| !taken(cpu, &wedges));
        let Some(cpu) = asked.cpu.map(|cpu| cpu as usize).or(highest_free) else {
            log!("warning: wedge={}: no CPU left for it", asked.kind);
            continue;
        };
        match wedge_named(&asked.kind) {
            None => log!("warning: wedge={}: not yet", asked.kind),
            Some(_) if taken(cpu, &wedges) => {
                log!("warning: wedge={}: CPU {cpu} is taken already", asked.kind);
            }
            Some(kind) if exists(cpu, "wedge=") => {
                if wedges.push((kind, cpu)).is_err() {
                    log!("warning: wedge={}: at most {MAX_WEDGES}", asked.kind);
                }
            }
            Some(_) => {}
        }
    }
    PLAN.set(Plan { crash, wedges });
}

/// Words, separated by spaces.
struct List<'a>(&'a [&'a str]);

impl core::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, "{word} "))
    }
}

/// Whether a crash or a wedge is planned: workloads then go on until it strikes.
pub fn planned() -> bool {
    PLAN.get().is_some_and(|plan| plan.crash.is_some() || !plan.wedges.is_empty())
}

/// Says that every workload has done a full round. Only the first time counts.
pub fn warm() {
    if WARM.load(Ordering::Relaxed) {
        return;
    }
    for cpu in cpus::all() {
        cpu.beats.store(0, Ordering::Relaxed);
    }
    WARM_NS.store(clock::now_ns(), Ordering::Relaxed);
    WARM.store(true, Ordering::Release);
}

/// A sign of life of a CPU that has nothing to do. It strikes there only when work has not
/// come its way for a while.
pub fn idle_beat() {
    let index = cpus::current_index();
    cpus::all()[index].beats.fetch_add(1, Ordering::Relaxed);
    if clock::now_ns().saturating_sub(WARM_NS.load(Ordering::Relaxed)) > IDLE_STRIKE_NS {
        strike_if_due(index);
    }
}

/// A sign of life of the running CPU, from inside a workload. Strikes when its turn has
/// come.
pub fn beat() {
    let index = cpus::current_index();
    cpus::all()[index].beats.fetch_add(1, Ordering::Relaxed);
    strike_if_due(index);
}

fn strike_if_due(index: usize) {
    if !WARM.load(Ordering::Acquire) {
        return;
    }
    let Some(plan) = PLAN.get() else { return };
    if let Some(&(kind, _)) = plan.wedges.iter().find(|&&(_, cpu)| cpu == index) {
        wedge(kind, index);
    }
    let Some((kind, crashing)) = plan.crash else { return };
    if crashing != index {
        return;
    }
    let all_beat = cpus::all().iter().enumerate().all(|(other, cpu)| {
        other == index
            || !cpu.started.load(Ordering::Relaxed)
            || cpu.beats.load(Ordering::Relaxed) > 0
    });
    if all_beat && IN_PLACE.load(Ordering::Acquire) as usize == plan.wedges.len() {
        strike(kind, index);
    }
}

fn strike(kind: Crash, index: usize) {
    let name = match kind {
        Crash::Panic => "panic",
        Crash::Assert => "assert",
        Crash::PageFault => "page-fault",
        Crash::NullCall => "null-call",
        Crash::GeneralProtection => "gp",
        Crash::UndefinedInstruction => "ud",
        Crash::Divide => "divide",
        Crash::StackOverflow => "stack-overflow",
        Crash::DamagedImage => "damaged-image",
    };
    log!("crash: {name} on cpu {index}");
    match kind {
        Crash::Panic | Crash::DamagedImage => panic!("asked for by crash={name}"),
        Crash::Assert => assert_eq!(black_box(2) + 2, 5, "asked for by crash=assert"),
        // Far outside any RAM, inside the canonical lower half.
        Crash::PageFault => {
            cpu::touch(0x7f00_dead_b000);
        }
        Crash::NullCall => cpu::call(0),
        // Not canonical: general protection, not a page fault.
        Crash::GeneralProtection => {
            cpu::touch(0x8000_0000_0000_0000);
        }
        Crash::UndefinedInstruction => cpu::undefined_instruction(),
        Crash::Divide => cpu::divide_by_zero(),
        Crash::StackOverflow => {
            overflow_the_stack(0);
        }
    }
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "it ends at the guard page")]
fn overflow_the_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow_the_stack(depth + 1) + frame[(depth % 64) as usize]
}

fn wedge(kind: Wedge, index: usize) {
    match kind {
        Wedge::IrqsOff => {
            cpu::interrupts_off();
            in_place("irqs-off", index);
            spin_irqs_off()
        }
        // The handler calls `on_nmi` below, and stays there.
        Wedge::NmiBlocked => apic::send(apic::id(), Ipi::Nmi),
    }
}

fn in_place(name: &str, index: usize) {
    log!("wedge: {name} on cpu {index} in place");
    IN_PLACE.fetch_add(1, Ordering::Release);
}

/// Called inside the NMI handler: a CPU that is to be wedged there stays.
pub fn on_nmi() {
    let index = cpus::current_index();
    let planned =
        |plan: &Plan| plan.wedges.iter().any(|&wedge| wedge == (Wedge::NmiBlocked, index));
    if PLAN.get().is_some_and(planned) && WARM.load(Ordering::Acquire) {
        in_place("nmi-blocked", index);
        spin_nmi_blocked()
    }
}

/// Where a CPU with masked interrupts stays.
#[inline(never)]
fn spin_irqs_off() -> ! {
    loop {
        IRQS_OFF_SPINS.fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// Where a CPU that never leaves its NMI handler stays.
#[inline(never)]
fn spin_nmi_blocked() -> ! {
    loop {
        NMI_BLOCKED_SPINS.fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}
