//! `ring`: numbers through a shared queue, under a storm of interrupts between the CPUs.
//!
//! `workload=ring,numbers=262144,seed=1`. All CPUs put numbers into one bounded queue and
//! take numbers out of it, in bursts whose lengths come from the seed; after each burst a
//! CPU calls another one (itself, when it is alone).
//!
//! What proves the result: a bit for each number says whether it came out, so one that
//! comes out twice or never is seen; and every CPU that was called has answered, after the
//! last call. The digest is made of the numbers that came out.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_workload::{Context, Digest, Parameter, Random, Setup, SetupError, Workload};

use crate::queue::Queue;

/// Numbers that one unit puts in, and takes out.
const UNIT: u64 = 1024;
/// Numbers at most: 64 in each word of the bit map.
const MOST: u64 = 1 << 20;
/// Numbers the queue holds.
const ROOM: usize = 256;
/// A burst is shorter than this.
const BURST: u64 = 32;
/// CPUs whose calls are counted; those beyond are not called.
const CPUS: usize = 512;
/// How long a called CPU may take to answer, in nanoseconds: far more than an emulated
/// one that the host does not run for a while.
const ANSWER_NS: u64 = 10_000_000_000;

/// The workload.
#[derive(Debug)]
pub struct Ring {
    numbers: AtomicU64,
    seed: AtomicU64,
    queue: Queue<ROOM>,
    /// One bit a number: it came out.
    seen: [AtomicU64; (MOST / 64) as usize],
    /// Numbers that came out although they had before.
    repeated: AtomicU64,
    /// By CPU: the calls to it, and how many of them its last answer saw.
    called: [AtomicU64; CPUS],
    answered: [AtomicU64; CPUS],
}

/// What `number` adds to the digest.
fn worth(number: u64) -> u64 {
    Random::new(number).next()
}

