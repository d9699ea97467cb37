//! Which stage of a dump a piece of memory belongs to.
//!
//! The stages are `mini`, what a backtrace and a first look need; `used`, what the
//! appliance had in use; `all`, the rest. Every page of RAM that is dumped at all belongs
//! to exactly one of them, so what one stage has written no later one writes again.

use vmcore_format::PAGE_BYTES;
use vmcore_format::area::stage_kind;

use crate::crash::{MAX_RANGES, Range};

/// Ranges of the first stage.
pub const MAX_MINI: usize = 4096;
/// Ranges of RAM that are dumped.
pub const MAX_RAM: usize = 3 * MAX_RANGES;
/// Memory that is in use or not as a whole, at the least: single free pages between used
/// ones are not worth a program header each.
const GRAIN: u64 = 64 << 10;
/// Most runs that one stage may be made of: beyond it the grain grows.
const MAX_RUNS: usize = 1024;

/// Which pages were in use: the frame allocator's bitmap, where it lies.
pub trait UsedPages {
    /// Whether a page of `range`, which is RAM, was in use; `true` where that is not known.
    fn any_used(&self, range: Range) -> bool;
}

/// What is known of memory in use.
#[derive(Clone, Copy)]
pub struct Used<'a> {
    /// Page by page.
    pages: &'a dyn UsedPages,
    /// Memory counts as in use, or not, by so many bytes.
    grain: u64,
}

/// Memory, sorted by stage. Some 80 KiB, so it is filled where it lies.
pub struct Extents {
    /// What is dumped, whole pages, by address.
    ram: heapless::Vec<Range, MAX_RAM>,
    /// What belongs to `mini`; whole pages, by address, without overlaps, once settled.
    mini: heapless::Vec<Range, MAX_MINI>,
    /// `mini` was full of ranges that do not touch.
    crowded: bool,
}

/// There are more pieces of memory than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRangesError;

impl core::fmt::Display for TooManyRangesError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the memory map has too many pieces")
    }
}

impl Extents {
    /// No memory.
    #[must_use]
    pub const fn empty() -> Self {
        Self { ram: heapless::Vec::new(), mini: heapless::Vec::new(), crowded: false }
    }

