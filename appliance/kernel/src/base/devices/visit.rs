//! Looking at disks that nobody uses, and leaving them as they were: also from the console,
//! where no lock may be waited for and no CPU stays away for long.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use block::Platform;
use block::pci::Address;
use handoff::Range;
use machine::cell::SetOnce;
use machine::cpu;
use machine::paging::PAGE;

use super::KernelPlatform;
use crate::base::{clock, memory};
use crate::options;

/// Pages for the drivers of one look: enough for a controller with six disks.
const POOL_PAGES: usize = 128;
/// Longest wait while the appliance arms: much more than any disk takes that will answer.
const BOOT_MS: u64 = 5_000;
/// Register ranges that are remembered.
const MAX_REGISTERS: usize = 32;

static POOL: SetOnce<&'static [AtomicU64]> = SetOnce::new();
/// Pages of the pool handed out.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Pages from its beginning that stay with devices that do not answer.
static KEPT: AtomicUsize = AtomicUsize::new(0);
/// Ranges of registers that are mapped: start and bytes.
static REGISTERS: [(AtomicU64, AtomicU64); MAX_REGISTERS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_REGISTERS];
/// Somebody opens disks, or has a look at them.
static BUSY: AtomicBool = AtomicBool::new(false);
/// The look when the appliance arms is done.
static ARMED: AtomicBool = AtomicBool::new(false);

/// While it exists, nobody else opens a disk.
#[derive(Debug)]
pub struct Visit(());

impl Visit {
    /// Unless somebody is opening disks at this moment.
    pub fn begin() -> Option<Self> {
        let free = !BUSY.swap(true, Ordering::Acquire);
        free.then_some(Self(()))
    }

    /// The same, for who is to use the disk: waits for a look to end, which it does soon.
    pub fn wait() -> Self {
        loop {
            match Self::begin() {
                Some(visit) => return visit,
                None => cpu::pause(),
            }
        }
    }

    /// The driver of the last device is gone and the device at rest: the next one gets the
    /// same pages.
    pub fn pages_for_the_next(&self) {
        TAKEN.store(KEPT.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The device does not answer: its pages, which are returned, are nobody else's any more.
    pub fn keep_pages(&self) -> KeptPages {
        let end = TAKEN.load(Ordering::Relaxed);
        KeptPages { first: KEPT.swap(end, Ordering::Relaxed), end }
    }
}

/// Pages of the pool that stay with a device that does not answer.
#[derive(Clone, Copy, Debug)]
pub struct KeptPages {
    /// Number of the first.
    pub first: usize,
    /// Number of the first behind them.
    pub end: usize,
}

/// Returns a number that changes with the content of `pages`, which a device may be writing.
#[must_use]
pub fn content(pages: KeptPages) -> u64 {
    const WORDS: usize = PAGE as usize / 8;
    let words = POOL.get().and_then(|pool| pool.get(pages.first * WORDS..pages.end * WORDS));
    words.unwrap_or_default().iter().fold(0, |sum: u64, word| {
        sum.rotate_left(1).wrapping_mul(5).wrapping_add(word.load(Ordering::Relaxed))
    })
}

impl Drop for Visit {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

/// Sets memory aside for looks, when the appliance arms: later it may not be asked for.
pub fn prepare() {
    if let Some(pool) = memory::allocate_words(POOL_PAGES as u64) {
        POOL.set(pool);
    }
}

/// Returns the memory that drivers of a look share with devices.
#[must_use]
pub fn memory() -> Range {
    let pool = POOL.get().copied().unwrap_or_default();
    Range { start: pool.as_ptr() as u64, bytes: size_of_val(pool) as u64 }
}

/// The look when the appliance arms is done: from now on nothing is mapped for a look that is
/// not mapped already, and waits are short.
pub fn armed() {
    ARMED.store(true, Ordering::Relaxed);
}

/// Whether that was.
pub fn is_armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// The machine, for drivers that only have a look.
#[derive(Debug)]
pub struct Visitor;

// SAFETY: as for `KernelPlatform`, whose configuration space and registers these are. Pages are
// handed out again when the driver that had them is gone and its device was reset: whoever
// has the `Visit` sees to it.
unsafe impl Platform for Visitor {
    fn pci_read(function: Address, offset: u8) -> u32 {
        KernelPlatform::pci_read(function, offset)
    }

    fn pci_write(function: Address, offset: u8, value: u32) {
        KernelPlatform::pci_write(function, offset, value);
    }

    fn pci_root(index: usize) -> Option<(u16, u8)> {
        KernelPlatform::pci_root(index)
    }

    fn map_mmio(physical: u64, bytes: u64) -> Option<NonNull<u8>> {
        let known = REGISTERS.iter().any(|(start, length)| {
            let range = Range {
                start: start.load(Ordering::Relaxed),
                bytes: length.load(Ordering::Acquire),
            };
            range.holds(physical, bytes)
        });
        if known {
            return NonNull::new(physical as *mut u8);
        }
        if is_armed() {
            // It would take locks.
            return None;
        }
        let mapped = KernelPlatform::map_mmio(physical, bytes)?;
        let free = REGISTERS.iter().find(|(_, length)| length.load(Ordering::Relaxed) == 0);
        // What finds no place is not looked at again.
        if let Some((start, length)) = free {
            start.store(physical, Ordering::Relaxed);
            length.store(bytes, Ordering::Release);
        }
        Some(mapped)
    }

    fn dma_pages(pages: usize) -> Option<NonNull<u8>> {
        const WORDS: usize = PAGE as usize / 8;
        let first = TAKEN.load(Ordering::Relaxed);
        let end = first.checked_add(pages)?;
        let words = POOL.get()?.get(first * WORDS..end * WORDS)?;
        TAKEN.store(end, Ordering::Relaxed);
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        NonNull::new(words.as_ptr().cast::<u8>().cast_mut())
    }

    fn now_ns() -> u64 {
        clock::now_ns()
    }

    fn patience_ms() -> u64 {
        if !is_armed() {
            return BOOT_MS;
        }
        // The CPU that looks does not tick meanwhile, and must not be taken for a stuck one.
        match options().map_or(0, |options| options.lockup_hard_ms) {
            0 => BOOT_MS,
            hard => (hard / 4).min(BOOT_MS),
        }
    }
}
