//! Which CPU stops the others, when several want to at once.
//!
//! The claim is one word: a magic number, how far its holder has come, and the holder's number.
//! It lies in memory that a crash may have damaged, so three things are expected of it:
//!
//! * A word that no claim can have (zeros, ones, one flipped bit) counts as no claim.
//! * A claim alone is no proof that a CPU handles the crash: the word may be damaged into one,
//!   or its holder may hang. A loser waits until the holder has [begun](Claim::begin), for a
//!   bounded time, and [takes over](Claim::take_over) if it has not.
//! * A holder that has begun [asserts](Claim::assert) its claim again while it stops the others.

use crate::atomic::{AtomicU64, Ordering};
use crate::mask::MAX_CPUS;

/// Upper half of every claim; differs in many bits from zeros, ones and repeated bytes.
const MAGIC: u64 = 0x57c1_a1d3_0000_0000;
/// Set once the holder has begun. Not one bit, so that a flipped one leaves no valid claim.
const BEGUN: u64 = 0x5a96_0000;
/// Stands in the same place before.
const CLAIMED: u64 = 0xa569_0000;
/// The holder's number.
const CPU: u64 = 0xffff;
/// "No CPU yet": no claim has this value.
const UNCLAIMED: u64 = 0;

/// What became of a CPU's [claim](Claim::claim).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The caller is the one stopper, unless another CPU takes over before it has begun.
    Won,
    /// Another CPU, named here, was first: the caller waits until that CPU has begun and then
    /// stops itself.
    Lost(u32),
    /// The caller had won before: it crashed again while it was handling the crash.
    Nested,
}

/// Where the crash is handled. One CPU at most ever begins, and none gives the claim back.
#[derive(Debug)]
pub struct Claim {
    word: AtomicU64,
}

/// The claim of `cpu` in a state; [`UNCLAIMED`] for a number that no CPU has.
const fn word(cpu: u32, state: u64) -> u64 {
    if cpu < MAX_CPUS { MAGIC | state | cpu as u64 } else { UNCLAIMED }
}

/// The holder that `word` names, if it is a valid claim.
fn holder(word: u64) -> Option<u32> {
    let state = word & 0xffff_0000;
    let cpu = (word & CPU) as u32;
    let valid = word & !0xffff_ffff == MAGIC && (state == CLAIMED || state == BEGUN);
    (valid && cpu < MAX_CPUS).then_some(cpu)
}

