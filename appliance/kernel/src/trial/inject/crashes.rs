//! The faults that `crash=` injects.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use machine::apic::{self, Ipi};
use machine::lock::Lock;
use machine::park::Park;
use machine::{boot, cpu, tables};

use super::{deadlock, in_place, planned_crash};
use crate::arming::arm;
use crate::base::{clock, console, cpus, heap, memory, power, roster};
use crate::crash;
use crate::trial::VECTOR_FAULT;
use crate::watch::{backtrace, lockup};

/// A fault.
#[derive(Debug)]
pub struct Crash {
    /// Its name on the command line.
    pub name: &'static str,
    /// Brings it about on the running CPU, whose index is given. Must not return.
    pub strike: fn(usize),
    /// What one more CPU does for it, when it needs one: reports in place and waits.
    pub accomplice: Option<fn(usize)>,
    /// Whether every CPU is struck at once.
    pub on_all: bool,
    /// Whether anyone would notice it, where that is not certain: otherwise the run would
    /// never end.
    pub noticed: fn() -> bool,
    /// Whether it takes work to get stuck in: at no stage of the boot, and not when idle.
    pub inside_work: bool,
}

const fn crash(name: &'static str, strike: fn(usize)) -> Crash {
    Crash { name, strike, accomplice: None, on_all: false, noticed: || true, inside_work: false }
}

const fn with_accomplice(name: &'static str, strike: fn(usize), help: fn(usize)) -> Crash {
    Crash { accomplice: Some(help), ..crash(name, strike) }
}

const HEAP_IN_CRASH: &str = "heap-in-crash";
const DAMAGED_IMAGE: &str = "damaged-image";
const PANIC_IN_NMI: &str = "panic-in-nmi";
const PANIC_IN_PANIC: &str = "panic-in-panic";
const LOOP_IN_LAST_WORDS: &str = "loop-in-last-words";
const LOCK_IN_LAST_WORDS: &str = "lock-in-last-words";

/// What `crash=lock-in-last-words` waits for.
static LOCK: Lock<()> = Lock::new("last-words", ());
/// What it holds meanwhile.
static HELD: Lock<()> = Lock::new("last-words-held", ());

