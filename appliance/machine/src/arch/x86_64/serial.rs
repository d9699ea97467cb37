//! A 16550 UART, polled, with a bound on every wait.
//!
//! Written by hand rather than taken from a crate because crash code needs the bound: a
//! UART that never becomes ready costs a fixed number of polls once, then a poll a byte.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::port;

/// Polls of the line status register before a byte is given up.
///
/// A real UART at 115200 baud takes 87 µs a byte and a port read about 1 µs.
const POLLS: u32 = 2_000;

/// Whether the transmitter stayed busy for all of that the last time. It then gets one poll a
/// byte, until it is ready again: two milliseconds for each byte of last words would be half a
/// minute.
static STUCK: AtomicBool = AtomicBool::new(false);

/// Registers, as offsets from the base port (16550D data sheet, table II).
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const SCRATCH: u16 = 7;

const TRANSMITTER_EMPTY: u8 = 1 << 5;
const DATA_READY: u8 = 1;

/// One UART; port 0 stands for "there is none", and output to it vanishes.
#[derive(Clone, Copy, Debug)]
pub struct Uart {
    base: u16,
}

impl Uart {
    /// The first PC serial port.
    pub const COM1: u16 = 0x3f8;

    /// A UART at I/O port `base`.
    #[must_use]
    pub const fn new(base: u16) -> Self {
        Self { base }
    }

    /// Sets 115200 8N1 with FIFOs; false when nothing answers at the port.
    #[must_use]
    pub fn init(&self) -> bool {
        if self.base == 0 {
            return false;
        }
        // Where nothing is, the bus may give back what was written last, but hardly twice.
        let keeps = |value: u8| {
            port::write8(self.base + SCRATCH, value);
            let status = port::read8(self.base + LINE_STATUS);
            port::read8(self.base + SCRATCH) == value && status != 0xff
        };
        if !keeps(0x5a) || !keeps(0xa5) {
            return false;
        }
        port::write8(self.base + INTERRUPT_ENABLE, 0);
        port::write8(self.base + LINE_CONTROL, 0x80);
        port::write8(self.base + DATA, 1);
        port::write8(self.base + INTERRUPT_ENABLE, 0);
        port::write8(self.base + LINE_CONTROL, 3);
        port::write8(self.base + FIFO_CONTROL, 0xc7);
        port::write8(self.base + MODEM_CONTROL, 0x03);
        true
    }

    /// Sends a byte, or drops it when the transmitter stays busy.
    pub fn write_byte(&self, byte: u8) {
        if self.base == 0 {
            return;
        }
        let polls = if STUCK.load(Ordering::Relaxed) { 1 } else { POLLS };
        let ready = || port::read8(self.base + LINE_STATUS) & TRANSMITTER_EMPTY != 0;
        let sent = (0..polls).any(|_| ready());
        if sent {
            port::write8(self.base + DATA, byte);
        }
        STUCK.store(!sent, Ordering::Relaxed);
    }

    /// The next received byte, if there is one.
    #[must_use]
    pub fn read_byte(&self) -> Option<u8> {
        let status = if self.base == 0 { 0xff } else { port::read8(self.base + LINE_STATUS) };
        (status != 0xff && status & DATA_READY != 0).then(|| port::read8(self.base + DATA))
    }

    /// Sends text, with a carriage return before every line feed.
    pub fn write_text(&self, text: &str) {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.write_byte(b'\r');
            }
            self.write_byte(byte);
        }
    }
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_text(text);
        Ok(())
    }
}