    /// Adds memory that is dumped: whole pages, behind all that was added before.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn add_ram(&mut self, range: Range) -> Result<(), TooManyRangesError> {
        if range.bytes == 0 { Ok(()) } else { self.ram.push(range).map_err(|_| TooManyRangesError) }
    }

    /// What is dumped, by address.
    #[must_use]
    pub fn ram(&self) -> &[Range] {
        &self.ram
    }

    /// Bytes of memory that is dumped.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ram.iter().map(|range| range.bytes).sum()
    }

    /// Adds memory that matters most, rounded to whole pages. When there is no room it is
    /// left to the next stage.
    pub fn add_mini(&mut self, range: Range) {
        let start = range.start / PAGE_BYTES * PAGE_BYTES;
        let end = range.end().checked_next_multiple_of(PAGE_BYTES).unwrap_or(start);
        if range.bytes == 0 {
            return;
        }
        if self.mini.is_full() && !self.crowded {
            // Ranges that overlap or touch become one. Once that frees little, it is not tried
            // again: each attempt sorts the list.
            self.settle();
            self.crowded = self.mini.len() > MAX_MINI / 4 * 3;
        }
        // A stack less in the first stage is in the second one.
        let _ = self.mini.push(Range::between(start, end));
    }

    /// Brings the memory of the first stage into order. Takes the same time whatever the
    /// size of memory is.
    pub fn settle(&mut self) {
        sort(&mut self.mini);
        let mut kept = 0usize;
        for index in 0..self.mini.len() {
            let Some(&range) = self.mini.get(index) else { break };
            let last = kept.checked_sub(1).and_then(|last| self.mini.get_mut(last));
            if let Some(last) = last.filter(|last| range.start <= last.end()) {
                *last = Range::between(last.start, range.end().max(last.end()));
            } else if let Some(place) = self.mini.get_mut(kept) {
                *place = range;
                kept += 1;
            }
        }
        self.mini.truncate(kept);
    }

    /// Chooses how finely memory in use is told from memory that is not: as finely as makes
    /// no more than some thousand runs.
    #[must_use]
    pub fn adapt<'a>(&self, pages: &'a dyn UsedPages) -> Used<'a> {
        let most = MAX_RUNS + self.mini.len();
        let mut used = Used { pages, grain: GRAIN };
        // Ends at the latest when all memory is one grain.
        while used.grain < 1 << 40
            && self.runs(stage_kind::USED, Some(used)).take(most + 1).count() > most
        {
            used.grain *= 2;
        }
        used
    }

    /// The memory of one stage, by address. Without knowledge of what was `used`, all that
    /// is not of the first stage is of the second.
    pub fn runs<'a>(
        &'a self,
        kind: u32,
        used: Option<Used<'a>>,
    ) -> impl Iterator<Item = Range> + 'a {
        self.matching(move |found| found == kind, used)
    }

    /// The memory of all stages behind this one, by address.
    pub fn behind<'a>(
        &'a self,
        kind: u32,
        used: Option<Used<'a>>,
    ) -> impl Iterator<Item = Range> + 'a {
        self.matching(move |found| found > kind, used)
    }

    fn matching<'a>(
        &'a self,
        wanted: impl Fn(u32) -> bool + Copy + 'a,
        used: Option<Used<'a>>,
    ) -> impl Iterator<Item = Range> + 'a {
        self.ram.iter().flat_map(move |&ram| {
            let mut at = ram.start;
            core::iter::from_fn(move || {
                while at < ram.end() {
                    let start = at;
                    let (first, mut end) = self.same(start, ram, used);
                    while end < ram.end() {
                        let (next, behind) = self.same(end, ram, used);
                        if wanted(next) != wanted(first) {
                            break;
                        }
                        end = behind;
                    }
                    at = end;
                    if wanted(first) {
                        return Some(Range::between(start, end));
                    }
                }
                None
            })
        })
    }

    /// The stage of the page at `at`, and an address behind it in `ram`, which it is of, up
    /// to which all pages are of this stage.
    fn same(&self, at: u64, ram: Range, used: Option<Used<'_>>) -> (u32, u64) {
        let behind = self.mini.partition_point(|range| range.start <= at);
        if let Some(range) = behind.checked_sub(1).and_then(|index| self.mini.get(index))
            && at < range.end()
        {
            return (stage_kind::MINI, range.end().min(ram.end()));
        }
        let limit = self.mini.get(behind).map_or(ram.end(), |range| range.start.min(ram.end()));
        let Some(used) = used else { return (stage_kind::USED, limit) };
        // Grains are counted from address 0, and cut at what is of the first stage.
        let start = at.checked_div(used.grain).unwrap_or(0) * used.grain;
        let end = start.saturating_add(used.grain).min(ram.end());
        let grain = Range::between(start.max(ram.start), end);
        let kind = if used.pages.any_used(grain) { stage_kind::USED } else { stage_kind::ALL };
        (kind, end.min(limit))
    }
}

/// Sorts by address. Heap sort: no recursion, no memory, the same time for every input.
fn sort(ranges: &mut [Range]) {
    let count = ranges.len();
    for start in (0..count / 2).rev() {
        sift(ranges, start, count);
    }
    for end in (1..count).rev() {
        swap(ranges, 0, end);
        sift(ranges, 0, end);
    }
}

/// Swaps two ranges; both are there.
fn swap(ranges: &mut [Range], one: usize, other: usize) {
    if let Ok([one, other]) = ranges.get_disjoint_mut([one, other]) {
        core::mem::swap(one, other);
    }
}

