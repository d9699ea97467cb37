//! Which instructions a crash executes: recorded by QEMU, one at a time.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::harness::{self, Gdb, Options, Verdict};
use serde_json::json;

/// An instruction, as one of the CPUs executes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Point {
    /// Whether by the CPU that crashes, or by one that is being stopped.
    pub crashing: bool,
    /// Its address.
    pub address: u64,
}

/// Where the window begins on the crashing CPU and on the others, and where it ends.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The panic's entry.
    pub panic: u64,
    /// The entry of the stop interrupt.
    pub stop: u64,
    /// The capture image's entry.
    pub capture: u64,
}

/// Boots `options`, which crash, and lists every instruction inside `window`, in the order of
/// their first execution.
pub fn record(options: &Options, window: &Window, patience: Duration) -> Result<Vec<Point>> {
    let mut options = options.clone();
    let socket = Gdb::wanted_by(&mut options);
    let mut running = harness::start(&options)?;
    let log = options.out.canonicalize().context("the folder of the trace")?.join("exec.log");
    let mut gdb = Gdb::connect(&socket, patience)?;
    gdb.break_at(window.panic)?;
    let crashing = gdb.run()?.context("the machine ended before it panicked")?.cpu;
    gdb.no_break_at(window.panic)?;
    gdb.break_at(window.capture)?;
    // From here on each translation holds one instruction, and each is logged.
    let mut tell = |line: &str| {
        let said = running.machine.qmp().human(line)?;
        ensure!(said.trim().is_empty(), "QEMU says to '{line}': {}", said.trim());
        Ok(())
    };
    tell("one-insn-per-tb on")?;
    tell(&format!("logfile {}", log.display()))?;
    tell("log exec,nochain")?;
    gdb.run()?.context("the machine ended before it jumped")?;
    tell("log none")?;
    // What comes after is of no interest here.
    running.machine.qmp().execute("quit", json!({}))?;
    let outcome = running.finish(&mut |_| ())?;
    ensure!(outcome.report.verdict != Verdict::Hung, "the machine did not end");
    let file = std::fs::File::open(&log).context("QEMU wrote no log")?;
    let points = read(BufReader::new(file), crashing, window)?;
    std::fs::remove_file(&log).context("remove the log")?;
    ensure!(!points.is_empty(), "no instruction in QEMU's log");
    Ok(points)
}

/// Reads a log of `-d exec`.
fn read(log: impl BufRead, crashing: u32, window: &Window) -> Result<Vec<Point>> {
    let mut seen = BTreeSet::new();
    let mut points = Vec::new();
    let mut stopping = false;
    for line in log.split(b'\n') {
        let line = line.context("read QEMU's log")?;
        let Some((cpu, address)) = parse(&String::from_utf8_lossy(&line)) else { continue };
        if cpu != crashing {
            stopping |= address == window.stop;
            if !stopping {
                continue;
            }
        }
        let point = Point { crashing: cpu == crashing, address };
        if seen.insert(point) {
            points.push(point);
        }
    }
    Ok(points)
}

/// CPU and address of a line `Trace 1: 0x7f… [cs_base/pc/flags/cflags] symbol`.
fn parse(line: &str) -> Option<(u32, u64)> {
    let (cpu, rest) = line.strip_prefix("Trace ")?.split_once(':')?;
    let (_, state) = rest.split_once('[')?;
    let address = state.split('/').nth(1)?;
    Some((cpu.trim().parse().ok()?, u64::from_str_radix(address, 16).ok()?))
}

/// The address of the symbol in the image at `path` whose name satisfies `wanted`.
pub fn symbol(path: &Path, what: &str, wanted: impl Fn(&str) -> bool) -> Result<u64> {
    use object::{Object, ObjectSymbol};
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let file = object::File::parse(&*bytes).context("the image")?;
    let found = file
        .symbols()
        .find(|symbol| symbol.name().is_ok_and(&wanted))
        .map(|symbol| symbol.address());
    found.with_context(|| format!("the image has no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
Trace 0: 0x7f48e8000100 [00000000/00000000010243c6/0000c0b0/ff028201] pause
Trace 1: 0x7f48ec146380 [00000000/0000000001002000/0000c0b0/ff028201] panic
cpu_io_recompile: rewound execution of TB to 00000000010243c6
Trace 0: 0x7f48e8000100 [00000000/00000000010244d0/0000c0b0/ff028201] stub
Trace 1: 0x7f48ec146380 [00000000/0000000001002001/0000c0b0/ff028201] panic
Trace 1: 0x7f48ec146380 [00000000/0000000001002000/0000c0b0/ff028201] panic
Trace 0: 0x7f48e8000100 [00000000/0000000001002001/0000c0b0/ff028201] panic
";

    #[test]
    fn each_instruction_counts_once_per_role_and_only_inside_the_window() {
        let window = Window { panic: 0x100_2000, stop: 0x102_44d0, capture: 0x401_a7dc };
        let points = read(LOG.as_bytes(), 1, &window).expect("points");
        let point = |crashing, address| Point { crashing, address };
        assert_eq!(
            points,
            [
                point(true, 0x100_2000),
                point(false, 0x102_44d0),
                point(true, 0x100_2001),
                point(false, 0x100_2001),
            ]
        );
    }
}
