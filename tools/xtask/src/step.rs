//! Saying what is going on, and how long it took.

use std::io::Write;
use std::path::{Display, Path};
use std::time::Instant;

use anyhow::Result;

/// Runs `work` as one named step: its name before, its time after. A step that prints
/// lines of its own gets them below its name, and its time on a line of its own.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {name}");
    std::io::stdout().flush()?;
    let started = Instant::now();
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(_) => println!("    {seconds:.1} s"),
        Err(_) => println!("    failed after {seconds:.1} s"),
    }
    result
}

/// A path as one would type it: relative where it lies below the current folder.
pub fn short(path: &Path) -> Display<'_> {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display()
}
