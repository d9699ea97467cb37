//! Device registers in memory.

/// Reads the 8-bit register at physical address `address`.
///
/// # Safety
///
/// The address is mapped one to one, and no memory of this program.
#[must_use]
pub unsafe fn read8(address: u64) -> u8 {
    // SAFETY: the caller's promise; volatile, since a device answers.
    unsafe { (address as *const u8).read_volatile() }
}

/// Writes the 8-bit register at physical address `address`.
///
/// # Safety
///
/// As for [`read8`].
pub unsafe fn write8(address: u64, value: u8) {
    // SAFETY: the caller's promise; volatile, since a device listens.
    unsafe { (address as *mut u8).write_volatile(value) }
}

/// Reads the 32-bit register at physical address `address`.
///
/// # Safety
///
/// The address is mapped one to one, aligned to 4 bytes, and no memory of this program.
#[must_use]
pub unsafe fn read32(address: u64) -> u32 {
    // SAFETY: the caller's promise; volatile, since a device answers.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes the 32-bit register at physical address `address`.
///
/// # Safety
///
/// As for [`read32`].
pub unsafe fn write32(address: u64, value: u32) {
    // SAFETY: the caller's promise; volatile, since a device listens.
    unsafe { (address as *mut u32).write_volatile(value) }
}
