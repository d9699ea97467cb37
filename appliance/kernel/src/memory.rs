//! The module that owns physical memory.
//!
//! All of RAM is mapped one to one. Whoever wants to see or change a part of it asks here,
//! and gets a slice that is bounded and, where it may be written, exclusive.

#![expect(unsafe_code, reason = "the one place where physical addresses become references")]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use handoff::facts::memory_kind;
use handoff::stamp::PAGE_WORDS;
use handoff::{MemoryRange, Range};
use machine::boot::{Layout, Stacks};
use machine::lock::Lock;
use machine::paging::{Flags, FrameSource, OutOfFrames, PAGE, Space};

use crate::frames::FrameAllocator;
use crate::physical::Physical;

/// What the boot page tables map.
const BOOT_MAPPED: u64 = 4 << 30;

static MAPPED_END: AtomicU64 = AtomicU64::new(BOOT_MAPPED);
static FRAMES: Lock<Option<FrameAllocator>> = Lock::new(None);

/// A view of all memory that is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Memory;

impl Physical for Memory {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let end = address.checked_add(length as u64)?;
        if address == 0 || end > MAPPED_END.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: mapped and not null. What is read this way — loader structures, firmware
        // tables, modules, the image's own headers — is not written while it is looked at.
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, length) })
    }
}

/// The reserved region while it may still be written: until the kernel's own page tables
/// make it read only.
#[derive(Debug)]
pub struct ReservedRegion {
    range: Range,
}

impl ReservedRegion {
    /// The region, for the first caller.
    pub fn take(range: Range) -> Option<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        (!TAKEN.swap(true, Ordering::Relaxed)).then_some(Self { range })
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> Range {
        self.range
    }

    /// The bytes of `part`; none when it does not lie inside.
    pub fn bytes_mut(&mut self, part: Range) -> Option<&mut [u8]> {
        if !self.range.holds(part.start, part.bytes) {
            return None;
        }
        // SAFETY: a part of the linker's own NOBITS segment, reachable only through this
        // one value, which is borrowed exclusively.
        Some(unsafe { core::slice::from_raw_parts_mut(part.start as *mut u8, part.bytes as usize) })
    }
}

/// Takes the RAM of `map` into use, except what lies in `reserved`.
///
/// # Errors
/// When no range is large enough for the allocator's own bitmap.
pub fn init(map: &[MemoryRange], reserved: &[Range]) -> Result<(), &'static str> {
    let words = FrameAllocator::required_bytes(map).div_ceil(8);
    let bytes = words as u64 * 8;
    let place = FrameAllocator::place(map, reserved, bytes)
        .filter(|place| place.end() <= BOOT_MAPPED)
        .ok_or("no free memory for the frame allocator's bitmap")?;
    // SAFETY: RAM below 4 GiB that nothing in `reserved` claims, given to the allocator,
    // which keeps it off what it hands out.
    let storage = unsafe { core::slice::from_raw_parts_mut(place.start as *mut u64, words) };
    let mut allocator = FrameAllocator::new(map, reserved, storage);
    allocator.reserve(place);
    *FRAMES.lock() = Some(allocator);
    Ok(())
}

/// `pages` contiguous frames; `None` when there are none.
pub fn allocate(pages: u64) -> Option<u64> {
    FRAMES.lock().as_mut()?.allocate(pages as usize, 1)
}

/// A page below 640 KiB.
pub fn allocate_low() -> Option<u64> {
    FRAMES.lock().as_mut()?.take_low(PAGE as usize)
}

/// Free and all frames.
#[must_use]
pub fn counts() -> (u64, u64) {
    FRAMES
        .lock()
        .as_ref()
        .map_or((0, 0), |frames| (frames.free_pages() as u64, frames.total_pages() as u64))
}

struct TableFrames;

