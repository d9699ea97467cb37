//! The Merkle tree of the `hashtree` workload, which the host can compute again.
//!
//! The tree is that of Certificate Transparency (RFC 6962, section 2.1) over SHA-256: the
//! hash of a leaf is that of a byte 0 and the leaf, the hash of a node that of a byte 1 and
//! its two children's hashes, and `n` leaves are split at the largest power of two below
//! `n`. Leaf number `i` is [`LEAF_BYTES`] bytes: the numbers, little-endian, of splitmix64
//! seeded for unit `i` (see [`Random::for_unit`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use epitaph_workload::Random;
use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Bytes of a leaf.
pub const LEAF_BYTES: usize = 1024;
/// Leaves when nothing else is said.
pub const DEFAULT_LEAVES: u64 = 4096;
/// Leaves at most.
pub const MOST_LEAVES: u64 = 1 << 16;
/// Seed when nothing else is said.
pub const DEFAULT_SEED: u64 = 1;

/// The hash of a leaf with these bytes.
fn leaf_hash(bytes: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(bytes).finalize().into()
}

/// The hash of the node above `left` and `right`.
fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The hash of leaf number `index` of the tree from `seed`.
#[must_use]
pub fn leaf(seed: u64, index: u64) -> Hash {
    let mut random = Random::for_unit(seed, 0, index);
    let mut bytes = [0; LEAF_BYTES];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    leaf_hash(&bytes)
}

/// The root over `count` leaves from leaf number `first` on, by the RFC's definition, from
/// the top down; `count` is not 0.
///
/// `each` is called for every leaf.
pub fn root(seed: u64, first: u64, count: u64, each: &mut dyn FnMut()) -> Hash {
    if count <= 1 {
        each();
        return leaf(seed, first);
    }
    let split = count.next_power_of_two() / 2;
    let left = root(seed, first, split, each);
    node_hash(&left, &root(seed, first + split, count - split, each))
}

/// Levels that a [`Fold`] holds: enough for as many hashes as can be counted.
const LEVELS: usize = 64;

/// Folds hashes, from left to right, into their root: from the bottom up, and with one
/// hash a level in memory.
///
/// The hashes are those of leaves, or of subtrees that all have the same power of two of
/// leaves; only the last one may have fewer. The root is the same.
#[derive(Clone, Debug)]
pub struct Fold {
    /// By level: the root of a finished subtree that has no right neighbour yet. Level K is
    /// in use when bit K of `count` is set.
    waiting: [Hash; LEVELS],
    count: u64,
}

impl Fold {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { waiting: [[0; 32]; LEVELS], count: 0 }
    }

    /// Adds the next hash.
    pub fn push(&mut self, mut hash: Hash) {
        let level = self.count.trailing_ones() as usize;
        for left in &self.waiting[..level] {
            hash = node_hash(left, &hash);
        }
        self.waiting[level] = hash;
        self.count += 1;
    }

    /// The root; none when nothing was added.
    #[must_use]
    pub fn root(&self) -> Option<Hash> {
        let used =
            self.waiting.iter().enumerate().filter(|(level, _)| self.count >> level & 1 == 1);
        used.map(|(_, hash)| *hash).reduce(|right, left| node_hash(&left, &right))
    }
}

impl Default for Fold {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(hash: &Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The leaves and roots that Certificate Transparency implementations test themselves
    /// with (transparency-dev/merkle, `testonly/constants.go`).
    #[test]
    fn roots_are_the_published_ones() {
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut fold = Fold::new();
        assert_eq!(fold.root(), None);
        for (bytes, root) in leaves.into_iter().zip(roots) {
            fold.push(leaf_hash(bytes));
            assert_eq!(fold.root().as_ref().map(hex).as_deref(), Some(root));
        }
    }

    /// The root of three leaves, as another program came to it: Python, with its hashlib.
    #[test]
    fn leaves_are_the_described_ones() {
        let root = hex(&root(1, 0, 3, &mut || ()));
        assert_eq!(root, "f2a9ab94e6fc2b0b7f09fefc3949fe38bbe96a519e8ab1fbb3dcfa93f6411e04");
    }

    #[test]
    fn folding_subtrees_gives_the_root_of_the_whole() {
        for leaves in (1..40).chain([64, 65, 127]) {
            let whole = root(7, 0, leaves, &mut || ());
            for chunk in [1, 4, 16] {
                let mut fold = Fold::new();
                for first in (0..leaves).step_by(chunk as usize) {
                    fold.push(root(7, first, chunk.min(leaves - first), &mut || ()));
                }
                assert_eq!(fold.root(), Some(whole), "{leaves} leaves by {chunk}");
            }
        }
    }
}
