//! What goes into the dump: every page of RAM but the reserved region's.

use handoff::facts::{MAX_RANGES, memory_kind};
use handoff::{MemoryRange, Range};
use vmcore_format::PAGE_BYTES;
use vmcore_format::core::LoadSegment;
use vmcore_format::notes::{ExcludedRange, excluded_reason};

/// Most segments: one per entry of the map, one more where the region cuts an entry in
/// two, one more where the appliance's ELF header does.
pub const MAX_SEGMENTS: usize = MAX_RANGES + 2;
/// Most excluded ranges: every entry of the map, the region, and the torn pages at both
/// ends of every RAM entry.
pub const MAX_EXCLUDED: usize = 3 * MAX_RANGES + 1;

/// ELF `p_flags` of dumped memory: readable, writable, executable. The crashed system's
/// own protections are in its page tables, which are in the dump.
const FLAGS: u32 = 7;

/// What is written, in the order of the file, and what is not. Some 15 KiB, so it is
/// filled where it lies and not handed around.
#[derive(Debug)]
pub struct Plan {
    /// The PT_LOADs, by address.
    pub segments: heapless::Vec<LoadSegment, MAX_SEGMENTS>,
    /// Memory in no PT_LOAD, by address.
    pub excluded: heapless::Vec<ExcludedRange, MAX_EXCLUDED>,
}

/// The map has more pieces than a plan has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl core::fmt::Display for TooMany {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the memory map has too many pieces")
    }
}

impl Plan {
    /// A plan of nothing.
    #[must_use]
    pub const fn empty() -> Self {
        Self { segments: heapless::Vec::new(), excluded: heapless::Vec::new() }
    }

    /// Adds the dump of `memory`, which is sorted and free of overlaps, without `region`.
    /// A segment of its own starts at `split`, the appliance's ELF header, so that a
    /// debugger finds the image there.
    ///
    /// # Errors
    /// When there are more pieces than the plan has room for.
    pub fn fill(
        &mut self,
        memory: &[MemoryRange],
        region: Range,
        split: u64,
    ) -> Result<(), TooMany> {
        for entry in memory {
            match entry.kind {
                memory_kind::RAM => self.add_ram(entry.range, region, split)?,
                kind => self.exclude(entry.range, reason(kind))?,
            }
        }
        Ok(())
    }

    fn add_ram(&mut self, range: Range, region: Range, split: u64) -> Result<(), TooMany> {
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end() / PAGE_BYTES * PAGE_BYTES;
        if start >= end {
            return self.exclude(range, excluded_reason::NOT_RAM);
        }
        // A page that is RAM in part only is left out whole: the other part may be a
        // device's.
        self.exclude(Range::between(range.start, start), excluded_reason::NOT_RAM)?;
        let pages = Range::between(start, end);
        let hole_start = (region.start / PAGE_BYTES * PAGE_BYTES).clamp(start, end);
        let hole_end = region.end().next_multiple_of(PAGE_BYTES).clamp(start, end);
        if pages.overlaps(&region) {
            self.load(Range::between(start, hole_start), split)?;
            let hole = Range::between(hole_start, hole_end);
            self.exclude(hole, excluded_reason::CAPTURE_REGION)?;
            self.load(Range::between(hole_end, end), split)?;
        } else {
            self.load(pages, split)?;
        }
        self.exclude(Range::between(end, range.end()), excluded_reason::NOT_RAM)
    }

    fn load(&mut self, range: Range, split: u64) -> Result<(), TooMany> {
        let inside = split.is_multiple_of(PAGE_BYTES) && split > range.start && split < range.end();
        let first = Range::between(range.start, if inside { split } else { range.end() });
        for part in [first, Range::between(first.end(), range.end())] {
            if part.bytes > 0 {
                let segment = LoadSegment {
                    virtual_address: part.start,
                    physical_address: part.start,
                    file_bytes: part.bytes,
                    memory_bytes: part.bytes,
                    flags: FLAGS,
                };
                self.segments.push(segment).map_err(|_| TooMany)?;
            }
        }
        Ok(())
    }

    fn exclude(&mut self, range: Range, reason: u64) -> Result<(), TooMany> {
        if range.bytes == 0 {
            return Ok(());
        }
        let excluded = ExcludedRange { start: range.start, bytes: range.bytes, reason };
        self.excluded.push(excluded).map_err(|_| TooMany)
    }

    /// Bytes of memory in the dump.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes).sum()
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
        plan.fill(map, REGION, split).unwrap();
        plan
    }

    fn loads(plan: &Plan) -> Vec<(u64, u64)> {
        let of = |s: &LoadSegment| (s.physical_address, s.physical_address + s.file_bytes);
        plan.segments.iter().map(of).collect()
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
        assert_eq!(plan.memory_bytes(), 0x9_f000 + 0x1fee_0000 - 0x80_0000);
    }

    #[test]
    fn the_region_may_touch_either_end_or_all_of_an_entry() {
        for (start, end) in [(0x400_0000, 0x900_0000), (0x300_0000, 0x480_0000)] {
            let plan = plan(&[entry(start, end, memory_kind::RAM)], 0);
            assert_eq!(plan.segments.len(), 1);
            assert_eq!(plan.memory_bytes(), end - start - REGION.bytes);
        }
        let map = [entry(REGION.start, REGION.end(), memory_kind::RAM)];
        let plan = plan(&map, 0);
        assert_eq!((plan.segments.len(), plan.excluded.len()), (0, 1));
    }

    #[test]
    fn a_header_on_no_page_boundary_or_at_an_edge_splits_nothing() {
        for split in [0x100_0008, 0x10_0000, 0x200_0000, 0x300_0000] {
            let map = [entry(0x10_0000, 0x200_0000, memory_kind::RAM)];
            assert_eq!(plan(&map, split).segments.len(), 1, "{split:#x}");
        }
    }

    #[test]
    fn less_than_a_page_is_left_out() {
        let map =
            [entry(0x1800, 0x2800, memory_kind::RAM), entry(0x3000, 0x3fff, memory_kind::RAM)];
        let plan = plan(&map, 0);
        assert!(plan.segments.is_empty());
        assert_eq!(excluded(&plan).len(), 2);
    }

    #[test]
    fn every_byte_is_either_loaded_or_excluded() {
        let map: Vec<_> = (0..MAX_RANGES as u64)
            .map(|n| entry(n * 0x10_0000 + 0x7ff, (n + 1) * 0x10_0000 - 3, memory_kind::RAM))
            .collect();
        let plan = plan(&map, 0x103_0000);
        let sum = plan.memory_bytes() + plan.excluded.iter().map(|e| e.bytes).sum::<u64>();
        assert_eq!(sum, map.iter().map(|entry| entry.range.bytes).sum::<u64>());
    }
}
