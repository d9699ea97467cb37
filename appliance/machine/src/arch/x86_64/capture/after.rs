//! What is left of the image's main flow once it has been interrupted for good.
//!
//! A fault handler that never returns may go on with what the interrupted flow was at, but
//! the language knows nothing of that: to it, everything the flow had borrowed is borrowed
//! for ever, and half a change may be all that reached memory. So there are two ways only.
//! [`Lent`] passes a value on unless it was in the middle of a call, and [`Remains`] reads
//! plain records of which every combination of bytes is one.

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use zerocopy::{FromBytes, IntoBytes};

use super::entry;
use crate::cpu;
use crate::trap::TrapFrame;

/// Proof that whatever ran on the image's stacks before never runs again.
pub struct ForGood(());

/// Runs `then`, which does not return: whoever was interrupted, and whoever calls this, never
/// goes on. The argument can be copied, so it is no reference that somebody may write through.
///
/// For the image's own CPU; any other one halts.
pub fn for_good<A: Copy>(argument: A, then: fn(&ForGood, A) -> !) -> ! {
    if !entry::on_own_stacks() {
        cpu::halt_forever();
    }
    then(&ForGood(()), argument)
}

/// Bytes of the main stack that are kept for the flow that comes after a fault: half of it. That
/// flow takes some 20 KiB: `cargo xtask lint` prints it with the 96 KiB that are above it. The
/// main flow has taken more than 64 KiB, with the driver of a disk in a frame of its own.
const ROOM: u64 = 96 << 10;

/// Whether the caller is on the image's main stack, with room for whoever comes after.
#[must_use]
pub fn has_room() -> bool {
    let here = 0u8;
    has_room_below(&raw const here as u64)
}

fn has_room_below(address: u64) -> bool {
    let main = entry::stacks().main();
    (main.start + ROOM..=main.end()).contains(&address)
}

/// Has the interrupted flow of `frame` go on in `at` instead, on its own stack below where it
/// stood, once the handler returns. `false`, and nothing is changed, when it was not on the
/// image's main stack or too little of that is left.
///
/// For handlers with a stack of their own, which the next exception of the same kind begins
/// at its top again: nothing that takes long may run there.
#[must_use]
pub fn divert(frame: &mut TrapFrame, at: extern "C" fn() -> !) -> bool {
    let below = frame.rsp & !0xf;
    if !has_room_below(below) {
        return false;
    }
    frame.rip = at as *const () as u64;
    // As behind a call: a word off the multiple of 16 (System V ABI, 3.2.2).
    frame.rsp = below - 8;
    true
}

/// What is lent: the type, for each lifetime it may be borrowed for.
pub trait Loan {
    /// It.
    type Of<'a>: ?Sized;
}

/// A value that the main flow lends for a while and uses through here, so that a fault handler
/// finds it, and finds out whether it was being used.
pub struct Lent<L: Loan> {
    busy: AtomicBool,
    /// Points to a `&mut L::Of<'_>` while one is lent; else null.
    value: UnsafeCell<*mut ()>,
    loan: PhantomData<fn() -> L>,
}

// SAFETY: the pointer is read and written on the image's own stacks only, which is looked at
// each time, so by one CPU, whose handlers use it while `busy` is clear or not at all.
unsafe impl<L: Loan> Sync for Lent<L> {}

impl<L: Loan> fmt::Debug for Lent<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("busy", &self.busy).finish_non_exhaustive()
    }
}

impl<L: Loan> Default for Lent<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: Loan> Lent<L> {
    /// Nothing is lent.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            busy: AtomicBool::new(false),
            value: UnsafeCell::new(ptr::null_mut()),
            loan: PhantomData,
        }
    }

    /// Lends `value` while `using` runs, to whoever calls [`with`](Self::with) then.
    /// Another CPU than the image's own lends nothing.
    pub fn lend<'a, R>(&'static self, mut value: &mut L::Of<'a>, using: impl FnOnce() -> R) -> R {
        if !entry::on_own_stacks() {
            return using();
        }
        let place = self.value.get();
        // SAFETY: this is the image's one CPU, and no handler interrupts a single store.
        let before = unsafe { place.replace((&raw mut value).cast()) };
        let result = using();
        // SAFETY: as above.
        unsafe { place.write(before) };
        result
    }

    /// Calls `using` with what is lent. `None` when nothing is, when whoever was interrupted
    /// is in the middle of using it, and on another CPU than the image's own.
    pub fn with<R>(&self, using: impl FnOnce(&mut L::Of<'_>) -> R) -> Option<R> {
        if !entry::on_own_stacks() || self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: this is the image's one CPU, and a pointer is read whole.
        let value = unsafe { *self.value.get() }.cast::<&mut L::Of<'_>>();
        let result = if value.is_null() {
            None
        } else {
            // SAFETY: not null, so `lend` is running: either `using` was called by what it
            // calls, or by a handler that interrupted that. Its `value` is alive in both, and
            // the flag says that this is the only use of it. The lifetime is one that `using`
            // can neither name nor outlive.
            Some(using(unsafe { &mut **value }))
        };
        self.busy.store(false, Ordering::Release);
        result
    }
}

/// Plain records in memory that is never taken back: to be read by whoever comes after the
/// flow that was changing them.
pub struct Remains<T> {
    start: *const T,
    count: usize,
}

// SAFETY: an address and a number; the memory is only read with a proof that its writer is no
// more.
unsafe impl<T> Send for Remains<T> {}

impl<T> Clone for Remains<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Remains<T> {}

impl<T> fmt::Debug for Remains<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remains").field("count", &self.count).finish_non_exhaustive()
    }
}

impl<T: FromBytes + IntoBytes> Remains<T> {
    /// Of `list`, which its owner goes on using.
    #[must_use]
    pub fn of(list: &mut &'static mut [T]) -> Self {
        Self { start: list.as_ptr(), count: list.len() }
    }

    /// Record `index`, as far as its writer had come with it.
    #[must_use]
    pub fn get(&self, _: &ForGood, index: usize) -> Option<T> {
        if index >= self.count {
            return None;
        }
        // SAFETY: inside the list, whose memory is there for ever and holds plain records: any
        // bytes are one. Its writer was interrupted for good, on this CPU, so nobody changes
        // it, and no reference to it is used again. Volatile, since the compiler knows of no
        // way by which it could have changed.
        Some(unsafe { self.start.add(index).read_volatile() })
    }
}
