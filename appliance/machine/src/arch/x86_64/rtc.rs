//! The calendar clock in CMOS memory (MC146818 and its heirs).

use super::port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

/// Reads one of its registers, 0 to 127. Where there is no such clock, all bits are set.
#[must_use]
pub fn read(register: u8) -> u8 {
    // Bit 7 of the index would mask NMIs; it stays 0.
    port::write8(INDEX, register & 0x7f);
    port::read8(DATA)
}
