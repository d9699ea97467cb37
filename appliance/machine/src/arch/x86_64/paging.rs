//! Identity page tables with protections, four or five levels deep.
//!
//! Everything here maps addresses to themselves: a debugger then reads the dump with the
//! addresses that the registers hold. The mappers of the `x86_64` crate know four levels
//! only, and a capture image may be entered with five, so the walk is our own.

use handoff::Range;
use x86_64::structures::paging::PageTableFlags;

/// Bytes of a small page.
pub const PAGE: u64 = 4096;

/// Where page tables come from.
pub trait FrameSource {
    /// A zeroed 4 KiB frame that is accessible at its own address; `None` when exhausted.
    fn frame(&mut self) -> Option<u64>;
}

/// No frame was left for a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFramesError;

impl core::fmt::Display for OutOfFramesError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no memory left for page tables")
    }
}

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(PageTableFlags);

impl Flags {
    /// Read only, no execution.
    pub const READ: Self = Self(PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE));
    /// Read and write, no execution.
    pub const READ_WRITE: Self = Self(Self::READ.0.union(PageTableFlags::WRITABLE));
    /// Read and execute, no writing.
    pub const READ_EXECUTE: Self = Self(PageTableFlags::PRESENT);
    /// Everything: for the way into the capture image, which brings its own tables.
    pub const ALL: Self = Self(PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE));
    /// [`Self::ALL`], marked as accessed and written already: the processor changes nothing in
    /// such an entry, so a checksum over it stays right.
    pub const ALL_MARKED: Self = Self(Self::ALL.0.union(MARKS));
    /// [`Self::DEVICE`], marked in the same way.
    pub const DEVICE_MARKED: Self = Self(Self::DEVICE.0.union(MARKS));
    /// Device registers: read, write, uncached.
    pub const DEVICE: Self = Self(
        Self::READ_WRITE.0.union(PageTableFlags::NO_CACHE).union(PageTableFlags::WRITE_THROUGH),
    );
    /// A screen's memory: writes are gathered, on a CPU that has
    /// [allowed](allow_write_combining) it.
    pub const WRITE_COMBINING: Self = Self(Self::READ_WRITE.0.union(PageTableFlags::WRITE_THROUGH));
    /// Not there at all: every access faults.
    pub const NONE: Self = Self(PageTableFlags::empty());
}

/// Bits of an entry that hold the address of a table or a page.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const HUGE: u64 = PageTableFlags::HUGE_PAGE.bits();
const PRESENT: u64 = PageTableFlags::PRESENT.bits();
/// Accessed and dirty.
const MARKS: PageTableFlags = PageTableFlags::ACCESSED.union(PageTableFlags::DIRTY);
/// An entry that leads to a table; accessed, so that the processor has nothing to mark.
const TABLE: u64 = PRESENT | PageTableFlags::WRITABLE.bits() | PageTableFlags::ACCESSED.bits();

/// One address space.
#[derive(Debug)]
pub struct Space {
    root: u64,
    levels: u8,
    giant: bool,
    /// Bits of an entry that the processor knows: without NX its bit is reserved, and a page
    /// that has it set cannot be accessed at all.
    known: u64,
}

/// Bytes that one entry of a table at `level` (1 is the lowest) covers, as a power of two.
const fn span_log2(level: u8) -> u32 {
    PAGE.trailing_zeros() + 9 * (level as u32 - 1)
}

/// Bytes that one entry of a table at `level` covers.
const fn span(level: u8) -> u64 {
    1 << span_log2(level)
}

fn table(address: u64) -> *mut u64 {
    address as *mut u64
}

impl Space {
    /// An empty space of 4 or 5 `levels`; `giant` allows 1 GiB pages.
    ///
    /// # Errors
    /// When there is no frame for the root.
    pub fn new(
        frames: &mut dyn FrameSource,
        levels: u8,
        giant: bool,
    ) -> Result<Self, OutOfFramesError> {
        debug_assert!(levels == 4 || levels == 5);
        let no_execute = PageTableFlags::NO_EXECUTE.bits();
        let known = if super::cpu::has_nx() { u64::MAX } else { !no_execute };
        Ok(Self { root: frames.frame().ok_or(OutOfFramesError)?, levels, giant, known })
    }

