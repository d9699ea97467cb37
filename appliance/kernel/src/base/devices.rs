//! Devices: how to reach PCI, and the machine as the block drivers see it.
//!
//! Configuration space is reached by I/O ports where a machine has them, since that needs no
//! page table, and by memory otherwise. Device registers are mapped when somebody asks for
//! them, wherever the firmware put them; see [`memory::map_device`].

#![expect(unsafe_code, reason = "vouches for device registers and for pages given to devices")]

pub mod in_flight;
pub mod visit;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use block::Platform;
use block::pci::{self, Address, ConfigWay, EcamWindow, RootBuses};
use handoff::facts::MAX_CONFIG_SPACES;
use handoff::{ConfigSpace, PowerFacts, Range};
use machine::cell::SetOnce;
use machine::paging::PAGE;
use machine::{cpu, mmio, port};

use crate::base::{clock, memory};
use crate::firmware::acpi::Pci;
use crate::firmware::fw_cfg;
use crate::log;

/// FADT address space of registers in memory (ACPI 6.5 §5.2.3.2).
const SPACE_MEMORY: u8 = 0;

/// Ticks of the time-stamp counter that asking every bus for root buses may take: a quarter of
/// a second at 2 GHz. A choice; 8,160 reads take some 10 ms on a machine of its own.
const PROBE_TICKS: u64 = 500_000_000;

/// Parts of configuration space in memory.
type Windows = heapless::Vec<EcamWindow, MAX_CONFIG_SPACES>;

static WINDOWS: SetOnce<Windows> = SetOnce::new();
static ROOT_BUSES: SetOnce<RootBuses> = SetOnce::new();

fn windows() -> &'static [EcamWindow] {
    WINDOWS.get().map_or(&[], |windows| windows)
}

/// Returns the root buses of segment 0 beside its first.
#[must_use]
pub fn root_buses() -> RootBuses {
    ROOT_BUSES.get().copied().unwrap_or_default()
}

fn extent(window: &EcamWindow) -> Option<Range> {
    window.extent().map(|(start, bytes)| Range { start, bytes })
}

/// Finds the way to PCI, and gives the functions addresses where the firmware has not. As
/// early as possible: the capture image finds its disks by them.
pub fn find(pci: &Pci) {
    let by_ports = machine::pci::answers();
    let mut windows = Windows::new();
    for space in pci.config_spaces.iter().filter(|space| space.segment != 0 || !by_ports) {
        let ConfigSpace { address, segment, first_bus, last_bus, .. } = *space;
        let window = EcamWindow { address, segment, first_bus, last_bus };
        if !extent(&window).is_some_and(memory::map_device) {
            log!("warning: pci: configuration space at {address:#x} cannot be mapped");
        } else if windows.push(window).is_ok() {
            log!(
                "pci: segment {segment} by memory at {address:#x}, buses {first_bus} to {last_bus}"
            );
        }
    }
    if !by_ports && windows.iter().all(|window| window.segment != 0) {
        log!("pci: none");
        return;
    }
    WINDOWS.set(windows);
    let roots = probe_roots(pci);
    ROOT_BUSES.set(roots);
    let count = |roots: &RootBuses| roots.iter().map(|word| word.count_ones()).sum::<u32>();
    let (further, named) = (count(&roots), count(&pci.root_buses));
    if further > 0 {
        log!("pci: {further} root buses beside the first, {named} of them named by the firmware");
    }
    if let Some(window) = pci.window
        && let given @ 1.. = pci::assign::<KernelPlatform>(window.start, window.end())
    {
        log!("pci: the firmware has left it to us: {given} registers given addresses");
    }
}

