//! The module that owns physical memory.
//!
//! All of RAM is mapped one to one. Whoever wants to see or change a part of it asks here,
//! and gets a slice that is bounded and, where it may be written, exclusive.

#![expect(unsafe_code, reason = "the one place where physical addresses become references")]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use handoff::facts::MemoryKind;
use handoff::trace::EventKind;
use handoff::{FrameMap, MemoryRange, Range};
use machine::boot::{Layout, Stacks, layout};
use machine::lock::Lock;
use machine::paging::{Flags, FrameSource, OutOfFramesError, PAGE, Space};
use machine::trace;

use crate::base::frames::FrameAllocator;
use crate::base::physical::Physical;
use crate::base::{roster, xcall};
use crate::log;

/// 64-bit words of a page.
pub const PAGE_WORDS: usize = PAGE as usize / size_of::<u64>();

/// What the boot page tables map.
const BOOT_MAPPED: u64 = 4 << 30;

/// Bytes of a run of frames that is worth an event of the flight recorder.
const LARGE_BYTES: u64 = 64 << 10;

static MAPPED_END: AtomicU64 = AtomicU64::new(BOOT_MAPPED);
static FRAMES: Lock<Option<FrameAllocator>> = Lock::new("frames", None);

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

/// Where the reserved region starts, three times; 0 for the place that the linker gave it. The
/// way out asks, and damage to one of the words is outvoted by the others.
static REGION_STARTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Returns the reserved region. Where it lies at its usual place, which the linker fixed, no
/// value in memory has to be believed for that.
#[must_use]
pub fn region() -> Range {
    let linked = layout().region;
    let [a, b, c] = REGION_STARTS.each_ref().map(|start| start.load(Ordering::Relaxed));
    match if a == b || a == c { a } else { b } {
        0 => linked,
        start => Range { start, ..linked },
    }
}

/// Memory of the reserved region: `None` when `part` is not inside. It is never unmapped.
#[must_use]
pub fn reserved(part: Range) -> Option<&'static [u8]> {
    if !region().holds(part.start, part.bytes) {
        return None;
    }
    // SAFETY: a part of the reserved region, mapped for as long as the machine runs. It is
    // written only while it is filled at boot, before it is looked at.
    Some(unsafe { core::slice::from_raw_parts(part.start as *const u8, part.bytes as usize) })
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
        if TAKEN.swap(true, Ordering::Relaxed) {
            return None;
        }
        if range != layout().region {
            REGION_STARTS.iter().for_each(|start| start.store(range.start, Ordering::Relaxed));
        }
        Some(Self { range })
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
        // SAFETY: RAM below 4 GiB that nothing else has: the linker's own NOBITS segment, or
        // a place free of the image, of modules and of what the loader left, which the frame
        // allocator keeps off. Reachable only through this one value, borrowed exclusively.
        Some(unsafe { core::slice::from_raw_parts_mut(part.start as *mut u8, part.bytes as usize) })
    }
}

/// Takes the RAM of `map` into use, except what lies in `reserved`.
///
/// # Errors
/// When no range is large enough for the allocator's own bitmap.
pub fn init(map: &[MemoryRange], reserved: &[Range]) -> Result<(), &'static str> {
    let ram = map.iter().filter(|entry| entry.kind == MemoryKind::RAM);
    RAM_BYTES.store(ram.map(|entry| entry.range.bytes).sum(), Ordering::Relaxed);
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
    let start = FRAMES.lock().as_mut()?.allocate(pages as usize, 1)?;
    if pages * PAGE >= LARGE_BYTES {
        trace::record(EventKind::ALLOCATE, start, pages * PAGE);
    }
    Some(start)
}

/// As [`allocate_zeroed`], as words that whoever wants may write: never given back.
pub fn allocate_words(pages: u64) -> Option<&'static [AtomicU64]> {
    let start = allocate_zeroed(pages)?;
    // SAFETY: frames just taken from the allocator, mapped and zero, that nobody else has or
    // gets; atomics may be written by whoever shares them.
    Some(unsafe {
        core::slice::from_raw_parts(start as *const AtomicU64, (pages * PAGE / 8) as usize)
    })
}

/// As [`allocate`], zeroed, and mapped at this moment.
pub fn allocate_zeroed(pages: u64) -> Option<u64> {
    let start = allocate(pages)?;
    let bytes = pages * PAGE;
    if !is_mapped(start, bytes) {
        free(start, pages);
        return None;
    }
    // SAFETY: frames just taken from the allocator: RAM, mapped, and nobody else's.
    unsafe { (start as *mut u8).write_bytes(0, bytes as usize) };
    Some(start)
}

