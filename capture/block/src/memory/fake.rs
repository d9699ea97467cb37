//! Memory as a model of a device sees it: by address.

/// What stands at `address`.
pub fn peek<const N: usize>(address: u64) -> [u8; N] {
    // SAFETY: the model follows addresses that the driver under test put into its queues,
    // and the driver waits while the model works.
    unsafe { (address as *const [u8; N]).read_unaligned() }
}

/// The little-endian word at `address`.
pub fn peek32(address: u64) -> u32 {
    u32::from_le_bytes(peek(address))
}

/// The little-endian double word at `address`.
pub fn peek64(address: u64) -> u64 {
    u64::from_le_bytes(peek(address))
}

/// Copies `bytes` to `address`.
pub fn poke(address: u64, bytes: &[u8]) {
    // SAFETY: as for `peek`; the bytes are the model's own.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

/// Copies from `address`.
pub fn take(address: u64, bytes: &mut [u8]) {
    // SAFETY: as for `peek`.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) }
}