static CRASHES: &[Crash] = &[
    crash("panic", |_| panic!("asked for by crash=panic")),
    crash("assert", |_| assert_eq!(black_box(2) + 2, 5, "asked for by crash=assert")),
    crash(DAMAGED_IMAGE, |_| panic!("asked for by crash=damaged-image")),
    // Far outside any RAM, inside the canonical lower half.
    crash("page-fault", |_| _ = cpu::touch(0x7f00_dead_b000)),
    crash("null-call", |_| cpu::call(0)),
    // Not canonical: general protection, not a page fault.
    crash("gp", |_| _ = cpu::touch(0x8000_0000_0000_0000)),
    crash("ud", |_| cpu::undefined_instruction()),
    crash("divide", |_| cpu::divide_by_zero()),
    crash("stack-overflow", |_| _ = overflow_the_stack(0)),
    // Asks first, then crashes: the question must leave everyone as it was.
    crash("live-backtrace", |_| {
        backtrace::show_all();
        panic!("asked for by crash=live-backtrace")
    }),
    crash("double-fault", |_| cpu::lose_the_stack()),
    crash("panic-in-irq", |_| {
        apic::send(apic::id(), Ipi::Fixed(VECTOR_FAULT));
        clock::wait_us(1_000_000);
    }),
    crash(PANIC_IN_NMI, |_| {
        apic::send(apic::id(), Ipi::Nmi);
        clock::wait_us(1_000_000);
    }),
    crash(PANIC_IN_PANIC, |_| panic!("asked for by crash=panic-in-panic")),
    crash(LOOP_IN_LAST_WORDS, |_| panic!("asked for by crash=loop-in-last-words")),
    // Held by the CPU that crashes, and so for ever.
    crash(LOCK_IN_LAST_WORDS, |_| {
        core::mem::forget(LOCK.lock());
        panic!("asked for by crash=lock-in-last-words")
    }),
    crash("oom", |_| use_up_the_heap()),
    with_accomplice(HEAP_IN_CRASH, |_| panic!("asked for by crash=heap-in-crash"), hold_the_heap),
    with_accomplice(
        "panic-during-stop",
        |_| panic!("asked for by crash=panic-during-stop"),
        panic_once_a_stop_begins,
    ),
    with_accomplice(
        "nmi-at-stopper",
        |_| panic!("asked for by crash=nmi-at-stopper"),
        send_nmi_once_a_stop_begins,
    ),
    Crash { on_all: true, ..crash("parallel-panic", parallel_panic) },
    Crash { noticed: lockup::notices_silence, ..crash("hard-lockup", |_| spin_hard_lockup()) },
    Crash {
        noticed: lockup::notices_stuck_work,
        inside_work: true,
        ..crash("soft-lockup", |_| spin_soft_lockup())
    },
    Crash {
        noticed: lockup::notices_deadlock,
        inside_work: true,
        ..with_accomplice("deadlock", deadlock::one_way, deadlock::other_way)
    },
    crash("no-nmi-handler", |_| {
        tables::remove_nmi_gate();
        panic!("asked for by crash=no-nmi-handler")
    }),
    // No crash at all: the ladder as the way to an orderly end.
    crash("orderly-poweroff", |_| power::power_off()),
    crash("orderly-reset", |_| power::reset()),
    crash("wild-gs-base", |_| {
        cpu::set_gs_base(0xdead_beef_dead_b000 & 0x0000_7fff_ffff_f000);
        panic!("asked for by crash=wild-gs-base")
    }),
    // Every CPU's own record, while all of them run: who is who must not depend on it.
    crash("wild-per-cpu", |_| {
        let place = cpus::place();
        cpu::smear(place.start, place.bytes, WILD);
        panic!("asked for by crash=wild-per-cpu")
    }),
    // What an earlier NMI may have left of each CPU is nonsense; the stop writes it anew.
    crash("wild-registers", |_| {
        for cpu in cpus::all() {
            let place = cpu.registers.place();
            cpu::smear(place.start, place.bytes, WILD);
        }
        panic!("asked for by crash=wild-registers")
    }),
    crash("mce", |index| await_from_outside("mce", index)),
    crash("mce-broadcast", |index| await_from_outside("mce-broadcast", index)),
    crash("external-nmi", |index| await_from_outside("external-nmi", index)),
    crash("write-roster", |_| cpu::poke(roster::pages().start)),
    crash("write-park", |_| cpu::poke(arm::park().as_ref().map_or(0, Park::root))),
    crash("write-rodata", |_| cpu::poke(boot::layout().rodata.start)),
    crash("write-text", |_| cpu::poke(boot::layout().text.start)),
    crash("exec-nx", |_| cpu::call(boot::layout().data.start)),
    crash("write-region", |_| cpu::poke(memory::region().start)),
    crash("write-facts", |_| cpu::poke(arm::facts_address().unwrap_or(0))),
    crash("write-idt", |_| cpu::poke(tables::idt_address())),
    crash("write-gdt", |index| cpu::poke(tables::gdt_address(index))),
    crash("write-page-tables", |_| cpu::poke(memory::root())),
    crash("write-stack-guard", |index| {
        let stacks = cpus::all()[index].stacks();
        cpu::poke(stacks.map_or(0, |stacks| stacks.guards()[0].start));
    }),
];

/// What wild writes leave behind.
const WILD: u8 = 0xa5;
/// How long a fault that comes from outside is waited for, in nanoseconds.
const OUTSIDE_NS: u64 = 20_000_000_000;

/// Asks whoever runs the machine for the fault `name` on this CPU, and waits for it at work:
/// interrupts unmasked.
#[inline(never)]
fn await_from_outside(name: &str, index: usize) {
    console::emergency(format_args!("outside: {name} wanted on cpu {index}"));
    let start = clock::now_ns();
    while clock::now_ns().saturating_sub(start) < OUTSIDE_NS {
        SPINS[2].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// The fault called `name`.
pub fn named(name: &str) -> Option<&'static Crash> {
    CRASHES.iter().find(|crash| crash.name == name)
}

/// The fault called `name` as a number, for [`numbered`].
pub fn number_of(name: &str) -> Option<usize> {
    CRASHES.iter().position(|crash| crash.name == name)
}

/// The fault with this number.
pub fn numbered(number: usize) -> Option<&'static Crash> {
    CRASHES.get(number)
}

/// The names there are.
#[derive(Debug)]
pub struct Names;

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        CRASHES.iter().try_for_each(|crash| write!(f, "{} ", crash.name))
    }
}

/// How long the CPUs of `crash=parallel-panic` wait for each other, in nanoseconds.
const TOGETHER_NS: u64 = 5_000_000_000;

/// The handler of [`VECTOR_FAULT`].
pub fn on_interrupt() {
    panic!("asked for by crash=panic-in-irq")
}

/// Called inside the NMI handler.
pub(super) fn on_nmi(index: usize) {
    if planned_crash().is_some_and(|(crash, cpu)| crash.name == PANIC_IN_NMI && cpu == index) {
        panic!("asked for by crash=panic-in-nmi")
    }
}