/// Gives back `pages` frames from `start` on, which [`allocate`] handed out.
pub fn free(start: u64, pages: u64) {
    if let Some(frames) = FRAMES.lock().as_mut() {
        frames.free(start, pages as usize);
    }
    if pages * PAGE >= LARGE_BYTES {
        trace::record(EventKind::FREE, start, pages * PAGE);
    }
}

/// Whether RAM from `start` on can be reached at its own address by now: before the
/// kernel's own page tables, what lies above those of the boot cannot.
#[must_use]
pub fn is_mapped(start: u64, bytes: u64) -> bool {
    start.checked_add(bytes).is_some_and(|end| end <= MAPPED_END.load(Ordering::Relaxed))
}

/// Copies what stands at `address` now, of memory that may be in use: false, and nothing, when
/// it is not all mapped. For crash code, which has to know that no guard page is in it.
pub fn look_at(address: u64, into: &mut [u8]) -> bool {
    if address == 0 || !is_mapped(address, into.len() as u64) {
        return false;
    }
    for (at, byte) in (address..).zip(into) {
        // SAFETY: mapped RAM, and the caller says that no guard page is there. Whoever it
        // belongs to may be writing, so the read is volatile and nothing refers to it.
        *byte = unsafe { (at as *const u8).read_volatile() };
    }
    true
}

/// A page below 640 KiB.
pub fn allocate_low() -> Option<u64> {
    FRAMES.lock().as_mut()?.take_low(PAGE as usize)
}

static RAM_BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes of RAM in the memory map.
#[must_use]
pub fn bytes_of_ram() -> u64 {
    RAM_BYTES.load(Ordering::Relaxed)
}

/// The same as [`counts`], unless somebody has hold of the allocator.
#[must_use]
pub fn counts_if_free() -> Option<(u64, u64)> {
    let frames = FRAMES.lock_unless(machine::identity::here(), || true)?;
    frames.as_ref().map(|frames| (frames.free_pages() as u64, frames.total_pages() as u64))
}

/// Free and all frames.
#[must_use]
pub fn counts() -> (u64, u64) {
    FRAMES
        .lock()
        .as_ref()
        .map_or((0, 0), |frames| (frames.free_pages() as u64, frames.total_pages() as u64))
}

/// Where the allocator keeps which frames are in use; empty before there is one.
#[must_use]
pub fn frame_map() -> FrameMap {
    FRAMES.lock().as_ref().map(FrameAllocator::map).unwrap_or_default()
}

/// Frames for page tables, from one run, so that the tables can be made read only.
#[derive(Debug)]
struct TableFrames {
    run: Range,
    used: u64,
}

impl TableFrames {
    /// A run that is long enough for the identity map of `map` with `cpus` CPUs: a directory
    /// for every GiB, a table for every 2 MiB that is split, and some to spare.
    fn for_machine(map: &[MemoryRange], cpus: usize) -> Option<Self> {
        let gib = map.iter().map(|entry| entry.range.bytes.div_ceil(1 << 30)).sum::<u64>();
        let pages = 64 + 2 * map.len() as u64 + gib + cpus as u64;
        let start = allocate(pages)?;
        Some(Self { run: Range { start, bytes: pages * PAGE }, used: 0 })
    }
}

impl FrameSource for TableFrames {
    fn frame(&mut self) -> Option<u64> {
        let frame = self.run.start + self.used;
        if !self.run.holds(frame, PAGE) {
            return None;
        }
        self.used += PAGE;
        // SAFETY: a frame of RAM of this run, mapped, and nobody else's. While the tables
        // are read only, `Space::remap` has lifted that.
        unsafe { (frame as *mut u8).write_bytes(0, PAGE as usize) };
        Some(frame)
    }
}

/// Device ranges remembered, so that asking again costs nothing.
const MAX_DEVICES: usize = 64;

/// The kernel's address space, the frames left for it, and what it maps beside RAM.
#[derive(Debug)]
struct Own {
    space: Space,
    frames: TableFrames,
    devices: heapless::Vec<Range, MAX_DEVICES>,
}

static OWN: Lock<Option<Own>> = Lock::new("page-tables", None);

