//! The physical frame allocator: which pages of RAM are in use.
//!
//! A bitmap over the RAM ranges of the memory map, one bit a page, set when in use. The
//! bitmap's storage is given by the caller. Memory below 1 MiB is kept out of general use,
//! because start-up code for other CPUs has to lie there; see
//! [`take_low`](FrameAllocator::take_low).

use handoff::facts::{MAX_RANGES, MemoryKind};
use handoff::{FrameMap, MemoryRange, Range};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// General use begins here.
const LOW_END: u64 = 1 << 20;
/// Start-up code must lie below the EBDA and video memory.
const START_UP_END: u64 = 0xa_0000;
const LOW_PAGES: u64 = START_UP_END / PAGE;
/// Below this a loader may have left structures it does not tell of.
const LOW_FIRST: u64 = 0x8000 / PAGE;
/// RAM ranges that are kept apart: as many as a memory map has.
const MAX_BLOCKS: usize = MAX_RANGES;

/// A RAM range, in whole pages, and where its bits begin.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: u64,
    pages: u64,
    bit: u64,
}

/// The allocator.
#[derive(Debug)]
pub struct FrameAllocator {
    blocks: heapless::Vec<Block, MAX_BLOCKS>,
    used: &'static mut [u64],
    free: u64,
    total: u64,
    /// No page below this bit is free.
    hint: u64,
    /// Pages below 640 KiB that start-up code may not take, one bit each.
    low_used: [u64; LOW_PAGES.div_ceil(64) as usize],
}

/// The RAM of `map` in whole pages, rounded inwards.
fn ram(map: &[MemoryRange]) -> impl Iterator<Item = (u64, u64)> {
    map.iter().filter(|entry| entry.kind == MemoryKind::RAM).filter_map(|entry| {
        let first = entry.range.start.div_ceil(PAGE);
        let pages = (entry.range.end() / PAGE).saturating_sub(first);
        (pages > 0).then_some((first, pages))
    })
}

impl FrameAllocator {
    /// Bytes of storage that [`new`](Self::new) needs for `map`; a multiple of 8.
    #[must_use]
    pub fn required_bytes(map: &[MemoryRange]) -> usize {
        let pages: u64 = ram(map).take(MAX_BLOCKS).map(|(_, pages)| pages).sum();
        pages.div_ceil(64) as usize * 8
    }

    /// A page-aligned place of `bytes` in RAM above 1 MiB that touches nothing `reserved`:
    /// for the storage itself.
    #[must_use]
    pub fn place(map: &[MemoryRange], reserved: &[Range], bytes: u64) -> Option<Range> {
        let bytes = bytes.max(1).div_ceil(PAGE) * PAGE;
        ram(map).find_map(|(first, pages)| {
            let end = (first + pages) * PAGE;
            let mut candidate = Range { start: (first * PAGE).max(LOW_END), bytes };
            // Each reserved range moves the candidate on at most once.
            for _ in 0..=reserved.len() {
                match reserved.iter().find(|range| range.overlaps(&candidate)) {
                    Some(obstacle) => {
                        candidate.start = obstacle.end().div_ceil(PAGE) * PAGE;
                    }
                    None => break,
                }
            }
            let clear = !reserved.iter().any(|range| range.overlaps(&candidate));
            (clear && candidate.end() <= end).then_some(candidate)
        })
    }

