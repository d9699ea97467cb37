//! Physical memory, as the image sees it: the crashed system's, to be copied and never
//! referred to, and its own, to be handed to the drivers.
#![expect(
    unsafe_code,
    reason = "reads the crashed system's memory and vouches for the image's own"
)]

use core::ptr::NonNull;

use block::Platform;
use block::pci::{self, Address, ConfigWay, EcamWindow, RootBuses};
use capture_engine::crash::MemoryWords;
use capture_engine::input::OldMemory;
use capture_engine::stream::Memory;
use capture_engine::timeout_budget::TimeoutBudget;
use handoff::facts::MAX_CONFIG_SPACES;
use handoff::{BootFacts, ConfigSpace, Range};
use machine::capture::{layout, memory, presence};
use machine::cell::SetOnce;
use machine::mmio;

use crate::{clock, console, hw_watchdog, rehearsal};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// The memory of the crashed system.
pub struct Old;

impl Old {
    /// Writes zeros over `range`, whole words, but in a rehearsal. False when not all of it is
    /// mapped.
    pub fn wipe(range: Range) -> bool {
        if !presence::mapped(range) || range.overlaps(&layout().image) {
            return false;
        }
        if rehearsal::under_way() {
            return true;
        }
        for at in (range.start..range.end()).step_by(8) {
            // SAFETY: the image's own page tables map the range for writing: the sealed facts
            // name it, and it is neither the image nor anything it uses. Volatile, since
            // nobody here reads it again.
            unsafe { (at as *mut u64).write_volatile(0) };
        }
        true
    }
}

impl OldMemory for Old {
    fn snapshot(&self, range: Range) -> Option<&'static [u8]> {
        if !presence::mapped(range) || range.overlaps(&layout().image) {
            return None;
        }
        let bytes = usize::try_from(range.bytes).ok()?;
        let copy = memory::pages(bytes.div_ceil(PAGE as usize))?.get_mut(..bytes)?;
        let whole = if range.start.is_multiple_of(8) { bytes / 8 * 8 } else { 0 };
        let (words, rest) = copy.split_at_mut_checked(whole)?;
        for (word, from) in words.as_chunks_mut().0.iter_mut().zip((range.start..).step_by(8)) {
            // SAFETY: every page of the range is mapped, and the address is that of a word. It
            // is no memory of this program, and other CPUs may be writing it, so the read is
            // volatile and nothing refers to it. Address 0 is an address like others here.
            *word = unsafe { (from as *const u64).read_volatile() }.to_ne_bytes();
        }
        for (byte, from) in rest.iter_mut().zip(range.start + whole as u64..) {
            // SAFETY: as above; a byte is always aligned.
            *byte = unsafe { (from as *const u8).read_volatile() };
        }
        Some(copy)
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

impl MemoryWords for Old {
    fn word(&self, address: u64) -> Option<u64> {
        let aligned = address != 0 && address.is_multiple_of(8);
        let known = aligned && presence::mapped(Range { start: address, bytes: 8 });
        // SAFETY: the word is mapped, and aligned. It is no memory of this program, and other
        // CPUs may be writing it, so the read is volatile and nothing refers to it.
        known.then(|| unsafe { (address as *const u64).read_volatile() })
    }

    fn words(&self, page: u64, each: &mut dyn FnMut(u64)) {
        let aligned = page != 0 && page.is_multiple_of(PAGE);
        if !aligned || !presence::mapped(Range { start: page, bytes: PAGE }) {
            return;
        }
        for address in (page..page + PAGE).step_by(8) {
            // SAFETY: the page is mapped, and aligned. As above, nothing refers to it.
            each(unsafe { (address as *const u64).read_volatile() });
        }
    }
}

/// The memory that is dumped, once the image runs in page tables of its own.
pub struct Dumped {
    /// What stood in the page at address 0.
    pub zero_page: &'static [u8],
}

impl Memory for Dumped {
    fn readable(&self, range: Range) -> u64 {
        if range.start == 0 {
            return (self.zero_page.len() as u64).min(range.bytes);
        }
        if presence::mapped(range) {
            return range.bytes;
        }
        let page = |at: &u64| presence::mapped(Range { start: range.start + at, bytes: PAGE });
        let pages = (0..range.bytes).step_by(PAGE as usize).take_while(page).count();
        pages as u64 * PAGE
    }

