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

/// Writes one of the registers, or one of the bytes behind them, which keep their value while
/// the machine is off.
pub fn write(register: u8, value: u8) {
    port::write8(INDEX, register & 0x7f);
    port::write8(DATA, value);
}

/// The memory behind the clock, for the [`breadcrumb`](crate::breadcrumb).
#[derive(Clone, Copy, Debug)]
pub struct Cmos;

impl crate::breadcrumb::Cells for Cmos {
    fn read(&self, register: u8) -> u8 {
        read(register)
    }

    fn write(&self, register: u8, value: u8) {
        write(register, value);
    }
}
