//! How long disks that never answer may hold up the dump, all of them together.
//!
//! Every wait of a driver has its end, but a disk that died with the system costs seconds, and
//! behind it there may be a dozen more of the same controller. So while a disk has not answered
//! anything yet, its waits end when the time for all such disks does; once that is spent there
//! is a little for each of the others, since one that works answers in milliseconds.
//!
//! All moments are in nanoseconds that the machine ran ([`block::RunningTime`]): a pause of the
//! machine is no disk's silence.

use core::sync::atomic::{AtomicU64, Ordering};

/// For all disks that never answer: enough for one that has to spin up.
pub const TOTAL_NS: u64 = 10_000_000_000;
/// For each of them, when that is spent.
pub const LEAST_NS: u64 = 500_000_000;

/// What is left of it.
#[derive(Debug)]
pub struct TimeoutBudget {
    left_ns: AtomicU64,
    /// Since when a disk is being waited for that has not answered yet; 0 for none.
    since_ns: AtomicU64,
}

impl Default for TimeoutBudget {
    fn default() -> Self {
        Self::new()
    }
}

impl TimeoutBudget {
    /// All of it.
    #[must_use]
    pub const fn new() -> Self {
        Self { left_ns: AtomicU64::new(TOTAL_NS), since_ns: AtomicU64::new(0) }
    }

    /// The next disk is spoken to, at `now_ns`.
    pub fn begin(&self, now_ns: u64) {
        self.since_ns.store(now_ns.max(1), Ordering::Relaxed);
    }

    /// It has answered: from now on its waits are its own affair.
    pub fn answered(&self) {
        self.since_ns.store(0, Ordering::Relaxed);
    }

    /// It has missed a deadline. `true` when it never answered and has used up what was left.
    pub fn missed(&self, now_ns: u64) -> bool {
        let since = self.since_ns.swap(0, Ordering::Relaxed);
        let left = self.left_ns.load(Ordering::Relaxed);
        if since == 0 || left == 0 {
            return false;
        }
        // What is too little for anybody is nothing.
        let rest = left.saturating_sub(now_ns.saturating_sub(since));
        let rest = if rest < LEAST_NS { 0 } else { rest };
        self.left_ns.store(rest, Ordering::Relaxed);
        rest == 0
    }

    /// The longest that a wait may be which begins at `now_ns`, in ms.
    #[must_use]
    pub fn limit_ms(&self, now_ns: u64) -> u64 {
        let since = self.since_ns.load(Ordering::Relaxed);
        if since == 0 {
            return u64::MAX;
        }
        let all = self.left_ns.load(Ordering::Relaxed).max(LEAST_NS);
        // Never nothing: a step that is ready at once is looked at once.
        (all.saturating_sub(now_ns.saturating_sub(since)) / 1_000_000).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Disks that let every wait of `own_ms` pass, two of them each; how long all of them take.
    fn dead(patience: &TimeoutBudget, disks: u64, own_ms: u64) -> u64 {
        let begin = 7 * SECOND;
        let mut now = begin;
        for _ in 0..disks {
            patience.begin(now);
            for _ in 0..2 {
                now += own_ms.min(patience.limit_ms(now)) * 1_000_000;
            }
            patience.missed(now);
        }
        now - begin
    }

    #[test]
    fn the_sum_has_an_end() {
        for (disks, own_ms) in [(1, 30_000), (5, 5_000), (64, 5_000), (64, 30_000), (3, 100)] {
            let patience = TimeoutBudget::new();
            let took = dead(&patience, disks, own_ms);
            let alone = disks * 2 * own_ms * 1_000_000;
            // A millisecond is what a second wait gets when the first has taken everything.
            let most = TOTAL_NS + disks * (LEAST_NS + 1_000_000);
            assert!(took <= alone && took <= most, "{disks} {own_ms}: {took}");
        }
    }

    #[test]
    fn whoever_has_answered_has_all_its_time() {
        let patience = TimeoutBudget::new();
        assert_eq!(patience.limit_ms(3), u64::MAX);
        dead(&patience, 9, 5_000);
        patience.begin(90 * SECOND);
        assert_eq!(patience.limit_ms(90 * SECOND), LEAST_NS / 1_000_000);
        patience.answered();
        assert_eq!(patience.limit_ms(95 * SECOND), u64::MAX);
        assert!(!patience.missed(200 * SECOND), "not by never answering");
    }

    #[test]
    fn it_is_said_once_that_it_is_spent() {
        let patience = TimeoutBudget::new();
        let mut said = 0;
        for disk in 0..9 {
            patience.begin(disk * 10 * SECOND);
            said += u32::from(patience.missed((disk * 10 + 6) * SECOND));
        }
        assert_eq!(said, 1);
    }
}
