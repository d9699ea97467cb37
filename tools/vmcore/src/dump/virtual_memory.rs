//! Memory by the virtual addresses of a CPU.
//!
//! An address is translated by the page tables of the CPU when they are in the dump and agree
//! with its records, and by the program headers (`p_vaddr`) otherwise. A dump that says nothing
//! of virtual addresses is mapped one to one. Page tables are untrusted: a translation takes
//! five reads at most, and tables that contradict the records are not used.

use std::cell::{Cell, RefCell};

use addrspace::{AddressSpace, Extent, PhysicalMemory, Steps, Walk, WalkError, X86, x86};
use handoff::CpuRecord;
use handoff::crash::RegistersFrom;
use serde::{Deserialize, Serialize};

use super::{Dump, Memory, MemoryFault};
use crate::commands::extract::Mapped;
use crate::json::Hex;

/// EFER.LMA, bit 10: long mode is active (SDM "Extended Feature Enable Register"). A CPU with
/// registers of x86-64 was in it; a record without the bit has no control registers.
const EFER_LMA: u64 = 1 << 10;

/// The way in which virtual addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Translation {
    /// By the page tables of the CPU.
    PageTables,
    /// By the program headers of the dump.
    ProgramHeaders,
}

/// A page that is mapped and whose memory is not in the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPage {
    /// Virtual address that was asked for.
    pub virtual_address: Hex,
    /// Physical address that it maps to.
    pub physical_address: Hex,
}

/// Memory of a dump by the virtual addresses of one CPU.
#[derive(Debug)]
pub struct VirtualMemory<'a> {
    dump: &'a Dump,
    tables: Option<AddressSpace>,
    /// The first reason for which page tables were not used.
    refusal: RefCell<Option<String>>,
    missing: Cell<Option<MissingPage>>,
    damaged: Cell<Option<u64>>,
}

/// Physical memory for the walker of page tables.
struct Physical<'a>(&'a Dump);

impl PhysicalMemory for Physical<'_> {
    type Error = MemoryFault;

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.0.read(address, buffer)
    }
}

impl Dump {
    /// Returns the memory of the dump by the virtual addresses of a CPU.
    #[must_use]
    pub fn virtual_memory(&self, cpu: &CpuRecord) -> VirtualMemory<'_> {
        let (tables, refusal) = match tables(self, cpu) {
            Ok(tables) => (tables, None),
            Err(why) => (None, Some(why)),
        };
        VirtualMemory {
            dump: self,
            tables,
            refusal: RefCell::new(refusal),
            missing: Cell::new(None),
            damaged: Cell::new(None),
        }
    }

    /// Returns where the records say that the image lies: virtual and physical addresses of its
    /// segments.
    fn image_mappings(&self) -> Vec<(u64, u64)> {
        let Some(facts) = &self.facts else { return Vec::new() };
        match facts.virtual_segments() {
            [] => {
                let starts = facts.segments().iter().map(|segment| segment.range.start);
                starts.map(|start| (start, start)).collect()
            }
            segments => {
                let pair = |segment: &handoff::facts::VirtualSegment| {
                    (segment.virtual_start, segment.physical_start)
                };
                segments.iter().map(pair).collect()
            }
        }
    }

    /// Translates a virtual address by the program headers: its physical address, and the bytes
    /// up to the end of the segment.
    fn by_program_headers(&self, address: u64) -> Option<(u64, u64)> {
        let behind = self.by_virtual.partition_point(|load| load.virtual_address <= address);
        let load = self.by_virtual.get(behind.checked_sub(1)?)?;
        let inside = address - load.virtual_address;
        let left = load.memory_bytes.checked_sub(inside).filter(|&left| left > 0)?;
        Some((load.physical_address.checked_add(inside)?, left))
    }
}

