//! `heap`: takes and gives back memory of all sizes on all CPUs, and looks at every byte of
//! it in between.
//!
//! `workload=heap,blocks=16,steps=500,seed=1`. A unit keeps up to `blocks` blocks of random
//! sizes. In each step it gives one back, checked, and takes another, filled with bytes that
//! only this block has. Memory that two owners were given, or that moved wrongly, shows.
//!
//! What proves the result: every unit counts the bytes it found right, and the same random
//! numbers say without any memory how many there have to be.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_workload::alloc::vec::Vec;
use epitaph_workload::{Context, Digest, Parameter, Random, Setup, SetupError, Workload};

/// Units in a round.
const UNITS: u64 = 32;
/// Most blocks a unit holds at once.
const MOST_BLOCKS: u64 = 64;
/// A block is smaller than this; one in eight, than the larger bound.
const SMALL: u64 = 1 << 10;
const LARGE: u64 = 96 << 10;

/// The workload.
#[derive(Debug)]
pub struct Heap {
    blocks: AtomicU64,
    steps: AtomicU64,
    seed: AtomicU64,
    /// Bytes held at this moment, on all CPUs.
    held: AtomicU64,
    /// Blocks found wrong.
    wrong: AtomicU64,
}

/// One step: which block is replaced, how many bytes the new one has, and its first byte.
struct Step {
    slot: usize,
    bytes: usize,
    first: u8,
    /// The block is filled bit by bit, and moves as it grows.
    grows: bool,
}

impl Step {
    fn draw(random: &mut Random, blocks: u64) -> Self {
        let slot = random.below(blocks) as usize;
        let bound = if random.below(8) == 0 { LARGE } else { SMALL };
        let bytes = 1 + random.below(bound) as usize;
        Self { slot, bytes, first: random.next() as u8, grows: random.below(4) == 0 }
    }

    /// Byte `at` of the block.
    const fn byte(first: u8, at: usize) -> u8 {
        first.wrapping_add((at as u8).wrapping_mul(31)) ^ (at >> 8) as u8
    }

    fn fill(&self) -> Vec<u8> {
        let mut block = Vec::new();
        if !self.grows {
            block.reserve_exact(self.bytes);
        }
        block.extend((0..self.bytes).map(|at| Self::byte(self.first, at)));
        block
    }
}

/// Bytes of `block` when all are as they were written; 0 otherwise.
fn right(block: &[u8]) -> u64 {
    let Some(&first) = block.first() else { return 0 };
    let intact = block.iter().enumerate().all(|(at, &byte)| byte == Step::byte(first, at));
    if intact { block.len() as u64 } else { 0 }
}

impl Heap {
    /// Not prepared yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            blocks: AtomicU64::new(1),
            steps: AtomicU64::new(0),
            seed: AtomicU64::new(0),
            held: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
        }
    }

    fn steps(&self, round: u64, unit: u64) -> impl Iterator<Item = Step> {
        let mut random = Random::for_unit(self.seed.load(Ordering::Relaxed), round, unit);
        let blocks = self.blocks.load(Ordering::Relaxed);
        (0..self.steps.load(Ordering::Relaxed)).map(move |_| Step::draw(&mut random, blocks))
    }

    /// Looks at a block before it is given back.
    fn take_leave(&self, block: &[u8]) -> u64 {
        let bytes = right(block);
        self.held.fetch_sub(block.len() as u64, Ordering::Relaxed);
        if bytes != block.len() as u64 {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        bytes
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl Workload for Heap {
    fn name(&self) -> &'static str {
        "heap"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[
            Parameter { name: "blocks", default: 16, lowest: 1, highest: MOST_BLOCKS },
            Parameter { name: "steps", default: 500, lowest: 1, highest: 1_000_000 },
            Parameter { name: "seed", default: 1, lowest: 0, highest: u64::MAX },
        ]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        self.blocks.store(setup.value("blocks"), Ordering::Relaxed);
        self.steps.store(setup.value("steps"), Ordering::Relaxed);
        self.seed.store(setup.value("seed"), Ordering::Relaxed);
        Ok(UNITS)
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        let mut blocks = Vec::new();
        blocks.resize_with(self.blocks.load(Ordering::Relaxed) as usize, Vec::new);
        let mut found = 0;
        for step in self.steps(context.round(), unit) {
            context.beat();
            found += self.take_leave(&blocks[step.slot]);
            blocks[step.slot] = step.fill();
            self.held.fetch_add(step.bytes as u64, Ordering::Relaxed);
        }
        found += blocks.iter().map(|block| self.take_leave(block)).sum::<u64>();
        Digest::number(found)
    }

    fn expected(&self, round: u64) -> Digest {
        // Each block is looked at once, when it is replaced or at the end.
        let bytes = |unit| self.steps(round, unit).map(|step| step.bytes as u64).sum::<u64>();
        Digest::number((0..UNITS).map(bytes).sum())
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let [held, wrong] = [&self.held, &self.wrong].map(|figure| figure.load(Ordering::Relaxed));
        write!(words, "{} KiB of heap held, {wrong} blocks found wrong", held >> 10)
    }
}

#[cfg(test)]
mod tests {
    use epitaph_workload::host;

    use super::*;

    #[test]
    fn every_byte_comes_back_whatever_the_number_of_cpus() {
        let run = |cpus| host::run(&Heap::new(), &[("steps", "60"), ("blocks", "5")], cpus, 2);
        let alone = run(1).expect("every byte");
        assert_ne!(alone[0], alone[1]);
        assert_eq!(run(3), Ok(alone));
    }

    #[test]
    fn a_byte_of_somebody_else_is_noticed() {
        let mut block = Step { slot: 0, bytes: 700, first: 9, grows: true }.fill();
        assert_eq!(right(&block), 700);
        block[699] ^= 1;
        assert_eq!(right(&block), 0);
        let heap = Heap::new();
        heap.held.store(700, Ordering::Relaxed);
        assert_eq!(heap.take_leave(&block), 0);
        let mut words = String::new();
        heap.last_words(&mut words).expect("a string takes all");
        assert_eq!(words, "0 KiB of heap held, 1 blocks found wrong");
    }
}