/// Builds the kernel's own page tables and runs on them: code cannot be written, data not
/// executed, constants, the reserved region and the tables themselves not written; page 0
/// and the page under every stack are not there; the APIC's registers are, where it has them
/// in memory. Returns the root.
///
/// # Errors
/// When memory for the tables runs out.
pub fn protect(
    map: &[MemoryRange],
    layout: &Layout,
    cpus: usize,
    stacks: impl Iterator<Item = Stacks>,
    start_up_pages: [Option<u64>; 2],
) -> Result<u64, OutOfFramesError> {
    let mut frames = TableFrames::for_machine(map, cpus).ok_or(OutOfFramesError)?;
    let mut space = Space::new(&mut frames, 4, machine::cpu::has_1g_pages())?;
    let mut set = |range, flags| space.map(range, flags, &mut frames);
    for entry in map {
        let flags = match entry.kind {
            MemoryKind::RAM => Flags::READ_WRITE,
            MemoryKind::ACPI | MemoryKind::ACPI_NVS => Flags::READ,
            _ => continue,
        };
        set(entry.range, flags)?;
    }
    set(layout.headers, Flags::READ)?;
    set(layout.text, Flags::READ_EXECUTE)?;
    set(layout.rodata, Flags::READ)?;
    set(layout.data, Flags::READ_WRITE)?;
    set(layout.region, Flags::READ)?;
    set(Range { start: 0, bytes: PAGE }, Flags::NONE)?;
    for page in start_up_pages.into_iter().flatten() {
        set(Range { start: page, bytes: PAGE }, Flags::READ_EXECUTE)?;
    }
    if let Some(registers) = machine::apic::registers() {
        set(registers, Flags::DEVICE)?;
    }
    if let Some(registers) = crate::watch::hw_watchdog::registers() {
        set(registers, Flags::DEVICE)?;
    }
    if let Some(screen) = crate::base::screen::memory() {
        set(screen, Flags::WRITE_COMBINING)?;
    }
    for stacks in stacks {
        for guard in stacks.guards() {
            set(guard, Flags::NONE)?;
        }
    }
    let run = frames.run;
    space.map(run, Flags::READ, &mut frames)?;
    space.activate();
    let end = map.iter().filter(|entry| entry.kind == MemoryKind::RAM);
    let end = end.map(|entry| entry.range.end()).max().unwrap_or(0);
    MAPPED_END.store(end, Ordering::Relaxed);
    let root = space.root();
    *OWN.lock() = Some(Own { space, frames, devices: heapless::Vec::new() });
    Ok(root)
}

/// Makes device registers accessible at their own address, wherever that is: read, write,
/// uncached. Asking again for what is mapped costs nothing. `false` when `range` is RAM, or
/// there is no frame left for a table.
///
/// Before the kernel's own page tables there is what the boot mapped, below 4 GiB; that
/// registers are not cached is then the firmware's doing (MTRRs). CPUs that run already see
/// the new entries by themselves: nothing was there, so nothing of it is in a TLB.
pub fn map_device(range: Range) -> bool {
    let ram = FRAMES.lock().as_ref().is_some_and(|frames| frames.has(range));
    let wraps = range.start.checked_add(range.bytes).is_none();
    if ram || wraps || range.bytes == 0 {
        return false;
    }
    let mut own = OWN.lock();
    let Some(own) = own.as_mut() else { return range.end() <= BOOT_MAPPED };
    if own.devices.iter().any(|device| device.holds(range.start, range.bytes)) {
        return true;
    }
    let mapped = own.space.remap(range, Flags::DEVICE, &mut own.frames).is_ok();
    if mapped {
        // What finds no place here is mapped again when it is asked for again.
        let _ = own.devices.push(range);
    }
    mapped
}

/// Makes the descriptor tables of all CPUs read only, and the roster: the processors have
/// loaded the tables and marked what they mark, and who runs is known. Every CPU that runs
/// sees it when this returns.
///
/// # Errors
/// When memory for page tables runs out.
pub fn protect_tables() -> Result<(), OutOfFramesError> {
    if let Some(own) = OWN.lock().as_mut() {
        for range in machine::tables::pages().into_iter().chain([roster::pages()]) {
            own.space.remap(range, Flags::READ, &mut own.frames)?;
        }
    }
    flush_translations();
    Ok(())
}

/// Has every running CPU forget translations that have changed.
fn flush_translations() {
    let reload = || machine::paging::activate(machine::cpu::cr3());
    reload();
    let late = xcall::on_others(reload);
    if late > 0 {
        log!("warning: memory: {late} CPUs are late in seeing changed page tables");
    }
}

/// Root of the kernel's page tables; 0 before there are any.
pub fn root() -> u64 {
    OWN.lock().as_ref().map_or(0, |own| own.space.root())
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
