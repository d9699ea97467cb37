//! A view of physical memory.

/// Something that physical memory can be read from: the machine, or a test's idea of one.
pub trait Physical {
    /// The `length` bytes at `address`; none when they are not all there.
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]>;
}
