//! The boot CPU's story. Each experiment has the name that the test knows it by, and a CPU of
//! its own where it may leave that CPU unusable.

use core::sync::atomic::Ordering;

use epitaph_monitor::abi::{psci, sdei};

use crate::calls;
use crate::handler::{ACTIONS, Action, CHECKED, DAMAGED, EVENTS, INTERRUPTED, RESUMED, damage};
use crate::jobs::{GO, INTERRUPTS, Job, READY};
use crate::machine::{self, BLOCKS, PATTERN, power_off, say, smc, within};

/// Longest time, in milliseconds, for something that is to happen.
const SOON: u64 = 20_000;
/// Time, in milliseconds, in which something happens if it ever does: a hundred times what an
/// interrupt takes on a busy host.
const A_WHILE: u64 = 1000;
/// Events that one wedged CPU completes, on a processor with FEAT_NMI and on others: the
/// large number takes half a minute on a busy host, and once is enough.
const ROUNDS: [u64; 2] = [1000, 50];

fn report(name: &str, value: impl core::fmt::Display) {
    say(format_args!("{name}={value}\n"));
}

/// Runs every experiment, then switches the machine off.
pub extern "C" fn tell() -> ! {
    machine::set_up_distributor();
    machine::set_up_interrupts(false);
    calls::psci();
    calls::sdei();
    if smc(sdei::VERSION, [0; 5]) > 0 {
        calls::in_own_handler();
        wedged();
        masked();
        off_inside_of_an_event();
        off_after_the_event();
        parked();
    }
    off_inside_of_an_interrupt();
    report("story", "told");
    power_off()
}

/// Starts a CPU for `job` and waits until it is ready.
fn start(cpu: usize, job: Job) -> bool {
    READY[cpu].store(0, Ordering::Relaxed);
    GO[cpu].store(0, Ordering::Relaxed);
    let started = smc(psci::CPU_ON, [cpu as u64, machine::entry(), job as u64, 0, 0]);
    started == psci::SUCCESS && within(SOON, || READY[cpu].load(Ordering::Acquire) == 1)
}

/// Starts a CPU, waits until an event has found it wedged, and sets what its handler does
/// from then on.
fn start_wedged(cpu: usize, action: Action) -> bool {
    ACTIONS[cpu].store(Action::Complete as u64, Ordering::Relaxed);
    let wedged = start(cpu, Job::Wedge) && within(SOON, || event_arrives(cpu, A_WHILE));
    ACTIONS[cpu].store(action as u64, Ordering::Relaxed);
    wedged
}

/// Waits until a CPU is off.
fn is_off(cpu: usize) -> bool {
    within(SOON, || smc(psci::AFFINITY_INFO, [cpu as u64, 0, 0, 0, 0]) == psci::OFF)
}

/// Ends a job that waits.
fn end(cpu: usize) -> bool {
    GO[cpu].store(1, Ordering::Release);
    is_off(cpu)
}

fn signal(cpu: usize) -> i64 {
    smc(sdei::EVENT_SIGNAL, [0, cpu as u64, 0, 0, 0])
}

/// Signals a CPU and waits for its handler.
fn event_arrives(cpu: usize, ms: u64) -> bool {
    let before = EVENTS[cpu].load(Ordering::Acquire);
    signal(cpu) == sdei::SUCCESS && within(ms, || EVENTS[cpu].load(Ordering::Acquire) > before)
}

/// Sends an ordinary interrupt to a CPU and waits for it.
fn interrupt_arrives(cpu: usize) -> bool {
    let before = INTERRUPTS[cpu].load(Ordering::Acquire);
    machine::send_sgi(cpu);
    within(A_WHILE, || INTERRUPTS[cpu].load(Ordering::Acquire) > before)
}

/// Starts a CPU again and says what still reaches it.
fn probe(name: &str, cpu: usize, job: Job) {
    ACTIONS[cpu].store(Action::Complete as u64, Ordering::Relaxed);
    report(name, format_args!("on {}", u64::from(start(cpu, job))));
    say(format_args!("{name} interrupt={}\n", u64::from(interrupt_arrives(cpu))));
    if smc(sdei::VERSION, [0; 5]) > 0 {
        say(format_args!("{name} event={}\n", u64::from(event_arrives(cpu, A_WHILE))));
    }
    say(format_args!("{name} off={}\n", u64::from(end(cpu))));
}