impl Claim {
    /// A claim that no CPU has made.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { word: AtomicU64::new(UNCLAIMED) }
    }

    /// A claim that no CPU has made; loom's atomics cannot be built in a `const fn`.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(UNCLAIMED) }
    }

    /// A claim whose word is `word`, as damage may have left it.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn damaged(word: u64) -> Self {
        Self { word: AtomicU64::new(word) }
    }

    /// Asks for the claim in the name of `cpu`.
    ///
    /// That there is one winner follows from the compare-exchange alone, whatever its
    /// ordering: the word changes from one that is no claim to one that is. The orderings are
    /// for what stands around it: *Release* on success and *Acquire* on failure let a loser see
    /// everything the winner wrote before it claimed, such as its cause, and so name it. Success
    /// needs no *Acquire*: the value it replaces is the initial one or damage, and no CPU
    /// published anything with that.
    ///
    /// A number that no CPU can have never wins, and loses to itself while there is no claim.
    pub fn claim(&self, cpu: u32) -> Outcome {
        let mine = word(cpu, CLAIMED);
        let mut seen = self.word.load(Ordering::Acquire);
        // A claim, once there is one, is replaced by claims only; so the word changes from one
        // that is none to another at most as often as it is damaged.
        loop {
            match holder(seen) {
                Some(owner) if owner == cpu => return Outcome::Nested,
                Some(owner) => return Outcome::Lost(owner),
                None if mine == UNCLAIMED => return Outcome::Lost(cpu),
                None => {}
            }
            let result =
                self.word.compare_exchange(seen, mine, Ordering::Release, Ordering::Acquire);
            match result {
                Ok(_) => return Outcome::Won,
                Err(now) => seen = now,
            }
        }
    }

    /// Begins to handle the crash: from now on no CPU takes over. False when another CPU has,
    /// and the caller has lost.
    ///
    /// *Release*: a loser that sees that the holder has begun sees what it wrote before.
    pub fn begin(&self, cpu: u32) -> bool {
        let (claimed, begun) = (word(cpu, CLAIMED), word(cpu, BEGUN));
        match self.word.compare_exchange(claimed, begun, Ordering::Release, Ordering::Acquire) {
            Ok(_) => true,
            Err(now) => now == begun || self.assert(cpu),
        }
    }

    /// Takes the claim from `owner`, which has not begun, in the name of `cpu`, which begins at
    /// once. False when the owner has begun meanwhile, or another CPU was faster.
    pub fn take_over(&self, cpu: u32, owner: u32) -> bool {
        let (from, to) = (word(owner, CLAIMED), word(cpu, BEGUN));
        to != UNCLAIMED
            && self.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Writes the claim of `cpu`, which has begun, once more if damage has made it invalid. False
    /// when the word names another CPU that has begun.
    pub fn assert(&self, cpu: u32) -> bool {
        let begun = word(cpu, BEGUN);
        let seen = self.word.load(Ordering::Acquire);
        if seen == begun {
            return true;
        }
        if holder(seen).is_some_and(|owner| seen == word(owner, BEGUN)) {
            return false;
        }
        self.word.compare_exchange(seen, begun, Ordering::Release, Ordering::Acquire).is_ok()
    }

    /// Returns true once the holder of the claim has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        let seen = self.word.load(Ordering::Acquire);
        holder(seen).is_some_and(|owner| seen == word(owner, BEGUN))
    }

    /// The CPU that holds the claim, if one does.
    ///
    /// *Acquire* for the same reason as in [`claim`](Self::claim): a CPU that learns the
    /// owner here may go on to read what it published before.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        holder(self.word.load(Ordering::Acquire))
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
        assert!(!claim.has_begun());
        assert!(claim.begin(3) && claim.begin(3) && claim.has_begun());
        assert_eq!(claim.claim(0), Outcome::Lost(3));
        assert_eq!(claim.claim(3), Outcome::Nested);
    }

    #[test]
    fn a_word_that_no_claim_has_is_no_claim() {
        let patterns = [0, u64::MAX, 1, 3, 0xffff_ffff, 0xa5a5_a5a5_a5a5_a5a5, MAGIC, MAGIC | 3];
        let no_cpu = [MAGIC | CLAIMED | u64::from(MAX_CPUS), MAGIC | BEGUN | CPU];
        for word in patterns.into_iter().chain(no_cpu) {
            let claim = Claim::damaged(word);
            assert_eq!(claim.owner(), None, "{word:#x}");
            assert_eq!(claim.claim(2), Outcome::Won, "{word:#x}");
            assert_eq!(claim.owner(), Some(2));
        }
        // One flipped bit of the initial value, and of a claim except in the CPU's number.
        for bit in 0..64 {
            assert_eq!(Claim::damaged(UNCLAIMED ^ 1 << bit).owner(), None, "bit {bit}");
            let claim = Claim::damaged(word(1, BEGUN) ^ 1 << bit);
            assert_eq!(claim.owner().is_none(), bit >= MAX_CPUS.ilog2(), "bit {bit}");
        }
    }

    #[test]
    fn a_claim_that_nobody_follows_up_is_taken_over_once() {
        let claim = Claim::damaged(word(9, CLAIMED));
        assert_eq!(claim.claim(1), Outcome::Lost(9));
        assert!(!claim.take_over(1, 8), "the claim is not CPU 8's");
        assert!(claim.take_over(1, 9));
        assert!(!claim.take_over(2, 9) && !claim.take_over(2, 1));
        assert_eq!((claim.owner(), claim.has_begun()), (Some(1), true));
        assert!(!claim.begin(9), "the holder that was late has lost");
        assert!(!claim.take_over(u32::MAX, 1));
    }

    #[test]
    fn a_holder_restores_its_claim_but_takes_none_away() {
        let claim = Claim::new();
        assert_eq!(claim.claim(4), Outcome::Won);
        assert!(claim.begin(4) && claim.assert(4));
        claim.word.store(word(4, BEGUN) ^ 1 << 40, Ordering::Relaxed);
        assert_eq!(claim.owner(), None);
        assert!(claim.assert(4));
        assert_eq!(claim.owner(), Some(4));
        claim.word.store(word(5, BEGUN), Ordering::Relaxed);
        assert!(!claim.assert(4));
        assert_eq!(claim.owner(), Some(5));
    }
}
