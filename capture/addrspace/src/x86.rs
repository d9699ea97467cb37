//! x86-64: 4-level and 5-level paging.
//!
//! Sections and tables are those of the Intel Software Developer's Manual (SDM), volume 3A,
//! chapter "Paging": the hierarchy in "4-Level Paging and 5-Level Paging", entry formats in
//! the tables "Format of a PML5 Entry" to "Format of a Page-Table Entry that Maps a 4-KByte
//! Page".

use crate::rights::{Access, Attributes, Rights};
use crate::walk::{Area, Entry, INDEX_MASK, Level, Page, Position, Refusal, WalkError, shift};
use crate::{AddressSpace, Unsupported};

/// CR0.PG, bit 31: paging is on. SDM "Control Registers".
const CR0_PG: u64 = 1 << 31;
/// CR4.LA57, bit 12: 5-level paging. SDM "Control Registers".
const CR4_LA57: u64 = 1 << 12;
/// EFER.LMA, bit 10: long mode is active. SDM "Extended Feature Enable Register".
const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE, bit 11: bit 63 of an entry means execute-disable; otherwise it is reserved.
const EFER_NXE: u64 = 1 << 11;

/// Address bits of an entry and of CR3, 51:12. The low bits of CR3 (PWT and PCD, or the
/// PCID) and its LAM bits 62:61 are no part of the address. SDM "Use of CR3 with 4-Level
/// Paging and 5-Level Paging".
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Widest physical address of the architecture in bits (MAXPHYADDR is at most 52).
const WIDEST: u8 = 52;

/// P: present.
const PRESENT: u64 = 1;
/// R/W: writes are allowed.
const WRITABLE: u64 = 1 << 1;
/// U/S: user-mode accesses are allowed.
const USER: u64 = 1 << 2;
/// PWT and PCD, bits 3 and 4: bits 0 and 1 of the index into the PAT. SDM "Paging and Memory
/// Typing When the PAT is Supported".
const CACHING_SHIFT: u32 = 3;
/// A: accessed. SDM "Accessed and Dirty Flags".
const ACCESSED: u64 = 1 << 5;
/// D: dirty; entries that map a page only.
const DIRTY: u64 = 1 << 6;
/// PS: the entry maps a page. Reserved in a PML4 or PML5 entry.
const PAGE_SIZE: u64 = 1 << 7;
/// PAT of an entry that maps 4 KiB: bit 2 of the index into the PAT.
const PAT_4K: u64 = 1 << 7;
/// G: global; entries that map a page only.
const GLOBAL: u64 = 1 << 8;
/// PAT of an entry that maps 2 MiB or 1 GiB.
const PAT_LARGE: u64 = 1 << 12;
/// XD: execute-disable.
const NO_EXECUTE: u64 = 1 << 63;

/// Properties of the CPU that no control register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width of physical addresses in bits (MAXPHYADDR): `CPUID.80000008H:EAX[7:0]`. With memory
    /// encryption of AMD the width that is left, less `CPUID.8000001FH:EBX[11:6]`. Values above
    /// 52 count as 52. Address bits from here up are reserved in every entry.
    pub physical_bits: u8,
    /// Bits of an entry and of CR3 that select encryption and are no part of the address: bit
    /// `CPUID.8000001FH:EBX[5:0]` of AMD SEV and SME. 0 without memory encryption.
    pub encryption_mask: u64,
}

impl Default for Limits {
    /// Returns the limits of the architecture, for a CPU of which nothing more is known: 52
    /// bits, no encryption.
    fn default() -> Self {
        Self { physical_bits: WIDEST, encryption_mask: 0 }
    }
}

/// Address space of an x86-64 CPU in long mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X86 {
    /// Physical address of the root table.
    root: u64,
    /// LA57: five levels instead of four.
    five_levels: bool,
    /// NXE: bit 63 means execute-disable.
    no_execute: bool,
    physical_bits: u8,
    /// Address bits without the encryption mask.
    address_mask: u64,
}

impl X86 {
    /// Returns the address space that these control registers select.
    ///
    /// [`AddressSpace::Identity`] when paging is off. The PCID, caching and LAM bits of `cr3`
    /// are ignored.
    ///
    /// # Errors
    /// [`Unsupported::LegacyPaging`] when paging is on outside of long mode.
    pub fn from_registers(
        cr0: u64,
        cr3: u64,
        cr4: u64,
        efer: u64,
        limits: Limits,
    ) -> Result<AddressSpace, Unsupported> {
        if cr0 & CR0_PG == 0 {
            return Ok(AddressSpace::Identity);
        }
        if efer & EFER_LMA == 0 {
            return Err(Unsupported::LegacyPaging);
        }
        let address_mask = ADDRESS & !limits.encryption_mask;
        Ok(AddressSpace::X86(Self {
            root: cr3 & address_mask,
            five_levels: cr4 & CR4_LA57 != 0,
            no_execute: efer & EFER_NXE != 0,
            physical_bits: limits.physical_bits.min(WIDEST),
            address_mask,
        }))
    }

