//! The roll call: which of the stopped CPUs could help.
//!
//! They are called while the dump is being planned, and nobody waits for them: who has
//! answered by the time the first byte is written is on record, so that a dump says how many
//! CPUs its machine had to offer.

use core::sync::atomic::{AtomicU32, Ordering};

use handoff::BootFacts;
use machine::capture::helpers;

use crate::console::say;

static ANSWERED: AtomicU32 = AtomicU32::new(0);
static WAITING: AtomicU32 = AtomicU32::new(0);

fn answer(_helper: usize, _argument: u64) {
    ANSWERED.fetch_add(1, Ordering::Relaxed);
}

/// Calls them.
pub fn call(facts: &BootFacts) {
    let waiting = helpers::muster(facts.mailboxes, facts.park);
    WAITING.store(waiting as u32, Ordering::Relaxed);
    let called = (0..helpers::count()).filter(|&helper| helpers::call(helper, answer, 0)).count();
    say!("capture: {waiting} stopped CPUs wait for work, {called} called");
}

/// How many wait, and how many have answered so far.
pub fn counts() -> (u32, u32) {
    (WAITING.load(Ordering::Relaxed), ANSWERED.load(Ordering::Relaxed))
}