    /// An allocator of the RAM in `map` without `reserved`. `storage` has
    /// [`required_bytes`](Self::required_bytes); where it is shorter, the memory it cannot
    /// describe is left out.
    #[must_use]
    pub fn new(map: &[MemoryRange], reserved: &[Range], storage: &'static mut [u64]) -> Self {
        storage.fill(0);
        let mut blocks = heapless::Vec::new();
        let mut bit = 0;
        let room = storage.len() as u64 * 64;
        for (first, pages) in ram(map) {
            let pages = pages.min(room - bit);
            if pages == 0 || blocks.push(Block { first, pages, bit }).is_err() {
                break;
            }
            bit += pages;
        }
        let low_used = [u64::MAX; LOW_PAGES.div_ceil(64) as usize];
        let mut allocator =
            Self { blocks, used: storage, free: bit, total: bit, hint: 0, low_used };
        allocator.reserve(Range { start: 0, bytes: LOW_END });
        for block in &allocator.blocks {
            for page in block.first.max(LOW_FIRST)..(block.first + block.pages).min(LOW_PAGES) {
                allocator.low_used[(page / 64) as usize] &= !(1 << (page % 64));
            }
        }
        for range in reserved {
            allocator.reserve(*range);
        }
        allocator
    }

    /// Marks every page that `range` touches as in use.
    pub fn reserve(&mut self, range: Range) {
        let first = range.start / PAGE;
        let end = range.end().div_ceil(PAGE);
        for page in first..end.min(LOW_PAGES) {
            self.low_used[(page / 64) as usize] |= 1 << (page % 64);
        }
        for index in 0..self.blocks.len() {
            let block = self.blocks[index];
            let from = first.max(block.first);
            let to = end.min(block.first + block.pages);
            for page in from..to {
                self.mark(block.bit + page - block.first, true);
            }
        }
    }

    fn is_used(&self, bit: u64) -> bool {
        self.used[(bit / 64) as usize] & (1 << (bit % 64)) != 0
    }

    fn mark(&mut self, bit: u64, used: bool) {
        if self.is_used(bit) == used {
            return;
        }
        self.used[(bit / 64) as usize] ^= 1 << (bit % 64);
        if used {
            self.free -= 1;
        } else {
            self.free += 1;
            self.hint = self.hint.min(bit);
        }
    }

    /// `pages` contiguous pages, the first one a multiple of `align` pages; the lowest
    /// address there is. `None` when there are none, or for 0 pages.
    pub fn allocate(&mut self, pages: usize, align: usize) -> Option<u64> {
        let (pages, align) = (pages as u64, align.max(1) as u64);
        if pages == 0 || pages > self.free {
            return None;
        }
        for index in 0..self.blocks.len() {
            let block = self.blocks[index];
            let skip = self.hint.saturating_sub(block.bit).min(block.pages);
            let mut page = (block.first + skip).next_multiple_of(align);
            let end = block.first + block.pages;
            while page + pages <= end {
                let bit = block.bit + page - block.first;
                match (0..pages).rev().find(|offset| self.is_used(bit + offset)) {
                    // Nothing that includes the used page can fit.
                    Some(offset) => page = (page + offset + 1).next_multiple_of(align),
                    None => {
                        for offset in 0..pages {
                            self.mark(bit + offset, true);
                        }
                        if pages == 1 && align == 1 {
                            // The search began at the hint, so all below is in use.
                            self.hint = bit + 1;
                        }
                        return Some(page * PAGE);
                    }
                }
            }
        }
        None
    }

    /// `bytes` in whole pages of RAM between 32 and 640 KiB that nothing reserved touches,
    /// for start-up code; never given back.
    pub fn take_low(&mut self, bytes: usize) -> Option<u64> {
        let pages = (bytes as u64).div_ceil(PAGE);
        let is_used = |page: u64| self.low_used[(page / 64) as usize] >> (page % 64) & 1 != 0;
        let last = LOW_PAGES.checked_sub(pages)?;
        let start =
            (LOW_FIRST..=last).find(|start| pages > 0 && !(*start..start + pages).any(is_used))?;
        self.reserve(Range { start: start * PAGE, bytes: pages * PAGE });
        Some(start * PAGE)
    }

    /// Gives back `pages` pages from `address` on. Pages that are not RAM are ignored.
    pub fn free(&mut self, address: u64, pages: usize) {
        for page in address / PAGE..address / PAGE + pages as u64 {
            let found = self
                .blocks
                .iter()
                .find(|block| page >= block.first && page < block.first + block.pages);
            if let Some(block) = found {
                let bit = block.bit + page - block.first;
                self.mark(bit, false);
            }
        }
    }