impl Ring {
    /// Not prepared yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            numbers: AtomicU64::new(0),
            seed: AtomicU64::new(0),
            queue: Queue::new(),
            seen: [const { AtomicU64::new(0) }; (MOST / 64) as usize],
            repeated: AtomicU64::new(0),
            called: [const { AtomicU64::new(0) }; CPUS],
            answered: [const { AtomicU64::new(0) }; CPUS],
        }
    }

    /// Takes a number out, when there is one: its worth.
    fn take(&self) -> Option<u64> {
        let number = self.queue.take()?;
        let bit = 1 << (number % 64);
        let word = self.seen.get((number / 64) as usize);
        let before = word.map_or(bit, |word| word.fetch_or(bit, Ordering::Relaxed));
        if before & bit != 0 {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
        Some(worth(number))
    }

    /// Calls another CPU, if it runs and is counted.
    fn call_one(&self, random: &mut Random, context: &Context<'_>) {
        let cpus = context.cpus() as u64;
        let other = (context.cpu() as u64 + 1 + random.below(cpus)) % cpus;
        if let Some(called) = self.called.get(other as usize) {
            called.fetch_add(1, Ordering::Relaxed);
            if !context.call(other as usize) {
                called.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits until every CPU has answered the last call to it; those that have not, in time.
    fn silent(&self, context: &Context<'_>) -> usize {
        let start = context.now_ns();
        loop {
            context.beat();
            let behind = self.called.iter().zip(&self.answered).filter(|(called, answered)| {
                answered.load(Ordering::Relaxed) < called.load(Ordering::Relaxed)
            });
            let behind = behind.count();
            if behind == 0 || context.now_ns().saturating_sub(start) > ANSWER_NS {
                return behind;
            }
            core::hint::spin_loop();
        }
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

impl Workload for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[
            Parameter { name: "numbers", default: MOST / 4, lowest: UNIT, highest: MOST },
            Parameter { name: "seed", default: 1, lowest: 0, highest: u64::MAX },
        ]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        let numbers = setup.value("numbers");
        if !numbers.is_multiple_of(UNIT) {
            let near = numbers.next_multiple_of(UNIT);
            let text = format_args!("numbers={numbers}: give a multiple of {UNIT}, such as {near}");
            return Err(SetupError::new(text));
        }
        self.numbers.store(numbers, Ordering::Relaxed);
        self.seed.store(setup.value("seed"), Ordering::Relaxed);
        Ok(numbers / UNIT)
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        let mut random = Random::for_unit(self.seed.load(Ordering::Relaxed), context.round(), unit);
        let (mut put, mut taken, mut sum) = (0, 0, 0u64);
        // As many out as in. A CPU that finds the queue empty has put in no less than it
        // took out, so some other has not: that one will put, and this one can wait for it.
        while put < UNIT || taken < UNIT {
            context.beat();
            for _ in 0..random.below(BURST).min(UNIT - put) {
                if !self.queue.put(unit * UNIT + put) {
                    break;
                }
                put += 1;
            }
            for _ in 0..random.below(BURST).min(UNIT - taken) {
                let Some(worth) = self.take() else { break };
                taken += 1;
                sum = sum.wrapping_add(worth);
            }
            self.call_one(&mut random, context);
        }
        Digest::number(sum)
    }

    fn finish(&self, merged: Digest, context: &Context<'_>) -> Digest {
        let numbers = self.numbers.load(Ordering::Relaxed);
        let words = &self.seen[..(numbers / 64) as usize];
        let seen = words.iter().map(|word| word.swap(0, Ordering::Relaxed).count_ones());
        let missing = numbers - u64::from(seen.sum::<u32>());
        let repeated = self.repeated.swap(0, Ordering::Relaxed);
        let silent = self.silent(context);
        if (missing, repeated, silent) == (0, 0, 0) {
            return merged;
        }
        context.log(format_args!(
            "ring: {missing} numbers never came out, {repeated} twice; {silent} CPUs did not answer"
        ));
        // No sum of wrong numbers passes for the right ones by chance.
        Digest::default()
    }

    fn expected(&self, _round: u64) -> Digest {
        let numbers = self.numbers.load(Ordering::Relaxed);
        Digest::number((0..numbers).map(worth).fold(0, u64::wrapping_add))
    }

    fn on_call(&self, context: &Context<'_>) {
        if let (Some(called), Some(answered)) =
            (self.called.get(context.cpu()), self.answered.get(context.cpu()))
        {
            answered.store(called.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let (put, taken) = self.queue.counts();
        let sum = |counts: &[AtomicU64]| -> u64 {
            counts.iter().map(|count| count.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
        };
        let called = sum(&self.called);
        let open = called.wrapping_sub(sum(&self.answered)) as i64;
        write!(
            words,
            "{put} numbers put in, {taken} taken out; {called} calls, {open} not answered"
        )
    }
}

#[cfg(test)]
mod tests {
    use epitaph_workload::host;

    use super::*;

    fn ring() -> Box<Ring> {
        Box::new(Ring::new())
    }

    #[test]
    fn every_number_comes_out_once_on_any_number_of_cpus() {
        let parameters = [("numbers", "65536"), ("seed", "3")];
        let alone = host::run(&*ring(), &parameters, 1, 2).expect("every number once");
        assert_eq!(alone[0], alone[1]);
        for cpus in [2, 4] {
            assert_eq!(host::run(&*ring(), &parameters, cpus, 2).as_ref(), Ok(&alone));
        }
    }

    #[test]
    fn a_number_that_comes_out_twice_is_noticed() {
        let ring = ring();
        assert!(ring.queue.put(5) && ring.queue.put(5));
        let wrong = host::run(&*ring, &[("numbers", "1024")], 1, 1).unwrap_err();
        assert!(wrong.starts_with("round 0: 0, expected"), "{wrong}");
    }

    #[test]
    fn a_part_of_a_unit_is_refused() {
        let refused = host::run(&*ring(), &[("numbers", "1025")], 1, 1).unwrap_err();
        assert!(refused.contains("multiple of 1024, such as 2048"), "{refused}");
    }
}
