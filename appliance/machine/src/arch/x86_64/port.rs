//! Port I/O.
//!
//! The functions are safe to call in the language's sense: no port of a PC writes to this
//! program's memory by itself. What a port *does* is the caller's business.

use x86_64::instructions::port::Port;

/// Reads a byte.
#[must_use]
pub fn read8(port: u16) -> u8 {
    // SAFETY: port input has no effect on memory.
    unsafe { Port::new(port).read() }
}

/// Reads a 16-bit word.
#[must_use]
pub fn read16(port: u16) -> u16 {
    // SAFETY: as in `read8`.
    unsafe { Port::new(port).read() }
}

/// Reads a 32-bit word.
#[must_use]
pub fn read32(port: u16) -> u32 {
    // SAFETY: as in `read8`.
    unsafe { Port::new(port).read() }
}

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: port output has no effect on memory this program owns.
    unsafe { Port::new(port).write(value) }
}

/// Writes a 16-bit word.
pub fn write16(port: u16, value: u16) {
    // SAFETY: as in `write8`.
    unsafe { Port::new(port).write(value) }
}

/// Writes a 32-bit word.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as in `write8`.
    unsafe { Port::new(port).write(value) }
}
