//! `run.json`: what a script needs to know about a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Verdict;

/// The keys are a contract; scripts read them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of the JSON: that of the answers of `vmcore`.
    pub schema: u32,
    /// How it ended.
    pub verdict: Verdict,
    /// How it should have ended.
    pub expected: Verdict,
    /// The ground of the verdict, one line for a reader.
    pub why: String,
    /// The appliance's ELF with debug information.
    pub image: PathBuf,
    /// How it was loaded, by the name of `--boot`.
    pub boot: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// The fault asked for.
    pub crash: Option<String>,
    /// The wedges asked for.
    pub wedges: Vec<String>,
    /// The QEMU command line. Standard input is the QMP connection.
    pub command: Vec<String>,
    /// From the start of QEMU to its end.
    pub duration_ms: u64,
    /// QEMU's exit code; null when a signal ended it.
    pub qemu_exit: Option<i32>,
}
