//! Access to physical memory, which the caller provides, and the bound on how much is read.

use core::cell::Cell;
use core::fmt;

/// Physical memory of the machine whose tables are read.
///
/// Memory is copied into a buffer and never referred to: it may change at any time, and an
/// address out of a damaged table may be that of a device or of nothing at all.
pub trait PhysicalMemory {
    /// Fills `buffer` with the bytes at physical address `address`.
    ///
    /// `address` is untrusted. An implementation on real hardware reads only what the memory
    /// map lists as RAM or as firmware tables: reading a device's register may have effects.
    ///
    /// # Errors
    /// When one of the bytes cannot be read. The content of `buffer` is then unspecified.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable>;
}

/// Error of [`PhysicalMemory::read`]: one of the bytes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("physical memory cannot be read there")
    }
}

impl core::error::Error for Unreadable {}

/// Memory with a bound on the bytes read in all.
pub(crate) struct Reader<'m> {
    memory: &'m dyn PhysicalMemory,
    /// Bytes that may still be read.
    left: Cell<u64>,
}

impl<'m> Reader<'m> {
    pub(crate) const fn new(memory: &'m dyn PhysicalMemory, most_bytes: u64) -> Self {
        Self { memory, left: Cell::new(most_bytes) }
    }

    /// Fills `buffer`; `None` when the memory cannot be read, when the addresses wrap, or when
    /// all bytes that may be read are used up.
    pub(crate) fn read(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        let bytes = u64::try_from(buffer.len()).ok()?;
        address.checked_add(bytes)?;
        self.left.set(self.left.get().checked_sub(bytes)?);
        self.memory.read(address, buffer).ok()
    }

    pub(crate) fn array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Some(bytes)
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("left", &self.left.get()).finish_non_exhaustive()
    }
}
