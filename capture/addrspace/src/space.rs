//! One type for the address space of a CPU of either architecture.

use crate::read::{self, ReadError};
use crate::runs::Runs;
use crate::walk::{Tables, shift};
use crate::{AArch64, Attributes, PhysicalMemory, Rights, Steps, Walk, WalkError, X86};

/// Address space of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    /// No translation: a virtual address is the physical address.
    Identity,
    /// x86-64 with 4 or 5 levels, from [`X86::from_registers`].
    X86(X86),
    /// AArch64 at EL1 and EL0, from [`AArch64::from_registers`].
    AArch64(AArch64),
}

impl AddressSpace {
    /// Translates a virtual address. At most [`MAX_LEVELS`](crate::MAX_LEVELS) reads of
    /// 8 bytes.
    ///
    /// # Errors
    /// [`WalkError`] names the level at which the walk ended and the reason.
    pub fn translate<M: PhysicalMemory + ?Sized>(
        &self,
        memory: &M,
        address: u64,
    ) -> Result<Walk, WalkError<M::Error>> {
        self.translate_into(memory, address, &mut Steps::new())
    }

    /// Translates a virtual address as [`AddressSpace::translate`] does, and leaves in `steps`
    /// the entries that were visited, also when the translation fails.
    ///
    /// The entry that ended a failed walk is the last one in `steps`, unless it could not be
    /// read.
    ///
    /// # Errors
    /// [`WalkError`] names the level at which the walk ended and the reason.
    pub fn translate_into<M: PhysicalMemory + ?Sized>(
        &self,
        memory: &M,
        address: u64,
        steps: &mut Steps,
    ) -> Result<Walk, WalkError<M::Error>> {
        *steps = Steps::new();
        let Some(tables) = self.tables() else {
            return Ok(Walk {
                address,
                physical: address,
                page_size: 1 << shift(0),
                rights: Rights::ALL,
                attributes: Self::UNTRANSLATED,
                steps: *steps,
            });
        };
        let page = tables.walk(memory, address, steps)?;
        Ok(Walk {
            address,
            physical: page.physical(address),
            page_size: 1 << page.shift,
            rights: page.rights,
            attributes: page.attributes,
            steps: *steps,
        })
    }

    /// Fills `buffer` with the bytes at a virtual address, page by page.
    ///
    /// Per page at most [`MAX_LEVELS`](crate::MAX_LEVELS) reads of entries and one of bytes.
    ///
    /// # Errors
    /// [`ReadError`] says how many bytes at the front of `buffer` were filled, and why the
    /// next one was not.
    pub fn read<M: PhysicalMemory + ?Sized>(
        &self,
        memory: &M,
        address: u64,
        buffer: &mut [u8],
    ) -> Result<(), ReadError<M::Error>> {
        read::read(self, memory, address, buffer)
    }

    /// Lists what is mapped from virtual address `first` to `last`, both included.
    ///
    /// The listing reads at most `reads` entries, but at least [`MAX_LEVELS`](crate::MAX_LEVELS)
    /// may be spent, so that every call gets on. [`Runs::stopped_at`] says where to resume.
    pub fn runs<'a, M: PhysicalMemory + ?Sized>(
        &'a self,
        memory: &'a M,
        first: u64,
        last: u64,
        reads: u32,
    ) -> Runs<'a, M> {
        Runs::new(self.tables(), memory, first, last, reads)
    }

    /// Attributes of an address that is not translated.
    const UNTRANSLATED: Attributes =
        Attributes { global: true, accessed: true, dirty: None, memory_type: 0 };

    fn tables(&self) -> Option<Tables<'_>> {
        match self {
            Self::Identity => None,
            Self::X86(space) => Some(Tables::X86(space)),
            Self::AArch64(space) => Some(Tables::AArch64(space)),
        }
    }
}