/// Returns the address space of a CPU; `None` when nothing is known of it, or its tables are
/// not in the dump.
///
/// The tables have to map the image where the records say that it is, so that tables that loop
/// or were written over are found out before a stack is read by them.
///
/// # Errors
/// The reason for which the tables are not used.
fn tables(dump: &Dump, cpu: &CpuRecord) -> Result<Option<AddressSpace>, String> {
    let Some(registers) = cpu.x86().filter(|_| cpu.registers_from != RegistersFrom::NONE) else {
        return Ok(None);
    };
    if registers.efer & EFER_LMA == 0 {
        return Ok(None);
    }
    let limits = x86::Limits::default();
    let (cr0, cr3, cr4) = (registers.cr0, registers.cr3, registers.cr4);
    let space = X86::from_registers(cr0, cr3, cr4, registers.efer, limits)
        .map_err(|why| why.to_string())?;
    if space == AddressSpace::Identity {
        return Ok(None);
    }
    let translate = |address| space.translate(&Physical(dump), address);
    let image = dump.image_mappings();
    let mut trouble = None;
    for &(address, physical) in &image {
        match translate(address) {
            Ok(walk) if walk.physical == physical => return Ok(Some(space)),
            Ok(walk) => {
                let found = walk.physical;
                return Err(format!(
                    "they map the image's {address:#x} to {found:#x}, where the dump's records \
                     say {physical:#x}"
                ));
            }
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    if image.is_empty() {
        for address in [registers.rsp, registers.rip, cpu.stack.start] {
            match translate(address) {
                Ok(_) => return Ok(Some(space)),
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
    }
    match trouble {
        Some(error) if !is_absent(&error) => Err(error.to_string()),
        _ => Ok(None),
    }
}

/// Returns true if a translation failed because a table is not in the dump.
const fn is_absent(error: &WalkError<MemoryFault>) -> bool {
    matches!(error, WalkError::Unreadable { error: MemoryFault::NotInDump(_), .. })
}

impl VirtualMemory<'_> {
    /// Returns how addresses are translated.
    #[must_use]
    pub const fn translation(&self) -> Translation {
        match self.tables {
            Some(_) => Translation::PageTables,
            None => Translation::ProgramHeaders,
        }
    }

    /// Returns why page tables were not used, for all addresses or for one of them; `None` when
    /// they were, or are not in the dump.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.refusal.borrow().clone()
    }

    /// Returns the first page that was asked for, is mapped, and is not in the dump.
    #[must_use]
    pub const fn missing_page(&self) -> Option<MissingPage> {
        self.missing.get()
    }

    /// Returns the first virtual address that was asked for and whose memory is damaged.
    #[must_use]
    pub const fn damaged_at(&self) -> Option<u64> {
        self.damaged.get()
    }

    /// Walks the page tables of the CPU and leaves every entry that was visited in `steps`, also
    /// when the walk fails; `None` when there are no page tables to walk.
    pub fn walk(
        &self,
        address: u64,
        steps: &mut Steps,
    ) -> Option<Result<Walk, WalkError<MemoryFault>>> {
        let space = self.tables.as_ref()?;
        Some(space.translate_into(&Physical(self.dump), address, steps))
    }

    /// Calls `each` with what the page tables map from `first` to `last`, reading at most `reads`
    /// of their entries, until it returns false. Addresses that are not mapped, or whose tables are
    /// damaged or not in the dump, are left out.
    pub(crate) fn mapped(
        &self,
        first: u64,
        last: u64,
        reads: u32,
        each: &mut dyn FnMut(Mapped) -> bool,
    ) {
        let Some(space) = &self.tables else { return };
        for extent in space.runs(&Physical(self.dump), first, last, reads) {
            let Extent::Mapped(run) = extent else { continue };
            if !each(Mapped { first: run.first, last: run.last, physical: run.physical }) {
                return;
            }
        }
    }

    /// Returns true if both translate by the same page tables.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.tables == other.tables
    }

    /// Translates an address: its physical address, and the bytes for which that holds.
    fn place(&self, address: u64) -> Result<(u64, u64), MemoryFault> {
        match self.walk(address, &mut Steps::new()) {
            Some(Ok(walk)) => {
                let inside = address & (walk.page_size - 1);
                return Ok((walk.physical, walk.page_size - inside));
            }
            // Not mapped: the CPU itself would have faulted.
            Some(Err(error)) if error.is_unmapped() => {
                return Err(MemoryFault::NotInDump(address));
            }
            Some(Err(error)) if !is_absent(&error) => {
                self.refusal.borrow_mut().get_or_insert_with(|| error.to_string());
            }
            Some(Err(_)) | None => {}
        }
        let found = self.dump.by_program_headers(address);
        // Of a dump without virtual addresses all is mapped one to one.
        let identity = (address, u64::MAX - address);
        let one_to_one = self.dump.by_virtual.is_empty().then_some(identity);
        found.or(one_to_one).ok_or(MemoryFault::NotInDump(address))
    }
}

impl Memory for VirtualMemory<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        let mut address = address;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (physical, bytes) = self.place(address)?;
            let take = usize::try_from(bytes).unwrap_or(usize::MAX).clamp(1, rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(take);
            if let Err(fault) = self.dump.read(physical, now) {
                if let MemoryFault::NotInDump(physical) = fault {
                    let missing = MissingPage {
                        virtual_address: Hex(address),
                        physical_address: Hex(physical),
                    };
                    self.missing.set(self.missing.get().or(Some(missing)));
                } else {
                    self.damaged.set(self.damaged.get().or(Some(address)));
                }
                return Err(fault);
            }
            rest = later;
            if !rest.is_empty() {
                let next = address.checked_add(take as u64);
                address = next.ok_or(MemoryFault::NotInDump(address))?;
            }
        }
        Ok(())
    }
}
