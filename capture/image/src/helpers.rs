//! The stopped CPUs that can still work: called when the first stage is sealed and the next may
//! be compressed, and then whenever there is something to compress.
//!
//! Nobody waits for them: who has answered the first call by the time the memory of a stage is
//! written is on record, so that a dump says how many CPUs its machine had to offer.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use capture_engine::worker_pool::{self, DESKS, Job, WorkerPool};
use desk::Desk;
use handoff::BootFacts;
use lz4_flex::block::CompressTable;
use machine::capture::cell::TryCell;
use machine::capture::helpers::{self, MOST};
use machine::capture::memory;

use crate::clock;
use crate::console::say;

/// How long all CPUs are watched, to see on how many cores they run: some turns of the scheduler of
/// a host.
const WATCH_NS: u64 = 8_000_000;
/// A look at the clock takes less than a microsecond: who was away for so long had no core.
const AWAY_NS: u64 = 100_000;

/// Where their work lies.
static DESKS_OF_ALL: [Desk<Job>; DESKS] = [const { Desk::new() }; DESKS];
/// What each of them compresses with. One that is lost while it works keeps its own.
static TABLES: [TryCell<Option<&'static mut CompressTable>>; MOST] =
    [const { TryCell::new(None) }; MOST];

static WAITING: AtomicU32 = AtomicU32::new(0);
/// A bit for each that answered, and for each that did some work.
static ANSWERED: AtomicU32 = AtomicU32::new(0);
static WORKED: AtomicU32 = AtomicU32::new(0);

/// Nanoseconds that those who were watched had a core, together, and how many they are.
static RAN_NS: AtomicU64 = AtomicU64::new(0);
static WATCHED: AtomicUsize = AtomicUsize::new(0);
/// How many are to work at the same time.
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// What a helper runs while it is watched: it says that it is there, and keeps its core busy.
fn be_watched(helper: usize, end_ns: u64) {
    ANSWERED.fetch_or(1 << (helper % MOST), Ordering::Relaxed);
    RAN_NS.fetch_add(on_a_core(end_ns), Ordering::Relaxed);
    WATCHED.fetch_add(1, Ordering::Release);
}

/// Runs until `end_ns`, and returns for how many nanoseconds of that there was a core for it.
fn on_a_core(end_ns: u64) -> u64 {
    let (mut ran, mut last) = (0, clock::now_ns());
    while last < end_ns {
        let now = clock::now_ns();
        let step = now.saturating_sub(last);
        if step < AWAY_NS {
            ran += step;
        }
        last = now;
    }
    ran
}

/// How many of `helpers` are to work: as many as there are cores for.
fn watch(helpers: usize) -> usize {
    let end = clock::now_ns() + WATCH_NS;
    let called = (0..helpers).filter(|&helper| helpers::call(helper, be_watched, end)).count();
    let own = on_a_core(end);
    // Who has not begun by then had no core.
    while WATCHED.load(Ordering::Acquire) < called && clock::now_ns() < end + WATCH_NS {
        core::hint::spin_loop();
    }
    worker_pool::wanted(helpers, own + RAN_NS.load(Ordering::Relaxed), WATCH_NS)
}

/// What a helper runs: it says that it is there, and does what there is to do.
fn join(helper: usize, _argument: u64) {
    let bit = 1 << (helper % MOST);
    ANSWERED.fetch_or(bit, Ordering::Relaxed);
    let begin = || {
        WORKED.fetch_or(bit, Ordering::Relaxed);
    };
    if let Some(table) = TABLES.get(helper) {
        table.with(|table| worker_pool::work(&DESKS_OF_ALL, table.as_deref_mut(), begin));
    }
}

/// Calls as many as there are cores for, or `all`. Each gets what it needs to compress.
pub fn call(facts: &BootFacts, all: bool) {
    let waiting = helpers::muster(facts.mailboxes, facts.park);
    WAITING.store(waiting as u32, Ordering::Relaxed);
    for table in TABLES.iter().take(helpers::count()) {
        // Without the memory for it, what this one does is stored as it is.
        table.with(|table| *table = memory::keep(CompressTable::large));
    }
    let count = helpers::count();
    // With one there is nothing to choose.
    let wanted = if all || count < 2 { count } else { watch(count) };
    WANTED.store(wanted, Ordering::Relaxed);
    let called = (0..wanted).filter(|&helper| helpers::call(helper, join, 0)).count();
    let cores = if wanted < count { ", as many as have a core" } else { "" };
    say!("capture: {waiting} stopped CPUs wait for work, {called} called{cores}");
}

/// How many wait, and how many have answered so far.
pub fn counts() -> (u32, u32) {
    (WAITING.load(Ordering::Relaxed), ANSWERED.load(Ordering::Relaxed).count_ones())
}

/// All of them, under a CPU that writes and compresses with `table`.
pub fn crew(table: Option<&'static mut CompressTable>) -> WorkerPool {
    WorkerPool::new(&DESKS_OF_ALL, &Stopped, table)
}

/// Those that [`call`] has found.
struct Stopped;

impl worker_pool::Helpers for Stopped {
    fn count(&self, lost: usize) -> usize {
        WANTED.load(Ordering::Relaxed).min(helpers::count().saturating_sub(lost))
    }

    fn worked(&self) -> usize {
        WORKED.load(Ordering::Relaxed).count_ones() as usize
    }

    fn wake(&self, lost: usize) {
        // One that is busy looks for more by itself. For each that is lost there is another.
        let most = WANTED.load(Ordering::Relaxed) + lost;
        let those = worker_pool::on_call(ANSWERED.load(Ordering::Relaxed), most);
        let _ = (0..helpers::count())
            .filter(|helper| those & 1 << (helper % MOST) != 0)
            .any(|helper| helpers::call(helper, join, 0));
    }
}
