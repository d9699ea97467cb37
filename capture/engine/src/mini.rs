//! What matters most: the first stage, a few MiB at any size of memory.
//!
//! Stack pointers and the like are virtual addresses, which each CPU's own page tables lead
//! to memory. The tables may be damaged: every walk has an end, and where a walk leads
//! nowhere, the addresses that the crash itself names count: its virtual segments, and those of a
//! system that is mapped one to one.

use addrspace::{AddressSpace, Extent, PhysicalMemory, Steps};
use vmcore_format::PAGE_BYTES;

use crate::crash::{Cpu, Crash, MemoryWords, Origin, Range, Registers, Sources};
use crate::extents::Extents;

/// Of a stack that its CPU was not found on, and of memory around a stack pointer that lies
/// on no stack known: so much is taken on either side.
const AROUND: u64 = 16 << 10;
/// Bytes of a stack that are translated at most, from [`AROUND`] below the stack pointer
/// upwards.
const MOST_STACK: u64 = 1 << 20;
/// Page tables looked at, those of all CPUs together. With 2 MiB pages that is enough for half
/// a terabyte.
const MAX_TABLES: usize = 1024;
/// Entries of page tables that are read for one range at most: one for each page of
/// [`MOST_STACK`], and the levels above them twice.
const MOST_READS: u32 = (MOST_STACK / PAGE_BYTES) as u32 + 16;

/// Adds to `extents` what the crash names for the first stage, every CPU's stack and tables.
pub fn add(extents: &mut Extents, crash: &Crash<'_>, old: &dyn MemoryWords) {
    for &range in crash.mini {
        extents.add_mini(range);
    }
    let old = SourcedWords { old, sources: crash.sources() };
    // CPUs may share their tables, or all have their own.
    let mut tables = Tables { found: heapless::Vec::new(), looked_at: 0 };
    for cpu in crash.known_cpus() {
        let whole = match root(&cpu.registers) {
            Some((root, levels)) => {
                tables.add(root, levels);
                tables.look(extents, &old);
                !tables.found.is_full()
            }
            None => false,
        };
        let space = cpu.registers.space();
        let space = space.as_ref();
        let mut walk = Walk { extents: &mut *extents, crash, old: &old, space, whole };
        walk.stack(&cpu);
    }
    extents.settle();
}

/// Words of the crashed memory, by the addresses that they belong to.
struct SourcedWords<'a> {
    old: &'a dyn MemoryWords,
    sources: Sources<'a>,
}

/// Word that cannot be read.
struct Unreadable;

impl PhysicalMemory for SourcedWords<'_> {
    type Error = Unreadable;

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let source = self.sources.find(Range { start: address, bytes: 8 });
        let word = self.old.word(source.start).filter(|_| source.bytes == 8).ok_or(Unreadable)?;
        buffer.iter_mut().zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
        Ok(())
    }
}

/// Virtual addresses of one CPU on their way to memory.
struct Walk<'a> {
    extents: &'a mut Extents,
    crash: &'a Crash<'a>,
    old: &'a SourcedWords<'a>,
    /// `None` when it is not known.
    space: Option<&'a AddressSpace>,
    /// All page tables of the CPU are in the first stage already.
    whole: bool,
}

