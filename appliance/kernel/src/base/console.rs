//! The console: a serial port, a screen where there is one, and a log in memory that goes
//! into every dump.
//!
//! Two ways in. [`log!`](crate::log) takes a lock, so that lines stay whole. Crash code
//! calls [`emergency`], which takes nothing and therefore prints even while a CPU that
//! will never run again holds the lock; at worst two lines mix.
//!
//! A serial port at 115200 baud takes 87 µs a letter. What a crash has to say on its way to the
//! dump, beyond what happened, therefore goes into the log alone ([`later`]): it is shown by the
//! capture image, which learns how much that is, or here, before the next line that cannot wait.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use handoff::LogRange;
use machine::identity;
use machine::lock::{Lock, LockGuard};
use machine::serial::Uart;

use crate::base::{clock, screen};

/// How long a line waits to be printed whole, in nanoseconds.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Bytes of log kept.
const LOG_BYTES: usize = 64 * 1024;

static LOG: [AtomicU8; LOG_BYTES] = [const { AtomicU8::new(0) }; LOG_BYTES];
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static PORT: AtomicU16 = AtomicU16::new(0);
/// Where in the log the first line begins that is to be shown later; [`NONE`] without one.
static HELD_FROM: AtomicU64 = AtomicU64::new(NONE);
const NONE: u64 = u64::MAX;
static LINE: Lock<()> = Lock::new("console", ());

/// Finds the serial port. Without one, the log is all there is.
pub fn init() {
    if Uart::new(Uart::COM1).init() {
        PORT.store(Uart::COM1, Ordering::Relaxed);
    }
}

/// I/O port of the UART in use, 0 for none.
#[must_use]
pub fn port() -> u16 {
    PORT.load(Ordering::Relaxed)
}

/// Where the log lies, for the hand-off.
#[must_use]
pub fn log_range() -> LogRange {
    LogRange {
        address: LOG.as_ptr() as u64,
        capacity: LOG_BYTES as u64,
        written: WRITTEN.load(Ordering::Relaxed),
    }
}

/// Copies the byte of the log that was the `at`th ever written, if it is there still.
#[must_use]
pub fn logged(at: u64) -> u8 {
    LOG.get(at as usize % LOG_BYTES).map_or(0, |byte| byte.load(Ordering::Relaxed))
}

/// Hands over the log so far, letter by letter, unless it has begun to overwrite itself.
pub fn so_far(letter: &mut dyn FnMut(u8)) {
    let written = WRITTEN.load(Ordering::Relaxed) as usize;
    LOG.iter().take(written).for_each(|byte| letter(byte.load(Ordering::Relaxed)));
}

/// Hands over the last lines of the log as they are now.
pub fn tail(line: &mut dyn FnMut(fmt::Arguments<'_>)) {
    const BYTES: usize = 2048;
    let written = WRITTEN.load(Ordering::Relaxed) as usize;
    let mut copy = [0; BYTES];
    let length = written.min(BYTES);
    for (to, at) in copy.iter_mut().zip(written - length..written) {
        *to = LOG[at % LOG_BYTES].load(Ordering::Relaxed);
    }
    // What is cut in front is no line, nor is what is not text.
    let lines = copy[..length].split(|&byte| byte == b'\n').skip(usize::from(written > length));
    for text in lines.filter_map(|bytes| core::str::from_utf8(bytes).ok()) {
        if !text.is_empty() {
            line(format_args!("{text}"));
        }
    }
}

/// Writes to the serial port, the screen and the log, without any lock.
#[derive(Debug)]
pub struct Sink;

impl Write for Sink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        keep(text);
        Uart::new(port()).write_text(text.as_bytes());
        screen::write(text);
        Ok(())
    }
}

/// Writes to the log alone.
struct LogOnly;

impl Write for LogOnly {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        keep(text);
        Ok(())
    }
}

fn keep(text: &str) {
    for byte in text.bytes() {
        let at = WRITTEN.fetch_add(1, Ordering::Relaxed) as usize % LOG_BYTES;
        LOG[at].store(byte, Ordering::Relaxed);
    }
}

fn line(mut to: impl Write, arguments: fmt::Arguments<'_>) {
    let us = clock::now_ns() / 1000;
    // Neither of the two fails.
    let _ = writeln!(to, "[{:4}.{:06}] {arguments}", us / 1_000_000, us % 1_000_000);
}

/// Prints one line, whole. Not for crash code.
///
/// A holder that is stuck must not stop everybody else who has something to say: after a while
/// the line is printed without the lock, and at worst two lines mix.
#[inline(never)]
pub fn print(arguments: fmt::Arguments<'_>) {
    let start = clock::now_ns();
    let tired = || clock::now_ns().saturating_sub(start) > PATIENCE_NS;
    let _whole = LINE.lock_unless(identity::return_address(), tired);
    line(Sink, arguments);
}

/// Holds the console: nobody else prints a whole line until the guard is dropped.
#[inline(never)]
pub fn hold() -> LockGuard<()> {
    LINE.lock_at(identity::return_address())
}

/// Prints one line from crash code, behind those that were to be shown later: no lock, every
/// wait bounded.
pub fn emergency(arguments: fmt::Arguments<'_>) {
    let uart = Uart::new(port());
    let end = WRITTEN.load(Ordering::Relaxed);
    // No more than the log holds, whatever a crash has made of the two words.
    let oldest = end.saturating_sub(LOG_BYTES as u64);
    let mut held = HELD_FROM.swap(NONE, Ordering::Relaxed).max(oldest);
    while held < end {
        let mut piece = heapless::Vec::<u8, 64>::new();
        // As many places as letters.
        piece.extend((held..end).take(64).map(logged));
        uart.write_text(&piece);
        held += piece.len() as u64;
    }
    line(Sink, arguments);
}

/// Prints one line from crash code that nothing is shown before.
pub fn at_once(arguments: fmt::Arguments<'_>) {
    line(Sink, arguments);
}

/// Logs one line from crash code, to be shown later.
pub fn later(arguments: fmt::Arguments<'_>) {
    let at = WRITTEN.load(Ordering::Relaxed);
    // The first of them counts.
    let _ = HELD_FROM.compare_exchange(NONE, at, Ordering::Relaxed, Ordering::Relaxed);
    line(LogOnly, arguments);
}

/// Bytes at the end of the log that are still to be shown.
#[must_use]
pub fn held() -> u64 {
    WRITTEN.load(Ordering::Relaxed).saturating_sub(HELD_FROM.load(Ordering::Relaxed))
}

/// Prints one line, whole. Not for crash code.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log {
    ($($arguments:tt)*) => { $crate::base::console::print(format_args!($($arguments)*)) };
}
