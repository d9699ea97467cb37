//! Access to physical memory, which the caller provides.

/// Physical memory of the machine whose page tables are walked.
///
/// A dump, a region of live memory and a table in a test can all implement this trait. The
/// crate reads entries of page tables through it (8 bytes, aligned to 8) and, for
/// [`AddressSpace::read`](crate::AddressSpace::read), the bytes of pages.
pub trait PhysicalMemory {
    /// Reason for a failed read, for example "not in the dump" or "checksum wrong". The
    /// crate passes it on unchanged.
    type Error;

    /// Fills `buffer` with the bytes at physical address `address`.
    ///
    /// `address` and `address + buffer.len()` are untrusted: they come out of page tables
    /// that may be damaged.
    ///
    /// # Errors
    /// When one of the bytes cannot be read. The content of `buffer` is then unspecified.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Self::Error>;
}