    /// Returns the width of a virtual address in bits: 48 or 57.
    fn virtual_bits(&self) -> u32 {
        if self.five_levels { 57 } else { 48 }
    }

    /// Returns the root table, or an error for an address that is not canonical: bits from
    /// the highest translated one up are copies of it (SDM volume 1, "Canonical Addressing").
    pub(crate) fn root<E>(&self, address: u64) -> Result<Position, WalkError<E>> {
        let sign = address as i64 >> (self.virtual_bits() - 1);
        if sign != 0 && sign != -1 {
            return Err(WalkError::NonCanonical { address });
        }
        if self.is_outside(self.root) {
            return Err(WalkError::OutsidePhysicalWidth {
                level: Level::Root,
                address: self.root,
                width: self.physical_bits,
            });
        }
        let height = if self.five_levels { 4 } else { 3 };
        Ok(Position { table: self.root, height, index_mask: INDEX_MASK, rights: Rights::ALL })
    }

    /// Returns the rest of the half, or of the gap between the halves, that `address` is in.
    pub(crate) fn area(&self, address: u64) -> Area {
        let upper = u64::MAX << (self.virtual_bits() - 1);
        if address <= !upper {
            Area { walkable: true, last: !upper }
        } else if address < upper {
            Area { walkable: false, last: upper - 1 }
        } else {
            Area { walkable: true, last: u64::MAX }
        }
    }

    pub(crate) const fn level(height: u32) -> Level {
        match height {
            0 => Level::Pt,
            1 => Level::Pd,
            2 => Level::Pdpt,
            3 => Level::Pml4,
            _ => Level::Pml5,
        }
    }

    pub(crate) fn physical_bits(&self) -> u8 {
        self.physical_bits
    }

    pub(crate) fn upper(&self, value: u64, at: &Position) -> Result<Entry, Refusal> {
        let rights = self.rights(value, at.rights)?;
        let address = value & self.address_mask;
        if value & PAGE_SIZE == 0 {
            return if self.is_outside(address) {
                Err(Refusal::OutsidePhysicalWidth(address))
            } else {
                Ok(Entry::Table { address, rights })
            };
        }
        // Only a page directory and the table above it can map pages.
        if at.height > 2 {
            return Err(Refusal::ReservedBits(PAGE_SIZE));
        }
        let shift = shift(at.height);
        let below = address & ((1 << shift) - 1) & !PAT_LARGE;
        if below != 0 {
            return Err(Refusal::ReservedBits(below));
        }
        let pat = value & PAT_LARGE != 0;
        self.page(value, address & !PAT_LARGE, shift, pat, rights).map(Entry::Page)
    }

    pub(crate) fn lowest(&self, value: u64, rights: Rights) -> Result<Page, Refusal> {
        let rights = self.rights(value, rights)?;
        let pat = value & PAT_4K != 0;
        self.page(value, value & self.address_mask, shift(0), pat, rights)
    }

    /// Combines the rights of a present entry with those from above: an access needs the
    /// permission of every level. SDM "Access Rights".
    fn rights(&self, value: u64, above: Rights) -> Result<Rights, Refusal> {
        if value & PRESENT == 0 {
            return Err(Refusal::NotPresent);
        }
        let no_execute = value & NO_EXECUTE != 0;
        if no_execute && !self.no_execute {
            return Err(Refusal::ReservedBits(NO_EXECUTE));
        }
        let write = value & WRITABLE != 0;
        let user = value & USER != 0;
        let Rights { kernel, user: user_above } = above;
        Ok(Rights {
            kernel: Access {
                read: kernel.read,
                write: kernel.write && write,
                execute: kernel.execute && !no_execute,
            },
            user: Access {
                read: user_above.read && user,
                write: user_above.write && user && write,
                execute: user_above.execute && user && !no_execute,
            },
        })
    }

    fn page(
        &self,
        value: u64,
        base: u64,
        shift: u32,
        pat: bool,
        rights: Rights,
    ) -> Result<Page, Refusal> {
        if self.is_outside(base) {
            return Err(Refusal::OutsidePhysicalWidth(base));
        }
        let attributes = Attributes {
            global: value & GLOBAL != 0,
            accessed: value & ACCESSED != 0,
            dirty: Some(value & DIRTY != 0),
            memory_type: (value >> CACHING_SHIFT) as u8 & 3 | u8::from(pat) << 2,
        };
        Ok(Page { base, shift, rights, attributes })
    }

    fn is_outside(&self, address: u64) -> bool {
        address >> self.physical_bits != 0
    }
}
