//! Devices: how to reach PCI, and the machine as the block drivers see it.
//!
//! Configuration space is reached by I/O ports where a machine has them, since that needs no
//! page table, and by memory otherwise. Device registers are mapped when somebody asks for
//! them, wherever the firmware put them; see [`memory::map_device`].

#![expect(unsafe_code, reason = "vouches for device registers and for pages given to devices")]

pub mod visit;

use core::ptr::NonNull;

use block::Platform;
use block::pci::{self, Address, EcamWindow};
use handoff::{ConfigSpace, PowerFacts, Range};
use machine::cell::SetOnce;
use machine::{cpu, mmio, port};

use crate::base::{clock, memory};
use crate::firmware::acpi::Pci;
use crate::firmware::fw_cfg;
use crate::log;

/// FADT address space of registers in memory (ACPI 6.5 §5.2.3.2).
const SPACE_MEMORY: u8 = 0;

static WINDOW: SetOnce<EcamWindow> = SetOnce::new();

/// Finds the way to PCI, and gives the functions addresses where the firmware has not. As
/// early as possible: the capture image finds its disks by them.
pub fn find(pci: &Pci) {
    let space = pci.config_space;
    if !machine::pci::answers() {
        let window = EcamWindow {
            address: space.address,
            first_bus: space.first_bus,
            last_bus: space.last_bus,
        };
        let mapped = window.extent().is_some_and(|(start, bytes)| {
            space.address != 0 && memory::map_device(Range { start, bytes })
        });
        if !mapped {
            log!("pci: none");
            return;
        }
        WINDOW.set(window);
        log!(
            "pci: by memory at {:#x}, buses {} to {}",
            space.address,
            space.first_bus,
            space.last_bus
        );
    }
    if let Some(window) = pci.window
        && let given @ 1.. = pci::assign::<KernelPlatform>(window.start, window.end())
    {
        log!("pci: the firmware has left it to us: {given} registers given addresses");
    }
}

/// The I/O port of QEMU's pvpanic device, as the host says; 0 when there is none. A machine
/// that is not virtual is not asked.
#[must_use]
pub fn pvpanic_port() -> u16 {
    if !cpu::is_virtual() {
        return 0;
    }
    let mut select = |key| port::write16(fw_cfg::SELECTOR, key);
    let mut read = || port::read8(fw_cfg::DATA);
    fw_cfg::word(fw_cfg::PVPANIC_PORT, &mut select, &mut read).map_or(0, u16::from_le_bytes)
}

/// How the capture image is to reach configuration space.
#[must_use]
pub fn config_space() -> ConfigSpace {
    WINDOW.get().map_or_else(ConfigSpace::default, |window| ConfigSpace {
        address: window.address,
        segment: 0,
        first_bus: window.first_bus,
        last_bus: window.last_bus,
        reserved: 0,
    })
}

/// Maps what is in use before any driver asks: configuration space, and the registers that
/// `power` names. Called when the kernel's own page tables have come into force.
pub fn map(power: &PowerFacts) {
    let space = WINDOW.get().and_then(EcamWindow::extent);
    let space = space.map(|(start, bytes)| Range { start, bytes });
    let registers =
        [(power.reset_space, power.reset_address), (power.sleep_space, power.sleep_control)];
    let registers = registers
        .into_iter()
        .filter(|&(space, address)| space == SPACE_MEMORY && address != 0)
        .map(|(_, start)| Range { start, bytes: 1 });
    for range in space.into_iter().chain(registers) {
        if !memory::map_device(range) {
            log!("warning: the device registers at {:#x} cannot be mapped", range.start);
        }
    }
}

/// The machine, for the drivers of the `block` crate. Not for crash code: mapping takes a
/// lock.
#[derive(Debug)]
pub struct KernelPlatform;

// SAFETY: memory is mapped one to one, frames from the allocator are handed out once, and
// device registers are mapped at their own address.
unsafe impl Platform for KernelPlatform {
    fn pci_read(function: Address, offset: u8) -> u32 {
        let Some(window) = WINDOW.get() else {
            return machine::pci::read(function.mechanism_1(offset));
        };
        // Where there is no bus, there is no function.
        let Some(at) = window.place(function, offset) else { return u32::MAX };
        // SAFETY: the whole window was mapped before it was set.
        unsafe { mmio::read32(at) }
    }

    fn pci_write(function: Address, offset: u8, value: u32) {
        let Some(window) = WINDOW.get() else {
            return machine::pci::write(function.mechanism_1(offset), value);
        };
        if let Some(at) = window.place(function, offset) {
            // SAFETY: as for reading.
            unsafe { mmio::write32(at, value) }
        }
    }

    fn map_mmio(physical: u64, bytes: u64) -> Option<NonNull<u8>> {
        let mapped = memory::map_device(Range { start: physical, bytes });
        NonNull::new(physical as *mut u8).filter(|_| mapped)
    }

    fn dma_pages(pages: usize) -> Option<NonNull<u8>> {
        let start = memory::allocate_zeroed(pages as u64)?;
        NonNull::new(start as *mut u8)
    }

    fn now_ns() -> u64 {
        clock::now_ns()
    }
}
