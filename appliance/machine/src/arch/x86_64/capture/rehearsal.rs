//! The way back out of the image, when it was entered for a rehearsal.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use handoff::entry::KIND_REHEARSAL;

/// Values of [`Report::outcome`].
#[derive(Debug)]
pub struct Outcome;

impl Outcome {
    /// It came as far as it can without changing anything.
    pub const DONE: u64 = 1;
    /// It would have come no further than the text says.
    pub const FAILED: u64 = 2;
}

/// What the image comes back with.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Report {
    /// One of [`Outcome`]'s.
    pub outcome: u64,
    /// A line of text in the image's memory: where.
    pub text: u64,
    /// And how many bytes.
    pub text_bytes: u64,
    /// NMIs that came meanwhile, and that nobody has looked at.
    pub nmis: u64,
}

/// Where to go back to: an address of a page-table root and of code behind each other; 0 in a
/// crash.
static WAY_BACK: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);

/// Notes how the image was entered: `kind` and `way_back` are what it found in RSI and RDX.
pub fn entered(kind: u64, way_back: u64) {
    if kind == KIND_REHEARSAL {
        WAY_BACK.store(way_back, Ordering::Relaxed);
    }
}

/// Whether this is a rehearsal.
#[must_use]
pub fn under_way() -> bool {
    WAY_BACK.load(Ordering::Relaxed) != 0
}

/// An NMI has come, which is for whoever entered the image.
pub fn note_nmi() {
    NMIS.fetch_add(1, Ordering::Relaxed);
}

/// Goes back, with an outcome and a line of text that stays where it is. For rehearsals only.
pub fn go_back(outcome: u64, text: &'static str) -> ! {
    let way_back = WAY_BACK.load(Ordering::Relaxed);
    // SAFETY: whoever entered put a page-table root and an address of its own there, on a stack
    // that nobody has touched since: it runs on one CPU. The root maps this code as well, at the
    // same place. In a crash there is no way back, and the fault that follows ends the image.
    unsafe {
        asm!("cli", "cld", "mov rsp, {way_back}", "pop rax", "mov cr3, rax", "ret",
             way_back = in(reg) way_back, in("rdi") outcome, in("rsi") text.as_ptr(),
             in("rdx") text.len(), in("r8") NMIS.load(Ordering::Relaxed), options(noreturn));
    }
}
