//! The serial console. The appliance has set it up; nothing is initialised again, since
//! that would throw away what still stands in the transmitter.

use core::fmt;
use core::sync::atomic::{AtomicU16, Ordering};

use machine::serial::Uart;

/// The first serial port, until the facts name another.
static PORT: AtomicU16 = AtomicU16::new(Uart::COM1);

/// Uses the UART at I/O port `port`; 0 for none.
pub fn set_port(port: u32) {
    if let Ok(port) = u16::try_from(port) {
        PORT.store(port, Ordering::Relaxed);
    }
}

/// The console as a writer.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        Uart::new(PORT.load(Ordering::Relaxed)).write_text(text);
        Ok(())
    }
}

/// Shows one line.
pub fn line(text: fmt::Arguments<'_>) {
    // The console's writer never fails.
    let _ = fmt::write(&mut Console, format_args!("{text}\n"));
}

/// Shows one line, formatted as by `format!`.
macro_rules! say {
    ($($text:tt)*) => { crate::console::line(format_args!($($text)*)) };
}
pub(crate) use say;
