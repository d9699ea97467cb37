//! What a driver needs from the machine it runs on.
#![expect(unsafe_code, reason = "drivers rely on the memory an implementation hands out")]

use core::{marker::PhantomData, ptr::NonNull};

use crate::pci::Address;
use crate::running_time::{MAX_GAP_NS, RunningTime};

/// Looks at a [`Deadline`] that it takes at least to use it up.
const MIN_LOOKS: u64 = 4;

/// The machine, as the drivers of this crate see it.
///
/// The functions take no `self` because the virtio library calls back without one; an
/// implementation keeps what state it has to itself.
///
/// # Safety
///
/// Memory is mapped one to one for the drivers: the physical address a device sees is the
/// address the CPU uses. [`Self::dma_pages`] hands out no page that a driver or a device still
/// has, and [`Self::map_mmio`] returns the address it was given.
pub unsafe trait Platform: 'static {
    /// Reads the 32-bit word of PCI configuration space at `offset`, a multiple of 4.
    fn pci_read(function: Address, offset: u8) -> u32;

    /// Writes the 32-bit word of PCI configuration space at `offset`, a multiple of 4.
    fn pci_write(function: Address, offset: u8, value: u32);

    /// Segment and number of root bus `index`, those of one segment one behind the other; `None`
    /// behind the last. Without a say there is bus 0 of segment 0.
    fn pci_root(index: usize) -> Option<(u16, u8)> {
        (index == 0).then_some((0, 0))
    }

    /// Makes `bytes` bytes of device memory at `physical` accessible, uncached. Asking
    /// again for what is accessible already costs nothing and succeeds.
    fn map_mmio(physical: u64, bytes: u64) -> Option<NonNull<u8>>;

    /// Zeroed, contiguous 4 KiB pages; `None` when there are no more. They are the driver's
    /// for as long as there is one, and the device's until it was reset.
    fn dma_pages(pages: usize) -> Option<NonNull<u8>>;

    /// The longest that any one wait may be, in ms: shorter than a driver's own for who only
    /// wants to have a look.
    fn patience_ms() -> u64 {
        u64::MAX
    }

    /// Nanoseconds since some fixed moment; never goes backwards.
    fn now_ns() -> u64;
}

/// A limit to a wait.
///
/// A look at it charges the device with the time since the look before, [`MAX_GAP_NS`] or a
/// quarter of the limit at most. A virtual machine that was paused for a minute (a snapshot, a
/// migration, a host that swaps) finds that its clock went on; its disk had no chance to
/// answer meanwhile, and is not given up for it.
pub struct Deadline<P> {
    limit_ns: u64,
    time: RunningTime,
    platform: PhantomData<P>,
}

impl<P: Platform> Deadline<P> {
    /// So many milliseconds from now, or as many as the platform has patience for.
    #[must_use]
    pub fn after_ms(milliseconds: u64) -> Self {
        let limit_ns = milliseconds.min(P::patience_ms()).saturating_mul(1_000_000);
        let time = RunningTime::with_gap(limit_ns.div_ceil(MIN_LOOKS).min(MAX_GAP_NS));
        time.at(P::now_ns());
        Self { limit_ns, time, platform: PhantomData }
    }

    /// Returns true if the limit is used up.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.time.at(P::now_ns()) >= self.limit_ns
    }

    /// Waits until `ready` says so; `false` when the deadline came first.
    pub fn wait(&self, mut ready: impl FnMut() -> bool) -> bool {
        loop {
            if ready() {
                return true;
            }
            if self.passed() {
                return false;
            }
            core::hint::spin_loop();
        }
    }
}
