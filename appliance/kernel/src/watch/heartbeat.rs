//! Who watches whom, and when silence is an alarm. Pure: tested on the host.
//!
//! Every CPU looks after one other, at each of its own ticks. Its ticks are also its
//! clock: a machine that is paused, or whose processors get little time from the host,
//! pauses watcher and watched alike, and nothing is made of it.
//!
//! Silence alone is no lockup: a hypervisor may not run one of its CPUs for many seconds. A CPU
//! that has been silent for too long is asked by an NMI that returns (a live backtrace's), at
//! each look, and the answers decide:
//!
//! * with interrupts off, several times in a row, and no tick in between: a lockup;
//! * with interrupts on: it has been interrupted where ticks can reach it, so they get time to;
//! * no answer: it does not run, or it is deaf to NMIs. Under a hypervisor this has to last for
//!   a multiple of the limit.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Ticks that a threshold has at least: with fewer, one that comes a little late counts.
const MIN_TICKS: u64 = 5;
/// Answers with interrupts off, in a row, that make a lockup.
const CLOSED: u64 = 3;
/// Answers with interrupts on that make a lockup: interrupts reach the CPU, its tick does not.
const OPEN: u64 = 50;
/// Looks that an answer may take on a processor that is not virtual: it takes microseconds.
const UNANSWERED: u64 = 10;
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
    /// Questions it has answered by NMI.
    pub answers: u64,
    /// Whether its interrupts were on at the last answer.
    pub open: bool,
}

/// How many ticks of silence are too many; `None` for "never".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Without a tick.
    pub hard: Option<u64>,
    /// Without a beat, inside a unit.
    pub soft: Option<u64>,
    /// Without an answer, once [`hard`](Self::hard) has been reached.
    pub unanswered: u64,
}

impl Limits {
    /// Thresholds in ms, 0 for "never", at a tick every `tick_ms`; on a processor that a
    /// hypervisor shares out if `shared`.
    #[must_use]
    pub const fn new(hard_ms: u64, soft_ms: u64, tick_ms: u64, shared: bool) -> Self {
        const fn ticks(ms: u64, tick_ms: u64) -> Option<u64> {
            let ticks = ms.div_ceil(tick_ms);
            match ms {
                0 => None,
                _ if ticks < MIN_TICKS => Some(MIN_TICKS),
                _ => Some(ticks),
            }
        }
        let hard = ticks(hard_ms, tick_ms);
        let unanswered = match hard {
            // Half as long again: with the default of 10 s, the 30 s of the hardware watchdog
            // are not reached.
            Some(hard) if shared => hard + hard / 2,
            _ => UNANSWERED,
        };
        Self { hard, soft: ticks(soft_ms, tick_ms), unanswered }
    }
}

