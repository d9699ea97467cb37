//! A place where one CPU puts a job down, another does it, and the first picks it up again.

#![expect(unsafe_code, reason = "a value that goes from hand to hand, proved by an atomic state")]

use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU8, Ordering};

/// Nothing lies here.
const EMPTY: u8 = 0;
/// One CPU is putting something down or picking it up.
const MOVING: u8 = 1;
/// A job that nobody has begun.
const WAITING: u8 = 2;
/// Somebody is at it.
const TAKEN: u8 = 3;
/// It is done.
const DONE: u8 = 4;
/// Whoever took it is not waited for any more: what lies here stays with them for good.
const GIVEN_UP: u8 = 5;

/// Room for one job. Nobody ever waits here: what cannot be had at once is not had.
pub struct Desk<T> {
    state: AtomicU8,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is reached only by whoever moved the state to MOVING or TAKEN, which one
// CPU at a time can, and it goes from one to the other.
unsafe impl<T: Send> Sync for Desk<T> {}

impl<T> fmt::Debug for Desk<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("state", &self.state).finish_non_exhaustive()
    }
}

impl<T> Default for Desk<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Desk<T> {
    /// An empty desk.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    fn step(&self, from: u8, to: u8, order: Ordering) -> bool {
        // Most who come find it otherwise, and a look costs less than an attempt.
        self.state.load(Ordering::Relaxed) == from
            && self.state.compare_exchange(from, to, order, Ordering::Relaxed).is_ok()
    }

    /// Puts `job` down.
    ///
    /// # Errors
    /// Hands it back when something lies here already.
    pub fn put(&self, job: T) -> Result<(), T> {
        if !self.step(EMPTY, MOVING, Ordering::Acquire) {
            return Err(job);
        }
        // SAFETY: this caller moved the state to MOVING, so nobody else reaches the value.
        unsafe { (*self.value.get()).write(job) };
        self.state.store(WAITING, Ordering::Release);
        Ok(())
    }

    /// Takes the job that waits here, to do it; it is done when the claim is dropped.
    pub fn claim(&self) -> Option<Claim<'_, T>> {
        // Made only when it is one: dropping it says that the job is done.
        self.step(WAITING, TAKEN, Ordering::Acquire).then(|| Claim { desk: self })
    }

    /// Picks up a job that is done.
    pub fn collect(&self) -> Option<T> {
        if !self.step(DONE, MOVING, Ordering::Acquire) {
            return None;
        }
        // SAFETY: as in `put`; the value was written there, and EMPTY says that it is gone.
        let job = unsafe { (*self.value.get()).assume_init_read() };
        self.state.store(EMPTY, Ordering::Release);
        Some(job)
    }

    /// Whether somebody is at the job that lies here.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.state.load(Ordering::Relaxed) == TAKEN
    }

    /// Does not wait for whoever is at the job any more. The desk is never used again, and the
    /// job stays with them. False when nobody is at it, or they have just done it.
    pub fn give_up(&self) -> bool {
        self.step(TAKEN, GIVEN_UP, Ordering::Relaxed)
    }
}

/// A job somebody is at.
#[derive(Debug)]
pub struct Claim<'a, T> {
    desk: &'a Desk<T>,
}

impl<T> Deref for Claim<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is one claim for each time the state becomes TAKEN. Nobody else
        // reaches the value until the claim is dropped, and after GIVEN_UP nobody ever does.
        unsafe { (*self.desk.value.get()).assume_init_ref() }
    }
}

impl<T> DerefMut for Claim<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { (*self.desk.value.get()).assume_init_mut() }
    }
}

impl<T> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        // Fails when it was given up meanwhile, and then nobody wants to know.
        let _ = self.desk.step(TAKEN, DONE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Desk;

    #[test]
    fn a_job_goes_round() {
        let desk = Desk::new();
        assert!(desk.claim().is_none() && desk.collect().is_none());
        assert_eq!(desk.put(3), Ok(()));
        assert_eq!(desk.put(4), Err(4));
        assert!(desk.collect().is_none() && !desk.give_up());
        let mut claim = desk.claim().unwrap();
        assert!(desk.claim().is_none() && desk.is_taken());
        assert!(desk.collect().is_none(), "whoever came in vain changes nothing");
        *claim += 1;
        drop(claim);
        assert_eq!((desk.collect(), desk.collect()), (Some(4), None));
        assert_eq!(desk.put(5), Ok(()));
    }

    #[test]
    fn what_was_given_up_never_comes_back() {
        let desk = Desk::new();
        desk.put(1).unwrap();
        let claim = desk.claim().unwrap();
        assert!(desk.give_up());
        drop(claim);
        assert!(desk.collect().is_none() && desk.claim().is_none());
        assert_eq!(desk.put(2), Err(2));
    }

    #[test]
    fn many_hands_do_every_job_once() {
        const JOBS: u64 = 10_000;
        let desks: [Desk<u64>; 4] = [const { Desk::new() }; 4];
        let over = AtomicBool::new(false);
        let sum = std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        for desk in &desks {
                            if let Some(mut job) = desk.claim() {
                                *job *= 2;
                            }
                        }
                        std::thread::yield_now();
                    }
                });
            }
            let (mut next, mut back, mut sum) = (1, 0, 0);
            while back < JOBS {
                for desk in &desks {
                    if let Some(job) = desk.collect() {
                        (back, sum) = (back + 1, sum + job);
                    }
                    if next <= JOBS && desk.put(next).is_ok() {
                        next += 1;
                    }
                }
                std::thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
            sum
        });
        assert_eq!(sum, JOBS * (JOBS + 1));
    }
}
