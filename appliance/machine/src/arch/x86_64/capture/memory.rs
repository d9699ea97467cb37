//! The image's own memory: pages to use, and the address space it runs in.
//!
//! Old memory is mapped for reading only, so that no mistake of the image can change what
//! it is about to save.

use core::cell::UnsafeCell;

use handoff::Range;

use super::cell::TryCell;
use super::entry;
use crate::cpu;
use crate::paging::{Flags, FrameSource, OutOfFramesError, PAGE, Space};

/// Device ranges remembered, so that asking again costs nothing.
const MAX_DEVICES: usize = 32;

/// Pages of the scratch memory, handed out once and never taken back.
struct Pool {
    range: Range,
    used: u64,
}

impl Pool {
    fn take(&mut self, pages: usize) -> Option<*mut u8> {
        if self.range.bytes == 0 {
            self.range = Range { start: EARLY.0.get() as u64, bytes: EARLY_BYTES as u64 };
        }
        let bytes = (pages as u64).checked_mul(PAGE)?;
        let start = self.range.start.checked_add(self.used)?;
        if pages == 0 || !self.range.holds(start, bytes) {
            return None;
        }
        self.used += bytes;
        Some(start as *mut u8)
    }
}

impl FrameSource for Pool {
    fn frame(&mut self) -> Option<u64> {
        let pointer = self.take(1)?;
        // SAFETY: the range is `EARLY`, or `start` was promised that it is memory of the
        // image alone; each part of it is handed out once.
        unsafe { pointer.write_bytes(0, PAGE as usize) };
        Some(pointer as u64)
    }
}

/// Everything of which there is one.
struct Own {
    pool: Pool,
    space: Option<Space>,
    devices: [Range; MAX_DEVICES],
    device_count: usize,
}

static OWN: TryCell<Own> = TryCell::new(Own {
    pool: Pool { range: Range { start: 0, bytes: 0 }, used: 0 },
    space: None,
    devices: [Range { start: 0, bytes: 0 }; MAX_DEVICES],
    device_count: 0,
});

/// Pages from the image's own `.bss`, for the copies made before it is known and checked
/// where the scratch memory is: of the hand-off and of the facts.
#[repr(C, align(4096))]
struct Early(UnsafeCell<[u8; EARLY_BYTES]>);

/// Room for the known part of the hand-off (one page) and of the facts (two), and for all of
/// either when they are of a later version (two and three pages).
const EARLY_BYTES: usize = 8 * PAGE as usize;

// SAFETY: only its address is taken; its pages are handed out by the pool, once.
unsafe impl Sync for Early {}

static EARLY: Early = Early(UnsafeCell::new([0; EARLY_BYTES]));

fn with<R>(change: impl FnOnce(&mut Own) -> Option<R>) -> Option<R> {
    OWN.with(change).flatten()
}

/// Gives the image `scratch` to use, whole pages; before that there are a few of its own.
///
/// # Safety
///
/// The range is memory that nothing else uses, now or later, and it is mapped one to one
/// and writable whenever the image runs.
pub unsafe fn start(scratch: Range) {
    let first = scratch.start.next_multiple_of(PAGE);
    let range = Range::between(first, scratch.end() & !(PAGE - 1));
    with(|own| {
        own.pool = Pool { range, used: 0 };
        Some(())
    });
}

/// Contiguous pages for the caller to keep, or `None` when there are not enough. They hold
/// whatever they held before: zeroing more than a megabyte of them would be seen in the time to
/// the first seal.
#[must_use]
pub fn pages(count: usize) -> Option<&'static mut [u8]> {
    let pointer = with(|own| own.pool.take(count))?;
    // SAFETY: memory of the pool, handed out this once, `count` pages long, which `take` found
    // to fit an address range. It is the machine's own, so each byte has a value.
    Some(unsafe { core::slice::from_raw_parts_mut(pointer, count * PAGE as usize) })
}

/// A value made in memory of the pool, to keep; `None` when there is not enough.
#[must_use]
pub fn keep<T: 'static>(make: impl FnOnce() -> T) -> Option<&'static mut T> {
    const { assert!(align_of::<T>() <= PAGE as usize && size_of::<T>() > 0) };
    let place = pages(size_of::<T>().div_ceil(PAGE as usize))?.as_mut_ptr().cast::<T>();
    // SAFETY: pages of the pool, handed out this once, large enough and aligned to a page;
    // the reference is made once there is a value.
    unsafe {
        place.write(make());
        Some(&mut *place)
    }
}