    /// Physical address of the root table.
    #[must_use]
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Maps `range` (widened to whole pages) to itself, over whatever was mapped there,
    /// with the largest pages that fit.
    ///
    /// The caller reloads the root, or knows that nothing of the range was mapped before.
    ///
    /// # Errors
    /// When a table is missing and there is no frame for it; part of the range is then done.
    pub fn map(
        &mut self,
        range: Range,
        flags: Flags,
        frames: &mut dyn FrameSource,
    ) -> Result<(), OutOfFramesError> {
        let start = range.start & !(PAGE - 1);
        let end = range.end().saturating_add(PAGE - 1) & !(PAGE - 1);
        let range = Range::between(start, end);
        self.set(self.root, self.levels, 0, range, flags.0.bits() & self.known, frames)
    }

    fn set(
        &self,
        entries: u64,
        level: u8,
        base: u64,
        range: Range,
        bits: u64,
        frames: &mut dyn FrameSource,
    ) -> Result<(), OutOfFramesError> {
        let size = span(level);
        let first = range.start.saturating_sub(base) >> span_log2(level);
        let last = range.end().saturating_sub(base).saturating_add(size - 1) >> span_log2(level);
        let last = last.min(512);
        for index in first..last {
            let start = base + index * size;
            let slot = table(entries).wrapping_add(index as usize);
            // SAFETY: `entries` is a table of this space: 512 words at its own address, which
            // the frame source promised to be accessible; `index` is below 512.
            let old = unsafe { slot.read_volatile() };
            let is_table = level > 1 && old & PRESENT != 0 && old & HUGE == 0;
            let leaf_allowed = level <= 2 || (level == 3 && self.giant);
            let covered = range.holds(start, size);
            if covered && leaf_allowed && !is_table {
                let huge = if level > 1 { HUGE } else { 0 };
                let entry = if bits & PRESENT == 0 { 0 } else { start | bits | huge };
                // SAFETY: as above; the space is not shared while it is being changed.
                unsafe { slot.write_volatile(entry) };
                continue;
            }
            let next = if is_table {
                old & ADDRESS
            } else {
                let fresh = frames.frame().ok_or(OutOfFramesError)?;
                if old & PRESENT != 0 {
                    split(fresh, level - 1, start, old);
                }
                // SAFETY: as above.
                unsafe { slot.write_volatile(fresh | TABLE) };
                fresh
            };
            let part = Range::between(range.start.max(start), range.end().min(start + size));
            self.set(next, level - 1, start, part, bits, frames)?;
        }
        Ok(())
    }

    /// As [`map`](Self::map), when the tables themselves are mapped read only: for the one
    /// CPU that may change them. The others reload the root to see it.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn remap(
        &mut self,
        range: Range,
        flags: Flags,
        frames: &mut dyn FrameSource,
    ) -> Result<(), OutOfFramesError> {
        super::cpu::without_write_protection(|| self.map(range, flags, frames))?;
        activate(self.root);
        Ok(())
    }

    /// Makes this the running CPU's address space.
    ///
    /// The caller has mapped what it runs on: code, stack and data.
    pub fn activate(&self) {
        activate(self.root);
    }
}

/// Lets the running CPU gather writes to [`Flags::WRITE_COMBINING`] pages: entry 1 of the page
/// attribute table, which nothing else here uses, becomes "write combining" (Intel SDM vol. 3,
/// 13.12). Left alone on a CPU without the table: such pages are then written through.
pub fn allow_write_combining() {
    const PAT: u32 = 0x277;
    const WRITE_COMBINING: u64 = 1;
    // CPUID 1 EDX bit 16: there is a page attribute table.
    if super::cpu::cpuid(1, 0).edx & (1 << 16) == 0 {
        return;
    }
    let mut table = x86_64::registers::model_specific::Msr::new(PAT);
    // SAFETY: the register is there, as just asked; a byte for each entry. No page that is
    // mapped uses entry 1 yet, so no memory changes its type.
    unsafe {
        let entries = table.read() & !(0xff << 8) | WRITE_COMBINING << 8;
        table.write(entries);
    }
}

/// Fills the table at `fresh` with what the large page `old` at `base` mapped.
fn split(fresh: u64, level: u8, base: u64, old: u64) {
    let bits = old & !ADDRESS & !HUGE;
    let huge = if level > 1 { HUGE } else { 0 };
    for index in 0..512u64 {
        let entry = (base + index * span(level)) | bits | huge;
        // SAFETY: `fresh` is a frame just taken from the source, accessible and unshared.
        unsafe { table(fresh).wrapping_add(index as usize).write_volatile(entry) };
    }
}

/// Loads the page-table root at physical address `root`, flushing the TLB.
pub fn activate(root: u64) {
    // SAFETY: the callers' contract: `root` maps the running code, stack and data one to one.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}
