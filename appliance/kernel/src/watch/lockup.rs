//! The tick, and what it is for: a CPU that no longer does its work is noticed by another.
//!
//! Every CPU has a timer of its own. At each tick it looks at the CPU before it (see
//! [`heartbeat`](crate::watch::heartbeat)). One whose ticks stop has had its interrupts off too
//! long: a hard lockup, unless the answers to NMIs show that it only was not run for a while.
//! One that ticks, but whose workload has shown no sign of life inside
//! a unit, is a soft lockup. Either way the watcher crashes on its behalf; the stop that
//! follows reaches the stuck CPU by interrupt or NMI and finds out where it stands.
//!
//! The handler takes no lock, and once a crash is claimed it only counts. The stop needs
//! neither the timer nor anything here.

use core::sync::atomic::{AtomicU32, Ordering};

use epitaph_firmware::rates::{Estimate, RateError, settle};
use handoff::MAX_CPUS;
use handoff::crash::CauseKind;
use machine::{apic, cpu, timer};

use crate::base::{clock, cpus};
use crate::watch::heartbeat::{Alarm, Limits, Signs, Watch, charge};
use crate::watch::{backtrace, hw_watchdog, shell};
use crate::work::workload;
use crate::{crash, log, options};

/// Milliseconds between two ticks of a CPU: few enough for hundreds of emulated CPUs on a
/// small host, many enough for thresholds of a second.
pub const TICK_MS: u64 = 100;
/// Length of one calibration in microseconds: a busy host may run a CPU for no longer at a
/// time.
const MEASURE_US: u64 = 2000;
/// Counts a second that an APIC timer can plausibly make: a sixteenth of an input clock
/// between 1 MHz and 10 GHz.
const PLAUSIBLE: core::ops::RangeInclusive<u64> = 62_500..=625_000_000;

/// Counts of the timer between two ticks; 0 when there is no tick.
static TICK_COUNT: AtomicU32 = AtomicU32::new(0);
static WATCHES: [Watch; MAX_CPUS] = [const { Watch::new() }; MAX_CPUS];

/// Measures the timer against the clock, both over the same time. All CPUs have the same
/// input clock, so one of them does, before the others start.
pub fn calibrate() {
    let measured = settle(PLAUSIBLE, || {
        let (counted, interval) = timer::count_during(|| clock::wait_us(MEASURE_US))?;
        interval.rate_of(counted.into(), clock::hz()).ok_or(RateError::Disturbed)
    });
    let Some(Estimate { hz, agreed, error }) = measured else {
        log!("warning: tick: no rate of the timer that can be: no lockup is noticed");
        return;
    };
    // At most 62.5 million counts.
    TICK_COUNT.store((hz * TICK_MS / 1000) as u32, Ordering::Relaxed);
    log!("tick: every {TICK_MS} ms, the timer counts at {} kHz", hz / 1000);
    if !agreed {
        log!("warning: tick: no two measurements agreed; off by up to {} kHz", error / 1000);
    }
}

/// Starts the running CPU's tick.
pub fn start() {
    let count = TICK_COUNT.load(Ordering::Relaxed);
    if count == 0 {
        return;
    }
    if let Err(reason) = timer::start(count) {
        log!("warning: tick: {reason}");
    }
}

/// Counts of the timer in `ms` milliseconds; `None` when its rate is not known.
pub fn counts(ms: u32) -> Option<u32> {
    let count = TICK_COUNT.load(Ordering::Relaxed).checked_mul(ms / TICK_MS as u32)?;
    Some(count).filter(|&count| count != 0)
}

/// Whether the CPUs tick.
pub fn ticks() -> bool {
    TICK_COUNT.load(Ordering::Relaxed) != 0
}

/// Lets the running CPU's tick come `times` as often as usual; for load.
pub fn hurry(times: u32) {
    let count = TICK_COUNT.load(Ordering::Relaxed) / times.max(1);
    if count != 0 && timer::start(count).is_err() {
        log!("warning: tick: it could not be changed");
    }
}

/// Whether a CPU that falls silent would be noticed by another, in the end.
pub fn notices_silence() -> bool {
    let running = || cpus::all().iter().filter(|cpu| cpu.started.load(Ordering::Acquire));
    TICK_COUNT.load(Ordering::Relaxed) != 0 && limits().hard.is_some() && running().count() > 1
}

/// Whether a workload that gets stuck would be noticed.
pub fn notices_stuck_work() -> bool {
    TICK_COUNT.load(Ordering::Relaxed) != 0 && limits().soft.is_some()
}

/// Whether a CPU that waits for another for ever would be noticed, and there is another.
pub fn notices_deadlock() -> bool {
    let running = cpus::all().iter().filter(|cpu| cpu.started.load(Ordering::Acquire));
    notices_stuck_work() && running.count() > 1
}

/// From now on nobody minds what CPU `index` does: it is about to fall silent on purpose.
/// Whom it watched, the next CPU watches.
pub fn leave_alone(index: usize) {
    cpus::all()[index].left_alone.store(true, Ordering::Release);
}

fn limits() -> Limits {
    let (hard_ms, soft_ms) =
        options().map_or((0, 0), |options| (options.lockup_hard_ms, options.lockup_soft_ms));
    Limits::new(hard_ms, soft_ms, TICK_MS, cpu::is_virtual())
}

/// Handles the timer's interrupt.
pub fn on_tick() {
    apic::end_of_interrupt();
    let me = cpus::current_index();
    let cpus = cpus::all();
    cpus[me].ticks.fetch_add(1, Ordering::Relaxed);
    if crash::stopper().is_some() || cpus[me].left_alone.load(Ordering::Relaxed) {
        return;
    }
    hw_watchdog::on_tick();
    shell::listen();
    let whom = charge(me, cpus.len(), |index| {
        cpus[index].started.load(Ordering::Acquire)
            && !cpus[index].left_alone.load(Ordering::Acquire)
    });
    let watched = &cpus[whom];
    let unit = watched.unit.load(Ordering::Relaxed);
    let signs = Signs {
        ticks: watched.ticks.load(Ordering::Relaxed),
        beats: watched.beats.load(Ordering::Relaxed),
        unit,
        answers: watched.questions.load(Ordering::Acquire).into(),
        open: backtrace::interrupts_were_on(whom),
    };
    match WATCHES[me].look(whom, signs, limits()) {
        None => {}
        Some(Alarm::Ask) => backtrace::ask(whom),
        Some(Alarm::Hard(ticks)) => crash::on_lockup(
            CauseKind::HARD_LOCKUP,
            format_args!("CPU {whom} has not ticked for {} ms", ticks * TICK_MS),
        ),
        Some(Alarm::Soft(ticks)) => {
            let name =
                workload::name_of(watched.workload.load(Ordering::Relaxed)).unwrap_or("nothing");
            crash::on_lockup(
                CauseKind::SOFT_LOCKUP,
                format_args!(
                    "CPU {whom} has not beaten for {} ms, in unit {unit} of {name}",
                    ticks * TICK_MS
                ),
            )
        }
    }
}
