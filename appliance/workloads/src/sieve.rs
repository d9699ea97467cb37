//! `sieve`: counts primes on all CPUs and compares with the published count.
//!
//! `workload=sieve,n=10000000`; `n` is a power of ten from 100000 to 1000000000. A unit is
//! a segment of the numbers; its digest is the number of primes in it.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use epitaph_workload::{Context, Digest, Parameter, Setup, SetupError, Workload};

use crate::primes::{self, KNOWN, SEGMENT};

/// Odd primes up to the root of the largest limit: 3400 of them.
const ROOM: usize = 3500;

/// The workload.
#[derive(Debug)]
pub struct Sieve {
    limit: AtomicU64,
    primes: [AtomicU32; ROOM],
    prime_count: AtomicU64,
    /// Primes found so far in this round.
    found: AtomicU64,
}

impl Sieve {
    /// Not prepared yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limit: AtomicU64::new(0),
            primes: [const { AtomicU32::new(0) }; ROOM],
            prime_count: AtomicU64::new(0),
            found: AtomicU64::new(0),
        }
    }
}

impl Default for Sieve {
    fn default() -> Self {
        Self::new()
    }
}

impl Workload for Sieve {
    fn name(&self) -> &'static str {
        "sieve"
    }

    fn parameters(&self) -> &'static [Parameter] {
        const N: Parameter =
            Parameter { name: "n", default: 10_000_000, lowest: KNOWN[0].0, highest: KNOWN[4].0 };
        &[N]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        let limit = setup.value("n");
        if !KNOWN.iter().any(|&(known, _)| known == limit) {
            let text = format_args!("n={limit}: give a power of ten from 100000 to 1000000000");
            return Err(SetupError::new(text));
        }
        let mut count = 0;
        primes::odd_primes(limit.isqrt() + 1, |prime| {
            if let Some(slot) = self.primes.get(count) {
                slot.store(prime as u32, Ordering::Relaxed);
                count += 1;
            }
        });
        self.prime_count.store(count as u64, Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
        Ok(limit / SEGMENT + 1)
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        context.beat();
        let primes = &self.primes[..self.prime_count.load(Ordering::Relaxed) as usize];
        let primes = primes.iter().map(|prime| u64::from(prime.load(Ordering::Relaxed)));
        let count = primes::count(unit, self.limit.load(Ordering::Relaxed), primes);
        self.found.fetch_add(count, Ordering::Relaxed);
        Digest::number(count)
    }

    fn finish(&self, merged: Digest, _context: &Context<'_>) -> Digest {
        self.found.store(0, Ordering::Relaxed);
        merged
    }

    fn expected(&self, _round: u64) -> Digest {
        let limit = self.limit.load(Ordering::Relaxed);
        let known = KNOWN.iter().find(|&&(known, _)| known == limit);
        Digest::number(known.map_or(0, |&(_, count)| count))
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let (limit, found) =
            (self.limit.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed));
        write!(words, "n={limit}, {found} primes found in this round")
    }
}

#[cfg(test)]
mod tests {
    use epitaph_workload::host;

    use super::*;

    #[test]
    fn counts_are_the_published_ones_on_any_number_of_cpus() {
        let right = Ok(vec![Digest::number(78_498); 2]);
        for cpus in [1, 2, 4] {
            assert_eq!(host::run(&Sieve::new(), &[("n", "1000000")], cpus, 2), right);
        }
    }

    #[test]
    fn a_limit_without_a_published_count_is_refused() {
        let refused = host::run(&Sieve::new(), &[("n", "123456")], 1, 1).unwrap_err();
        assert!(refused.contains("power of ten"), "{refused}");
    }
}