/// Lets the range at `root` sink to its place in the heap `ranges[..end]`.
fn sift(ranges: &mut [Range], root: usize, end: usize) {
    let mut root = root;
    loop {
        let mut child = 2 * root + 1;
        if child >= end {
            return;
        }
        let start = |index: usize| ranges.get(index).map_or(0, |range| range.start);
        if child + 1 < end && start(child) < start(child + 1) {
            child += 1;
        }
        if start(root) >= start(child) {
            return;
        }
        swap(ranges, root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These grains of 64 KiB are in use.
    struct Some64<'a>(&'a [u64]);

    impl UsedPages for Some64<'_> {
        fn any_used(&self, range: Range) -> bool {
            self.0
                .iter()
                .any(|&grain| Range { start: grain * GRAIN, bytes: PAGE_BYTES }.overlaps(&range))
        }
    }

    fn spans(extents: &Extents, kind: u32, used: Used<'_>) -> Vec<(u64, u64)> {
        extents.runs(kind, Some(used)).map(|range| (range.start, range.end())).collect()
    }

    #[test]
    fn every_page_is_in_one_stage() {
        let mut extents = Extents::empty();
        extents.add_ram(Range::between(0, 0x8_f000)).unwrap();
        extents.add_ram(Range::between(0x10_0000, 0x20_0000)).unwrap();
        for (start, end) in [(0x15_0800, 0x15_1001), (0x1000, 0x2000), (0x1f_f000, 0x30_0000)] {
            extents.add_mini(Range::between(start, end));
        }
        extents.add_mini(Range::between(0x1800, 0x4000));
        let used = Some64(&[0, 8, 0x15, 0x16]);
        extents.settle();
        let used = extents.adapt(&used);
        assert_eq!(
            spans(&extents, stage_kind::MINI, used),
            [(0x1000, 0x4000), (0x15_0000, 0x15_2000), (0x1f_f000, 0x20_0000)]
        );
        assert_eq!(
            spans(&extents, stage_kind::USED, used),
            [(0, 0x1000), (0x4000, 0x1_0000), (0x8_0000, 0x8_f000), (0x15_2000, 0x17_0000)]
        );
        assert_eq!(
            spans(&extents, stage_kind::ALL, used),
            [(0x1_0000, 0x8_0000), (0x10_0000, 0x15_0000), (0x17_0000, 0x1f_f000)]
        );
        let behind: Vec<_> = extents.behind(stage_kind::MINI, None).map(|r| r.start).collect();
        assert_eq!(behind, [0, 0x4000, 0x10_0000, 0x15_2000]);
        let sum: u64 = [1, 2, 3]
            .iter()
            .flat_map(|&kind| spans(&extents, kind, used))
            .map(|(start, end)| end - start)
            .sum();
        assert_eq!(sum, extents.bytes());
    }

    #[test]
    fn memory_in_shreds_is_told_apart_more_coarsely() {
        let mut extents = Extents::empty();
        extents.add_ram(Range { start: 0, bytes: 1 << 30 }).unwrap();
        /// Every second grain is in use: 8192 runs.
        struct Even;
        impl UsedPages for Even {
            fn any_used(&self, range: Range) -> bool {
                range.bytes > GRAIN || (range.start / GRAIN).is_multiple_of(2)
            }
        }
        extents.settle();
        let used = extents.adapt(&Even);
        assert_eq!(spans(&extents, stage_kind::USED, used), [(0, 1 << 30)]);
    }

    #[test]
    fn a_full_list_makes_room_by_merging() {
        let mut extents = Extents::empty();
        extents.add_ram(Range { start: 0, bytes: 1 << 30 }).unwrap();
        // Pages that touch, twice as many as there are places; then single ones.
        for page in 0..2 * MAX_MINI as u64 {
            extents.add_mini(Range { start: page * PAGE_BYTES, bytes: PAGE_BYTES });
        }
        extents.add_mini(Range { start: 1 << 29, bytes: 1 });
        for page in 0..2 * MAX_MINI as u64 {
            extents.add_mini(Range { start: (1 << 28) + 2 * page * PAGE_BYTES, bytes: 1 });
        }
        extents.settle();
        let runs: Vec<_> = extents.runs(stage_kind::MINI, None).collect();
        assert_eq!(runs[0], Range { start: 0, bytes: 2 * MAX_MINI as u64 * PAGE_BYTES });
        assert!(runs.iter().any(|run| run.start == 1 << 29));
        assert!(runs.len() > MAX_MINI / 2, "{}", runs.len());
    }

    #[test]
    fn ranges_are_sorted_whatever_their_order() {
        let mut state = 7u64;
        for length in 0..70 {
            let mut ranges: Vec<_> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    Range { start: state >> 58, bytes: 1 }
                })
                .collect();
            let mut expected: Vec<_> = ranges.iter().map(|range| range.start).collect();
            expected.sort_unstable();
            sort(&mut ranges);
            assert!(ranges.iter().map(|range| range.start).eq(expected));
        }
    }
}
