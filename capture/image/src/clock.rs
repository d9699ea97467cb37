//! Time, from the time-stamp counter.

use core::sync::atomic::{AtomicU64, Ordering};

use machine::cpu;

/// Rate taken for granted when none was calibrated: faster than the processors there are,
/// so that a deadline comes late rather than early.
const ASSUMED_HZ: u64 = 6_000_000_000;

static HZ: AtomicU64 = AtomicU64::new(ASSUMED_HZ);

/// Sets the counter's rate in Hz; 0 leaves the assumption.
pub fn set_rate(hz: u64) {
    if hz != 0 {
        HZ.store(hz, Ordering::Relaxed);
    }
}

/// So many ticks in nanoseconds.
pub fn ns(ticks: u64) -> u64 {
    let ns = u128::from(ticks) * 1_000_000_000 / u128::from(HZ.load(Ordering::Relaxed));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Now, in nanoseconds of the counter.
pub fn now_ns() -> u64 {
    ns(cpu::rdtsc())
}
