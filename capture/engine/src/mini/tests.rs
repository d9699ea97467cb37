use std::cell::Cell;
use std::collections::HashMap;

use handoff::crash::RegistersFrom;
use handoff::facts::MemoryKind;
use handoff::{BootFacts, CpuRecord, CpuRecords, Handoff, X86Registers};
use vmcore_format::area::stage_kind;

use super::*;
use crate::crash::{AArch64Control, Cpus, MemoryClass, MemoryRange, Stop, X86Control};
use crate::fake::{appliance, described};

/// Pages of page tables: address to entries.
struct Tables(HashMap<u64, Vec<(usize, u64)>>);

impl MemoryWords for Tables {
    fn word(&self, address: u64) -> Option<u64> {
        let entries = self.0.get(&(address / PAGE_BYTES * PAGE_BYTES))?;
        let index = (address % PAGE_BYTES / 8) as usize;
        Some(entries.iter().find(|(at, _)| *at == index).map_or(0, |(_, entry)| *entry))
    }

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
    record.registers_from = RegistersFrom::SELF;
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
    let mut facts = BootFacts::new();
    let ram = Range::between(0x10_0000, 0x1000_0000);
    facts.memory[0] = handoff::MemoryRange { range: ram, kind: MemoryKind::RAM, reserved: 0 };
    facts.memory_count = 1;
    let crash = appliance(handoff, facts, Ok(cpus));
    let tables = Tables(HashMap::from([
        (0x50_0000, vec![(0, 0x50_1000 | PRESENT), (9, 0x51_0000)]),
        (0x50_1000, vec![(1, 0x50_2000 | PRESENT), (2, LARGE | PRESENT)]),
        (0x50_2000, vec![(3, 0x50_4000 | PRESENT), (4, 0x7000_0000 | LARGE | PRESENT)]),
        (0x50_4000, vec![(5, 0x7700_0000 | PRESENT)]),
    ]));
    let mut extents = Extents::empty();
    extents.add_ram(ram).unwrap();
    add(&mut extents, &described(&crash), &tables);
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

/// Entry of a table that leads to another table, or to a page of 4 KiB.
fn entry(address: u64) -> u64 {
    address | PRESENT
}

/// Memory of a test, and the stack that its CPUs were given: five pages in the upper half,
/// over a border of 2 MiB.
const RAM: Range = Range { start: 0x10_0000, bytes: 0xff0_0000 };
const STACK: Range = Range { start: 0xffff_ffff_901f_e000, bytes: 0x5000 };
/// Where the pages of the stack lie; the fourth is mapped nowhere.
const PAGES: [u64; 5] = [0x20_0000, 0x90_3000, 0x20_1000, 0, 0x70_0000];

/// Runs the stage for one CPU with these registers and returns its memory.
fn mini_of(registers: Registers, identity: bool, tables: &Tables) -> Vec<(u64, u64)> {
    struct One(Cpu);

    impl Cpus for One {
        fn count(&self) -> usize {
            1
        }

        fn get(&self, number: usize) -> Option<Cpu> {
            (number == 0).then_some(self.0)
        }
    }

    let cpu = Cpu {
        index: 0,
        hardware_id: 0,
        stop: Stop::Stopped,
        origin: Origin::Stop,
        registers,
        stack: STACK,
    };
    let memory = [MemoryRange { range: RAM, source: RAM.start, class: MemoryClass::Ram }];
    let crash = Crash { cpus: &One(cpu), memory: &memory, identity, ..crate::fake::crash() };
    let mut extents = Extents::empty();
    extents.add_ram(RAM).unwrap();
    add(&mut extents, &crash, tables);
    extents.runs(stage_kind::MINI, None).map(|range| (range.start, range.end())).collect()
}

fn x86(top: u64, cr3: u64, levels: u32) -> Registers {
    let mut general = [0; 27];
    (general[19], general[4], general[GS_BASE]) = (top, top, top);
    let cr4 = 1 << 5 | if levels == 5 { CR4_LA57 } else { 0 };
    let control =
        X86Control { cr0: 1 << 31, cr3, cr4, efer: 1 << 10 | 1 << 8, gdt_base: top, idt_base: top };
    Registers::X86 { general, control: Some(control) }
}

/// Tables of x86-64 from 0x50_0000 on that map the stack.
fn scattered(levels: u32) -> Tables {
    // PML4, PDPT and PD, then two PTs.
    let mut tables = HashMap::from([
        (0x50_1000, vec![(511, entry(0x50_2000))]),
        (0x50_2000, vec![(510, entry(0x50_3000))]),
        (0x50_3000, vec![(128, entry(0x50_4000)), (129, entry(0x50_5000))]),
        (0x50_4000, vec![(510, entry(PAGES[0])), (511, entry(PAGES[1]))]),
        (0x50_5000, vec![(0, entry(PAGES[2])), (2, entry(PAGES[4]))]),
    ]);
    if levels == 5 {
        tables.insert(0x50_0000, vec![(511, entry(0x50_1000))]);
    }
    Tables(tables)
}

/// Whole pages of a stack that is nowhere one to one.
fn stack_pages() -> [(u64, u64); 3] {
    [(0x20_0000, 0x20_2000), (0x70_0000, 0x70_1000), (0x90_3000, 0x90_4000)]
}

#[test]
fn a_stack_in_the_upper_half_is_found_by_the_cpu_s_own_tables() {
    let [low, middle, high] = stack_pages();
    let top = STACK.start + 0x800;
    let four = mini_of(x86(top, 0x50_1000, 4), false, &scattered(4));
    assert_eq!(four, [low, (0x50_1000, 0x50_6000), middle, high]);
    let five = mini_of(x86(top, 0x50_0000, 5), false, &scattered(5));
    assert_eq!(five, [low, (0x50_0000, 0x50_6000), middle, high]);
    // Without the control registers nobody knows where it is.
    let Registers::X86 { general, .. } = x86(top, 0, 4) else { panic!() };
    let unknown = mini_of(Registers::X86 { general, control: None }, false, &scattered(4));
    assert!(unknown.is_empty());
}

#[test]
fn a_stack_of_aarch64_is_found_by_the_tables_of_its_half() {
    // TTBR1, 48 bits, granule of 4 KiB in both halves; descriptors of tables and pages.
    let table = |address: u64| address | 3;
    let tables = Tables(HashMap::from([
        (0x50_1000, vec![(511, table(0x50_2000))]),
        (0x50_2000, vec![(510, table(0x50_3000))]),
        (0x50_3000, vec![(128, table(0x50_4000)), (129, table(0x50_5000))]),
        (0x50_4000, vec![(510, table(PAGES[0])), (511, table(PAGES[1]))]),
        (0x50_5000, vec![(0, table(PAGES[2])), (2, table(PAGES[4]))]),
    ]));
    let mut general = [0; 34];
    (general[31], general[29]) = (STACK.start + 0x800, STACK.start + 0x900);
    let control = AArch64Control {
        sctlr: 1,
        tcr: 16 | 16 << 16 | 2 << 30 | 5 << 32,
        ttbr0: 0,
        ttbr1: 0x50_1000,
        id_aa64mmfr0: 5,
    };
    let found = mini_of(Registers::AArch64 { general, control: Some(control) }, false, &tables);
    let [low, middle, high] = stack_pages();
    // The tables that lead to both ends of the stack.
    assert_eq!(found, [low, (0x50_1000, 0x50_6000), middle, high]);
}

/// Tables that count how often they are read.
struct Counted<'a>(&'a Tables, Cell<u64>);

