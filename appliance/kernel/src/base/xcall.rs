//! Calls across CPUs: a function runs on others, and the caller waits until it has.
//!
//! This is the machinery of everyday use, with a lock, a vector and a wait of its own. The
//! stop uses nothing of it: a CPU that is stuck while it holds the lock here is stopped like
//! any other.

use core::sync::atomic::{AtomicU64, Ordering};

use handoff::MAX_CPUS;
use machine::apic::{self, Ipi};
use machine::cell::FnCell;
use machine::cpu;
use machine::lock::{Lock, LockGuard};

use crate::base::{clock, cpus};

/// Vector of the calls: nothing else uses it, least of all the stop.
pub const VECTOR: u8 = 0xe4;
/// How long the called CPUs are waited for, in nanoseconds: far more than an emulated one
/// that the host does not run for a while.
const PATIENCE_NS: u64 = 2_000_000_000;

/// What a called CPU runs, in its interrupt handler: short, and free of locks that are held
/// anywhere with interrupts unmasked.
pub type Work = fn();

/// One call at a time.
static CALLING: Lock<()> = Lock::new("calls", ());
static WORK: FnCell = FnCell::new();
/// Who has yet to run it, one bit per CPU.
static PENDING: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];

/// The calls under way are kept off until the guard is dropped; for showing that the stop
/// does not mind.
pub fn hold() -> LockGuard<()> {
    CALLING.lock()
}

/// Runs `work` on every other running CPU and waits until all have. Returns how many did not
/// in time: they run it when they get to it.
///
/// To be called with interrupts unmasked, else two CPUs that call at once wait for each
/// other until the time is up.
pub fn on_others(work: Work) -> usize {
    let _one = CALLING.lock();
    let me = cpus::current_index();
    WORK.set(work);
    for index in (0..cpus::count()).filter(|&index| index != me && cpus::running(index)) {
        PENDING[index / 64].fetch_or(1 << (index % 64), Ordering::Release);
        apic::send(cpus::apic_id(index), Ipi::Fixed(VECTOR));
    }
    let left = || PENDING.iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum();
    let start = clock::now_ns();
    loop {
        let left: u32 = left();
        if left == 0 || clock::now_ns().saturating_sub(start) > PATIENCE_NS {
            return left as usize;
        }
        cpu::pause();
    }
}

/// Handles a call. One that comes late finds its bit still set and does what is asked now.
pub fn on_call() {
    apic::end_of_interrupt();
    let me = cpus::current_index();
    let bit = 1 << (me % 64);
    if PENDING[me / 64].load(Ordering::Acquire) & bit == 0 {
        return;
    }
    WORK.call();
    PENDING[me / 64].fetch_and(!bit, Ordering::Release);
}
