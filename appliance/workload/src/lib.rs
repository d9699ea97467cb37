//! What a workload is to the appliance.
//!
//! A [`Workload`] cuts its work into units. Any CPU takes any unit, in any order, and
//! returns a [`Digest`] of what it found; the digests of all units are merged and compared
//! with what the workload expects. So the verdict does not depend on how many CPUs there
//! are, and a wrong result is seen, whichever CPU made it. When every unit is done, a round
//! is; the appliance runs one round, or rounds without end when a crash is planned.
//!
//! A workload owns nothing of the machine. What it needs from the kernel it is lent through
//! [`Setup`] and [`Context`]: CPUs to call, locks, the clock, the log; memory comes through
//! [`alloc`]. With the feature
//! `host`, the module `host` lends it the same from the threads of a host, for its tests.
//!
//! The crate has no unsafe code and does not know the kernel, so a workload can be built
//! and tested on any machine.
#![cfg_attr(not(feature = "host"), no_std)]
#![forbid(unsafe_code)]

/// What takes memory from the heap that the kernel lends: `Vec`, `Box` and the others. Not
/// for [`Workload::on_call`] and [`Workload::last_words`].
pub extern crate alloc;

mod context;
mod digest;
#[cfg(feature = "host")]
pub mod host;
mod random;
mod setup;

use core::fmt;

pub use context::{Context, Kernel};
pub use digest::Digest;
pub use random::Random;
pub use setup::{MAX_PARAMETERS, Parameter, Setup, SetupError};

/// Locks that the kernel lends, numbered from 0; see [`Context::locked`].
pub const LOCKS: usize = 256;

/// Work that all CPUs share.
///
/// There is one value of each workload, in a `static`; its state is in atomics, since
/// several CPUs are in it at once.
pub trait Workload: Sync {
    /// Its name on the command line and in the dump: up to 16 bytes are kept there.
    fn name(&self) -> &'static str;

    /// What can be set on the command line, as `workload=NAME,key=value,…`. The kernel
    /// checks keys and ranges before [`prepare`](Self::prepare) is called.
    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    /// Gets ready, on one CPU, and says how many units a round has: as many as the work
    /// has parts, whatever the number of CPUs, or the digest would depend on it.
    ///
    /// # Errors
    /// Says why it cannot run, and what to change.
    #[expect(clippy::result_large_err, reason = "a refusal holds its own text: there is no heap")]
    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError>;

    /// Does one unit (from 0) and returns its digest. Calls [`Context::beat`] at least
    /// every few milliseconds.
    fn run(&self, unit: u64, context: &Context<'_>) -> Digest;

    /// Merges the digests of two sets of units. The order in which units end is not known,
    /// so this has to be commutative and associative; the sum, unless said otherwise.
    #[must_use]
    fn merge(&self, left: Digest, right: Digest) -> Digest {
        left.plus(right)
    }

    /// Called once a round, on one CPU, after the last unit and before the next round's
    /// first: the place to look at what all units did together. Returns the round's digest.
    #[must_use]
    fn finish(&self, merged: Digest, context: &Context<'_>) -> Digest {
        let _ = context;
        merged
    }

    /// What the digest of round `round` (from 0) must be. Called after [`finish`](Self::finish).
    fn expected(&self, round: u64) -> Digest;

    /// Answers a [`Context::call`], on the CPU that was called, inside the interrupt: short,
    /// without a lock, without memory from the heap, and without a wait.
    fn on_call(&self, context: &Context<'_>) {
        let _ = context;
    }

    /// Says, after a crash, where the work stood, in a line of up to
    /// [`LAST_WORDS_BYTES`] bytes: what does not fit is an error of `words`, to be passed on.
    ///
    /// Called on the CPU that crashed, after all others were stopped wherever they were.
    /// Whatever this workload was writing may be half written. So: read atomics, believe
    /// nothing, wait for nothing, take no lock. The heap gives nothing any more.
    ///
    /// # Errors
    /// Those of `words`.
    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let _ = words;
        Ok(())
    }
}

/// Bytes that are kept of what a workload says in a crash.
pub const LAST_WORDS_BYTES: usize = 120;
