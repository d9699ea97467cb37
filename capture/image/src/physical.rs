//! Physical memory, as the image sees it: the crashed system's, to be copied and never
//! referred to, and its own, to be handed to the drivers.
#![expect(
    unsafe_code,
    reason = "reads the crashed system's memory and vouches for the image's own"
)]

use core::ptr::NonNull;

use block::Platform;
use block::pci::Address;
use capture_image::input::OldMemory;
use handoff::{BootFacts, Range};
use machine::capture::{layout, memory, presence};
use machine::port;

use crate::clock;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// The memory of the crashed system.
pub struct Old;

impl OldMemory for Old {
    fn snapshot(&self, range: Range) -> Option<&'static [u8]> {
        if !presence::mapped(range) || range.overlaps(&layout().image) {
            return None;
        }
        let bytes = usize::try_from(range.bytes).ok()?;
        let copy = memory::pages(bytes.div_ceil(PAGE as usize))?;
        for (index, byte) in copy[..bytes].iter_mut().enumerate() {
            let from = range.start + index as u64;
            // SAFETY: every page of the range is mapped. It is no memory of this program,
            // and other CPUs may be writing it, so the read is volatile and nothing
            // refers to it. Address 0 is an address like others here.
            *byte = unsafe { (from as *const u8).read_volatile() };
        }
        Some(&copy[..bytes])
    }

    fn trust(&self, facts: &BootFacts) {
        // Whoever jumped promised that all memory is mapped. Should that not be so, there
        // are no more pages, which is an error that can be told, instead of a fault.
        if presence::mapped(facts.scratch) {
            // SAFETY: the facts passed their checks: the scratch memory is RAM inside the
            // reserved region, apart from the image, the facts and the parked CPUs, and
            // reserved for the image since boot. It is mapped now, and the image's own
            // page tables will map it for writing.
            unsafe { memory::start(facts.scratch) }
        }
    }
}

/// The machine for the block drivers.
pub struct Machine;

// SAFETY: the image's page tables map memory one to one, scratch pages are handed out
// once, and device memory is mapped at its own address.
unsafe impl Platform for Machine {
    fn pci_read(function: Address, offset: u8) -> u32 {
        port::write32(CONFIG_ADDRESS, function.mechanism_1(offset));
        port::read32(CONFIG_DATA)
    }

    fn pci_write(function: Address, offset: u8, value: u32) {
        port::write32(CONFIG_ADDRESS, function.mechanism_1(offset));
        port::write32(CONFIG_DATA, value);
    }

    fn map_mmio(physical: u64, bytes: u64) -> Option<NonNull<u8>> {
        let mapped = memory::map_device(Range { start: physical, bytes });
        NonNull::new(physical as *mut u8).filter(|_| mapped)
    }

    fn dma_pages(pages: usize) -> Option<NonNull<u8>> {
        memory::pages(pages).map(|pages| NonNull::from(pages).cast())
    }

    fn now_ns() -> u64 {
        clock::now_ns()
    }
}

/// Ports of PCI configuration mechanism 1 (PCI Local Bus Specification 3.0, §3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
