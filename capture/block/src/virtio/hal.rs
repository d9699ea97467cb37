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
        // The caller has mapped every memory BAR before it built the transport.
        P::map_mmio(address, bytes as u64).expect("a virtio register outside its BARs")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// Configuration space of the library, by way of the platform.
pub struct ConfigSpace<P>(PhantomData<P>);

impl<P> Default for ConfigSpace<P> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<P: Platform> ConfigurationAccess for ConfigSpace<P> {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        P::pci_read(function.into(), offset)
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        P::pci_write(function.into(), offset, data);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self::default()
    }
}

impl From<DeviceFunction> for Address {
    fn from(from: DeviceFunction) -> Self {
        Self { bus: from.bus, device: from.device, function: from.function }
    }
}

impl From<Address> for DeviceFunction {
    fn from(from: Address) -> Self {
        Self { bus: from.bus, device: from.device, function: from.function }
    }
}
