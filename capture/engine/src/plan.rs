//! What goes into the dump: every page of RAM, but the reserved region's and those that are
//! never dumped.

use handoff::facts::{MAX_NEVER_DUMP, MAX_RANGES, memory_kind};
use handoff::{MemoryRange, NeverDump, Range};
use vmcore_format::PAGE_BYTES;
use vmcore_format::notes::{ExcludedRange, excluded_reason};

use crate::extents::{Extents, TooManyRangesError};

/// Most excluded ranges: every entry of the map, the region, what is never dumped, and the
/// torn pages at both ends of every RAM entry.
pub const MAX_EXCLUDED: usize = 3 * MAX_RANGES + 1 + MAX_NEVER_DUMP;

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

    /// Adds `memory`, which is sorted and free of overlaps, without `region` and without
    /// what is never dumped. It is cut at `split`, the appliance's ELF header, so that a
    /// debugger finds the image at the start of a segment.
    ///
    /// # Errors
    /// When there are more pieces than the plan has room for.
    pub fn fill(
        &mut self,
        memory: &[MemoryRange],
        region: Range,
        never: &[NeverDump],
        split: u64,
    ) -> Result<(), TooManyRangesError> {
        for entry in memory {
            match entry.kind {
                memory_kind::RAM => self.add_ram(entry.range, region, never, split)?,
                kind => self.exclude(entry.range, reason(kind))?,
            }
        }
        Ok(())
    }

    fn add_ram(
        &mut self,
        range: Range,
        region: Range,
        never: &[NeverDump],
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
            let holes = never.iter().map(|never| (never.range, excluded_reason::NEVER_DUMP));
            let hole = holes
                .chain([(region, excluded_reason::CAPTURE_REGION)])
                .filter(|(hole, _)| hole.bytes > 0 && hole.overlaps(&rest))
                .min_by_key(|(hole, _)| hole.start);
            let Some((hole, reason)) = hole else {
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

const fn reason(kind: u32) -> u64 {
    match kind {
        memory_kind::ACPI | memory_kind::ACPI_NVS => excluded_reason::FIRMWARE,
        memory_kind::BAD => excluded_reason::BAD,
        _ => excluded_reason::NOT_RAM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: u64, end: u64, kind: u32) -> MemoryRange {
        MemoryRange { range: Range::between(start, end), kind, reserved: 0 }
    }

    fn plan(map: &[MemoryRange], split: u64) -> Plan {
        let mut plan = Plan::empty();
        plan.fill(map, REGION, &[], split).unwrap();
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
            entry(0, 0x9_fc00, memory_kind::RAM),
            entry(0xf_0000, 0x10_0000, memory_kind::RESERVED),
            entry(0x10_0000, 0x1ffe_0000, memory_kind::RAM),
            entry(0x1ffe_0000, 0x2000_0000, memory_kind::ACPI),
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
            let plan = plan(&[entry(start, end, memory_kind::RAM)], 0);
            assert_eq!(plan.extents.ram().len(), 1);
            assert_eq!(plan.extents.bytes(), end - start - REGION.bytes);
        }
        let map = [entry(REGION.start, REGION.end(), memory_kind::RAM)];
        let plan = plan(&map, 0);
        assert_eq!((plan.extents.ram().len(), plan.excluded.len()), (0, 1));
    }

    #[test]
    fn what_is_never_dumped_is_cut_out() {
        let never = |start, end| NeverDump { range: Range::between(start, end), name: [0; 16] };
        let map = [entry(0x10_0000, 0x900_0000, memory_kind::RAM)];
        // One alone, two that overlap, one in the region, one at the end, one of nothing.
        let ranges = [
            never(0x20_0000, 0x20_2000),
            never(0x18_2000, 0x18_3000),
            never(0x18_1000, 0x18_2800),
            never(0x400_0000, 0x400_1000),
            never(0x8ff_f000, 0x1000_0000),
            never(0x30_0000, 0x30_0000),
        ];
        let mut plan = Plan::empty();
        plan.fill(&map, REGION, &ranges, 0).unwrap();
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
            let map = [entry(0x10_0000, 0x200_0000, memory_kind::RAM)];
            assert_eq!(plan(&map, split).extents.ram().len(), 1, "{split:#x}");
        }
    }

    #[test]
    fn less_than_a_page_is_left_out() {
        let map =
            [entry(0x1800, 0x2800, memory_kind::RAM), entry(0x3000, 0x3fff, memory_kind::RAM)];
        let plan = plan(&map, 0);
        assert!(plan.extents.ram().is_empty());
        assert_eq!(excluded(&plan).len(), 2);
    }

    #[test]
    fn every_byte_is_either_loaded_or_excluded() {
        let map: Vec<_> = (0..MAX_RANGES as u64)
            .map(|n| entry(n * 0x10_0000 + 0x7ff, (n + 1) * 0x10_0000 - 3, memory_kind::RAM))
            .collect();
        let plan = plan(&map, 0x103_0000);
        let sum = plan.extents.bytes() + plan.excluded.iter().map(|e| e.bytes).sum::<u64>();
        assert_eq!(sum, map.iter().map(|entry| entry.range.bytes).sum::<u64>());
    }
}
