//! What goes into the dump: every page of RAM, but those that are withheld.

use vmcore_format::PAGE_BYTES;
use vmcore_format::notes::{ExcludedRange, excluded_reason};

use crate::crash::{Crash, MAX_RANGES, MAX_WITHHELD, MemoryClass, Range, Withheld};
use crate::extents::{Extents, TooManyRangesError};

/// Most excluded ranges: every entry of the map, what is withheld, and the torn pages at both
/// ends of every RAM entry.
pub const MAX_EXCLUDED: usize = 3 * MAX_RANGES + MAX_WITHHELD;

/// What is dumped, and what is not. Some 80 KiB, so it is filled where it lies and not
/// handed around.
pub struct Plan {
    /// The memory, by stages.
    pub extents: Extents,
    /// Memory that no stage holds, by address.
    pub excluded: heapless::Vec<ExcludedRange, MAX_EXCLUDED>,
}

impl Plan {
    /// A plan of nothing.
    #[must_use]
    pub const fn empty() -> Self {
        Self { extents: Extents::empty(), excluded: heapless::Vec::new() }
    }

    /// Adds the memory of `crash` without what is withheld. It is cut at the ELF header of the
    /// image, so that a debugger finds the image at the start of a segment.
    ///
    /// # Errors
    /// When there are more pieces than the plan has room for.
    pub fn fill(&mut self, crash: &Crash<'_>) -> Result<(), TooManyRangesError> {
        let split = crash.image.map_or(0, |image| image.elf_header);
        for entry in crash.memory {
            match entry.class {
                MemoryClass::Ram => self.add_ram(entry.range, crash.withheld, split)?,
                class => self.exclude(entry.range, class.excluded())?,
            }
        }
        Ok(())
    }

    fn add_ram(
        &mut self,
        range: Range,
        withheld: &[Withheld],
        split: u64,
    ) -> Result<(), TooManyRangesError> {
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end() / PAGE_BYTES * PAGE_BYTES;
        if start >= end {
            return self.exclude(range, excluded_reason::NOT_RAM);
        }
        // A page that is RAM in part only is left out whole: the other part may be a
        // device's.
        self.exclude(Range::between(range.start, start), excluded_reason::NOT_RAM)?;
        let mut at = start;
        while at < end {
            let rest = Range::between(at, end);
            let hole = withheld
                .iter()
                .filter(|hole| hole.range.bytes > 0 && hole.range.overlaps(&rest))
                .min_by_key(|hole| hole.range.start);
            let Some(&Withheld { range: hole, reason }) = hole else {
                self.load(rest, split)?;
                break;
            };
            let hole_start = (hole.start / PAGE_BYTES * PAGE_BYTES).clamp(at, end);
            let hole_end = hole.end().checked_next_multiple_of(PAGE_BYTES).unwrap_or(end);
            let hole_end = hole_end.clamp(at, end);
            self.load(Range::between(at, hole_start), split)?;
            self.exclude(Range::between(hole_start, hole_end), reason)?;
            at = hole_end;
        }
        self.exclude(Range::between(end, range.end()), excluded_reason::NOT_RAM)
    }

    fn load(&mut self, range: Range, split: u64) -> Result<(), TooManyRangesError> {
        let inside = split.is_multiple_of(PAGE_BYTES) && split > range.start && split < range.end();
        let first = Range::between(range.start, if inside { split } else { range.end() });
        for part in [first, Range::between(first.end(), range.end())] {
            self.extents.add_ram(part)?;
        }
        Ok(())
    }

