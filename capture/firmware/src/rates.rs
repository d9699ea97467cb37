//! Rates of clocks, from measurements that anything may have disturbed.
//!
//! A rate is measured by counting one clock against another. Between two readings the CPU may
//! be taken away, by an SMI or by a hypervisor whose host is busy, for longer than the whole
//! measurement was to last. In the middle that does no harm, for both clocks go on. At either
//! end it does, so there the counter is read before *and* after whatever tells the time: the
//! length of the interval lies between two figures, and with it the rate. How far these are
//! apart says how good the measurement is, without knowing what the rate should be.
//!
//! The code is pure; [`clock`](crate::clock) reads the clocks.

use core::fmt;
use core::ops::RangeInclusive;

use heapless::Vec;

/// Two rates agree, and one is narrow, when they differ by less than this part.
const AGREEMENT: u64 = 64;
/// Measurements of one kind at most.
const MOST_TRIES: usize = 20;

/// An interval in ticks of a counter: no shorter than `least`, no longer than `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    least: u64,
    most: u64,
}

impl Interval {
    /// The interval between two events, each of which came after one reading of the counter
    /// and before another. `None` when the events are not apart.
    #[must_use]
    pub fn between(begin: (u64, u64), end: (u64, u64)) -> Option<Self> {
        let least = end.0.checked_sub(begin.1).filter(|&ticks| ticks > 0)?;
        Some(Self { least, most: end.1.checked_sub(begin.0)? })
    }

    /// Whether a pause of `ticks` was most of it. Then a counter that wraps may have wrapped
    /// unseen, and a second may have gone by without notice.
    #[must_use]
    pub const fn was_mostly(self, ticks: u64) -> bool {
        ticks > self.most / 2
    }

    /// The rate of the counter, when another clock of `hz` made `count` meanwhile.
    #[must_use]
    pub fn rate_by(self, count: u64, hz: u64) -> Option<Span> {
        Some(Span { least: scale(self.least, hz, count)?, most: scale(self.most, hz, count)? })
    }

    /// The rate of another clock that made `count` meanwhile, when the counter runs at `hz`.
    #[must_use]
    pub fn rate_of(self, count: u64, hz: u64) -> Option<Span> {
        Some(Span { least: scale(count, hz, self.most)?, most: scale(count, hz, self.least)? })
    }
}

/// `a * b / c`.
fn scale(a: u64, b: u64, c: u64) -> Option<u64> {
    (u128::from(a) * u128::from(b)).checked_div(u128::from(c))?.try_into().ok()
}

/// A rate in Hz, no lower than `least` and no higher than `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    least: u64,
    most: u64,
}

impl Span {
    fn width(self) -> u64 {
        self.most - self.least
    }

    fn middle(self) -> u64 {
        self.least.midpoint(self.most)
    }

    fn is_narrow(self) -> bool {
        self.width() <= self.most / AGREEMENT
    }

    fn agrees(self, other: Self) -> bool {
        self.middle().abs_diff(other.middle()) <= self.middle() / AGREEMENT
    }
}

/// Why a measurement gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateError {
    /// What it was to be measured by is not there.
    Absent,
    /// It was disturbed; the next one need not be.
    Disturbed,
}

impl fmt::Display for RateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "the clock to measure by is not there",
            Self::Disturbed => "the measurement was disturbed; try again",
        })
    }
}

impl core::error::Error for RateError {}

/// What measurements came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The rate.
    pub hz: u64,
    /// Two measurements said so, each good by itself; otherwise it is the best of bad ones.
    pub agreed: bool,
    /// How far off it may be, in Hz either way, by its own account.
    pub error: u64,
}

/// Measures until two good measurements agree, and takes the better of them; what is not
/// `plausible` counts for nothing. Without such a pair it is the narrowest of all.
pub fn settle(
    plausible: RangeInclusive<u64>,
    mut measure: impl FnMut() -> Result<Span, RateError>,
) -> Option<Estimate> {
    let mut seen: Vec<Span, MOST_TRIES> = Vec::new();
    for _ in 0..MOST_TRIES {
        let span = match measure() {
            Ok(span) if plausible.contains(&span.middle()) => span,
            Ok(_) | Err(RateError::Disturbed) => continue,
            Err(RateError::Absent) => break,
        };
        let good = |span: &&Span| span.is_narrow();
        if span.is_narrow()
            && let Some(other) = seen.iter().filter(good).find(|other| span.agrees(**other))
        {
            let better = if span.width() < other.width() { span } else { *other };
            return Some(estimate(better, true));
        }
        // As many as there are tries.
        let _ = seen.push(span);
    }
    seen.into_iter().min_by_key(|span| span.width()).map(|span| estimate(span, false))
}

