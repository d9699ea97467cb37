//! The stopped CPUs that can still work: called when the first stage is sealed and the next may
//! be compressed, and then whenever there is something to compress.
//!
//! Nobody waits for them: who has answered the first call by the time the memory of a stage is
//! written is on record, so that a dump says how many CPUs its machine had to offer.

use core::sync::atomic::{AtomicU32, Ordering};

use capture_image::crew::{self, Crew, DESKS, Job};
use handoff::BootFacts;
use lz4_flex::block::CompressTable;
use machine::capture::cell::TryCell;
use machine::capture::helpers::{self, MOST};
use machine::capture::memory;
use machine::desk::Desk;

use crate::console::say;

/// Where their work lies.
static DESKS_OF_ALL: [Desk<Job>; DESKS] = [const { Desk::new() }; DESKS];
/// What each of them compresses with. One that is lost while it works keeps its own.
static TABLES: [TryCell<Option<&'static mut CompressTable>>; MOST] =
    [const { TryCell::new(None) }; MOST];

static WAITING: AtomicU32 = AtomicU32::new(0);
/// A bit for each that answered, and for each that did some work.
static ANSWERED: AtomicU32 = AtomicU32::new(0);
static WORKED: AtomicU32 = AtomicU32::new(0);

/// What a helper runs: it says that it is there, and does what there is to do.
fn join(helper: usize, _argument: u64) {
    let bit = 1 << (helper % MOST);
    ANSWERED.fetch_or(bit, Ordering::Relaxed);
    let begin = || {
        WORKED.fetch_or(bit, Ordering::Relaxed);
    };
    if let Some(table) = TABLES.get(helper) {
        table.with(|table| crew::work(&DESKS_OF_ALL, table.as_deref_mut(), begin));
    }
}

/// Calls them. Each gets what it needs to compress.
pub fn call(facts: &BootFacts) {
    let waiting = helpers::muster(facts.mailboxes, facts.park);
    WAITING.store(waiting as u32, Ordering::Relaxed);
    for table in TABLES.iter().take(helpers::count()) {
        // Without the memory for it, what this one does is stored as it is.
        table.with(|table| *table = memory::keep(CompressTable::large));
    }
    let called = (0..helpers::count()).filter(|&helper| helpers::call(helper, join, 0)).count();
    say!("capture: {waiting} stopped CPUs wait for work, {called} called");
}

/// How many wait, and how many have answered so far.
pub fn counts() -> (u32, u32) {
    (WAITING.load(Ordering::Relaxed), ANSWERED.load(Ordering::Relaxed).count_ones())
}

/// All of them, under a CPU that writes and compresses with `table`.
pub fn crew(table: Option<&'static mut CompressTable>) -> Crew {
    Crew::new(&DESKS_OF_ALL, &Stopped, table)
}

/// Those that [`call`] has found.
struct Stopped;

impl crew::Helpers for Stopped {
    fn count(&self) -> usize {
        helpers::count()
    }

    fn worked(&self) -> usize {
        WORKED.load(Ordering::Relaxed).count_ones() as usize
    }

    fn wake(&self) {
        // One that is busy looks for more by itself.
        let _ = (0..helpers::count()).any(|helper| helpers::call(helper, join, 0));
    }
}
