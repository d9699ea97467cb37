//! `vmcore hashtree`: the Merkle root that the `hashtree` workload must come to, computed
//! again where no appliance runs.

use serde::{Deserialize, Serialize};

use crate::json::Hex;

/// A tree and its root; the JSON of `vmcore hashtree`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashTree {
    /// The seed that the leaves are generated from.
    pub seed: Hex,
    /// How many leaves there are.
    pub leaves: u64,
    /// The root, as 64 hexadecimal digits.
    pub root: String,
}

/// Computes the root over `leaves` leaves, at least 1, generated from `seed`.
#[must_use]
pub fn hashtree(seed: u64, leaves: u64) -> HashTree {
    let root = hashtree::root(seed, 0, leaves, &mut || ());
    let root = root.iter().map(|byte| format!("{byte:02x}")).collect();
    HashTree { seed: Hex(seed), leaves, root }
}

impl HashTree {
    /// The root for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        format!("{}\n", self.root)
    }
}
