//! QEMU's own ways to get at a guest's memory, timed as the capture is: into a file that was
//! written before, and flushed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::harness::Machine;
use serde_json::json;

/// What QEMU writes beside the memory.
const SLACK: u64 = 64 << 20;
/// More bytes a second than any host writes.
const NO_LIMIT: u64 = 1 << 40;
/// Bytes of zeros written at a time.
const CHUNK: usize = 1 << 20;

/// How QEMU writes the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `dump-guest-memory` as an ELF core: its default.
    Core,
    /// `migrate file:` with mapped-ram and two multifd channels: its fastest.
    Mapped,
}

/// A file for `memory` bytes, with every block written once.
///
/// # Errors
/// It cannot be made or written.
pub fn prepare(path: &Path, memory: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let zeros = vec![0; CHUNK];
    for _ in 0..(memory + SLACK) / CHUNK as u64 {
        file.write_all(&zeros).context("fill the host's file")?;
    }
    file.sync_all().context("flush the host's file")
}

/// Writes the memory of a stopped machine to the file at `path`; returns how long that took.
///
/// # Errors
/// QEMU refuses or fails.
pub fn write(machine: &mut Machine, way: Way, path: &Path) -> Result<Duration> {
    // Without O_TRUNC, so that its blocks stay.
    let file = File::options().write(true).open(path).context("open the host's file")?;
    let set = machine.qmp().lend(&file)?;
    let name = format!("file:/dev/fdset/{set}");
    let start;
    match way {
        Way::Core => {
            start = Instant::now();
            let arguments = json!({ "paging": false, "protocol": name });
            machine.qmp().execute("dump-guest-memory", arguments)?;
        }
        Way::Mapped => {
            let on = |name: &str| json!({ "capability": name, "state": true });
            let capabilities = [on("mapped-ram"), on("multifd"), on("events")];
            let arguments = json!({ "capabilities": capabilities });
            machine.qmp().execute("migrate-set-capabilities", arguments)?;
            // The default is 128 MiB a second, as over a network.
            let arguments = json!({ "multifd-channels": 2, "max-bandwidth": NO_LIMIT });
            machine.qmp().execute("migrate-set-parameters", arguments)?;
            start = Instant::now();
            machine.qmp().execute("migrate", json!({ "uri": name }))?;
            loop {
                let event = machine.wait_for_report("MIGRATION")?;
                match event["data"]["status"].as_str() {
                    Some("completed") => break,
                    Some("failed") => bail!("the migration to a file failed"),
                    _ => {}
                }
            }
        }
    }
    file.sync_data().context("flush the host's file")?;
    let took = start.elapsed();
    machine.qmp().execute("remove-fd", json!({ "fdset-id": set }))?;
    Ok(took)
}