fn estimate(span: Span, agreed: bool) -> Estimate {
    Estimate { hz: span.middle(), agreed, error: span.width().div_ceil(2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSC: u64 = 2_650_000_000;
    const MS: u64 = TSC / 1000;
    const TIMER: RangeInclusive<u64> = 62_500..=625_000_000;

    /// Measurements of a timer of 62.5 MHz: each was to last 5 ms, and the CPU was taken away
    /// for so many milliseconds before the first reading of it, in the middle, and before
    /// the second.
    fn timer(pauses: &[(u64, u64, u64)]) -> Option<Estimate> {
        let mut pauses = pauses.iter();
        settle(TIMER, || {
            let &(before, middle, after) = pauses.next().ok_or(RateError::Absent)?;
            let counted = (5 + middle) * 62_500;
            let begun = before * MS + 100;
            let ended = begun + (5 + middle) * MS;
            let interval = Interval::between((0, begun), (ended, ended + after * MS + 100));
            interval.and_then(|interval| interval.rate_of(counted, TSC)).ok_or(RateError::Disturbed)
        })
    }

    /// The host ran another machine of 64 CPUs, and this one for 3 ms in every 70. What was
    /// to last 10 ms was counted as if it had: 434 MHz.
    #[test]
    fn a_pause_inside_does_no_harm() {
        let hz = timer(&[(0, 60, 0), (0, 65, 0)]).expect("a rate");
        assert!(hz.agreed && hz.hz.abs_diff(62_500_000) < 10_000, "{hz:?}");
    }

    #[test]
    fn a_pause_at_an_end_makes_the_measurement_a_bad_one() {
        let hz = timer(&[(60, 0, 0), (0, 0, 60), (0, 0, 0), (0, 60, 60), (0, 60, 0)]);
        let hz = hz.expect("a rate");
        assert!(hz.agreed && hz.hz.abs_diff(62_500_000) < 10_000, "{hz:?}");
        // Nothing but bad ones: the least bad, and it says that it is.
        let hz = timer(&[(60, 0, 0), (0, 60, 5), (0, 0, 60)]).expect("a rate");
        assert!(!hz.agreed && hz.hz.abs_diff(62_500_000) <= hz.error, "{hz:?}");
    }

    /// Good by themselves and wrong all the same, as a counter that wrapped unseen: one alone
    /// settles nothing, whenever it comes.
    #[test]
    fn what_stands_alone_is_outvoted() {
        let spans = [434, 62, 900, 63, 62]
            .map(|mhz: u64| Span { least: mhz * 1_000_000 - 1000, most: mhz * 1_000_000 + 1000 });
        for skip in 0..3 {
            let mut spans = spans.into_iter().skip(skip).cycle();
            let hz = settle(TIMER, || spans.next().ok_or(RateError::Absent)).expect("a rate");
            assert!(hz.agreed && (62..=63).contains(&(hz.hz / 1_000_000)), "{hz:?}");
        }
    }

    #[test]
    fn what_cannot_be_and_what_is_not_there_give_no_rate() {
        let absurd = Span { least: 1, most: 1 };
        assert_eq!(settle(TIMER, || Ok(absurd)), None);
        assert_eq!(settle(TIMER, || Err(RateError::Absent)), None);
        assert_eq!(settle(TIMER, || Err(RateError::Disturbed)), None);
        assert_eq!(Interval::between((0, 10), (5, 20)), None);
        let interval = Interval::between((0, 1), (2, 3)).expect("an interval");
        assert_eq!(interval.rate_by(0, 1), None);
        assert_eq!(interval.rate_of(u64::MAX, u64::MAX), None);
    }

    /// A 16-bit counter at 1.19 MHz wraps after 55 ms: of an interval with such a pause the
    /// pause is the most.
    #[test]
    fn a_pause_that_hides_a_wrap_is_noticed() {
        let interval = Interval::between((0, 100), (60 * MS, 60 * MS + 100)).expect("one");
        assert!(interval.was_mostly(55 * MS));
        let interval = Interval::between((0, 100), (10 * MS, 10 * MS + 100)).expect("one");
        assert!(!interval.was_mostly(3 * MS));
    }
}
