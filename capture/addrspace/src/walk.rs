//! The walk from the root to a page, shared by both architectures.
//!
//! Tables of both have 512 entries of 8 bytes and cover 4 KiB, 2 MiB, 1 GiB, 512 GiB or
//! 256 TiB per entry. The *height* of a table counts from the bottom: 0 for entries that map
//! 4 KiB. An architecture decodes entries ([`Tables`]); this file does the rest.

use core::fmt;
use core::ops::Deref;

use crate::{AArch64, Attributes, PhysicalMemory, Rights, Unsupported, X86};

/// Most table entries that one translation reads: x86 with 5-level paging.
pub const MAX_LEVELS: usize = 5;

/// Lowest bit of a virtual address that selects an entry of a table at `height`, which is
/// also the binary logarithm of the bytes that the entry covers.
pub(crate) const fn shift(height: u32) -> u32 {
    12 + 9 * height
}

/// Index bits of a table that is not cut short: 512 entries.
pub(crate) const INDEX_MASK: u64 = 511;

/// Level of a page table, by the name its architecture uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The root register: CR3, TTBR0_EL1 or TTBR1_EL1.
    Root,
    /// x86: an entry covers 256 TiB.
    Pml5,
    /// x86: an entry covers 512 GiB.
    Pml4,
    /// x86: an entry covers 1 GiB.
    Pdpt,
    /// x86: an entry covers 2 MiB.
    Pd,
    /// x86: an entry covers 4 KiB.
    Pt,
    /// AArch64: an entry covers 512 GiB.
    Level0,
    /// AArch64: an entry covers 1 GiB.
    Level1,
    /// AArch64: an entry covers 2 MiB.
    Level2,
    /// AArch64: an entry covers 4 KiB.
    Level3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root register",
            Self::Pml5 => "PML5",
            Self::Pml4 => "PML4",
            Self::Pdpt => "PDPT",
            Self::Pd => "PD",
            Self::Pt => "PT",
            Self::Level0 => "level 0",
            Self::Level1 => "level 1",
            Self::Level2 => "level 2",
            Self::Level3 => "level 3",
        })
    }
}

/// Entry of a page table that a translation visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Level of the table.
    pub level: Level,
    /// Index of the entry in its table, 0 to 511.
    pub index: u16,
    /// Physical address of the entry.
    pub entry: u64,
    /// Raw value of the entry.
    pub value: u64,
    /// Rights after this entry: for the last one those of the page, for the others the most
    /// that a page below can have. An entry that is refused changes nothing.
    pub rights: Rights,
}

/// Entries that a translation visited, from the root down; dereferences to a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    steps: [Step; MAX_LEVELS],
    count: usize,
}

impl Steps {
    /// Returns an empty list, for
    /// [`AddressSpace::translate_into`](crate::AddressSpace::translate_into).
    #[must_use]
    pub const fn new() -> Self {
        let unused = Step { level: Level::Root, index: 0, entry: 0, value: 0, rights: Rights::ALL };
        Self { steps: [unused; MAX_LEVELS], count: 0 }
    }

