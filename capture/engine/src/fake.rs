//! A clock for the tests of this crate.

use std::cell::{Cell, RefCell};
use std::fmt;

use crate::host::Host;

/// A clock that goes on by 10 ms each time it is looked at.
#[derive(Default)]
pub struct FakeHost {
    /// What it shows.
    pub tsc: Cell<u64>,
    /// What was said.
    pub said: RefCell<Vec<String>>,
    /// Whoever looks at it for this time, from 1, is interrupted for good.
    pub interrupt_at: Option<u64>,
}

impl Host for FakeHost {
    fn tsc(&self) -> u64 {
        self.tsc.set(self.tsc.get() + 10_000_000);
        if self.interrupt_at == Some(self.tsc.get() / 10_000_000) {
            std::panic::resume_unwind(Box::new("interrupted"));
        }
        self.tsc.get()
    }

    fn ns(&self, ticks: u64) -> u64 {
        ticks
    }

    fn say(&self, line: fmt::Arguments<'_>) {
        self.said.borrow_mut().push(line.to_string());
    }

    fn helpers(&self) -> (u32, u32) {
        (0, 0)
    }

    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }
}
