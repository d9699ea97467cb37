#![doc = include_str!("../README.md")]
#![no_std]
#![expect(
    unsafe_code,
    reason = "a value that changes hands between CPUs, guarded by an atomic state"
)]

#[cfg(test)]
extern crate std;

use core::fmt;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};

use crate::sync::{AtomicU8, Ordering, UnsafeCell};

/// Atomics and the cell of this crate: the real ones, or loom's in a model check.
mod sync {
    #[cfg(not(loom))]
    pub(crate) use core::sync::atomic::{AtomicU8, Ordering};
    #[cfg(loom)]
    pub(crate) use loom::{
        cell::UnsafeCell,
        sync::atomic::{AtomicU8, Ordering},
    };

    /// `core`'s cell with the interface of loom's, which sees every access that way.
    #[cfg(not(loom))]
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    #[cfg(not(loom))]
    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        pub(crate) fn with<R>(&self, access: impl FnOnce(*const T) -> R) -> R {
            access(self.0.get())
        }

        pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
            access(self.0.get())
        }
    }
}

/// No job lies here.
const EMPTY: u8 = 0;
/// The owner is putting a job down or picking it up.
const MOVING: u8 = 1;
/// A job that no worker has claimed.
const WAITING: u8 = 2;
/// A worker has claimed the job.
const TAKEN: u8 = 3;
/// The job is done.
const DONE: u8 = 4;
/// The owner does not wait for the worker any more; the job stays with the worker.
const GIVEN_UP: u8 = 5;

/// Room for one job of type `T`, shared by its owner and any number of workers.
pub struct Desk<T> {
    state: AtomicU8,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is reached only by the CPU that moved the state to MOVING or TAKEN, which
// one CPU at a time can do, and the value goes from one to the other: hence `T: Send`.
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
    /// Returns an empty desk.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Returns an empty desk; loom's atomics cannot be built in a `const fn`.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self { state: AtomicU8::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Moves the state from `from` to `to`; returns false, and changes nothing, when it is not
    /// `from`.
    fn step(&self, from: u8, to: u8, order: Ordering) -> bool {
        // Most attempts fail. A plain load leaves the cache line shared, a failed
        // compare-exchange would take it from the other CPUs.
        self.state.load(Ordering::Relaxed) == from
            && self.state.compare_exchange(from, to, order, Ordering::Relaxed).is_ok()
    }

    /// Puts `job` down.
    ///
    /// # Errors
    /// Hands the job back when the desk is in use or was given up.
    pub fn put(&self, job: T) -> Result<(), T> {
        // Acquire: what `collect` read of the job before comes before the write below.
        if !self.step(EMPTY, MOVING, Ordering::Acquire) {
            return Err(job);
        }
        // SAFETY: this CPU moved the state to MOVING, so no other reaches the value.
        self.value.with_mut(|value| unsafe { (*value).write(job) });
        // Release: a worker that sees WAITING sees the job.
        self.state.store(WAITING, Ordering::Release);
        Ok(())
    }

    /// Claims the job that waits here; the job is done when the claim is dropped. `None` when
    /// no job waits.
    pub fn claim(&self) -> Option<Claim<'_, T>> {
        // The claim is built only after the step: dropping one marks the job as done.
        self.step(WAITING, TAKEN, Ordering::Acquire).then(|| Claim { desk: self })
    }

    /// Picks up the job that is done. `None` when there is none.
    pub fn collect(&self) -> Option<T> {
        // Acquire: everything that the worker wrote comes before the read below.
        if !self.step(DONE, MOVING, Ordering::Acquire) {
            return None;
        }
        // SAFETY: this CPU moved the state to MOVING, so no other reaches the value. `put` has
        // written it, and EMPTY below says that it was moved out.
        let job = self.value.with(|value| unsafe { (*value).assume_init_read() });
        self.state.store(EMPTY, Ordering::Release);
        Some(job)
    }

    /// Returns true if a worker has claimed the job and is not done.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.state.load(Ordering::Relaxed) == TAKEN
    }

    /// Gives up the job that a worker has claimed: the desk is never used again, and the job
    /// stays with the worker. Returns false when no worker has claimed it, or the worker has
    /// just finished.
    pub fn give_up(&self) -> bool {
        self.step(TAKEN, GIVEN_UP, Ordering::Relaxed)
    }
}

/// A job that a worker has claimed.
#[derive(Debug)]
pub struct Claim<'a, T> {
    desk: &'a Desk<T>,
}

impl<T> Deref for Claim<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is one claim for each time the state becomes TAKEN. No other CPU
        // reaches the value until the claim is dropped, and after GIVEN_UP none ever does.
        self.desk.value.with(|value| unsafe { (*value).assume_init_ref() })
    }
}

impl<T> DerefMut for Claim<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the claim is borrowed mutably, so this is the only reference.
        self.desk.value.with_mut(|value| unsafe { (*value).assume_init_mut() })
    }
}

impl<T> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        // Fails when the job was given up: then the owner does not look for it any more.
        // Release: the owner that sees DONE sees what this worker wrote.
        let _ = self.desk.step(TAKEN, DONE, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Desk;

    #[test]
    fn a_job_is_put_claimed_and_collected() {
        let desk = Desk::new();
        assert!(desk.claim().is_none() && desk.collect().is_none());
        assert_eq!(desk.put(3), Ok(()));
        assert_eq!(desk.put(4), Err(4));
        assert!(desk.collect().is_none() && !desk.give_up());
        let mut claim = desk.claim().unwrap();
        assert!(desk.claim().is_none() && desk.is_taken());
        assert!(desk.collect().is_none(), "a refused claim changes nothing");
        *claim += 1;
        drop(claim);
        assert_eq!((desk.collect(), desk.collect()), (Some(4), None));
        assert_eq!(desk.put(5), Ok(()));
    }

    #[test]
    fn a_desk_that_was_given_up_is_never_used_again() {
        let desk = Desk::new();
        desk.put(1).unwrap();
        let claim = desk.claim().unwrap();
        assert!(desk.give_up());
        drop(claim);
        assert!(desk.collect().is_none() && desk.claim().is_none());
        assert_eq!(desk.put(2), Err(2));
    }

    #[test]
    fn three_workers_do_every_job_once() {
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
