//! Which CPU stops the others, when several want to at once.

use crate::atomic::{AtomicU32, Ordering};

/// "No CPU yet."
const NOBODY: u32 = u32::MAX;

/// What became of a CPU's [claim](Claim::claim).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The caller is the one stopper, from now until the machine is reset.
    Won,
    /// Another CPU, named here, was first: the caller stops itself.
    Lost(u32),
    /// The caller had won before: it crashed again while it was handling the crash.
    Nested,
}

/// At most one CPU ever wins it, and nobody gives it back.
#[derive(Debug)]
pub struct Claim {
    owner: AtomicU32,
}

impl Claim {
    /// A claim nobody has made.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { owner: AtomicU32::new(NOBODY) }
    }

    /// A claim nobody has made; loom's atomics cannot be built in a `const fn`.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self { owner: AtomicU32::new(NOBODY) }
    }

    /// Asks for the claim in the name of `cpu`.
    ///
    /// That there is one winner follows from the compare-exchange alone, whatever its
    /// ordering. The orderings are for what stands around it: *Release* on success and
    /// *Acquire* on failure let a loser see everything the winner wrote before it
    /// claimed, such as its cause, and so name it. Success needs no *Acquire*: the value
    /// it replaces is the initial one, and no CPU published anything with that.
    ///
    /// `u32::MAX` is no CPU: it never wins, and loses to itself while nobody has won.
    pub fn claim(&self, cpu: u32) -> Outcome {
        let result = self.owner.compare_exchange(NOBODY, cpu, Ordering::Release, Ordering::Acquire);
        match result {
            Ok(_) if cpu != NOBODY => Outcome::Won,
            Err(owner) if owner == cpu => Outcome::Nested,
            Ok(owner) | Err(owner) => Outcome::Lost(owner),
        }
    }

    /// The CPU that won, if one has.
    ///
    /// *Acquire* for the same reason as in [`claim`](Self::claim): whoever learns the
    /// owner here may go on to read what it published before.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        Some(self.owner.load(Ordering::Acquire)).filter(|&owner| owner != NOBODY)
    }
}

impl Default for Claim {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_wins_and_keeps_it() {
        let claim = Claim::new();
        assert_eq!(claim.owner(), None);
        assert_eq!(claim.claim(u32::MAX), Outcome::Lost(u32::MAX));
        assert_eq!(claim.claim(3), Outcome::Won);
        assert_eq!(claim.claim(0), Outcome::Lost(3));
        assert_eq!(claim.claim(3), Outcome::Nested);
        assert_eq!(claim.owner(), Some(3));
    }
}
