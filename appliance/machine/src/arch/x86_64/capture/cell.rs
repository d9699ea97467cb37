//! A value that a fault handler may want while it is being used.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

/// A value behind a flag. Whoever finds the flag taken goes on without the value, instead
/// of waiting for somebody who may never come back or seeing half of a change.
#[derive(Debug)]
pub struct TryCell<T> {
    busy: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reachable only through `with`, by one caller at a time.
unsafe impl<T: Send> Sync for TryCell<T> {}

impl<T> TryCell<T> {
    /// A cell that nobody is using.
    pub const fn new(value: T) -> Self {
        Self { busy: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Calls `using` with the value; `None` when it is in use already.
    pub fn with<R>(&self, using: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: the flag was clear and is set now, so no other reference exists.
        let result = using(unsafe { &mut *self.value.get() });
        self.busy.store(false, Ordering::Release);
        Some(result)
    }
}
