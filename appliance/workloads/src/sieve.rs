//! `sieve`: counts primes on all CPUs and compares with the published count.
//!
//! `workload=sieve,n=10000000`; `n` is a power of ten from 100000 to 1000000000.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::cmdline::WorkloadChoice;
use kernel::workload::{Workload, beat};

use crate::primes::{self, KNOWN, SEGMENT};

/// Default of `n`.
const DEFAULT_LIMIT: u64 = 10_000_000;
/// Odd primes up to the root of the largest limit: 3400 of them.
const ROOM: usize = 3500;

static PRIMES: [AtomicU32; ROOM] = [const { AtomicU32::new(0) }; ROOM];
static PRIME_COUNT: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT);

/// The workload.
#[derive(Debug)]
pub struct Sieve;

impl Workload for Sieve {
    fn name(&self) -> &'static str {
        "sieve"
    }

    fn prepare(&self, choice: &WorkloadChoice) -> Result<u64, &'static str> {
        let limit = match choice.value("n") {
            Some(text) => text.parse().map_err(|_| "n= must be a number")?,
            None => DEFAULT_LIMIT,
        };
        if !KNOWN.iter().any(|&(known, _)| known == limit) {
            return Err("n= must be a power of ten from 100000 to 1000000000");
        }
        let mut count = 0;
        primes::odd_primes(limit.isqrt() + 1, |prime| {
            if let Some(slot) = PRIMES.get(count) {
                slot.store(prime as u32, Ordering::Relaxed);
                count += 1;
            }
        });
        PRIME_COUNT.store(count as u64, Ordering::Relaxed);
        LIMIT.store(limit, Ordering::Relaxed);
        Ok(limit / SEGMENT + 1)
    }

    fn run(&self, unit: u64, _round: u64) -> u64 {
        beat();
        let primes = &PRIMES[..PRIME_COUNT.load(Ordering::Relaxed) as usize];
        let primes = primes.iter().map(|prime| u64::from(prime.load(Ordering::Relaxed)));
        primes::count(unit, LIMIT.load(Ordering::Relaxed), primes)
    }

    fn expected(&self) -> u64 {
        let limit = LIMIT.load(Ordering::Relaxed);
        KNOWN.iter().find(|&&(known, _)| known == limit).map_or(0, |&(_, count)| count)
    }
}