/// E1, E3: events at a CPU that spins in one instruction with everything masked.
fn wedged() {
    const CPU: usize = 1;
    report("E1 wedged", u64::from(start_wedged(CPU, Action::Complete)));
    report("E1 interrupt", u64::from(interrupt_arrives(CPU)));
    report("E1 event", u64::from(event_arrives(CPU, SOON)));
    report(
        "E1 in the loop",
        u64::from(BLOCKS[CPU].x[2].load(Ordering::Relaxed) == machine::wedge_pc()),
    );
    let masked = INTERRUPTED[CPU].load(Ordering::Relaxed) >> 6 & 0xf;
    report("E1 DAIF", masked);
    report("E1 damaged", DAMAGED[CPU].load(Ordering::Relaxed));
    let rounds = ROUNDS[usize::from(!machine::has_nmi())];
    let first = machine::now();
    let done = (0..rounds).take_while(|_| event_arrives(CPU, SOON)).count();
    let ms = machine::now() - first;
    report("E3 events", done);
    report("E3 damaged", DAMAGED[CPU].load(Ordering::Relaxed));
    report("E3 checked", CHECKED * rounds);
    report("E3 microseconds each", ms * 1000 / rounds);
    // The check itself: with one expected register changed it finds one. x18 is none that EL3
    // is asked for.
    let mut wrong = PATTERN.x;
    wrong[18] += 1;
    let found = damage_outside(&wrong) - damage_outside(&PATTERN.x);
    report("E3 control", found);
    ACTIONS[CPU].store(Action::Resume as u64, Ordering::Relaxed);
    report("E11 event", u64::from(event_arrives(CPU, SOON)));
    report("E11 off", u64::from(is_off(CPU)));
    report("E11 as after an exception", RESUMED[CPU].load(Ordering::Relaxed));
    probe("E11 again", CPU, Job::Probe);
}

/// Counts damage of the last event of CPU 1 outside of a handler, where EL3 hands out nothing.
fn damage_outside(expected: &[u64; 31]) -> u64 {
    damage(&BLOCKS[1], expected)
}

/// E6: an event at a CPU that is masked for events.
fn masked() {
    const CPU: usize = 1;
    report("E6 ready", u64::from(start(CPU, Job::Masked)));
    let before = EVENTS[CPU].load(Ordering::Acquire);
    let came = || EVENTS[CPU].load(Ordering::Acquire) > before;
    report("E6 signal", signal(CPU));
    report("E6 while masked", u64::from(within(A_WHILE, came)));
    GO[CPU].store(1, Ordering::Release);
    within(SOON, || READY[CPU].load(Ordering::Acquire) == 2);
    report("E6 once unmasked", u64::from(within(A_WHILE, came)));
    report("E6 a second one", u64::from(event_arrives(CPU, SOON)));
    report("E6 off", u64::from(end(CPU)));
}

/// E9: CPU_OFF inside of an event that is not completed.
fn off_inside_of_an_event() {
    const CPU: usize = 2;
    report("E9 wedged", u64::from(start_wedged(CPU, Action::Off)));
    report("E9 event", u64::from(event_arrives(CPU, SOON)));
    report("E9 off", u64::from(is_off(CPU)));
    probe("E9 again", CPU, Job::Probe);
}

/// The same CPU again: whatever E9 left, a completed event and CPU_OFF do not add to it.
fn off_after_the_event() {
    probe("E9 third time", 2, Job::Probe);
}

/// E7: a handler that only waits, as a stop does.
fn parked() {
    const CPU: usize = 4;
    report("E7 wedged", u64::from(start_wedged(CPU, Action::Park)));
    report("E7 event", u64::from(event_arrives(CPU, SOON)));
    report("E7 affinity", smc(psci::AFFINITY_INFO, [CPU as u64, 0, 0, 0, 0]));
    report("E7 cpu_on", smc(psci::CPU_ON, [CPU as u64, machine::entry(), 0, 0, 0]));
    report("E7 signal", signal(CPU));
    let before = EVENTS[CPU].load(Ordering::Acquire);
    let came = within(A_WHILE, || EVENTS[CPU].load(Ordering::Acquire) > before);
    report("E7 a second event", u64::from(came));
}

/// G: CPU_OFF inside of an ordinary interrupt.
fn off_inside_of_an_interrupt() {
    const CPU: usize = 3;
    report("G ended", u64::from(start(CPU, Job::OffAfterInterrupt)));
    report("G ended interrupt", u64::from(interrupt_arrives(CPU)));
    report("G ended off", u64::from(is_off(CPU)));
    probe("G ended again", CPU, Job::Probe);
    report("G active", u64::from(start(CPU, Job::OffInInterrupt)));
    report("G active interrupt", u64::from(interrupt_arrives(CPU)));
    report("G active off", u64::from(is_off(CPU)));
    probe("G active again", CPU, Job::Probe);
    probe("G cleared again", CPU, Job::ProbeCleared);
}
