//! `hashtree`: hashes generated leaves on all CPUs into one Merkle root.
//!
//! `workload=hashtree,leaves=4096,seed=1`. A unit is a subtree of 64 leaves. What proves
//! the result: one CPU computes the root again, from the top down where the units were
//! folded from the bottom up; and the host computes it with `vmcore hashtree`.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_workload::{Context, Digest, Parameter, Setup, SetupError, Workload};
use hashtree::{DEFAULT_LEAVES, DEFAULT_SEED, Fold, Hash, MOST_LEAVES, leaf, root};

/// Leaves in a unit, a power of two.
const UNIT: u64 = 64;
/// Units at most.
const UNITS: usize = (MOST_LEAVES / UNIT) as usize;
/// Leaves between two signs of life.
const BEAT_LEAVES: u64 = 8;

/// A hash that several CPUs can see.
#[derive(Debug)]
struct Shared([AtomicU64; 4]);

impl Shared {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 4])
    }

    fn store(&self, hash: &Hash) {
        for (word, bytes) in self.0.iter().zip(hash.chunks_exact(8)) {
            let value = bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
            word.store(value, Ordering::Relaxed);
        }
    }

    fn load(&self) -> Hash {
        let mut hash = [0; 32];
        for (bytes, word) in hash.chunks_exact_mut(8).zip(&self.0) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_be_bytes());
        }
        hash
    }
}

/// The workload.
#[derive(Debug)]
pub struct Hashtree {
    leaves: AtomicU64,
    seed: AtomicU64,
    /// By unit: its subtree's root.
    roots: [Shared; UNITS],
    /// The whole tree's root, computed by one CPU.
    right: Shared,
    /// Leaves hashed so far in this round.
    hashed: AtomicU64,
}

impl Hashtree {
    /// Not prepared yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            leaves: AtomicU64::new(0),
            seed: AtomicU64::new(0),
            roots: [const { Shared::new() }; UNITS],
            right: Shared::new(),
            hashed: AtomicU64::new(0),
        }
    }

    fn units(&self) -> usize {
        (self.leaves.load(Ordering::Relaxed).div_ceil(UNIT) as usize).min(UNITS)
    }
}

impl Default for Hashtree {
    fn default() -> Self {
        Self::new()
    }
}

impl Workload for Hashtree {
    fn name(&self) -> &'static str {
        "hashtree"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[
            Parameter { name: "leaves", default: DEFAULT_LEAVES, lowest: 1, highest: MOST_LEAVES },
            Parameter { name: "seed", default: DEFAULT_SEED, lowest: 0, highest: u64::MAX },
        ]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        self.leaves.store(setup.value("leaves"), Ordering::Relaxed);
        self.seed.store(setup.value("seed"), Ordering::Relaxed);
        Ok(self.units() as u64)
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        let (leaves, seed) =
            (self.leaves.load(Ordering::Relaxed), self.seed.load(Ordering::Relaxed));
        let first = unit * UNIT;
        let mut fold = Fold::new();
        for index in first..leaves.min(first + UNIT) {
            if index % BEAT_LEAVES == 0 {
                context.beat();
            }
            fold.push(leaf(seed, index));
            self.hashed.fetch_add(1, Ordering::Relaxed);
        }
        self.roots[unit as usize].store(&fold.root().unwrap_or_default());
        // What counts is the root over all units, and that has an order: see `finish`.
        Digest::default()
    }

    fn finish(&self, _merged: Digest, context: &Context<'_>) -> Digest {
        if context.round() == 0 {
            let (leaves, seed) =
                (self.leaves.load(Ordering::Relaxed), self.seed.load(Ordering::Relaxed));
            self.right.store(&root(seed, 0, leaves, &mut || context.beat()));
        }
        self.hashed.store(0, Ordering::Relaxed);
        let mut fold = Fold::new();
        for subtree in &self.roots[..self.units()] {
            fold.push(subtree.load());
        }
        Digest::hash(fold.root().unwrap_or_default())
    }

    fn expected(&self, _round: u64) -> Digest {
        Digest::hash(self.right.load())
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let (leaves, seed) =
            (self.leaves.load(Ordering::Relaxed), self.seed.load(Ordering::Relaxed));
        let hashed = self.hashed.load(Ordering::Relaxed);
        write!(words, "seed {seed}, {hashed} of {leaves} leaves hashed in this round")
    }
}

#[cfg(test)]
mod tests {
    use epitaph_workload::host;

    use super::*;

    #[test]
    fn roots_do_not_depend_on_the_number_of_cpus() {
        for leaves in [1, 64, 65, 1000] {
            let right = Digest::hash(root(9, 0, leaves, &mut || ()));
            let parameters = [("leaves", &*leaves.to_string()), ("seed", "9")];
            for cpus in [1, 3] {
                let tree = Box::new(Hashtree::new());
                assert_eq!(host::run(&*tree, &parameters, cpus, 2), Ok(vec![right; 2]));
            }
        }
    }
}
