//! Who watches whom, and when silence is an alarm. Pure: tested on the host.
//!
//! Every CPU looks after one other, at each of its own ticks. Its ticks are also its
//! clock: a machine that is paused, or whose processors get little time from the host,
//! pauses watcher and watched alike, and nothing is made of it.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Ticks that a threshold has at least: with fewer, one that comes a little late counts.
const MIN_TICKS: u64 = 5;
/// "Nobody" in [`Watch::whom`], and "no unit" in [`Signs::unit`].
const NONE: u64 = u64::MAX;

/// The signs of life of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signs {
    /// Ticks it has had.
    pub ticks: u64,
    /// Beats of its workload.
    pub beats: u64,
    /// The unit it is working on, `u64::MAX` for none.
    pub unit: u64,
}

/// How many ticks of silence are too many; `None` for "never".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Without a tick.
    pub hard: Option<u64>,
    /// Without a beat, inside a unit.
    pub soft: Option<u64>,
}

impl Limits {
    /// Thresholds in ms, 0 for "never", at a tick every `tick_ms`.
    #[must_use]
    pub const fn new(hard_ms: u64, soft_ms: u64, tick_ms: u64) -> Self {
        const fn ticks(ms: u64, tick_ms: u64) -> Option<u64> {
            let ticks = ms.div_ceil(tick_ms);
            match ms {
                0 => None,
                _ if ticks < MIN_TICKS => Some(MIN_TICKS),
                _ => Some(ticks),
            }
        }
        Self { hard: ticks(hard_ms, tick_ms), soft: ticks(soft_ms, tick_ms) }
    }
}

/// What is wrong with the CPU that is watched, and for how many ticks of its watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// It does not tick: its interrupts are off.
    Hard(u64),
    /// It ticks, but its workload does not get on.
    Soft(u64),
}

/// What a CPU remembers of the one it watches. Only its owner touches it; the fields are
/// atomics because it lives in a static.
#[derive(Debug)]
pub struct Watch {
    whom: AtomicU64,
    ticks: AtomicU64,
    beats: AtomicU64,
    unit: AtomicU64,
    /// Looks since the last change of `ticks`, and of `beats` or `unit`.
    silent: AtomicU64,
    stuck: AtomicU64,
}

impl Watch {
    /// Watches nobody yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            whom: AtomicU64::new(NONE),
            ticks: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            unit: AtomicU64::new(NONE),
            silent: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
        }
    }

    /// Looks at the signs of CPU `whom`, once a tick of the owner. Says what is wrong when
    /// a limit is reached. A change of `whom` begins anew.
    pub fn look(&self, whom: usize, signs: Signs, limits: Limits) -> Option<Alarm> {
        let before = Signs {
            ticks: self.ticks.swap(signs.ticks, Relaxed),
            beats: self.beats.swap(signs.beats, Relaxed),
            unit: self.unit.swap(signs.unit, Relaxed),
        };
        let same = self.whom.swap(whom as u64, Relaxed) == whom as u64;
        let count = |counter: &AtomicU64, going_on: bool| {
            let looks = if going_on { counter.load(Relaxed) + 1 } else { 0 };
            counter.store(looks, Relaxed);
            looks
        };
        let silent = count(&self.silent, same && before.ticks == signs.ticks);
        let still = before.beats == signs.beats && before.unit == signs.unit;
        let stuck = count(&self.stuck, same && still && signs.unit != NONE);
        // A CPU that does not tick does not beat either: the graver reason comes first.
        if limits.hard.is_some_and(|limit| silent >= limit) {
            return Some(Alarm::Hard(silent));
        }
        // One that is silent is not in the middle of its unit, as far as anyone can tell.
        limits.soft.filter(|&limit| silent == 0 && stuck >= limit).map(|_| Alarm::Soft(stuck))
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// Whom CPU `me` of `count` watches: the nearest before it, in a circle, of which
/// `watched` says that it can be. That is CPU `me` itself when it is alone: it notices its
/// own stuck workload, though never its own silence.
#[must_use]
pub fn charge(me: usize, count: usize, watched: impl Fn(usize) -> bool) -> usize {
    (1..count).map(|back| (me + count - back) % count).find(|&cpu| watched(cpu)).unwrap_or(me)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { hard: Some(10), soft: Some(20) };

    fn signs(ticks: u64, beats: u64, unit: u64) -> Signs {
        Signs { ticks, beats, unit }
    }

    #[test]
    fn silence_is_an_alarm_at_the_limit_and_not_before() {
        let watch = Watch::new();
        for _ in 0..10 {
            assert_eq!(watch.look(2, signs(7, 1, NONE), LIMITS), None);
        }
        assert_eq!(watch.look(2, signs(7, 1, NONE), LIMITS), Some(Alarm::Hard(10)));
        // One tick, and the count begins anew.
        assert_eq!(watch.look(2, signs(8, 1, NONE), LIMITS), None);
        assert_eq!(watch.look(2, signs(8, 1, NONE), LIMITS), None);
    }

    #[test]
    fn a_ticking_cpu_is_stuck_only_inside_a_unit_without_beats() {
        let idle = Watch::new();
        let beating = Watch::new();
        let next_unit = Watch::new();
        let stuck = Watch::new();
        for tick in 0..20 {
            assert_eq!(idle.look(1, signs(tick, 5, NONE), LIMITS), None);
            assert_eq!(beating.look(1, signs(tick, tick / 15, 3), LIMITS), None);
            assert_eq!(next_unit.look(1, signs(tick, 5, tick / 15), LIMITS), None);
            assert_eq!(stuck.look(1, signs(tick, 5, 3), LIMITS), None);
        }
        assert_eq!(idle.look(1, signs(20, 5, NONE), LIMITS), None);
        assert_eq!(beating.look(1, signs(20, 1, 3), LIMITS), None);
        assert_eq!(next_unit.look(1, signs(20, 5, 1), LIMITS), None);
        assert_eq!(stuck.look(1, signs(20, 5, 3), LIMITS), Some(Alarm::Soft(20)));
    }

    #[test]
    fn someone_else_to_watch_begins_anew_and_zero_is_off() {
        let watch = Watch::new();
        for _ in 0..10 {
            assert_eq!(watch.look(2, signs(7, 1, 0), LIMITS), None);
        }
        assert_eq!(watch.look(3, signs(7, 1, 0), LIMITS), None);
        let off = Limits::new(0, 0, 100);
        for _ in 0..1000 {
            assert_eq!(watch.look(3, signs(7, 1, 0), off), None);
        }
        assert_eq!(Limits::new(10_000, 1, 100), Limits { hard: Some(100), soft: Some(MIN_TICKS) });
    }

    #[test]
    fn everyone_is_watched_by_exactly_one_whoever_is_left_out() {
        for count in 2..7usize {
            for left_out in 0..1u32 << count {
                let watched = |cpu: usize| left_out & (1 << cpu) == 0;
                let watchers: Vec<_> = (0..count).filter(|&cpu| watched(cpu)).collect();
                let mut charges: Vec<_> =
                    watchers.iter().map(|&me| charge(me, count, watched)).collect();
                charges.sort_unstable();
                assert_eq!(charges, watchers, "{left_out:b} of {count}");
            }
        }
        assert_eq!(charge(0, 1, |_| true), 0);
    }
}
