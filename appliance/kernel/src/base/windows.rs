//! How long each rung of the ladder waits, from round trips measured at boot.
//! Pure, so it is tested on the host.

/// Round trips measured at boot, at most.
pub const MAX_ROUNDS: usize = 16;
/// Round trips that a window holds at least.
const ROUND_TRIPS: u64 = 20;
/// The longest windows that a measurement raises a rung to, in nanoseconds: interrupt, NMI,
/// INIT. A choice: a CPU that is stuck makes every crash wait for all of them, the NMI's twice.
pub const CAPS_NS: [u64; 3] = [5_000_000_000, 2_500_000_000, 2_500_000_000];
/// Windows that the NMI gets: it is sent twice.
const NMI_SENDS: u64 = 2;

/// Returns the round trip that nine of ten of `rounds` did not exceed, in nanoseconds; 0 for
/// none. One round in which the host ran something else says nothing about the machine.
#[must_use]
pub fn usual_round_trip(rounds: &mut [u64]) -> u64 {
    rounds.sort_unstable();
    let rank = (rounds.len() * 9).div_ceil(10);
    rank.checked_sub(1).and_then(|index| rounds.get(index)).copied().unwrap_or(0)
}

/// Returns the window of a rung in nanoseconds: `asked` milliseconds where the operator said
/// so, else `default_ns` raised to a multiple of the usual round trip, to `cap_ns` at most.
#[must_use]
pub fn window_ns(asked: Option<u64>, default_ns: u64, round_trip_ns: u64, cap_ns: u64) -> u64 {
    match asked {
        Some(ms) => ms.saturating_mul(1_000_000),
        None => default_ns.max(round_trip_ns.saturating_mul(ROUND_TRIPS).min(cap_ns)),
    }
}

/// Returns what a CPU that no rung stops costs a crash, in nanoseconds; `None` where a window
/// has no end.
#[must_use]
pub fn worst_case_ns([irq, nmi, init]: [u64; 3]) -> Option<u64> {
    let waits = [irq, nmi, init];
    if waits.contains(&u64::MAX) {
        return None;
    }
    Some(irq.saturating_add(nmi.saturating_mul(NMI_SENDS)).saturating_add(init))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn one_slow_round_of_many_does_not_count() {
        let mut rounds = [MS; 16];
        rounds[3] = 2_000 * MS;
        assert_eq!(usual_round_trip(&mut rounds), MS);
        assert_eq!(usual_round_trip(&mut [7, 3, 9]), 9, "of few, the worst");
        let mut rising: Vec<u64> = (1..=10).rev().collect();
        assert_eq!(usual_round_trip(&mut rising), 9);
        assert_eq!(usual_round_trip(&mut []), 0);
    }

    #[test]
    fn a_window_is_raised_to_a_cap_and_what_was_asked_for_is_kept() {
        let window = |asked, round_trip| window_ns(asked, 10 * MS, round_trip, 2_500 * MS);
        assert_eq!(window(None, 0), 10 * MS);
        assert_eq!(window(None, 12 * MS), 240 * MS);
        assert_eq!(window(None, 2_000 * MS), 2_500 * MS);
        assert_eq!(window(None, u64::MAX), 2_500 * MS);
        assert_eq!(window(Some(60_000), 2_000 * MS), 60_000 * MS);
        assert_eq!(window(Some(0), 2_000 * MS), 0);
        assert_eq!(window(Some(u64::MAX), 0), u64::MAX);
    }

    #[test]
    fn the_worst_case_is_the_sum_with_the_nmi_twice() {
        assert_eq!(worst_case_ns([1_000 * MS, 10 * MS, 10 * MS]), Some(1_030 * MS));
        assert_eq!(worst_case_ns(CAPS_NS), Some(12_500 * MS));
        assert_eq!(worst_case_ns([MS, u64::MAX, MS]), None);
        assert_eq!(worst_case_ns([u64::MAX - 1, MS, MS]), Some(u64::MAX));
    }
}
