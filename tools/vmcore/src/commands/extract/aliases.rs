//! The virtual addresses of memory that lies at several, or at none that the dump knows of.
//!
//! The capture image gives every piece of memory one virtual address, that of the image or of a
//! linear map, or none. Page tables map more: a stack of scattered pages, a heap. gdb and other
//! debuggers know program headers alone, so an extracted core has further ones, which point to
//! the bytes that are there already.

use std::collections::BTreeMap;

use vmcore_format::PAGE_BYTES;
use vmcore_format::core::{ALIAS, LoadSegment};

use super::layout::Load;
use crate::Dump;

/// Most aliases; the stacks come first, then everything by its address.
const MOST: usize = 16 << 10;
/// Most entries of page tables that are read for all of a CPU's address space, and for a stack.
const MOST_READS: u32 = 1 << 18;
const STACK_READS: u32 = 1 << 12;
/// Around the stack pointer of a CPU of whose stack nothing is known, bytes in either direction.
const AROUND: u64 = 64 << 10;

/// Returns the aliases of `loads`, which are sorted by physical address: memory that the page
/// tables of a CPU map at addresses that no program header has. Where CPUs differ, the one that
/// crashed is right, and then the first.
pub(super) fn find(dump: &Dump, loads: &[Load]) -> Vec<(LoadSegment, u64)> {
    let mut aliases = Aliases { loads, taken: BTreeMap::new(), found: Vec::new() };
    for load in loads.iter().map(|load| &load.segment) {
        if load.virtual_address != 0 || load.physical_address == 0 {
            aliases.take(load.virtual_address, load.memory_bytes);
        }
    }
    let mut cpus: Vec<_> = dump.cpus.iter().collect();
    cpus.sort_by_key(|cpu| Some(cpu.index) != dump.crashed_cpu());
    let spaces: Vec<_> = cpus.iter().map(|cpu| dump.virtual_memory(cpu)).collect();
    for (cpu, space) in cpus.iter().zip(&spaces) {
        let pointer = cpu.x86().map_or(0, |registers| registers.rsp);
        let (first, last) = match cpu.stack.bytes {
            0 => (pointer.saturating_sub(AROUND), pointer.saturating_add(AROUND)),
            bytes => (cpu.stack.start, cpu.stack.start.saturating_add(bytes - 1)),
        };
        space.mapped(first, last, STACK_READS, &mut |run| aliases.add(run));
    }
    for (index, space) in spaces.iter().enumerate() {
        if !spaces[..index].iter().any(|other| other.is_same(space)) {
            space.mapped(0, u64::MAX, MOST_READS, &mut |run| aliases.add(run));
        }
    }
    aliases.found
}

/// Memory at virtual addresses that follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    /// Virtual address of the first byte.
    pub(crate) first: u64,
    /// Virtual address of the last byte.
    pub(crate) last: u64,
    /// Physical address of the first byte.
    pub(crate) physical: u64,
}

struct Aliases<'a> {
    loads: &'a [Load],
    /// Virtual addresses that have memory: first to last, without overlaps.
    taken: BTreeMap<u64, u64>,
    /// Program headers, and where their bytes are behind the header of the file.
    found: Vec<(LoadSegment, u64)>,
}

impl Aliases<'_> {
    fn take(&mut self, first: u64, bytes: u64) {
        if let Some(last) = bytes.checked_sub(1).and_then(|inside| first.checked_add(inside)) {
            let known = self.taken.entry(first).or_insert(last);
            *known = last.max(*known);
        }
    }

    /// Adds what the dump has of `run`, at addresses that are not taken. Returns false when there
    /// is no room for more.
    fn add(&mut self, run: Mapped) -> bool {
        let mut at = run.first;
        while self.found.len() < MOST {
            // The part from `at` on that is not taken, up to `end`.
            if let Some((_, &last)) = self.taken.range(..=at).next_back()
                && last >= at
            {
                match last.checked_add(1).filter(|&next| next <= run.last) {
                    Some(next) => at = next,
                    None => return true,
                }
                continue;
            }
            let next = self.taken.range(at..).next().map_or(u64::MAX, |(&first, _)| first - 1);
            let end = run.last.min(next);
            self.add_free(at, end, run.physical + (at - run.first));
            match end.checked_add(1).filter(|&next| next <= run.last) {
                Some(next) => at = next,
                None => return true,
            }
        }
        false
    }

    /// Adds the memory at the free addresses `first` to `last`.
    fn add_free(&mut self, first: u64, last: u64, physical: u64) {
        let end = physical.saturating_add(last - first).saturating_add(1);
        let from = self.loads.partition_point(|load| {
            load.segment.physical_address + load.segment.memory_bytes <= physical
        });
        for load in &self.loads[from..] {
            let of = &load.segment;
            let start = of.physical_address.max(physical);
            let behind = (of.physical_address + of.memory_bytes).min(end);
            if of.physical_address >= end || self.found.len() >= MOST {
                break;
            }
            let inside = start - of.physical_address;
            let virtual_address = first + (start - physical);
            // No program header reaches the last address.
            let reach = u64::MAX / PAGE_BYTES * PAGE_BYTES - virtual_address;
            let memory_bytes = (behind - start).min(reach);
            let segment = LoadSegment {
                virtual_address,
                physical_address: start,
                file_bytes: of.file_bytes.saturating_sub(inside).min(memory_bytes),
                memory_bytes,
                flags: of.flags | ALIAS,
            };
            if memory_bytes == 0 {
                continue;
            }
            let inside = if segment.file_bytes > 0 { inside } else { 0 };
            self.found.push((segment, load.offset + inside));
            self.take(segment.virtual_address, segment.memory_bytes);
        }
    }
}
