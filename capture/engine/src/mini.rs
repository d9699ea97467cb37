//! What matters most: the first stage, a few MiB at any size of memory.

use handoff::crash::registers_from;
use handoff::{CpuRecord, CpuRecords, Range};
use vmcore_format::PAGE_BYTES;

use crate::extents::Extents;
use crate::input::{Appliance, OldMemory};

/// Of a stack that its CPU was not found on, and of memory around a stack pointer that lies
/// on no stack known: so much is taken on either side.
const AROUND: u64 = 16 << 10;
/// Page tables looked at. With 2 MiB pages that is enough for half a terabyte.
const MAX_TABLES: usize = 1024;

/// Adds to `extents` the image with its data, every CPU's stack and tables, the log, and
/// the records that lead to all of it.
pub fn add(extents: &mut Extents, crash: &Appliance, old: &dyn OldMemory) {
    let (facts, handoff) = (crash.facts, crash.handoff);
    for segment in facts.segments() {
        extents.add_mini(segment.range);
    }
    extents.add_mini(Range { start: handoff.cpus, bytes: handoff.cpus_bytes() as u64 });
    extents.add_mini(Range { start: handoff.log.address, bytes: handoff.log.capacity });
    let stamps =
        handoff.stamps.count.saturating_mul(size_of::<handoff::stamp::StampSlice>() as u64);
    extents.add_mini(Range { start: handoff.stamps.address, bytes: stamps });
    let trace = facts.trace;
    let rings = u64::from(trace.ring_bytes).saturating_mul(u64::from(trace.rings));
    extents.add_mini(Range { start: trace.address, bytes: rings });
    // All CPUs run in the same tables, unless something is very wrong.
    let mut seen = 0;
    for record in crash.cpus.iter().flat_map(CpuRecords::iter) {
        stack(extents, &record);
        let Some(registers) = record.x86() else { continue };
        let root = registers.cr3 & ADDRESS;
        if registers.cr3 != 0 && seen != root {
            seen = root;
            let levels = if registers.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            tables(extents, old, root, levels);
        }
    }
    extents.settle();
}

/// Page-table entries and control registers (Intel SDM volume 3A, §4.5 and §2.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const CR4_LA57: u64 = 1 << 12;

/// The stack of a CPU and what its registers point at.
fn stack(extents: &mut Extents, record: &CpuRecord) {
    extents.add_mini(record.stack);
    if record.registers_from == registers_from::NONE {
        return;
    }
    let Some(registers) = record.x86() else { return };
    for pointer in [registers.rsp, registers.rbp] {
        if !record.stack.holds(pointer, 1) {
            extents.add_mini(Range { start: pointer.saturating_sub(AROUND), bytes: 2 * AROUND });
        }
    }
    for pointer in [registers.gs_base, registers.gdt_base, registers.idt_base] {
        extents.add_mini(Range { start: pointer, bytes: PAGE_BYTES });
    }
}

/// The page tables below `root`, level by level, without recursion.
fn tables(extents: &mut Extents, old: &dyn OldMemory, root: u64, levels: u32) {
    let mut found: heapless::Vec<(u64, u32), MAX_TABLES> = heapless::Vec::new();
    // There is room for the first.
    let _ = found.push((root, levels));
    let mut at = 0;
    while let Some(&(table, level)) = found.get(at) {
        at += 1;
        extents.add_mini(Range { start: table, bytes: PAGE_BYTES });
        if level == 1 {
            continue;
        }
        old.words(table, &mut |entry| {
            let leaf = level <= 3 && entry & LARGE != 0;
            if entry & PRESENT != 0 && !leaf {
                // What finds no place is of the next stage.
                let _ = found.push((entry & ADDRESS, level - 1));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use handoff::{BootFacts, Handoff, X86Registers};
    use vmcore_format::area::stage_kind;

    use super::*;
    use crate::fake::appliance;

    /// Pages of page tables: address to entries.
    struct Tables(HashMap<u64, Vec<(usize, u64)>>);

    impl OldMemory for Tables {
        fn snapshot(&self, _: Range) -> Option<&'static [u8]> {
            None
        }

        fn trust(&self, _: &BootFacts) {}

        fn words(&self, page: u64, each: &mut dyn FnMut(u64)) {
            let mut words = [0; 512];
            for &(index, entry) in self.0.get(&page).into_iter().flatten() {
                words[index] = entry;
            }
            words.into_iter().for_each(each);
        }
    }

    #[test]
    fn stacks_tables_and_the_log_are_in_it() {
        let mut handoff = Handoff::new();
        handoff.log.address = 0x30_0100;
        handoff.log.capacity = 0x1000;
        let mut record = CpuRecord::new();
        record.stack = Range { start: 0x40_0000, bytes: 0x4000 };
        record.registers_from = registers_from::SELF;
        record.set_x86(&X86Registers {
            rsp: 0x40_3000,
            rbp: 0x60_0000,
            cr3: 0x50_0018,
            ..X86Registers::default()
        });
        // Of another architecture nothing but the stack is known.
        let mut foreign = record;
        foreign.architecture = 183;
        foreign.stack = Range { start: 0x90_0000, bytes: 0x1000 };
        let cpus = CpuRecords::of(Vec::leak(vec![record, record, foreign]));
        let crash = appliance(handoff, BootFacts::new(), Ok(cpus));
        let tables = Tables(HashMap::from([
            (0x50_0000, vec![(0, 0x50_1000 | PRESENT), (9, 0x51_0000)]),
            (0x50_1000, vec![(1, 0x50_2000 | PRESENT), (2, LARGE | PRESENT)]),
            (0x50_2000, vec![(3, 0x50_4000 | PRESENT), (4, 0x7000_0000 | LARGE | PRESENT)]),
            (0x50_4000, vec![(5, 0x7700_0000 | PRESENT)]),
        ]));
        let mut extents = Extents::empty();
        extents.add_ram(Range::between(0x10_0000, 0x1000_0000)).unwrap();
        add(&mut extents, &crash, &tables);
        let found: Vec<_> =
            extents.runs(stage_kind::MINI, None).map(|range| (range.start, range.end())).collect();
        assert_eq!(
            found,
            [
                (0x30_0000, 0x30_2000),
                (0x40_0000, 0x40_4000),
                (0x50_0000, 0x50_3000),
                (0x50_4000, 0x50_5000),
                (0x5f_c000, 0x60_4000),
                (0x90_0000, 0x90_1000),
            ]
        );
    }
}
