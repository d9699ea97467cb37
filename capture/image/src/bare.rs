//! Time and console of the real machine, for whatever writes a dump.

use core::fmt;

use capture_engine::host::Host;
use machine::cpu;

use crate::console::line;
use crate::{clock, fault, helpers, hw_watchdog, screen};

/// The machine itself.
pub struct Bare;

impl Host for Bare {
    fn tsc(&self) -> u64 {
        cpu::rdtsc()
    }

    fn ns(&self, ticks: u64) -> u64 {
        clock::ns(ticks)
    }

    fn running_ns(&self) -> u64 {
        clock::running_ns()
    }

    fn say(&self, text: fmt::Arguments<'_>) {
        line(text);
    }

    fn helpers(&self) -> (u32, u32) {
        helpers::counts()
    }

    fn progress(&self, done: u64, total: u64) {
        screen::progress(done, total);
        hw_watchdog::progress(done);
        fault::tell();
    }
}
