//! How far long work has come, on stderr.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Work shorter than this needs no progress.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is shown.
const STEP: Duration = Duration::from_millis(200);

/// Shows one line, over and over, when somebody looks.
pub struct Meter {
    terminal: bool,
    /// What is done, since when, and when it was last shown.
    work: Option<(&'static str, Instant, Instant)>,
    shown: bool,
}

impl Meter {
    /// A meter that has shown nothing yet.
    pub fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), work: None, shown: false }
    }

    /// `done` bytes of `all` are done.
    pub fn show(&mut self, work: &'static str, done: u64, all: u64) {
        let now = Instant::now();
        let (since, last) = match self.work {
            Some((name, since, last)) if name == work && done > 0 => (since, last),
            _ => (now, now),
        };
        self.work = Some((work, since, last));
        let took = now - since;
        if !self.terminal || took < PATIENCE || (now - last < STEP && done < all) {
            return;
        }
        self.work = Some((work, since, now));
        self.shown = true;
        eprint!("\r{work}: {}\u{1b}[K", line(done, all, took));
    }

    /// Leaves the line as it is.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprintln!();
        }
    }
}

/// `42 % of 512 MiB, 310 MiB/s, 1 s to go`.
fn line(done: u64, all: u64, took: Duration) -> String {
    let percent = u128::from(done) * 100 / u128::from(all.max(1));
    let rate = done as f64 / took.as_secs_f64().max(0.001);
    let left = all.saturating_sub(done) as f64 / rate.max(1.0);
    let mib = f64::from(1 << 20);
    format!("{percent:3} % of {} MiB, {:.0} MiB/s, {left:.0} s to go", all >> 20, rate / mib)
}

/// Runs `work` with a meter.
pub fn metered<T>(work: impl FnOnce(&mut vmcore::Progress<'_>) -> vmcore::Result<T>) -> Result<T> {
    let mut meter = Meter::new();
    let outcome = work(&mut |what, done, all| meter.show(what, done, all));
    meter.end();
    Ok(outcome?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_rest_follow_from_what_is_done() {
        let text = line(100 << 20, 400 << 20, Duration::from_secs(2));
        assert_eq!(text, " 25 % of 400 MiB, 50 MiB/s, 6 s to go");
        assert_eq!(line(0, 0, Duration::ZERO), "  0 % of 0 MiB, 0 MiB/s, 0 s to go");
    }
}
