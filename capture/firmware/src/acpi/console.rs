//! The SPCR: the serial console (Serial Port Console Redirection Table, 1.10).

use super::{Acpi, HEADER, Location};

/// Offsets of fields.
const INTERFACE: u32 = HEADER;
const BASE: u32 = 40;
const BAUD: u32 = 58;

/// Kind of a serial port (Debug Port Table 2, table 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsoleKind {
    /// A 16550, or one that its register layout says is compatible.
    Uart16550,
    /// An Arm PL011, or the subset of it that the SBSA asks for.
    Pl011,
    /// Another one, by its number.
    Other(u8),
}

/// The firmware's serial console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// What it is.
    pub kind: ConsoleKind,
    /// Its first register.
    pub location: Location,
    /// Bytes from one register to the next: 1, 2 or 4.
    pub stride: u8,
    /// Baud rate; `None` where it is to be left as the firmware has set it.
    pub baud: Option<u32>,
}

impl Acpi<'_> {
    /// Returns the serial console of the SPCR; none where redirection is switched off.
    #[must_use]
    pub fn console(&self) -> Option<Console> {
        let table = self.table(b"SPCR")?;
        let kind = match self.u8(&table, INTERFACE)? {
            0 | 1 | 0x12 => ConsoleKind::Uart16550,
            0x03 | 0x0d | 0x0e => ConsoleKind::Pl011,
            other => ConsoleKind::Other(other),
        };
        let register = self.generic_address(&table, BASE)?;
        let location = register.location()?;
        let stride = match (location, register.access, register.bits) {
            // Registers of a UART at ports stand side by side.
            (Location::Port(_), ..) => 1,
            (_, 2, _) | (_, 0, 16) => 2,
            (_, 3, _) | (_, 0 | 1, 32) => 4,
            _ => 1,
        };
        let baud = match self.u8(&table, BAUD)? {
            3 => Some(9_600),
            4 => Some(19_200),
            6 => Some(57_600),
            7 => Some(115_200),
            _ => None,
        };
        Some(Console { kind, location, stride, baud })
    }
}