/// Bytes of the scratch memory that are left.
#[must_use]
pub fn left() -> u64 {
    with(|own| Some(own.pool.range.bytes.saturating_sub(own.pool.used))).unwrap_or(0)
}

/// Bytes of the scratch memory in use.
#[must_use]
pub fn used() -> u64 {
    with(|own| Some(own.pool.used)).unwrap_or(0)
}

/// Builds the image's address space and enters it: `writable` for reading and writing,
/// `readable` for reading, the image itself by its parts, guard pages under its stacks.
///
/// `readable` may need more tables than there are pages for. The rest of it is left out,
/// and faults when it is read; returns how many bytes that is.
///
/// # Errors
/// When there are not enough pages for what the image runs on. It stays in the old space.
pub fn enter(
    writable: &[Range],
    readable: impl Iterator<Item = Range>,
) -> Result<u64, OutOfFramesError> {
    let levels = if cpu::la57() { 5 } else { 4 };
    let entered = with(|own| {
        let mut space = Space::new(&mut own.pool, levels, cpu::has_1g_pages()).ok()?;
        let left_out = map_all(&mut space, &mut own.pool, writable, readable).ok()?;
        space.activate();
        own.space = Some(space);
        Some(left_out)
    });
    entered.ok_or(OutOfFramesError)
}

/// Memory mapped at a time, between two looks at how many pages are left.
const STRIDE: u64 = 1 << 36;

fn map_all(
    space: &mut Space,
    pool: &mut Pool,
    writable: &[Range],
    readable: impl Iterator<Item = Range>,
) -> Result<u64, OutOfFramesError> {
    let mut left_out = 0;
    for range in readable {
        let mut start = range.start;
        while start < range.end() {
            let part = Range::between(start, range.end().min(start.saturating_add(STRIDE)));
            // The largest part comes first; a quarter of the pages is kept for the rest.
            if pool.range.bytes - pool.used < pool.range.bytes / 4 {
                left_out += part.bytes;
            } else {
                space.map(part, Flags::READ, pool)?;
            }
            start = part.end();
        }
    }
    let layout = entry::layout();
    let stacks = entry::stacks();
    for range in writable {
        space.map(*range, Flags::READ_WRITE, pool)?;
    }
    space.map(layout.image, Flags::READ, pool)?;
    space.map(layout.text, Flags::READ_EXECUTE, pool)?;
    space.map(layout.data, Flags::READ_WRITE, pool)?;
    for guard in stacks.guards() {
        space.map(guard, Flags::NONE, pool)?;
    }
    Ok(left_out)
}

/// Takes the zero page out of the image's address space, so that a null pointer faults.
///
/// `false` when it stays, for want of a page for a table.
#[must_use]
pub fn hide_zero_page() -> bool {
    let hidden = with(|own| {
        let space = own.space.as_mut()?;
        space.map(Range { start: 0, bytes: PAGE }, Flags::NONE, &mut own.pool).ok()?;
        space.activate();
        Some(())
    });
    hidden.is_some()
}

/// Root of the image's page tables, once it runs on them.
pub(super) fn root() -> Option<u64> {
    with(|own| own.space.as_ref().map(Space::root))
}

/// Maps device registers, uncached. Asking again for what is mapped costs nothing.
///
/// `false` when there is no page left for a table, or a fault came in between.
#[must_use]
pub fn map_device(range: Range) -> bool {
    map(range, Flags::DEVICE)
}

/// Maps a screen's memory. As [`map_device`] otherwise.
#[must_use]
pub fn map_screen(range: Range) -> bool {
    map(range, Flags::WRITE_COMBINING)
}

/// Maps memory that is none of the image's own, over what was mapped there; as
/// [`map_device`] otherwise.
pub(super) fn map(range: Range, flags: Flags) -> bool {
    let mapped = with(|own| {
        let mut known = own.devices.iter().take(own.device_count);
        if known.any(|device| device.holds(range.start, range.bytes)) {
            return Some(());
        }
        let space = own.space.as_mut()?;
        space.map(range, flags, &mut own.pool).ok()?;
        // Over-writing an entry that was there before needs the translations flushed.
        space.activate();
        // What finds no place here is mapped again when it is asked for again.
        if let Some(place) = own.devices.get_mut(own.device_count) {
            *place = range;
            own.device_count += 1;
        }
        Some(())
    });
    mapped.is_some()
}