/// What is wrong with the CPU that is watched, and for how many ticks of its watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// It does not tick: it is to be asked by NMI.
    Ask,
    /// It does not tick: its interrupts are off, or it does not answer.
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
    /// Answers seen, looks since the last of them, and how many in a row were with interrupts
    /// off and on, since the CPU fell silent.
    answers: AtomicU64,
    unanswered: AtomicU64,
    closed: AtomicU64,
    open: AtomicU64,
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
            answers: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            open: AtomicU64::new(0),
        }
    }

    /// Looks at the signs of CPU `whom`, once a tick of the owner. Says what is wrong when
    /// a limit is reached. A change of `whom` begins anew.
    pub fn look(&self, whom: usize, signs: Signs, limits: Limits) -> Option<Alarm> {
        let before_ticks = self.ticks.swap(signs.ticks, Relaxed);
        let before_beats = self.beats.swap(signs.beats, Relaxed);
        let before_unit = self.unit.swap(signs.unit, Relaxed);
        let same = self.whom.swap(whom as u64, Relaxed) == whom as u64;
        let count = |counter: &AtomicU64, going_on: bool| {
            let looks = if going_on { counter.load(Relaxed) + 1 } else { 0 };
            counter.store(looks, Relaxed);
            looks
        };
        let silent = count(&self.silent, same && before_ticks == signs.ticks);
        let still = before_beats == signs.beats && before_unit == signs.unit;
        let stuck = count(&self.stuck, same && still && signs.unit != NONE);
        // A CPU that does not tick does not beat either: the graver reason comes first.
        if limits.hard.is_some_and(|limit| silent >= limit) {
            return Some(self.questioned(silent, signs, limits));
        }
        self.answers.store(signs.answers, Relaxed);
        for counter in [&self.unanswered, &self.closed, &self.open] {
            counter.store(0, Relaxed);
        }
        // One that is silent is not in the middle of its unit, as far as anyone can tell.
        limits.soft.filter(|&limit| silent == 0 && stuck >= limit).map(|_| Alarm::Soft(stuck))
    }

    /// What to make of a CPU that has been silent for too long, given how it answers.
    fn questioned(&self, silent: u64, signs: Signs, limits: Limits) -> Alarm {
        if self.answers.swap(signs.answers, Relaxed) == signs.answers {
            return match self.unanswered.fetch_add(1, Relaxed) {
                waited if waited >= limits.unanswered => Alarm::Hard(silent),
                _ => Alarm::Ask,
            };
        }
        self.unanswered.store(1, Relaxed);
        let (this, other, enough) = if signs.open {
            (&self.open, &self.closed, OPEN)
        } else {
            (&self.closed, &self.open, CLOSED)
        };
        other.store(0, Relaxed);
        match this.fetch_add(1, Relaxed) + 1 {
            seen if seen >= enough => Alarm::Hard(silent),
            _ => Alarm::Ask,
        }
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

    const LIMITS: Limits = Limits { hard: Some(10), soft: Some(20), unanswered: 5 };

    fn signs(ticks: u64, beats: u64, unit: u64) -> Signs {
        Signs { ticks, beats, unit, answers: 0, open: false }
    }

    fn answered(answers: u64, open: bool) -> Signs {
        Signs { answers, open, ..signs(7, 1, NONE) }
    }

    /// A watch of CPU 2 that has been silent up to the limit, and answered 4 earlier questions.
    fn suspicious() -> Watch {
        let watch = Watch::new();
        for _ in 0..10 {
            assert_eq!(watch.look(2, answered(4, false), LIMITS), None);
        }
        assert_eq!(watch.look(2, answered(4, false), LIMITS), Some(Alarm::Ask));
        watch
    }

    #[test]
    fn interrupts_off_at_several_answers_are_a_lockup() {
        let watch = suspicious();
        assert_eq!(watch.look(2, answered(5, false), LIMITS), Some(Alarm::Ask));
        assert_eq!(watch.look(2, answered(6, false), LIMITS), Some(Alarm::Ask));
        assert_eq!(watch.look(2, answered(7, false), LIMITS), Some(Alarm::Hard(13)));
    }

    #[test]
    fn a_cpu_that_answers_and_then_ticks_is_none() {
        let watch = suspicious();
        for answers in 5..7 {
            assert_eq!(watch.look(2, answered(answers, false), LIMITS), Some(Alarm::Ask));
        }
        // Interrupts were on once: those before say nothing any more.
        assert_eq!(watch.look(2, answered(7, true), LIMITS), Some(Alarm::Ask));
        assert_eq!(watch.look(2, answered(8, false), LIMITS), Some(Alarm::Ask));
        let ticks = Signs { ticks: 8, ..answered(8, false) };
        assert_eq!(watch.look(2, ticks, LIMITS), None);
        // And silence begins anew.
        for _ in 0..9 {
            assert_eq!(watch.look(2, ticks, LIMITS), None);
        }
        for _ in 0..3 {
            assert_eq!(watch.look(2, ticks, LIMITS), Some(Alarm::Ask));
        }
    }

    #[test]
    fn interrupts_on_without_a_tick_are_one_in_the_end() {
        let watch = suspicious();
        for answers in 5..4 + OPEN {
            assert_eq!(watch.look(2, answered(answers, true), LIMITS), Some(Alarm::Ask));
        }
        let last = watch.look(2, answered(4 + OPEN, true), LIMITS);
        assert_eq!(last, Some(Alarm::Hard(10 + OPEN)));
    }

    #[test]
    fn silence_is_an_alarm_at_the_limit_and_not_before() {
        let watch = Watch::new();
        for _ in 0..10 {
            assert_eq!(watch.look(2, signs(7, 1, NONE), LIMITS), None);
        }
        // It is asked; when it does not answer either, the alarm comes at the second limit.
        for _ in 0..5 {
            assert_eq!(watch.look(2, signs(7, 1, NONE), LIMITS), Some(Alarm::Ask));
        }
        assert_eq!(watch.look(2, signs(7, 1, NONE), LIMITS), Some(Alarm::Hard(15)));
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
        let off = Limits::new(0, 0, 100, false);
        for _ in 0..1000 {
            assert_eq!(watch.look(3, signs(7, 1, 0), off), None);
        }
        let (hard, soft) = (Some(100), Some(MIN_TICKS));
        let alone = Limits { hard, soft, unanswered: UNANSWERED };
        assert_eq!(Limits::new(10_000, 1, 100, false), alone);
        assert_eq!(Limits::new(10_000, 1, 100, true), Limits { unanswered: 150, ..alone });
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
