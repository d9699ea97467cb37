//! The `virtio-drivers` crate's view of the platform.
#![expect(unsafe_code, reason = "hands DMA and device memory to the virtio library")]

use core::{marker::PhantomData, ptr::NonNull};

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::{Platform, pci::Address};

/// Memory services of the library, by way of the platform.
pub struct PlatformHal<P>(PhantomData<P>);

// SAFETY: a `Platform` hands out every DMA page once, zeroed and mapped one to one, and
// maps device memory where it is asked to.
unsafe impl<P: Platform> Hal for PlatformHal<P> {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match P::dma_pages(pages) {
            Some(pointer) => (pointer.as_ptr() as PhysAddr, pointer),
            // Address 0 is how the library is told that there is no memory.
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _pages: usize) -> i32 {
        // Never taken back: a device given up may still write to them.
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, bytes: usize) -> NonNull<u8> {
        // The library leaves no way to say no. Without memory for a page table no other
        // disk could be used either.
        P::map_mmio(address, bytes as u64).expect("no memory to map the registers of a disk")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// First base address register, and how many there are.
const BAR0: u8 = 0x10;
const BARS: u8 = 6;

/// Configuration space of the library, by way of the platform, for reading only.
///
/// The library sizes a BAR by writing ones to it with decoding off, once for each of the
/// structures in it. That changes the machine's memory map for a moment, which is slow
/// under a hypervisor and one more thing that could go wrong in a crashed machine. It
/// wants the size for one comparison only, so it is answered with an upper bound instead:
/// a BAR is naturally aligned, so it is no larger than the largest power of two that
/// divides its address. Nothing is written.
///
/// The library knows buses, devices and functions: the segment they are in is the platform's.
pub struct ConfigSpace<P> {
    segment: u16,
    /// The BARs to which ones have been "written".
    sizing: [bool; BARS as usize],
    platform: PhantomData<P>,
}

impl<P> ConfigSpace<P> {
    /// Returns the configuration space of a segment.
    pub const fn of(segment: u16) -> Self {
        Self { segment, sizing: [false; BARS as usize], platform: PhantomData }
    }

    const fn address(&self, function: DeviceFunction) -> Address {
        let DeviceFunction { bus, device, function } = function;
        Address { segment: self.segment, bus, device, function }
    }
}

/// Which BAR a register is.
fn bar(offset: u8) -> Option<u8> {
    offset.checked_sub(BAR0).map(|bytes| bytes / 4).filter(|&index| index < BARS)
}

impl<P: Platform> ConfigSpace<P> {
    /// What BAR `index` reads after ones were written to it.
    fn mask(function: Address, index: u8) -> u32 {
        let read = |index| P::pci_read(function, BAR0 + 4 * index);
        // Bits 2:1 = 2 of a memory BAR: its upper half is in the next register.
        let wide = |low: u32| low & 0b111 == 0b100;
        let register = read(index);
        let upper_half = index > 0 && wide(read(index - 1));
        let low = if upper_half { read(index - 1) } else { register };
        let high = match (upper_half, wide(low) && index + 1 < BARS) {
            (true, _) => register,
            (false, true) => read(index + 1),
            (false, false) => 0,
        };
        let address = u64::from(high) << 32 | u64::from(low & !0xf);
        // All bits at and above the lowest one that is set; none for a BAR without address.
        let mask = address.wrapping_neg() | address;
        if upper_half { (mask >> 32) as u32 } else { mask as u32 & !0xf | low & 0xf }
    }
}

impl<P: Platform> ConfigurationAccess for ConfigSpace<P> {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        match bar(offset) {
            Some(index) if self.sizing[usize::from(index)] => {
                Self::mask(self.address(function), index)
            }
            _ => P::pci_read(self.address(function), offset),
        }
    }

    fn write_word(&mut self, _: DeviceFunction, offset: u8, data: u32) {
        if let Some(index) = bar(offset) {
            self.sizing[usize::from(index)] = data == u32::MAX;
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self::of(self.segment)
    }
}

impl From<Address> for DeviceFunction {
    fn from(from: Address) -> Self {
        Self { bus: from.bus, device: from.device, function: from.function }
    }
}

#[cfg(test)]
mod tests {
    use virtio_drivers::transport::pci::bus::{BarInfo, PciRoot};

    use super::*;
    use crate::virtio::fake::{CONFIG, Fake};

    #[test]
    fn a_bar_is_sized_without_a_write() {
        let registers = [0xc001, 0, 0xfeb0_1000, 0, 0xc, 0xe0];
        CONFIG.with_borrow_mut(|config| {
            config.insert((0, 3, 0, 0), 0x1042_1af4);
            for (register, offset) in registers.into_iter().zip((BAR0..).step_by(4)) {
                config.insert((0, 3, 0, offset), register);
            }
        });
        let before = CONFIG.with_borrow(Clone::clone);
        let function = DeviceFunction { bus: 0, device: 3, function: 0 };
        let mut root = PciRoot::new(ConfigSpace::<Fake>::of(0));
        let mut memory = |index| {
            root.bar_info(function, index).unwrap().as_ref().and_then(BarInfo::memory_address_size)
        };
        assert_eq!(memory(1), None);
        assert_eq!(memory(2), Some((0xfeb0_1000, 0x1000)));
        assert_eq!(memory(4), Some((0xe0_0000_0000, 0x20_0000_0000)));
        assert_eq!(CONFIG.with_borrow(Clone::clone), before);
    }
}
