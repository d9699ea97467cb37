//! Time as far as the machine ran, out of a clock that goes on while it is paused.
//!
//! The time-stamp counter of a virtual machine may go on while the hypervisor runs none of its
//! CPUs and none of its devices: during a snapshot, a migration, `SIGSTOP` of QEMU. Code that
//! waits polls many times in a millisecond, so a long gap between two polls is such a pause,
//! and no time that a device has used.

use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds that one gap between two looks counts for at most. A choice: longer than
/// anything that a polling CPU does between two polls (compressing a chunk, a line on a serial
/// console), and so short that a pause costs a disk's 30 s hardly anything.
pub const MAX_GAP_NS: u64 = 250_000_000;

/// A clock that counts each gap between two looks at it for a bounded time at most.
///
/// Several CPUs may look at the same time: each moment is counted once.
#[derive(Debug)]
pub struct RunningTime {
    /// Nanoseconds that one gap counts for at most.
    gap_ns: u64,
    /// The latest reading of the clock underneath, in nanoseconds; `u64::MAX` before the first.
    last_ns: AtomicU64,
    /// Nanoseconds counted since the first look.
    counted_ns: AtomicU64,
}

impl Default for RunningTime {
    fn default() -> Self {
        Self::new()
    }
}

impl RunningTime {
    /// Starts at 0 with the first look; a gap counts for [`MAX_GAP_NS`] at most.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_gap(MAX_GAP_NS)
    }

    /// Starts at 0 with the first look; a gap counts for `gap_ns` at most.
    #[must_use]
    pub const fn with_gap(gap_ns: u64) -> Self {
        Self { gap_ns, last_ns: AtomicU64::new(u64::MAX), counted_ns: AtomicU64::new(0) }
    }

    /// Returns the nanoseconds counted since the first look; the clock underneath says
    /// `now_ns`. A clock that goes back counts for nothing until it has caught up.
    pub fn at(&self, now_ns: u64) -> u64 {
        let now_ns = now_ns.min(u64::MAX - 1);
        let first =
            self.last_ns.compare_exchange(u64::MAX, now_ns, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            return self.counted_ns.load(Ordering::Relaxed);
        }
        let before = self.last_ns.fetch_max(now_ns, Ordering::Relaxed);
        let gap = now_ns.saturating_sub(before).min(self.gap_ns);
        self.counted_ns.fetch_add(gap, Ordering::Relaxed).saturating_add(gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_pause_counts_for_one_gap_at_most() {
        let time = RunningTime::new();
        assert_eq!(time.at(70 * SECOND), 0, "it begins with the first look");
        assert_eq!(time.at(70 * SECOND + 1_000), 1_000);
        assert_eq!(time.at(170 * SECOND), 1_000 + MAX_GAP_NS);
        assert_eq!(time.at(170 * SECOND + 5), 1_005 + MAX_GAP_NS);
        assert_eq!(time.at(u64::MAX), 1_005 + 2 * MAX_GAP_NS);
    }

    #[test]
    fn looks_without_a_pause_count_in_full() {
        let time = RunningTime::new();
        let counted = (0..=6_000).map(|look| time.at(look * 10_000_000)).last();
        assert_eq!(counted, Some(60 * SECOND));
    }

    #[test]
    fn a_clock_that_goes_back_counts_nothing_twice() {
        let time = RunningTime::with_gap(SECOND);
        let readings = [5, 7, 3, 6, 7, 8].map(|tenths| time.at(tenths * SECOND / 10));
        assert_eq!(readings.map(|ns| ns * 10 / SECOND), [0, 2, 2, 2, 2, 3]);
    }
}