    fn unreadable(&self, range: Range) -> u64 {
        presence::absent(range.start).min(range.bytes) / PAGE * PAGE
    }

    fn bytes(&self, range: Range) -> &[u8] {
        if range.start == 0 {
            return self.zero_page.get(..range.bytes as usize).unwrap_or_default();
        }
        // SAFETY: the caller asked for the range and heard that it can be read: it is mapped
        // one to one, for reading only, for as long as the image runs. It is RAM of the
        // crashed system, not of this program, whose memory is in no range that is dumped;
        // the CPUs and devices that wrote it have stopped, or it is copied before it is used.
        unsafe { core::slice::from_raw_parts(range.start as *const u8, range.bytes as usize) }
    }
}

/// The machine for the block drivers.
pub struct CapturePlatform;

// SAFETY: the image's page tables map memory one to one, scratch pages are handed out
// once, and device memory is mapped at its own address.
unsafe impl Platform for CapturePlatform {
    fn pci_read(function: Address, offset: u8) -> u32 {
        match ConfigWay::to(windows(), function, offset) {
            // SAFETY: `use_config_spaces` has mapped the whole window as device registers.
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
        pci::root(windows(), ROOT_BUSES.get().unwrap_or(&[0; 4]), index)
    }

    fn map_mmio(physical: u64, bytes: u64) -> Option<NonNull<u8>> {
        let mapped = memory::map_device(Range { start: physical, bytes });
        NonNull::new(physical as *mut u8).filter(|_| mapped)
    }

    fn dma_pages(pages: usize) -> Option<NonNull<u8>> {
        let pages = memory::pages(pages)?;
        pages.fill(0);
        Some(NonNull::from(pages).cast())
    }

    fn patience_ms() -> u64 {
        TIMEOUT_BUDGET.limit_ms(clock::running_ns())
    }

    fn now_ns() -> u64 {
        // Whoever waits for a device asks for the time.
        let now = clock::now_ns();
        console::release_when_due(now);
        hw_watchdog::notice_pause(now);
        clock::running_ns()
    }
}

/// For disks that never answer.
pub static TIMEOUT_BUDGET: TimeoutBudget = TimeoutBudget::new();

/// A register of a device, 8 bits wide.
pub struct Register(u64);

impl Register {
    /// The one at physical address `address`, which must be a device's; `None` when it cannot
    /// be mapped as one.
    pub fn map(address: u64) -> Option<Self> {
        memory::map_device(Range { start: address, bytes: 1 }).then_some(Self(address))
    }

    /// Reads it.
    pub fn read(&self) -> u8 {
        // SAFETY: mapped as a device register, at its own address.
        unsafe { mmio::read8(self.0) }
    }

    /// Writes it.
    pub fn write(&self, value: u8) {
        // SAFETY: as for reading.
        unsafe { mmio::write8(self.0, value) }
    }
}

/// Parts of configuration space in memory.
type Windows = heapless::Vec<EcamWindow, MAX_CONFIG_SPACES>;

static WINDOWS: SetOnce<Windows> = SetOnce::new();
static ROOT_BUSES: SetOnce<RootBuses> = SetOnce::new();

fn windows() -> &'static [EcamWindow] {
    WINDOWS.get().map_or(&[], |windows| windows)
}

/// Maps the parts of configuration space that the facts name; returns how many cannot be
/// mapped, which leaves the devices there out of reach.
pub fn use_config_spaces(facts: &BootFacts) -> usize {
    let mut windows = Windows::new();
    let mut failed = 0;
    for space in facts.config_spaces() {
        let ConfigSpace { address, segment, first_bus, last_bus, .. } = *space;
        let window = EcamWindow { address, segment, first_bus, last_bus };
        let extent = window.extent().map(|(start, bytes)| Range { start, bytes });
        if !extent.is_some_and(memory::map_device) || windows.push(window).is_err() {
            failed += 1;
        }
    }
    WINDOWS.set(windows);
    ROOT_BUSES.set(facts.root_buses);
    failed
}
