//! A static that is handed out once.

#![expect(unsafe_code, reason = "exclusive access to a static, proved by an atomic flag")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

/// A value in a `static` of which exactly one caller, ever, gets the exclusive reference.
///
/// Crash code uses it for memory that must exist before the crash and that only the CPU
/// that won the crash may touch: no lock, no allocation.
#[derive(Debug)]
pub struct TakeOnce<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reachable only through `take`, which succeeds for one caller.
unsafe impl<T: Send> Sync for TakeOnce<T> {}

impl<T> TakeOnce<T> {
    /// A cell that nobody has taken yet.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value, for the first caller; `None` for everyone after it.
    #[expect(clippy::mut_from_ref, reason = "the flag makes the reference exclusive")]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: the swap returned false for this caller only, so no other reference exists.
        Some(unsafe { &mut *self.value.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::TakeOnce;

    #[test]
    fn only_the_first_taker_gets_it() {
        static CELL: TakeOnce<u32> = TakeOnce::new(7);
        assert_eq!(CELL.take(), Some(&mut 7));
        assert_eq!(CELL.take(), None);
    }
}
