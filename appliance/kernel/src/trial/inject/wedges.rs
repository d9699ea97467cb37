//! The bad states that `wedge=` puts CPUs into.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use handoff::MAX_CPUS;
use machine::apic::{self, Ipi};
use machine::cpu;

use super::{in_place, wedged};
use crate::base::{clock, console, cpus, xcall};

/// How long a brief holder keeps its lock once a stop is under way: well inside the first
/// window, and long enough that the stop interrupt finds it held.
const BRIEF_US: u64 = 50_000;
/// How long a slow acker stays in the funnel at most.
const SLOW_US: u64 = 10_000_000;

/// A bad state.
#[derive(Debug)]
pub struct Wedge {
    /// Its name on the command line.
    pub name: &'static str,
    /// Puts the running CPU, whose index is given, into it. Called at every sign of life.
    pub enter: fn(usize),
    /// The CPU it is for when none is named; the highest free one otherwise.
    pub cpu: Option<usize>,
}

const NMI_BLOCKED: &str = "nmi-blocked";
const BSP_NMI_BLOCKED: &str = "bsp-nmi-blocked";
const SLOW_ACKER: &str = "slow-acker";
const IO_HOLDER: &str = "io-holder";
const IO_HOLDER_BRIEF: &str = "io-holder-brief";

/// Reads in flight when an I/O holder stays in the block driver, at least.
const READS: usize = 32;

static WEDGES: &[Wedge] = &[
    Wedge { name: "irqs-off", enter: irqs_off, cpu: None },
    Wedge { name: NMI_BLOCKED, enter: nmi_blocked, cpu: None },
    Wedge { name: BSP_NMI_BLOCKED, enter: nmi_blocked, cpu: Some(0) },
    Wedge { name: "lock-holder", enter: lock_holder, cpu: None },
    Wedge { name: "lock-holder-brief", enter: lock_holder_brief, cpu: None },
    Wedge { name: "xcall-holder", enter: xcall_holder, cpu: None },
    Wedge { name: SLOW_ACKER, enter: slow_acker, cpu: None },
    // Both strike in the block driver, see `mid_submit`.
    Wedge { name: IO_HOLDER, enter: |_| {}, cpu: None },
    Wedge { name: IO_HOLDER_BRIEF, enter: |_| {}, cpu: None },
];

/// The wedge called `name`.
pub fn named(name: &str) -> Option<&'static Wedge> {
    WEDGES.iter().find(|wedge| wedge.name == name)
}

/// The names there are.
#[derive(Debug)]
pub struct Names;

impl core::fmt::Display for Names {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        WEDGES.iter().try_for_each(|wedge| write!(f, "{} ", wedge.name))
    }
}

/// What wedged CPUs count, each kind its own, so that their loops stay separate functions:
/// a stopped CPU no longer counts.
static SPINS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
static SLOW_IN_PLACE: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

fn irqs_off(index: usize) {
    cpu::interrupts_off();
    in_place("irqs-off", index);
    spin_irqs_off()
}

/// The NMI handler calls [`on_nmi`], which keeps this CPU there.
fn nmi_blocked(_index: usize) {
    apic::send(apic::id(), Ipi::Nmi);
}

fn lock_holder(index: usize) {
    let _console = console::hold();
    in_place("lock-holder", index);
    spin_holding_the_console()
}

fn lock_holder_brief(index: usize) {
    let console = console::hold();
    in_place("lock-holder-brief", index);
    until_a_stop_has_begun();
    drop(console);
}

/// Stays until a stop is under way, and a little longer. With a lock held interrupts are
/// masked: the stop interrupt waits until it is given back, and finds nothing held.
fn until_a_stop_has_begun() {
    while crate::crash::stopper().is_none() {
        cpu::pause();
    }
    clock::wait_us(BRIEF_US);
}

/// Called in the block driver, its lock held and interrupts masked, when a request stands in
/// the queue and the device has not been told; `reads` are in flight. An I/O holder stays.
pub fn mid_submit(reads: usize) {
    if reads < READS {
        return;
    }
    let index = cpus::current_index();
    if wedged(&[IO_HOLDER], index) {
        in_place(IO_HOLDER, index);
        spin_in_the_block_driver()
    }
    if wedged(&[IO_HOLDER_BRIEF], index) {
        in_place(IO_HOLDER_BRIEF, index);
        until_a_stop_has_begun();
    }
}

fn xcall_holder(index: usize) {
    let _calls = xcall::hold();
    in_place("xcall-holder", index);
    spin_holding_the_calls()
}

fn slow_acker(index: usize) {
    if !SLOW_IN_PLACE[index].swap(true, Ordering::Relaxed) {
        in_place(SLOW_ACKER, index);
    }
}

/// Called in the funnel, between the save and the acknowledgement: a slow acker stays there
/// until the next rung has reached it, or for a while.
#[inline(never)] // A boundary of the crash code, which the proof about it finds by name.
pub fn in_funnel(index: usize) {
    if !wedged(&[SLOW_ACKER], index) {
        return;
    }
    let nmis = &cpus::all()[index].nmis;
    let before = nmis.load(Ordering::Relaxed);
    let mut waited = 0;
    while nmis.load(Ordering::Relaxed) == before && waited < SLOW_US {
        clock::wait_us(100);
        waited += 100;
    }
}

/// Called inside the NMI handler: a CPU that is to be wedged there stays.
pub(super) fn on_nmi(index: usize) {
    if wedged(&[NMI_BLOCKED, BSP_NMI_BLOCKED], index) {
        in_place(NMI_BLOCKED, index);
        spin_nmi_blocked()
    }
}

/// Where a CPU with masked interrupts stays.
#[inline(never)]
fn spin_irqs_off() -> ! {
    loop {
        SPINS[0].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// Where a CPU that never leaves its NMI handler stays.
#[inline(never)]
fn spin_nmi_blocked() -> ! {
    loop {
        SPINS[1].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// Where a CPU stays that holds the console's lock, interrupts masked, for ever.
#[inline(never)]
fn spin_holding_the_console() -> ! {
    loop {
        SPINS[2].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// Where a CPU stays that holds the lock of the cross-calls, interrupts masked, for ever.
#[inline(never)]
fn spin_holding_the_calls() -> ! {
    loop {
        SPINS[3].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// Where a CPU stays in the middle of a request to a disk, the driver's lock held, for ever.
#[inline(never)]
fn spin_in_the_block_driver() -> ! {
    loop {
        SPINS[4].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}
