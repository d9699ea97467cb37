//! Counting primes in a segment of the numbers.
//!
//! Pure: the host tests it against known counts.

/// Numbers in one segment.
pub const SEGMENT: u64 = 1 << 18;
const WORDS: usize = (SEGMENT / 2 / 64) as usize;

/// Fills `primes` with the odd primes up to `limit`, in order; returns how many there are,
/// which may be more than there is room for.
pub fn odd_primes(limit: u64, mut keep: impl FnMut(u64)) {
    let mut candidate = 3;
    while candidate <= limit {
        let mut divisor = 3;
        while divisor * divisor <= candidate && !candidate.is_multiple_of(divisor) {
            divisor += 2;
        }
        if divisor * divisor > candidate {
            keep(candidate);
        }
        candidate += 2;
    }
}

/// How many primes lie in `[segment * SEGMENT, (segment + 1) * SEGMENT)` and do not exceed
/// `limit`. `primes` yields the odd primes up to the root of the segment's end, in order.
pub fn count(segment: u64, limit: u64, primes: impl Iterator<Item = u64>) -> u64 {
    let start = segment * SEGMENT;
    let end = (start + SEGMENT).min(limit + 1);
    if start >= end {
        return 0;
    }
    // One bit for each odd number of the segment, set when it is composite.
    let mut composite = [0u64; WORDS];
    for prime in primes {
        let square = prime * prime;
        if square >= end {
            break;
        }
        let mut multiple = square.max(start.div_ceil(prime) * prime);
        if multiple.is_multiple_of(2) {
            multiple += prime;
        }
        while multiple < end {
            let bit = (multiple - start) / 2;
            composite[(bit / 64) as usize] |= 1 << (bit % 64);
            multiple += 2 * prime;
        }
    }
    let odd_numbers = (end - start) / 2;
    let mut count = 0;
    for (index, word) in composite.iter().enumerate() {
        let first = index as u64 * 64;
        if first >= odd_numbers {
            break;
        }
        let valid = (odd_numbers - first).min(64);
        let mask = if valid == 64 { u64::MAX } else { (1 << valid) - 1 };
        count += u64::from((!word & mask).count_ones());
    }
    // In the first segment 1 was counted, which is no prime, and 2 was not, which is one.
    if start == 0 && limit < 2 { 0 } else { count }
}

/// The number of primes up to powers of ten (OEIS A006880), for the powers offered.
pub const KNOWN: [(u64, u64); 5] = [
    (100_000, 9_592),
    (1_000_000, 78_498),
    (10_000_000, 664_579),
    (100_000_000, 5_761_455),
    (1_000_000_000, 50_847_534),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn total(limit: u64) -> u64 {
        let mut primes = Vec::new();
        odd_primes(limit.isqrt() + 1, |prime| primes.push(prime));
        (0..=limit / SEGMENT).map(|segment| count(segment, limit, primes.iter().copied())).sum()
    }

    #[test]
    fn counts_are_the_published_ones() {
        for (limit, expected) in [(10, 4), (100, 25), (1000, 168)] {
            assert_eq!(total(limit), expected, "up to {limit}");
        }
        for (limit, expected) in &KNOWN[..3] {
            assert_eq!(total(*limit), *expected, "up to {limit}");
        }
    }

    #[test]
    fn a_limit_at_a_segment_boundary_is_included() {
        let by_trial = |limit: u64| {
            let mut count = 1;
            odd_primes(limit, |_| count += 1);
            count
        };
        for limit in [SEGMENT - 1, SEGMENT, SEGMENT + 1, SEGMENT + 3] {
            assert_eq!(total(limit), by_trial(limit), "up to {limit}");
        }
    }
}