impl MemoryWords for Counted<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        self.1.set(self.1.get() + 1);
        self.0.word(address)
    }

    fn words(&self, page: u64, each: &mut dyn FnMut(u64)) {
        self.1.set(self.1.get() + 512);
        self.0.words(page, each);
    }
}

#[test]
fn tables_that_lead_to_themselves_or_nowhere_cost_a_bounded_time() {
    let top = STACK.start + 0x800;
    let all = |value: fn(u64) -> u64| {
        let pages = (0..64_u64).map(|page| 0x50_0000 + page * PAGE_BYTES);
        let words = |page| (0..512).map(|index| (index, value(page + index as u64 * 8))).collect();
        Tables(pages.map(|page| (page, words(page))).collect())
    };
    let looping = all(|_| entry(0x50_0000));
    let crossing = all(|at| entry(0x50_0000 + at * 7919 % 64 * PAGE_BYTES));
    let garbage = all(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let outside = all(|_| u64::MAX);
    for tables in [looping, crossing, garbage, outside, Tables(HashMap::new())] {
        for levels in [4, 5] {
            for origin in [0x50_0000, 0xffff_ffff_f000] {
                let counted = Counted(&tables, Cell::new(0));
                let crash = Crash { cpus: &Many(x86(top, origin, levels)), ..crate::fake::crash() };
                add(&mut Extents::empty(), &crash, &counted);
                // All tables once, and six ranges of each CPU.
                let most = 512 * MAX_TABLES as u64 + 512 * 6 * (u64::from(MOST_READS) + 10);
                assert!(counted.1.get() <= most, "{} of {most}", counted.1.get());
            }
        }
    }

    /// Hundreds of CPUs with the same registers, and stacks of all memory.
    struct Many(Registers);

    impl Cpus for Many {
        fn count(&self) -> usize {
            512
        }

        fn get(&self, number: usize) -> Option<Cpu> {
            Some(Cpu {
                index: number as u32,
                hardware_id: number as u64,
                stop: Stop::Stopped,
                origin: Origin::Stop,
                registers: self.0,
                stack: Range { start: 0xffff_8000_0000_0000, bytes: u64::MAX },
            })
        }
    }
}

#[test]
fn damaged_tables_do_not_cost_a_stack_that_is_mapped_one_to_one() {
    let mut registers = x86(0x40_1000, 0x50_0000, 4);
    let Registers::X86 { general, .. } = &mut registers else { panic!() };
    general[4] = 0xffff_ffff_ffff_fff8;
    let looping = Tables(HashMap::from([(0x50_0000, vec![(0, entry(0x50_0000))])]));
    let found = mini_of(registers, true, &looping);
    assert_eq!(found, [(0x3f_d000, 0x40_5000), (0x50_0000, 0x50_1000)]);
    // Of a system that is mapped otherwise, the value says nothing.
    assert_eq!(mini_of(registers, false, &looping), [(0x50_0000, 0x50_1000)]);
}
