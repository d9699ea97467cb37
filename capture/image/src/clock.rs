//! Time, from the time-stamp counter.

use core::sync::atomic::{AtomicU64, Ordering};

use block::RunningTime;
use epitaph_firmware::clock::{Source, Timers, find, nanoseconds};
use handoff::BootFacts;
use machine::cpu;

/// Rate taken for granted when none was calibrated: faster than the processors there are,
/// so that a deadline comes late rather than early.
const ASSUMED_HZ: u64 = 6_000_000_000;

static HZ: AtomicU64 = AtomicU64::new(ASSUMED_HZ);

/// Counts for every limit to a wait.
static RUNNING: RunningTime = RunningTime::new();

/// Sets the counter's rate in Hz. After a crash so early that the appliance had not found it,
/// `hz` is 0 and it is found here, within milliseconds; a figure that nothing confirms leaves
/// the assumption. The time that [`running_ns`] counts begins.
pub fn set_rate(hz: u64) {
    let found = || {
        let rate = find(&machine::clock::Hardware, None, Timers::Quick);
        (rate.source != Source::Assumed && rate.unsure.is_none()).then_some(rate.hz)
    };
    if let Some(hz) = Some(hz).filter(|&hz| hz != 0).or_else(found) {
        HZ.store(hz, Ordering::Relaxed);
    }
    running_ns();
}

/// Nanoseconds that the machine ran since [`set_rate`]: a gap between two looks counts for
/// [`block::MAX_GAP_NS`] at most, since in a longer one the machine was paused.
pub fn running_ns() -> u64 {
    RUNNING.at(now_ns())
}

/// So many ticks in nanoseconds.
#[inline(never)] // As `presence::mapped`.
pub fn ns(ticks: u64) -> u64 {
    nanoseconds(ticks, HZ.load(Ordering::Relaxed))
}

/// Now, in nanoseconds of the counter.
pub fn now_ns() -> u64 {
    ns(cpu::rdtsc())
}

/// When the counter stood at `tsc`, in seconds of Unix time; 0 when the machine had no clock.
pub fn unix_time(facts: &BootFacts, tsc: u64) -> u64 {
    match facts.boot_unix_time {
        0 => 0,
        boot => boot.saturating_add(ns(tsc.saturating_sub(facts.boot_tsc)) / 1_000_000_000),
    }
}
