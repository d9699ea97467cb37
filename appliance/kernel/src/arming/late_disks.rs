//! Disks that missed a deadline while the appliance had a look at them, and whether they have
//! answered since.
//!
//! Such a disk is not touched again while its request hangs: its reset may never return. But
//! a request that was only late is answered by DMA into the pages that the driver had: data,
//! then the completion. The driver is gone, the pages stay with the device. When their
//! content has changed and then stayed as it is for a while, the one request that was in
//! flight has come back, and the disk can be reset and looked at like any other.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use block::pci::Address;

use crate::base::devices::in_flight::Entry;
use crate::base::devices::visit::{self, KeptPages};
use crate::log;

/// Disks that are watched for a late answer.
const MAX_LATE: usize = 16;
/// No function has this number.
const NONE: u32 = u32::MAX;
/// Nanoseconds without a change after which an answer counts as whole.
const SETTLED_NS: u64 = 1_000_000_000;
/// Late answers that are followed by another look, for all disks together: each may keep
/// pages.
const MAX_LOOKS: u32 = 8;

/// A disk that missed a deadline.
struct LateDisk {
    /// Number of its PCI function, [`NONE`] for none.
    function: AtomicU32,
    /// The pages that its driver had: the first and the first behind them.
    pages: (AtomicUsize, AtomicUsize),
    /// Their content when the disk was given up, and when they were looked at last.
    begin: AtomicU64,
    last: AtomicU64,
    /// When the content changed last, in nanoseconds.
    since_ns: AtomicU64,
}

static LATE: [LateDisk; MAX_LATE] = [const {
    LateDisk {
        function: AtomicU32::new(NONE),
        pages: (AtomicUsize::new(0), AtomicUsize::new(0)),
        begin: AtomicU64::new(0),
        last: AtomicU64::new(0),
        since_ns: AtomicU64::new(0),
    }
}; MAX_LATE];
/// Looks that are left.
static LOOKS: AtomicU32 = AtomicU32::new(MAX_LOOKS);

/// Adds the function at `address`, whose driver had `pages`. While the caller has the visit.
pub fn give_up(address: Address, pages: KeptPages) {
    let free = LATE.iter().find(|late| late.function.load(Ordering::Relaxed) == NONE);
    let Some(late) = free else {
        log!("warning: target: too many disks that do not answer to remember them all");
        return;
    };
    let content = visit::content(pages);
    late.pages.0.store(pages.first, Ordering::Relaxed);
    late.pages.1.store(pages.end, Ordering::Relaxed);
    late.begin.store(content, Ordering::Relaxed);
    late.last.store(content, Ordering::Relaxed);
    late.function.store(address.number(), Ordering::Relaxed);
}

/// Takes disks off the list that have answered by `now_ns`; returns how many. While the caller
/// has the visit. A disk is noticed at one call, and taken off at a later one.
pub fn release_answered(now_ns: u64) -> usize {
    let mut released = 0;
    for late in LATE.iter().filter(|late| late.function.load(Ordering::Relaxed) != NONE) {
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
            let number = late.function.swap(NONE, Ordering::Relaxed);
            Entry::of(Address::from_number(number)).recover();
            released += 1;
        }
    }
    released
}

/// Returns true if a disk is on the list.
pub fn any() -> bool {
    LATE.iter().any(|late| late.function.load(Ordering::Relaxed) != NONE)
}
