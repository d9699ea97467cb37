//! What writing a dump needs beside the disk and the memory.

use core::fmt;

/// Time and the console, as the dump needs them.
pub trait Host {
    /// The time-stamp counter.
    fn tsc(&self) -> u64;
    /// So many ticks of it in nanoseconds.
    fn ns(&self, ticks: u64) -> u64;
    /// Shows a line.
    fn say(&self, line: fmt::Arguments<'_>);

    /// So many bytes of so many are out: said all the time.
    fn progress(&self, done: u64, total: u64);

    /// Stopped CPUs that wait to be called back to work, and those of them that have answered;
    /// none before they were called.
    fn helpers(&self) -> (u32, u32);

    /// Nanoseconds that the machine ran, from some moment on: unlike [`Self::now_ns`] without
    /// the time for which the machine was paused. For every limit to a wait.
    fn running_ns(&self) -> u64;

    /// Now, in nanoseconds of the same counter.
    fn now_ns(&self) -> u64 {
        self.ns(self.tsc())
    }
}