impl Walk<'_> {
    /// Adds the stack of a CPU and what its registers point at.
    fn stack(&mut self, cpu: &Cpu) {
        let pointers = match cpu.registers.stack_pointers() {
            Some(pointers) if cpu.origin != Origin::Nowhere => pointers,
            _ => return self.add(bounded(cpu.stack, cpu.stack.start)),
        };
        let [top, _] = pointers;
        let top = if cpu.stack.holds(top, 1) { top } else { cpu.stack.start };
        self.add(bounded(cpu.stack, top));
        for pointer in pointers {
            if !cpu.stack.holds(pointer, 1) {
                let start = pointer.saturating_sub(AROUND);
                self.add(Range { start, bytes: 2 * AROUND });
            }
        }
        if let Registers::X86 { general, control } = &cpu.registers {
            let tables = control.map_or([0; 2], |control| [control.gdt_base, control.idt_base]);
            for pointer in [general[GS_BASE], tables[0], tables[1]] {
                self.add(Range { start: pointer, bytes: PAGE_BYTES });
            }
        }
    }

    /// Adds the memory at the virtual addresses of `range`, and the page tables that lead to
    /// both its ends when not all tables are there.
    fn add(&mut self, range: Range) {
        let Some(last) = range.bytes.checked_sub(1) else { return };
        let last = range.start.saturating_add(last);
        let Some(space) = self.space else { return self.add_untranslated(range.start, last) };
        if !self.whole {
            for end in [range.start, last] {
                self.add_tables(space, end);
            }
        }
        // What is mapped lies between `next` and the ends of the runs; the rest is looked up
        // without tables.
        let mut next = range.start;
        for extent in space.runs(self.old, range.start, last, MOST_READS) {
            let Extent::Mapped(run) = extent else { continue };
            if let Some(before) = run.first.checked_sub(1) {
                self.add_untranslated(next, before);
            }
            self.add_ram(Range {
                start: run.physical,
                bytes: (run.last - run.first).saturating_add(1),
            });
            let Some(behind) = run.last.checked_add(1) else { return };
            next = behind;
        }
        self.add_untranslated(next, last);
    }

    /// Adds the page tables that lead to a virtual address, as far as they lead.
    fn add_tables(&mut self, space: &AddressSpace, address: u64) {
        let mut steps = Steps::new();
        // A walk that fails has visited tables as well.
        let _ = space.translate_into(self.old, address, &mut steps);
        for step in steps.iter() {
            self.add_ram(Range { start: step.entry, bytes: 8 });
        }
    }

    /// Adds the memory at virtual addresses that no page table translates: that of the crash's
    /// virtual segments, and of a system that is mapped one to one.
    fn add_untranslated(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        for segment in self.crash.virtual_segments {
            let offset = first.saturating_sub(segment.virtual_start);
            let start = segment.virtual_start.saturating_add(offset);
            if start <= last && offset < segment.range.bytes {
                let bytes = (last - start).saturating_add(1).min(segment.range.bytes - offset);
                self.add_ram(Range { start: segment.range.start.saturating_add(offset), bytes });
            }
        }
        if self.crash.identity {
            self.add_ram(Range::between(first, last.saturating_add(1)));
        }
    }

    /// Adds memory if any of it is RAM.
    fn add_ram(&mut self, range: Range) {
        if self.crash.ram().any(|entry| entry.range.overlaps(&range)) {
            self.extents.add_mini(range);
        }
    }
}

/// Word of the base of segment GS in `user_regs_struct`.
const GS_BASE: usize = 22;

/// Returns the part of a stack that is translated: all of it, unless it is larger than any that
/// is known; then what lies around `top` and above it.
fn bounded(stack: Range, top: u64) -> Range {
    if stack.bytes <= MOST_STACK {
        return stack;
    }
    let start = top.saturating_sub(AROUND).max(stack.start);
    Range::between(start, stack.end().min(start.saturating_add(MOST_STACK)))
}

/// Page-table entries and control registers (Intel SDM volume 3A, §4.5 and §2.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const CR4_LA57: u64 = 1 << 12;

/// Returns the root of a CPU's page tables and how many levels they have.
fn root(registers: &Registers) -> Option<(u64, u32)> {
    let Registers::X86 { control: Some(control), .. } = registers else { return None };
    let levels = if control.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    (control.cr3 != 0).then_some((control.cr3 & ADDRESS, levels))
}

/// Page tables that were found, with the level of each, in the order in which they are looked at.
struct Tables {
    found: heapless::Vec<(u64, u32), MAX_TABLES>,
    looked_at: usize,
}

impl Tables {
    /// Adds a root that was not found yet.
    fn add(&mut self, root: u64, levels: u32) {
        if !self.found.contains(&(root, levels)) {
            // What finds no place is of the next stage.
            let _ = self.found.push((root, levels));
        }
    }

    /// Looks at the tables that were not looked at yet and adds them and what is below them to
    /// `extents`, level by level, without recursion.
    fn look(&mut self, extents: &mut Extents, memory: &SourcedWords<'_>) {
        while let Some(&(table, level)) = self.found.get(self.looked_at) {
            self.looked_at += 1;
            extents.add_mini(Range { start: table, bytes: PAGE_BYTES });
            if level == 1 {
                continue;
            }
            let source = memory.sources.find(Range { start: table, bytes: PAGE_BYTES });
            memory.old.words(source.start, &mut |entry| {
                let leaf = level <= 3 && entry & LARGE != 0;
                if entry & PRESENT != 0 && !leaf {
                    let _ = self.found.push((entry & ADDRESS, level - 1));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
