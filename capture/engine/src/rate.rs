//! When a line about progress is due.

use storage::amount::{Mib, mib_per_second};

/// Decides when a progress line is due: the console is slow, and every line costs the
/// dump time.
#[derive(Clone, Copy, Debug)]
pub struct StageProgress {
    total: u64,
    start_ns: u64,
    next_ns: u64,
}

/// Time between two progress lines.
const INTERVAL_NS: u64 = 1_000_000_000;

impl StageProgress {
    /// Starts at `now_ns`, with `total` bytes to go.
    #[must_use]
    pub const fn new(total: u64, now_ns: u64) -> Self {
        Self { total, start_ns: now_ns, next_ns: now_ns.saturating_add(INTERVAL_NS) }
    }

    /// The line to show with `done` bytes out at `now_ns`, if one is due: percent, bytes,
    /// MiB per second.
    pub fn due(&mut self, done: u64, now_ns: u64) -> Option<(u64, Mib, u64)> {
        if now_ns < self.next_ns {
            return None;
        }
        self.next_ns = now_ns.saturating_add(INTERVAL_NS);
        let percent = (u128::from(done) * 100 / u128::from(self.total.max(1))) as u64;
        let rate = mib_per_second(done, now_ns.saturating_sub(self.start_ns));
        Some((percent, Mib(done), rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_shown_once_a_second() {
        let mut progress = StageProgress::new(1000 << 20, 0);
        assert!(progress.due(1, INTERVAL_NS - 1).is_none());
        let (percent, _, rate) = progress.due(250 << 20, INTERVAL_NS).unwrap();
        assert_eq!((percent, rate), (25, 250));
        assert!(progress.due(260 << 20, INTERVAL_NS + 1).is_none());
        assert!(progress.due(500 << 20, 2 * INTERVAL_NS).is_some());
    }
}