/// Called by the crash path once the others are stopped: the second panic of
/// `crash=panic-in-panic`, and the request of `crash=heap-in-crash`.
#[inline(never)] // A boundary of the crash code, which the proof about it finds by name.
pub fn in_crash_path() {
    if planned_crash().is_some_and(|(crash, _)| crash.name == HEAP_IN_CRASH) {
        let mut wanted = Vec::<u64>::new();
        if wanted.try_reserve_exact(black_box(1)).is_ok() {
            panic!("the heap served a request of the crash path")
        }
    }
    static DONE: AtomicBool = AtomicBool::new(false);
    let asked = planned_crash().is_some_and(|(crash, _)| crash.name == PANIC_IN_PANIC);
    if asked && !DONE.swap(true, Ordering::Relaxed) {
        panic!("a panic inside the crash path")
    }
}

/// Called by the crash path in place of a workload that is asked for its last words: what
/// `crash=loop-in-last-words` and `crash=lock-in-last-words` do instead of returning.
#[inline(never)] // A boundary of the crash code, which the proof about it finds by name.
pub fn in_last_words() {
    match planned_crash().map(|(crash, _)| crash.name) {
        Some(LOOP_IN_LAST_WORDS) => loop {
            SPINS[2].fetch_add(1, Ordering::Relaxed);
            cpu::pause();
        },
        Some(LOCK_IN_LAST_WORDS) => {
            // While one is held, a further one is waited for with interrupts as they are.
            let _held = HELD.lock();
            let _never = LOCK.lock();
        }
        _ => {}
    }
}

/// Whether the capture image is to be damaged after its checksum was taken.
pub fn damages_image(name: &str) -> bool {
    name == DAMAGED_IMAGE
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "it ends at the guard page")]
fn overflow_the_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow_the_stack(depth + 1) + frame[(depth % 64) as usize]
}

/// What spinning CPUs count, each kind its own, so that their loops stay separate functions.
static SPINS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Where a CPU stays whose ticks are to be missed.
#[inline(never)]
fn spin_hard_lockup() -> ! {
    cpu::interrupts_off();
    loop {
        SPINS[0].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// Where a CPU stays whose work is to be missed: it still takes interrupts.
#[inline(never)]
fn spin_soft_lockup() -> ! {
    loop {
        SPINS[1].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

/// Takes memory until there is none: large blocks for as long as there are any, then small
/// ones, without asking first whether there will be another.
fn use_up_the_heap() {
    const LARGE: usize = 1 << 20;
    let mut hoard: Option<Box<Link>> = None;
    loop {
        let mut large = Vec::new();
        if large.try_reserve_exact(LARGE).is_err() {
            break;
        }
        hoard = Some(Box::new(Link { _next: hoard, _memory: large }));
    }
    loop {
        hoard = Some(Box::new(Link { _next: hoard, _memory: black_box(Vec::with_capacity(4000)) }));
    }
}

/// Memory that is kept, and what was kept before.
struct Link {
    _next: Option<Box<Link>>,
    _memory: Vec<u8>,
}

/// Keeps the heap's lock for ever, interrupts masked.
fn hold_the_heap(index: usize) {
    let _heap = heap::hold();
    in_place("heap-holder", index);
    loop {
        SPINS[2].fetch_add(1, Ordering::Relaxed);
        cpu::pause();
    }
}

fn panic_once_a_stop_begins(index: usize) {
    cpu::interrupts_off();
    in_place("panic-during-stop", index);
    while crash::stopper().is_none() {
        cpu::pause();
    }
    panic!("a second panic, while the stop is under way")
}

fn send_nmi_once_a_stop_begins(index: usize) {
    cpu::interrupts_off();
    in_place("nmi-at-stopper", index);
    let stopper = loop {
        match crash::stopper() {
            Some(stopper) => break stopper,
            None => cpu::pause(),
        }
    };
    apic::send(cpus::apic_id(stopper), Ipi::Nmi);
    // One NMI it was to be: the stop interrupt finds this CPU here.
    cpu::interrupts_on();
    loop {
        cpu::pause();
    }
}

/// Waits for every other CPU to be as far, then panics.
///
/// With interrupts masked: whoever gets there last is not stopped before it has panicked.
fn parallel_panic(_index: usize) {
    cpu::interrupts_off();
    static ARRIVED: AtomicU32 = AtomicU32::new(0);
    let started =
        cpus::all().iter().filter(|cpu| cpu.started.load(Ordering::Relaxed)).count() as u32;
    ARRIVED.fetch_add(1, Ordering::AcqRel);
    let start = clock::now_ns();
    while ARRIVED.load(Ordering::Acquire) < started
        && clock::now_ns().saturating_sub(start) < TOGETHER_NS
    {
        cpu::pause();
    }
    panic!("asked for by crash=parallel-panic")
}