    fn push(&mut self, step: Step) {
        if let Some(slot) = self.steps.get_mut(self.count) {
            *slot = step;
            self.count += 1;
        }
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Steps {
    type Target = [Step];

    fn deref(&self) -> &[Step] {
        self.steps.get(..self.count).unwrap_or_default()
    }
}

/// Result of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Virtual address that was translated.
    pub address: u64,
    /// Physical address that it maps to.
    pub physical: u64,
    /// Size of the page in bytes: 4 KiB, 2 MiB or 1 GiB. The page begins at `physical` (and
    /// at `address`) rounded down to it. Without translation 4 KiB.
    pub page_size: u64,
    /// Access that the tables grant.
    pub rights: Rights,
    /// Attributes in the last entry.
    pub attributes: Attributes,
    /// Entries that were visited; empty without translation.
    pub steps: Steps,
}

/// Reason why an address was not translated. `E` is the error of the reader of physical
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError<E> {
    /// The address is in the gap between the lower and the upper half of the address space:
    /// its top bits are not copies of one another. No entry was read.
    NonCanonical {
        /// Virtual address.
        address: u64,
    },
    /// AArch64: TCR_EL1.EPD0 or EPD1 switches off the tables of this half. No entry was read.
    Disabled {
        /// Virtual address.
        address: u64,
    },
    /// The tables of this half (AArch64) use a mode that is not supported. No entry was read.
    Unsupported(Unsupported),
    /// An entry says that nothing is mapped. On AArch64 this includes the encodings that the
    /// architecture reserves and treats as invalid.
    NotPresent {
        /// Level of the table.
        level: Level,
        /// Physical address of the entry.
        entry: u64,
        /// Raw value of the entry.
        value: u64,
    },
    /// A present entry has bits set that must be zero.
    ReservedBit {
        /// Level of the table.
        level: Level,
        /// Physical address of the entry.
        entry: u64,
        /// Raw value of the entry.
        value: u64,
        /// Those of its bits that must be zero.
        bits: u64,
    },
    /// An entry or the root register holds an address beyond the CPU's physical addresses.
    OutsidePhysicalWidth {
        /// Level of the table whose entry holds the address.
        level: Level,
        /// Physical address that it holds.
        address: u64,
        /// Width of physical addresses in bits.
        width: u8,
    },
    /// The reader could not read an entry.
    Unreadable {
        /// Level of the table.
        level: Level,
        /// Physical address of the entry.
        entry: u64,
        /// Error of the reader.
        error: E,
    },
}

impl<E> WalkError<E> {
    /// Returns the level at which the walk ended; `None` if it did not begin.
    #[must_use]
    pub fn level(&self) -> Option<Level> {
        match self {
            Self::NonCanonical { .. } | Self::Disabled { .. } | Self::Unsupported(_) => None,
            Self::NotPresent { level, .. }
            | Self::ReservedBit { level, .. }
            | Self::OutsidePhysicalWidth { level, .. }
            | Self::Unreadable { level, .. } => Some(*level),
        }
    }

    /// Returns true if the address is unmapped by intent (the tables are sound and say so),
    /// and false if the tables are damaged, unreadable or not supported.
    #[must_use]
    pub fn is_unmapped(&self) -> bool {
        matches!(self, Self::NonCanonical { .. } | Self::Disabled { .. } | Self::NotPresent { .. })
    }
}

impl<E: fmt::Display> fmt::Display for WalkError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonCanonical { address } => {
                write!(f, "virtual address {address:#018x} is not canonical")
            }
            Self::Disabled { address } => {
                write!(f, "TCR_EL1 switches off the tables for virtual address {address:#018x}")
            }
            Self::Unsupported(mode) => mode.fmt(f),
            Self::NotPresent { level, entry, value } => {
                write!(f, "{level}: entry {value:#018x} at {entry:#x} maps nothing")
            }
            Self::ReservedBit { level, entry, value, bits } => write!(
                f,
                "{level}: entry {value:#018x} at {entry:#x} has reserved bits {bits:#x} set"
            ),
            Self::OutsidePhysicalWidth { level, address, width } => write!(
                f,
                "{level}: physical address {address:#x} does not fit the {width} bits of the CPU"
            ),
            Self::Unreadable { level, entry, error } => {
                write!(f, "{level}: cannot read the entry at {entry:#x}: {error}")
            }
        }
    }
}

impl<E: core::error::Error + 'static> core::error::Error for WalkError<E> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Unsupported(mode) => Some(mode),
            Self::Unreadable { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Table that is to be read next, and what was gathered on the way to it.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    /// Physical address, aligned to the size of the table.
    pub table: u64,
    /// Height of the table, 0 to 4.
    pub height: u32,
    /// Index bits that the table has: [`INDEX_MASK`], fewer for a root that is cut short.
    pub index_mask: u64,
    /// Rights that the levels above leave.
    pub rights: Rights,
}

/// Page that an entry maps.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    /// Physical address of its first byte.
    pub base: u64,
    /// Binary logarithm of its size in bytes.
    pub shift: u32,
    /// Access over all levels.
    pub rights: Rights,
    /// Attributes of the entry.
    pub attributes: Attributes,
}

impl Page {
    /// Returns the physical address that `address`, an address inside the page, maps to.
    pub(crate) fn physical(&self, address: u64) -> u64 {
        self.base | address & ((1 << self.shift) - 1)
    }
}

/// Decoded entry of a table above the lowest.
pub(crate) enum Entry {
    /// Another table below.
    Table {
        /// Physical address of the table.
        address: u64,
        /// Rights that are left below.
        rights: Rights,
    },
    /// A page.
    Page(Page),
}

/// Reason why an entry leads nowhere, without the place that only the walk knows.
pub(crate) enum Refusal {
    /// Nothing is mapped.
    NotPresent,
    /// These bits must be zero.
    ReservedBits(u64),
    /// This address does not fit the physical width.
    OutsidePhysicalWidth(u64),
}

