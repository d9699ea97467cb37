//! `crash=deadlock`: two CPUs, two locks, taken in opposite order.
//!
//! Interrupts are on all the while, as they would be in code that holds a lock for long: both
//! CPUs go on ticking, and it is their work that is missed.

use core::sync::atomic::{AtomicU32, Ordering};

use machine::cpu;
use machine::lock::Lock;

use super::in_place;

static LEFT: Lock<()> = Lock::new("left", ());
static RIGHT: Lock<()> = Lock::new("right", ());
/// CPUs that hold their first lock.
static HOLDING: AtomicU32 = AtomicU32::new(0);

/// The CPU that crashes: left, then right.
pub(super) fn one_way(_index: usize) {
    take_both(&LEFT, &RIGHT);
}

/// Its accomplice: right, then left.
pub(super) fn other_way(index: usize) {
    in_place("deadlock", index);
    take_both(&RIGHT, &LEFT);
}

/// Never comes back when two CPUs are in it, with the locks in opposite order.
#[inline(never)]
fn take_both(first: &'static Lock<()>, second: &'static Lock<()>) {
    let _first = first.lock();
    cpu::interrupts_on();
    HOLDING.fetch_add(1, Ordering::AcqRel);
    while HOLDING.load(Ordering::Acquire) < 2 {
        cpu::pause();
    }
    let _second = second.lock();
}