    /// Where the bitmap is, for whoever selects pages after a crash.
    #[must_use]
    pub fn map(&self) -> FrameMap {
        FrameMap { address: self.used.as_ptr() as u64, frames: self.total }
    }

    /// Whether some of `range` is RAM, to the page.
    #[must_use]
    pub fn has(&self, range: Range) -> bool {
        let ram = |block: &Block| Range { start: block.first * PAGE, bytes: block.pages * PAGE };
        self.blocks.iter().any(|block| ram(block).overlaps(&range))
    }

    /// Pages that are free.
    #[must_use]
    pub const fn free_pages(&self) -> usize {
        self.free as usize
    }

    /// Pages of RAM.
    #[must_use]
    pub const fn total_pages(&self) -> usize {
        self.total as usize
    }

    /// The runs of pages in use, in address order.
    pub fn used_ranges(&self) -> impl Iterator<Item = Range> {
        self.blocks.iter().flat_map(move |block| {
            let end = block.pages;
            let mut next = 0;
            core::iter::from_fn(move || {
                let start = (next..end).find(|&page| self.is_used(block.bit + page))?;
                let stop =
                    (start..end).find(|&page| !self.is_used(block.bit + page)).unwrap_or(end);
                next = stop;
                Some(Range { start: (block.first + start) * PAGE, bytes: (stop - start) * PAGE })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: u64, end: u64, kind: MemoryKind) -> MemoryRange {
        MemoryRange { range: Range::between(start, end), kind, reserved: 0 }
    }

    fn pc() -> Vec<MemoryRange> {
        vec![
            entry(0, 0x9_fc00, MemoryKind::RAM),
            entry(0x9_fc00, 0xa_0000, MemoryKind::RESERVED),
            entry(0x10_0000, 0x800_0000, MemoryKind::RAM),
            entry(0x1_0000_0000, 0x1_0100_0000, MemoryKind::RAM),
        ]
    }

    fn allocator(map: &[MemoryRange], reserved: &[Range]) -> FrameAllocator {
        let words = FrameAllocator::required_bytes(map) / 8;
        FrameAllocator::new(map, reserved, Box::leak(vec![0; words].into_boxed_slice()))
    }

    #[test]
    fn low_memory_is_kept_and_the_rest_is_handed_out_once() {
        let reserved = [Range::between(0x100_0000, 0x180_0000)];
        let mut frames = allocator(&pc(), &reserved);
        let before = frames.free_pages();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(address) = frames.allocate(1, 1) {
            assert!(address >= LOW_END);
            assert!(!reserved[0].holds(address, PAGE));
            assert!(pc().iter().any(|e| e.kind == MemoryKind::RAM && e.range.holds(address, PAGE)));
            assert!(seen.insert(address));
        }
        assert_eq!(seen.len(), before);
        assert_eq!(frames.free_pages(), 0);
    }

    #[test]
    fn what_is_given_back_is_found_again() {
        let mut frames = allocator(&pc(), &[]);
        let before = frames.free_pages();
        let run = frames.allocate(300, 512).unwrap();
        assert_eq!(run % (512 * PAGE), 0);
        assert_eq!(frames.free_pages(), before - 300);
        frames.free(run, 300);
        assert_eq!(frames.free_pages(), before);
        assert_eq!(frames.allocate(300, 512), Some(run));
        let single = frames.allocate(1, 1).unwrap();
        assert!(frames.allocate(1, 1).unwrap() > single);
        frames.free(single, 1);
        assert_eq!(frames.allocate(1, 1), Some(single));
    }

    #[test]
    fn random_traffic_never_hands_out_a_page_twice() {
        let reserved =
            [Range::between(0x200_0000, 0x200_5000), Range::between(0x700_0800, 0x700_0900)];
        let mut frames = allocator(&pc(), &reserved);
        let mut held: Vec<(u64, usize)> = Vec::new();
        let mut state = 0x1234_5678_9abc_def0u64;
        for _ in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if state.is_multiple_of(3) && !held.is_empty() {
                let (address, pages) = held.swap_remove(state as usize / 8 % held.len());
                frames.free(address, pages);
            } else {
                let pages = 1 + (state >> 32) as usize % 40;
                let align = 1 << ((state >> 40) % 4);
                let Some(address) = frames.allocate(pages, align) else { continue };
                let new = Range { start: address, bytes: pages as u64 * PAGE };
                assert_eq!(address / PAGE % align as u64, 0);
                assert!(!reserved.iter().any(|range| range.overlaps(&new)));
                for &(other, count) in &held {
                    assert!(!new.overlaps(&Range { start: other, bytes: count as u64 * PAGE }));
                }
                held.push((address, pages));
            }
        }
        for (address, pages) in held {
            frames.free(address, pages);
        }
        let used: u64 = frames.used_ranges().map(|range| range.bytes / PAGE).sum();
        assert_eq!(used as usize, frames.total_pages() - frames.free_pages());
    }

    #[test]
    fn sixty_four_gigabytes_take_two_megabytes_to_describe() {
        let map = [
            entry(0x10_0000, 0x8000_0000, MemoryKind::RAM),
            entry(0x1_0000_0000, 0x10_8000_0000, MemoryKind::RAM),
        ];
        assert_eq!(FrameAllocator::required_bytes(&map).div_ceil(1 << 20), 2);
        let mut frames = allocator(&map, &[]);
        assert_eq!(frames.total_pages(), (64 << 18) - 256);
        assert_eq!(frames.allocate(3 << 18, 1 << 18), Some(0x1_0000_0000));
        let ranges: Vec<_> = frames.used_ranges().collect();
        assert_eq!(ranges, [Range { start: 0x1_0000_0000, bytes: 3 << 30 }]);
    }

    #[test]
    fn ram_is_told_from_what_lies_between() {
        let frames = allocator(&pc(), &[]);
        let has = |start, bytes| frames.has(Range { start, bytes });
        assert!(has(0x10_0000, 1) && has(0x7ff_ffff, 1) && has(0, 1 << 40));
        assert!(!has(0xa_0000, 0x1_0000) && !has(0xfee0_0000, 4096));
    }

    #[test]
    fn storage_that_is_too_short_leaves_memory_out() {
        let frames = FrameAllocator::new(&pc(), &[], Box::leak(Box::new([0; 100])));
        assert_eq!(frames.total_pages(), 6400);
    }

    #[test]
    fn the_storage_has_a_place_beside_what_is_reserved() {
        let reserved =
            [Range::between(0x10_0000, 0x20_0000), Range::between(0x20_0000, 0x7f0_0000)];
        let place = FrameAllocator::place(&pc(), &reserved, 5000).unwrap();
        assert_eq!(place, Range { start: 0x7f0_0000, bytes: 8192 });
        assert_eq!(FrameAllocator::place(&pc(), &reserved, 0x400_0000), None);
    }

    #[test]
    fn a_start_up_page_lies_below_the_ebda() {
        let mut frames = allocator(&pc(), &[]);
        let page = frames.take_low(4096).unwrap();
        assert!((0x8000..START_UP_END).contains(&page));
        assert_eq!(frames.take_low(4096), Some(page + PAGE));
        assert_eq!(frames.take_low(0x9_6000), None);
        assert_eq!(frames.take_low(1 << 20), None);
        assert_eq!(frames.take_low(0), None);
    }

    #[test]
    fn a_start_up_page_is_not_where_the_loader_put_something() {
        let reserved = [Range::between(0x7000, 0x9001), Range::between(0xb800, 0xb900)];
        let mut frames = allocator(&pc(), &reserved);
        assert_eq!(frames.take_low(2 * 4096), Some(0xc000));
        assert_eq!(frames.take_low(1), Some(0xa000));
        assert_eq!(frames.take_low(1), Some(0xe000));
    }
}