    fn exclude(&mut self, range: Range, reason: u64) -> Result<(), TooManyRangesError> {
        if range.bytes == 0 {
            return Ok(());
        }
        let excluded = ExcludedRange { start: range.start, bytes: range.bytes, reason };
        self.excluded.push(excluded).map_err(|_| TooManyRangesError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::{Image, MemoryRange};
    use crate::fake;

    fn entry(start: u64, end: u64, class: MemoryClass) -> MemoryRange {
        MemoryRange { range: Range::between(start, end), source: start, class }
    }

    fn plan(memory: &[MemoryRange], split: u64) -> Plan {
        plan_without(memory, &[], split)
    }

    fn plan_without(memory: &[MemoryRange], never: &[Range], split: u64) -> Plan {
        let image = Image {
            name: "",
            build_id: &[],
            elf_header: split,
            program_headers: 0,
            entry: 0,
            segments: &[],
        };
        let never =
            never.iter().map(|&range| Withheld { range, reason: excluded_reason::NEVER_DUMP });
        let region = Withheld { range: REGION, reason: excluded_reason::CAPTURE_REGION };
        let withheld: Vec<_> = never.chain([region]).collect();
        let mut plan = Plan::empty();
        let crash = Crash { memory, withheld: &withheld, image: Some(image), ..fake::crash() };
        plan.fill(&crash).unwrap();
        plan
    }

    fn loads(plan: &Plan) -> Vec<(u64, u64)> {
        plan.extents.ram().iter().map(|range| (range.start, range.end())).collect()
    }

    fn excluded(plan: &Plan) -> Vec<(u64, u64, u64)> {
        plan.excluded.iter().map(|e| (e.start, e.start + e.bytes, e.reason)).collect()
    }

    const REGION: Range = Range { start: 0x400_0000, bytes: 0x80_0000 };

    #[test]
    fn a_pc_is_cut_at_the_region_and_at_the_image() {
        let map = [
            entry(0, 0x9_fc00, MemoryClass::Ram),
            entry(0xf_0000, 0x10_0000, MemoryClass::NotRam),
            entry(0x10_0000, 0x1ffe_0000, MemoryClass::Ram),
            entry(0x1ffe_0000, 0x2000_0000, MemoryClass::Firmware),
        ];
        let plan = plan(&map, 0x100_0000);
        assert_eq!(
            loads(&plan),
            [
                (0, 0x9_f000),
                (0x10_0000, 0x100_0000),
                (0x100_0000, 0x400_0000),
                (0x480_0000, 0x1ffe_0000)
            ]
        );
        assert_eq!(
            excluded(&plan),
            [
                (0x9_f000, 0x9_fc00, excluded_reason::NOT_RAM),
                (0xf_0000, 0x10_0000, excluded_reason::NOT_RAM),
                (0x400_0000, 0x480_0000, excluded_reason::CAPTURE_REGION),
                (0x1ffe_0000, 0x2000_0000, excluded_reason::FIRMWARE),
            ]
        );
        assert_eq!(plan.extents.bytes(), 0x9_f000 + 0x1fee_0000 - 0x80_0000);
    }

    #[test]
    fn the_region_may_touch_either_end_or_all_of_an_entry() {
        for (start, end) in [(0x400_0000, 0x900_0000), (0x300_0000, 0x480_0000)] {
            let plan = plan(&[entry(start, end, MemoryClass::Ram)], 0);
            assert_eq!(plan.extents.ram().len(), 1);
            assert_eq!(plan.extents.bytes(), end - start - REGION.bytes);
        }
        let map = [entry(REGION.start, REGION.end(), MemoryClass::Ram)];
        let plan = plan(&map, 0);
        assert_eq!((plan.extents.ram().len(), plan.excluded.len()), (0, 1));
    }

    #[test]
    fn what_is_never_dumped_is_cut_out() {
        let never = Range::between;
        let map = [entry(0x10_0000, 0x900_0000, MemoryClass::Ram)];
        // One alone, two that overlap, one in the region, one at the end, one of nothing.
        let ranges = [
            never(0x20_0000, 0x20_2000),
            never(0x18_2000, 0x18_3000),
            never(0x18_1000, 0x18_2800),
            never(0x400_0000, 0x400_1000),
            never(0x8ff_f000, 0x1000_0000),
            never(0x30_0000, 0x30_0000),
        ];
        let plan = plan_without(&map, &ranges, 0);
        assert_eq!(
            loads(&plan),
            [
                (0x10_0000, 0x18_1000),
                (0x18_3000, 0x20_0000),
                (0x20_2000, 0x400_0000),
                (0x480_0000, 0x8ff_f000)
            ]
        );
        let sum = plan.extents.bytes() + plan.excluded.iter().map(|e| e.bytes).sum::<u64>();
        assert_eq!(sum, 0x8f0_0000);
    }

    #[test]
    fn a_header_on_no_page_boundary_or_at_an_edge_splits_nothing() {
        for split in [0x100_0008, 0x10_0000, 0x200_0000, 0x300_0000] {
            let map = [entry(0x10_0000, 0x200_0000, MemoryClass::Ram)];
            assert_eq!(plan(&map, split).extents.ram().len(), 1, "{split:#x}");
        }
    }

    #[test]
    fn less_than_a_page_is_left_out() {
        let map =
            [entry(0x1800, 0x2800, MemoryClass::Ram), entry(0x3000, 0x3fff, MemoryClass::Ram)];
        let plan = plan(&map, 0);
        assert!(plan.extents.ram().is_empty());
        assert_eq!(excluded(&plan).len(), 2);
    }

    #[test]
    fn every_byte_is_either_loaded_or_excluded() {
        let map: Vec<_> = (0..MAX_RANGES as u64)
            .map(|n| entry(n * 0x10_0000 + 0x7ff, (n + 1) * 0x10_0000 - 3, MemoryClass::Ram))
            .collect();
        let plan = plan(&map, 0x103_0000);
        let sum = plan.extents.bytes() + plan.excluded.iter().map(|e| e.bytes).sum::<u64>();
        assert_eq!(sum, map.iter().map(|entry| entry.range.bytes).sum::<u64>());
    }
}