/// Result of visiting one entry.
pub(crate) enum Visit {
    /// A table, one lower than the one before.
    Down(Position),
    /// A page: the walk is over.
    Page(Page),
}

/// Tables of one of the architectures.
#[derive(Clone, Copy)]
pub(crate) enum Tables<'a> {
    X86(&'a X86),
    AArch64(&'a AArch64),
}

/// Addresses that a listing treats alike: those that one root serves, or a gap.
pub(crate) struct Area {
    /// The root serves them; otherwise nothing can be mapped.
    pub walkable: bool,
    /// Last of them, included.
    pub last: u64,
}

impl Tables<'_> {
    /// Returns the root table for `address`.
    pub(crate) fn root<E>(self, address: u64) -> Result<Position, WalkError<E>> {
        match self {
            Self::X86(space) => space.root(address),
            Self::AArch64(space) => space.root(address),
        }
    }

    /// Returns the rest of the area that begins at `address`, an address without a tag.
    pub(crate) fn area(self, address: u64) -> Area {
        match self {
            Self::X86(space) => space.area(address),
            Self::AArch64(space) => space.area(address),
        }
    }

    fn level(self, height: u32) -> Level {
        match self {
            Self::X86(_) => X86::level(height),
            Self::AArch64(_) => AArch64::level(height),
        }
    }

    fn physical_bits(self) -> u8 {
        match self {
            Self::X86(space) => space.physical_bits(),
            Self::AArch64(space) => space.physical_bits(),
        }
    }

    /// Decodes `value`, an entry of a table at a height of 1 or more, for `address`.
    fn upper(self, address: u64, value: u64, at: &Position) -> Result<Entry, Refusal> {
        match self {
            Self::X86(space) => space.upper(value, at),
            Self::AArch64(space) => space.upper(address, value, at),
        }
    }

    /// Decodes `value`, an entry of a table at height 0.
    fn lowest(self, value: u64, rights: Rights) -> Result<Page, Refusal> {
        match self {
            Self::X86(space) => space.lowest(value, rights),
            Self::AArch64(space) => space.lowest(value, rights),
        }
    }

    /// Reads and decodes the entry for `address` in the table `at`, and tells `saw` about it.
    ///
    /// One read of 8 bytes. [`Visit::Down`] is always one lower than `at`, so that a walk ends
    /// after [`MAX_LEVELS`] visits whatever the tables hold.
    pub(crate) fn visit<M: PhysicalMemory + ?Sized>(
        self,
        memory: &M,
        address: u64,
        at: &Position,
        mut saw: impl FnMut(Step),
    ) -> Result<Visit, WalkError<M::Error>> {
        let level = self.level(at.height);
        let index = (address >> shift(at.height)) & at.index_mask;
        // The table is aligned to its size: no carry.
        let entry = at.table | index << 3;
        let mut bytes = [0; 8];
        memory.read(entry, &mut bytes).map_err(|error| WalkError::Unreadable {
            level,
            entry,
            error,
        })?;
        let value = u64::from_le_bytes(bytes);
        let visit = match at.height.checked_sub(1) {
            None => self.lowest(value, at.rights).map(Visit::Page),
            Some(height) => self.upper(address, value, at).map(|decoded| match decoded {
                Entry::Page(page) => Visit::Page(page),
                Entry::Table { address, rights } => {
                    Visit::Down(Position { table: address, height, index_mask: INDEX_MASK, rights })
                }
            }),
        };
        let rights = match &visit {
            Ok(Visit::Down(below)) => below.rights,
            Ok(Visit::Page(page)) => page.rights,
            Err(_) => at.rights,
        };
        saw(Step { level, index: index as u16, entry, value, rights });
        visit.map_err(|refusal| match refusal {
            Refusal::NotPresent => WalkError::NotPresent { level, entry, value },
            Refusal::ReservedBits(bits) => WalkError::ReservedBit { level, entry, value, bits },
            Refusal::OutsidePhysicalWidth(address) => {
                WalkError::OutsidePhysicalWidth { level, address, width: self.physical_bits() }
            }
        })
    }

    /// Walks from the root to the page of `address`. At most [`MAX_LEVELS`] reads.
    pub(crate) fn walk<M: PhysicalMemory + ?Sized>(
        self,
        memory: &M,
        address: u64,
        steps: &mut Steps,
    ) -> Result<Page, WalkError<M::Error>> {
        *steps = Steps::new();
        let mut at = self.root(address)?;
        loop {
            match self.visit(memory, address, &at, |step| steps.push(step))? {
                Visit::Down(below) => at = below,
                Visit::Page(page) => return Ok(page),
            }
        }
    }
}
