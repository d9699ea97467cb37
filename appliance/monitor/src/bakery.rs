//! Lamport's bakery lock: mutual exclusion by loads and stores only.
//!
//! EL3 runs with its MMU off, so its memory is of type Device, which exclusive accesses, and
//! with them every atomic read-modify-write, need not work on (Arm ARM B2.12.2). Plain loads
//! and stores of a word do work on it.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A lock for `CPUS` callers, each known by its number.
///
/// Each caller draws a number larger than all that it sees, then waits until no other caller
/// has a smaller one; the caller's own number breaks ties. The lock is fair.
#[derive(Debug)]
pub struct BakeryLock<const CPUS: usize> {
    /// True while a caller draws its number: a caller that compares must wait for it, or it
    /// could overlook a number about to be written.
    drawing: [AtomicBool; CPUS],
    /// The drawn number; 0 for a caller that does not want the lock.
    numbers: [AtomicU32; CPUS],
}

impl<const CPUS: usize> BakeryLock<CPUS> {
    /// Makes a free lock; all its bytes are 0.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            drawing: [const { AtomicBool::new(false) }; CPUS],
            numbers: [const { AtomicU32::new(0) }; CPUS],
        }
    }

    /// Waits for the lock and takes it for the caller `cpu`. Returns `None`, without a lock,
    /// if `cpu` is not below `CPUS`.
    ///
    /// Sequentially consistent accesses throughout: the proof needs each caller's store of its
    /// number to be visible before it reads the others'.
    pub fn lock(&self, cpu: usize) -> Option<Held<'_>> {
        let (drawing, number) = (self.drawing.get(cpu)?, self.numbers.get(cpu)?);
        drawing.store(true, Ordering::SeqCst);
        let largest = self.numbers.iter().map(|number| number.load(Ordering::SeqCst)).max();
        // Numbers grow only while the lock is contended without a pause; 2^32 draws in a row
        // do not happen.
        let mine = largest.unwrap_or(0).wrapping_add(1);
        number.store(mine, Ordering::SeqCst);
        drawing.store(false, Ordering::SeqCst);
        for (other, (drawing, number)) in self.drawing.iter().zip(&self.numbers).enumerate() {
            while drawing.load(Ordering::SeqCst) {
                core::hint::spin_loop();
            }
            loop {
                let theirs = number.load(Ordering::SeqCst);
                if other == cpu || theirs == 0 || (mine, cpu) < (theirs, other) {
                    break;
                }
                core::hint::spin_loop();
            }
        }
        Some(Held { number })
    }
}

impl<const CPUS: usize> Default for BakeryLock<CPUS> {
    fn default() -> Self {
        Self::new()
    }
}

/// The lock, held. Dropping it releases the lock.
#[derive(Debug)]
pub struct Held<'a> {
    number: &'a AtomicU32,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.number.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    /// Adds to a counter by a load and a store, so that two callers at once lose an addition.
    #[test]
    fn only_one_caller_at_a_time_holds_it() {
        const ROUNDS: usize = 100;
        let lock = BakeryLock::<3>::new();
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for cpu in 0..3 {
                let (lock, sum) = (&lock, &sum);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        let held = lock.lock(cpu);
                        assert!(held.is_some());
                        let seen = sum.load(Ordering::Relaxed);
                        if seen % 16 == 0 {
                            thread::yield_now();
                        }
                        sum.store(seen + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3 * ROUNDS);
        assert!(lock.lock(3).is_none());
    }
}
