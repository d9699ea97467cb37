//! A clock for the tests of this crate.

use std::cell::{Cell, RefCell};
use std::fmt;

use crate::host::Host;

/// A clock that goes on by 10 ms each time it is looked at.
#[derive(Default)]
pub struct FakeHost(pub Cell<u64>, pub RefCell<Vec<String>>);

impl Host for FakeHost {
    fn tsc(&self) -> u64 {
        self.0.set(self.0.get() + 10_000_000);
        self.0.get()
    }

    fn ns(&self, ticks: u64) -> u64 {
        ticks
    }

    fn say(&self, line: fmt::Arguments<'_>) {
        self.1.borrow_mut().push(line.to_string());
    }

    fn helpers(&self) -> (u32, u32) {
        (0, 0)
    }

    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }
}
