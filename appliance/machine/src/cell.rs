//! Statics that are handed out once, or set once.

#![expect(unsafe_code, reason = "access to a static, proved by an atomic state")]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// A value in a `static` of which exactly one caller, ever, gets the exclusive reference.
///
/// Crash code uses it for memory that must exist before the crash and that only the CPU
/// that won the crash may touch: no lock, no allocation.
#[derive(Debug)]
pub struct TakeOnce<T> {
    /// [`TAKEN`], or any other value: damage then leaves a value that can be taken.
    taken: AtomicU32,
    value: UnsafeCell<T>,
}

/// The state of a [`TakeOnce`] whose value is taken.
const TAKEN: u32 = 0x96e1_5a3c;

// SAFETY: the value is reachable only through `take`, which succeeds for one caller.
unsafe impl<T: Send> Sync for TakeOnce<T> {}

impl<T> TakeOnce<T> {
    /// A cell that nobody has taken yet.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// The value, for the first caller; `None` for everyone after it.
    #[expect(clippy::mut_from_ref, reason = "the flag makes the reference exclusive")]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(TAKEN, Ordering::AcqRel) == TAKEN {
            return None;
        }
        // SAFETY: the swap found it free for this caller only, so no other reference exists.
        Some(unsafe { &mut *self.value.get() })
    }

    /// Lends the value to `using`; `None` when somebody has it. Who comes to take it meanwhile
    /// goes without.
    pub fn lend<R>(&self, using: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.taken.swap(TAKEN, Ordering::AcqRel) == TAKEN {
            return None;
        }
        // SAFETY: as in `take`; the reference ends with the call.
        let result = using(unsafe { &mut *self.value.get() });
        self.taken.store(0, Ordering::Release);
        Some(result)
    }
}

/// A value in a `static` that is set once, at boot, and read from anywhere afterwards.
#[derive(Debug)]
pub struct SetOnce<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// States of a [`SetOnce`]. Any other value is none: the cell counts as empty then, so that
/// damage to its state leaves a value that can be set.
const EMPTY: u32 = 0;
const BEING_SET: u32 = 0x3c5a_e169;
const SET: u32 = 0xc3a5_1e96;

// SAFETY: the value is written by the one caller that moved the state to BEING_SET and is
// shared only after it has become SET.
unsafe impl<T: Send + Sync> Sync for SetOnce<T> {}

impl<T> SetOnce<T> {
    /// A cell without a value.
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Sets the value; false, and `value` dropped, when there was one already.
    pub fn set(&self, value: T) -> bool {
        let empty = self.state.load(Ordering::Relaxed);
        if empty == SET || empty == BEING_SET {
            return false;
        }
        let claim =
            self.state.compare_exchange(empty, BEING_SET, Ordering::Relaxed, Ordering::Relaxed);
        if claim.is_err() {
            return false;
        }
        // SAFETY: this caller alone moved the state to BEING_SET, and nobody reads before SET.
        unsafe { (*self.value.get()).write(value) };
        self.state.store(SET, Ordering::Release);
        true
    }

    /// The value, once it is set. Never waits.
    pub fn get(&self) -> Option<&T> {
        if self.state.load(Ordering::Acquire) != SET {
            return None;
        }
        // SAFETY: SET is stored after the value was written, and it is never written again.
        Some(unsafe { (*self.value.get()).assume_init_ref() })
    }
}

impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A function that may be set and called from anywhere.
#[derive(Debug)]
pub struct FnCell {
    function: AtomicPtr<()>,
}

impl FnCell {
    /// No function yet.
    pub const fn new() -> Self {
        Self { function: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// Sets the function. Who sees it, sees what was written before.
    pub fn set(&self, function: fn()) {
        self.function.store(function as *mut (), Ordering::Release);
    }

    /// Calls it; false when there is none.
    pub fn call(&self) -> bool {
        let function = self.function.load(Ordering::Acquire);
        if function.is_null() {
            return false;
        }
        // SAFETY: not null, so it was made from a `fn()` by `set`.
        let function = unsafe { core::mem::transmute::<*mut (), fn()>(function) };
        function();
        true
    }
}

impl Default for FnCell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{FnCell, SetOnce, TakeOnce};

    #[test]
    fn the_function_that_was_set_is_called() {
        static CALLS: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
        let cell = FnCell::new();
        assert!(!cell.call());
        cell.set(|| _ = CALLS.fetch_add(1, core::sync::atomic::Ordering::Relaxed));
        assert!(cell.call() && cell.call());
        assert_eq!(CALLS.load(core::sync::atomic::Ordering::Relaxed), 2);
    }

    #[test]
    fn the_first_value_stays() {
        let cell = SetOnce::new();
        assert_eq!(cell.get(), None);
        assert!(cell.set(3));
        assert!(!cell.set(4));
        assert_eq!(cell.get(), Some(&3));
    }

    #[test]
    fn damage_to_the_state_leaves_a_cell_that_can_be_set() {
        for damage in [1, 2, u32::MAX, 0xa5a5_a5a5, super::SET ^ 1, super::BEING_SET ^ 1 << 31] {
            let cell = SetOnce::<u64>::new();
            cell.state.store(damage, core::sync::atomic::Ordering::Relaxed);
            assert_eq!(cell.get(), None, "{damage:#x}");
            assert!(cell.set(7), "{damage:#x}");
            assert!(!cell.set(8));
            assert_eq!(cell.get(), Some(&7));
        }
    }

    #[test]
    fn only_the_first_taker_gets_it() {
        static CELL: TakeOnce<u32> = TakeOnce::new(7);
        let lent = CELL.lend(|value| (core::mem::replace(value, 8), CELL.take()));
        assert_eq!(lent, Some((7, None)));
        assert_eq!(CELL.take(), Some(&mut 8));
        assert_eq!((CELL.take(), CELL.lend(|_| ())), (None, None));
    }
}
