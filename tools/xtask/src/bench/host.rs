//! What a reader of a figure has to know of the host it was taken on.

use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The host, and what the guest's processor is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Processors this program may use.
    pub cores: usize,
    /// How the guest's instructions are run.
    pub accelerator: String,
    /// The first line QEMU says of itself.
    pub qemu: String,
}

impl Host {
    /// This one.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn look() -> Result<Self> {
        let output = Command::new("qemu-system-x86_64").arg("--version").output();
        let output = output.context("start qemu-system-x86_64")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            accelerator: "tcg,thread=multi".into(),
            qemu: text.lines().next().unwrap_or_default().to_owned(),
        })
    }

    /// One line for above a table.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { cores, accelerator, qemu } = self;
        format!("{qemu}, -accel {accelerator}, {cores} host cores")
    }
}

/// Runnable tasks, averaged over the last minute; 0 where the system does not say.
#[must_use]
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Bytes of memory that programs can still have; 0 where the system does not say.
#[must_use]
pub fn memory_left() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.map_or(0, |kib| kib << 10)
}