impl FrameSource for TableFrames {
    fn frame(&mut self) -> Option<u64> {
        let frame = allocate(1)?;
        // SAFETY: a frame of RAM just allocated, mapped, and nobody else's.
        unsafe { (frame as *mut u8).write_bytes(0, PAGE as usize) };
        Some(frame)
    }
}

/// Builds the kernel's own page tables and runs on them: code cannot be written, data not
/// executed, constants and the reserved region not written; page 0 and the page under every
/// stack are not there; the APIC's registers are, where it has them in memory. Returns the
/// root.
///
/// # Errors
/// When memory for the tables runs out.
pub fn protect(
    map: &[MemoryRange],
    layout: &Layout,
    stacks: impl Iterator<Item = Stacks>,
    start_up_page: Option<u64>,
) -> Result<u64, OutOfFrames> {
    let frames = &mut TableFrames;
    let mut space = Space::new(frames, 4, machine::cpu::has_1g_pages())?;
    for entry in map {
        let flags = match entry.kind {
            memory_kind::RAM => Flags::READ_WRITE,
            memory_kind::ACPI | memory_kind::ACPI_NVS => Flags::READ,
            _ => continue,
        };
        space.map(entry.range, flags, frames)?;
    }
    space.map(layout.headers, Flags::READ, frames)?;
    space.map(layout.text, Flags::READ_EXECUTE, frames)?;
    space.map(layout.rodata, Flags::READ, frames)?;
    space.map(layout.data, Flags::READ_WRITE, frames)?;
    space.map(layout.region, Flags::READ, frames)?;
    space.map(Range { start: 0, bytes: PAGE }, Flags::NONE, frames)?;
    if let Some(page) = start_up_page {
        space.map(Range { start: page, bytes: PAGE }, Flags::READ_EXECUTE, frames)?;
    }
    if let Some(registers) = machine::apic::registers() {
        space.map(registers, Flags::DEVICE, frames)?;
    }
    for stacks in stacks {
        for guard in stacks.guards() {
            space.map(guard, Flags::NONE, frames)?;
        }
    }
    space.activate();
    let end = map.iter().filter(|entry| entry.kind == memory_kind::RAM);
    let end = end.map(|entry| entry.range.end()).max().unwrap_or(0);
    MAPPED_END.store(end, Ordering::Relaxed);
    Ok(space.root())
}

/// A run of pages that a workload owns, shared by the CPUs that work on it.
#[derive(Debug)]
pub struct PageRun {
    start: AtomicU64,
    pages: AtomicU64,
    busy: AtomicBool,
}

impl PageRun {
    /// No pages yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { start: AtomicU64::new(0), pages: AtomicU64::new(0), busy: AtomicBool::new(false) }
    }

    /// Takes `pages` frames into the run; false when there are none, or it has some already.
    pub fn fill(&self, pages: u64) -> bool {
        if self.pages.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let Some(start) = allocate(pages) else { return false };
        self.start.store(start, Ordering::Relaxed);
        self.pages.store(pages, Ordering::Release);
        true
    }

    /// Physical address of the first page and number of pages.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        (self.start.load(Ordering::Relaxed), self.pages.load(Ordering::Acquire))
    }

    /// Calls `work` with page `index` and its physical address; `None` when there is no such
    /// page or another CPU is in the run.
    pub fn with_page<R>(
        &self,
        index: u64,
        work: impl FnOnce(&mut [u64; PAGE_WORDS], u64) -> R,
    ) -> Option<R> {
        let (start, pages) = self.extent();
        if index >= pages || self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        let address = start + index * PAGE;
        // SAFETY: frames allocated to this run and never given back, mapped read-write;
        // `busy` makes this the only reference into the run.
        let page = unsafe { &mut *(address as *mut [u64; PAGE_WORDS]) };
        let result = work(page, address);
        self.busy.store(false, Ordering::Release);
        Some(result)
    }
}

impl Default for PageRun {
    fn default() -> Self {
        Self::new()
    }
}
