//! A spin lock for everything that is not crash code.
//!
//! It masks interrupts while it is held, so that a CPU that the stop interrupt reaches
//! holds none: that is what makes the interrupt a point of synchronisation. It records its
//! holder. Crash code never takes it.

#![expect(unsafe_code, reason = "exclusive access to a value, proved by an atomic holder")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::{apic, cpu};

/// "Nobody" in [`Lock::holder`].
const NOBODY: u32 = u32::MAX;

/// A value behind a spin lock.
#[derive(Debug)]
pub struct Lock<T> {
    holder: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reachable only through a guard, and `holder` admits one at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self { holder: AtomicU32::new(NOBODY), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock. Interrupts stay masked until the guard is dropped.
    pub fn lock(&self) -> Guard<'_, T> {
        loop {
            if let Some(guard) = self.lock_unless(|| false) {
                return guard;
            }
        }
    }

    /// The same, but not once `tired` says so: then the lock is still another's.
    pub fn lock_unless(&self, tired: impl Fn() -> bool) -> Option<Guard<'_, T>> {
        let enabled = cpu::interrupts_enabled();
        let me = apic::id();
        loop {
            cpu::interrupts_off();
            let free =
                self.holder.compare_exchange_weak(NOBODY, me, Ordering::Acquire, Ordering::Relaxed);
            if free.is_ok() {
                return Some(Guard { lock: self, enabled });
            }
            // Waiting is no critical section: let interrupts in meanwhile.
            if enabled {
                cpu::interrupts_on();
            }
            if tired() {
                return None;
            }
            cpu::pause();
        }
    }

    /// APIC ID of the CPU that holds the lock.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        Some(self.holder.load(Ordering::Relaxed)).filter(|&id| id != NOBODY)
    }
}

/// The lock, held.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    enabled: bool,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard is proof that this CPU holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.holder.store(NOBODY, Ordering::Release);
        if self.enabled {
            cpu::interrupts_on();
        }
    }
}
