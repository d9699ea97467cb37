//! Disks that missed a deadline while the appliance had a look at them, and whether they have
//! answered since.
//!
//! Such a disk is not touched again while its request hangs: its reset may never return. But
//! a request that was only late is answered by DMA into the pages that the driver had: data,
//! then the completion. The driver is gone, the pages stay with the device. When their
//! content has changed and then stayed as it is for a while, the one request that was in
//! flight has come back, and the disk can be reset and looked at like any other.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use handoff::crash::MAX_GIVEN_UP;

use crate::base::devices::visit::{self, KeptPages};
use crate::log;

/// Nanoseconds without a change after which an answer counts as whole.
const SETTLED_NS: u64 = 1_000_000_000;
/// Late answers that are followed by another look, for all disks together: each may keep
/// pages.
const MAX_LOOKS: u32 = 8;

/// A disk that missed a deadline.
struct LateDisk {
    /// Number of its PCI function; 0 for none.
    function: AtomicU16,
    /// The pages that its driver had: the first and the first behind them.
    pages: (AtomicUsize, AtomicUsize),
    /// Their content when the disk was given up, and when they were looked at last.
    begin: AtomicU64,
    last: AtomicU64,
    /// When the content changed last, in nanoseconds.
    since_ns: AtomicU64,
}

static LATE: [LateDisk; MAX_GIVEN_UP] = [const {
    LateDisk {
        function: AtomicU16::new(0),
        pages: (AtomicUsize::new(0), AtomicUsize::new(0)),
        begin: AtomicU64::new(0),
        last: AtomicU64::new(0),
        since_ns: AtomicU64::new(0),
    }
}; MAX_GIVEN_UP];
/// Looks that are left.
static LOOKS: AtomicU32 = AtomicU32::new(MAX_LOOKS);

/// The disks that are not to be touched, for the hand-off: number of their PCI function, 0 for
/// none.
#[must_use]
pub fn given_up() -> [u16; MAX_GIVEN_UP] {
    let mut list = [0; MAX_GIVEN_UP];
    for (to, from) in list.iter_mut().zip(&LATE) {
        *to = from.function.load(Ordering::Relaxed);
    }
    list
}

/// Adds the function `number`, whose driver had `pages`. While the caller has the visit.
pub fn give_up(number: u16, pages: KeptPages) {
    let free = LATE.iter().find(|late| late.function.load(Ordering::Relaxed) == 0);
    let Some(late) = free else {
        log!("warning: target: too many disks that do not answer to remember them all");
        return;
    };
    let content = visit::content(pages);
    late.pages.0.store(pages.first, Ordering::Relaxed);
    late.pages.1.store(pages.end, Ordering::Relaxed);
    late.begin.store(content, Ordering::Relaxed);
    late.last.store(content, Ordering::Relaxed);
    late.function.store(number, Ordering::Relaxed);
}

/// Takes disks off the list that have answered by `now_ns`; returns how many. While the caller
/// has the visit. A disk is noticed at one call, and taken off at a later one.
pub fn release_answered(now_ns: u64) -> usize {
    let mut released = 0;
    for late in LATE.iter().filter(|late| late.function.load(Ordering::Relaxed) != 0) {
        let (first, end) = (&late.pages.0, &late.pages.1);
        let content = visit::content(KeptPages {
            first: first.load(Ordering::Relaxed),
            end: end.load(Ordering::Relaxed),
        });
        if late.last.swap(content, Ordering::Relaxed) != content {
            late.since_ns.store(now_ns, Ordering::Relaxed);
            continue;
        }
        let settled = now_ns.saturating_sub(late.since_ns.load(Ordering::Relaxed)) >= SETTLED_NS;
        if content == late.begin.load(Ordering::Relaxed) || !settled {
            continue;
        }
        let left = LOOKS.load(Ordering::Relaxed);
        if left > 0 {
            LOOKS.store(left - 1, Ordering::Relaxed);
            late.function.store(0, Ordering::Relaxed);
            released += 1;
        }
    }
    released
}

/// Returns true if a disk is on the list.
pub fn any() -> bool {
    LATE.iter().any(|late| late.function.load(Ordering::Relaxed) != 0)
}