/// Asks every bus of segment 0 once, for host bridges that the firmware does not name by a
/// constant. The clock's rate is not known yet, so the time is counted in ticks.
fn probe_roots(pci: &Pci) -> RootBuses {
    let of_segment = pci.config_spaces.iter().filter(|space| space.segment == 0);
    let last_bus = of_segment.map(|space| space.last_bus).max().unwrap_or(u8::MAX);
    let start = cpu::rdtsc();
    let go_on = || cpu::rdtsc().wrapping_sub(start) < PROBE_TICKS;
    let probe = pci::probe_roots::<KernelPlatform>(windows(), &pci.root_buses, last_bus, go_on);
    if let Some(bus) = probe.ended_at {
        log!(
            "warning: pci: configuration space answers slowly: buses {bus} to {last_bus} were \
             not asked for root buses"
        );
    }
    probe.roots
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
pub fn config_spaces() -> impl Iterator<Item = ConfigSpace> {
    windows().iter().map(|window| ConfigSpace {
        address: window.address,
        segment: window.segment,
        first_bus: window.first_bus,
        last_bus: window.last_bus,
        reserved: 0,
    })
}

/// Maps what is in use before any driver asks: configuration space, and the registers that
/// `power` names. Called when the kernel's own page tables have come into force.
pub fn map(power: &PowerFacts) {
    let spaces = windows().iter().filter_map(extent);
    let registers =
        [(power.reset_space, power.reset_address), (power.sleep_space, power.sleep_control)];
    let registers = registers
        .into_iter()
        .filter(|&(space, address)| space == SPACE_MEMORY && address != 0)
        .map(|(_, start)| Range { start, bytes: 1 });
    for range in spaces.chain(registers) {
        if !memory::map_device(range) {
            log!("warning: the device registers at {:#x} cannot be mapped", range.start);
        }
    }
}

/// Lowest and highest address of what was given to devices by [`KernelPlatform::dma_pages`].
static DMA_START: AtomicU64 = AtomicU64::new(u64::MAX);
static DMA_END: AtomicU64 = AtomicU64::new(0);

/// Returns a range that holds all memory given to devices for good: more than that where other
/// memory lies between.
#[must_use]
pub fn dma_memory() -> Range {
    Range::between(DMA_START.load(Ordering::Relaxed), DMA_END.load(Ordering::Relaxed))
}

/// The machine, for the drivers of the `block` crate. Not for crash code: mapping takes a
/// lock.
#[derive(Debug)]
pub struct KernelPlatform;

// SAFETY: memory is mapped one to one, frames from the allocator are handed out once, and
// device registers are mapped at their own address.
unsafe impl Platform for KernelPlatform {
    fn pci_read(function: Address, offset: u8) -> u32 {
        match ConfigWay::to(windows(), function, offset) {
            // SAFETY: the whole window was mapped before it was set.
            ConfigWay::Memory(at) => unsafe { mmio::read32(at) },
            ConfigWay::Ports => machine::pci::read(function.mechanism_1(offset)),
            ConfigWay::Nowhere => u32::MAX,
        }
    }

    fn pci_write(function: Address, offset: u8, value: u32) {
        match ConfigWay::to(windows(), function, offset) {
            // SAFETY: as for reading.
            ConfigWay::Memory(at) => unsafe { mmio::write32(at, value) },
            ConfigWay::Ports => machine::pci::write(function.mechanism_1(offset), value),
            ConfigWay::Nowhere => {}
        }
    }

    fn pci_root(index: usize) -> Option<(u16, u8)> {
        pci::root(windows(), &root_buses(), index)
    }

    fn map_mmio(physical: u64, bytes: u64) -> Option<NonNull<u8>> {
        let mapped = memory::map_device(Range { start: physical, bytes });
        NonNull::new(physical as *mut u8).filter(|_| mapped)
    }

    fn dma_pages(pages: usize) -> Option<NonNull<u8>> {
        let start = memory::allocate_zeroed(pages as u64)?;
        DMA_START.fetch_min(start, Ordering::Relaxed);
        DMA_END.fetch_max(start.saturating_add(pages as u64 * PAGE), Ordering::Relaxed);
        NonNull::new(start as *mut u8)
    }

    fn now_ns() -> u64 {
        clock::now_ns()
    }
}
