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
/// The same, read.
const INTERRUPT_IDENTIFICATION: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const SCRATCH: u16 = 7;

const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// FIFOs are there, enabled, and do not lose what they hold: all but the first 16550.
const FIFO_WORKS: u8 = 3 << 6;
/// Bytes an empty transmitter with a FIFO takes.
const FIFO_BYTES: usize = 16;
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
        if self.base != 0 && self.is_ready() {
            port::write8(self.base + DATA, byte);
        }
    }

    /// Waits until the transmitter, with its FIFO, is empty; false when it stays busy.
    fn is_ready(&self) -> bool {
        let polls = if STUCK.load(Ordering::Relaxed) { 1 } else { POLLS };
        let empty = || port::read8(self.base + LINE_STATUS) & TRANSMITTER_EMPTY != 0;
        let ready = (0..polls).any(|_| empty());
        STUCK.store(!ready, Ordering::Relaxed);
        ready
    }

    /// The next received byte, if there is one.
    #[must_use]
    pub fn read_byte(&self) -> Option<u8> {
        let status = if self.base == 0 { 0xff } else { port::read8(self.base + LINE_STATUS) };
        (status != 0xff && status & DATA_READY != 0).then(|| port::read8(self.base + DATA))
    }

    /// Sends text, with a carriage return before every line feed, as much of it at a time as the
    /// transmitter takes when it is empty.
    pub fn write_text(&self, text: &[u8]) {
        if self.base == 0 || text.is_empty() {
            return;
        }
        let has_fifo = port::read8(self.base + INTERRUPT_IDENTIFICATION) & FIFO_WORKS == FIFO_WORKS;
        let most = if has_fifo { FIFO_BYTES } else { 1 };
        let mut room = 0;
        for &letter in text {
            let letters =
                if letter == b'\n' { &b"\r\n"[..] } else { core::slice::from_ref(&letter) };
            for &byte in letters {
                if room == 0 {
                    room = if self.is_ready() { most } else { 0 };
                }
                if room > 0 {
                    port::write8(self.base + DATA, byte);
                    room -= 1;
                }
            }
        }
    }
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_text(text.as_bytes());
        Ok(())
    }
}
