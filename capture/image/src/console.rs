//! The serial console. The appliance has set it up; nothing is initialised again, since
//! that would throw away what still stands in the transmitter.
//!
//! A line takes milliseconds to send, five of them at 115200 baud. So those before the first
//! seal are kept until it is there, or something went wrong, or it takes too long.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use machine::capture::cell::TryCell;
use machine::serial::Uart;

use crate::{clock, rehearsal};

/// How long lines are kept at most.
const PATIENCE_NS: u64 = 100_000_000;
/// Bytes of lines that are kept at most.
const KEPT_BYTES: usize = 4096;

static KEPT: TryCell<heapless::Vec<u8, KEPT_BYTES>> = TryCell::new(heapless::Vec::new());
/// Until when lines are kept, in nanoseconds of the clock; 0 when they are not.
static KEEP_UNTIL_NS: AtomicU64 = AtomicU64::new(0);

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
        Uart::new(PORT.load(Ordering::Relaxed)).write_text(text.as_bytes());
        Ok(())
    }
}

/// Keeps lines from now on, for a while.
pub fn keep() {
    if rehearsal::under_way() {
        return;
    }
    KEEP_UNTIL_NS.store(clock::now_ns().saturating_add(PATIENCE_NS), Ordering::Relaxed);
}

/// Keeps text that the appliance has left to be shown; what there is no room for stays in the
/// log.
pub fn keep_for_the_appliance(text: &[u8]) {
    KEPT.with(|kept| text.iter().all(|&letter| kept.push(letter).is_ok()));
}

/// Shows what was kept, and every line at once from now on.
pub fn release() {
    if KEEP_UNTIL_NS.swap(0, Ordering::Relaxed) != 0 {
        KEPT.with(|kept| {
            let uart = Uart::new(PORT.load(Ordering::Relaxed));
            uart.write_text(kept);
            kept.clear();
        });
    }
}

/// Shows what was kept, when it has been for too long; `now_ns` is what the clock says.
pub fn release_when_due(now_ns: u64) {
    let until = KEEP_UNTIL_NS.load(Ordering::Relaxed);
    if until != 0 && now_ns >= until {
        release();
    }
}

/// Shows one line, or keeps it.
pub fn line(text: fmt::Arguments<'_>) {
    if rehearsal::under_way() {
        // Made, and shown to nobody.
        KEPT.with(|kept| {
            kept.clear();
            writeln!(kept, "{text}")
        });
        return;
    }
    if KEEP_UNTIL_NS.load(Ordering::Relaxed) != 0 {
        let kept = KEPT.with(|kept| {
            let before = kept.len();
            let fits = writeln!(kept, "{text}").is_ok();
            if !fits {
                kept.truncate(before);
            }
            fits
        });
        if kept == Some(true) {
            release_when_due(clock::now_ns());
            return;
        }
        release();
    }
    // The console's writer never fails.
    let _ = fmt::write(&mut Console, format_args!("{text}\n"));
}

/// Shows one line, formatted as by `format!`.
macro_rules! say {
    ($($text:tt)*) => { crate::console::line(format_args!($($text)*)) };
}
pub(crate) use say;
