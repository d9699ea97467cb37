//! `--instructions`: the crash path, broken at each of its instructions in turn.
//!
//! One plain panic is recorded instruction by instruction, from the entry of the panic to
//! the jump into the capture image: on the CPU that crashes, and on the one that it stops
//! from the entry of the stop interrupt on. Then, for each instruction, the machine is booted
//! again and stopped there by QEMU's debugger stub. The CPU is sent to an address where
//! nothing is mapped, so that it faults in the middle of what it was doing, and the machine
//! goes on by itself. Memory is not touched.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::harness::{self, Boot, Gdb, Images, Options, Verdict};
use serde::{Deserialize, Serialize};
use vmcore::{Dump, Image};

use super::drive::{Common, Drive, Ended, counted};
use super::trace::{self, Point, Window};
use crate::step::step;

/// Nothing is mapped there, and it is a canonical address: the fault is a page fault.
const NOWHERE: u64 = 0x7f00_dead_b000;
/// How long a machine may take, boot and dump included. They take half a second.
const TIMEOUT: Duration = Duration::from_secs(40);
/// How often an instruction is tried that a run did not come to: what the two CPUs do depends
/// a little on who is first.
const TRIES: usize = 4;

/// One instruction.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Broken {
    #[serde(flatten)]
    common: Common,
    /// The function it is part of.
    function: String,
    /// What the dump says has crashed, if there is one.
    cause: Option<String>,
}

impl Ended for Broken {
    fn common(&self) -> &Common {
        &self.common
    }
}

/// The word for an instruction that no run came to.
const NOT_REACHED: &str = "not-reached";

/// A panic at the end of the first round, with one more CPU to stop; windows that do not
/// make a fault on that CPU expensive.
fn options(out: &Path) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        crash: Some("panic,at=round-done".into()),
        command_line: "workload=sieve,n=100000 stop_irq_ms=300 stop_nmi_ms=100 stop_init_ms=20"
            .into(),
        timeout: TIMEOUT,
        tidy: true,
        ..Options::new(Boot::Pvh, out.to_owned())
    }
}

/// Runs it; whether nothing was silent, hung or left out.
pub fn main(drive: &Drive, sample: usize, only: Option<&str>) -> Result<bool> {
    let folder = drive.folder().join("record");
    let image = Images::of(&options(&folder))?.appliance;
    let window = Window {
        panic: trace::symbol(&image, "panic handler", |name| name.ends_with("rust_begin_unwind"))?,
        // 16 bytes for each vector (trap.S); the stop's is 0xf0.
        stop: trace::symbol(&image, "interrupt stubs", |name| name == "trap_stubs")? + 0xf0 * 16,
        capture: step("a plain run", || capture_entry(&folder.join("plain")))?,
    };
    let points = step("record what it executes", || {
        trace::record(&options(&folder.join("trace")), &window, TIMEOUT)
    })?;
    std::fs::remove_dir_all(&folder).context("remove the record")?;
    let crashing = points.iter().filter(|point| point.crashing).count();
    println!(
        "{} instructions: {crashing} by the crashing CPU, {} by the one it stops",
        points.len(),
        points.len() - crashing
    );
    let points: Vec<Point> = match only {
        Some(word) => points.into_iter().filter(|point| key(point).contains(word)).collect(),
        None => evenly(&points, sample),
    };
    let functions = Image::open(&image).context("the image")?;
    let function = |address| {
        let place = functions.places(address).into_iter().find_map(|place| place.function);
        place.unwrap_or_else(|| "(no symbol)".into())
    };
    let names: Vec<String> = points.iter().map(|point| function(point.address)).collect();
    let plans: Vec<(Point, String)> = points.into_iter().zip(names).collect();
    let done = drive.run(
        &plans,
        |(point, _)| key(point),
        |(point, name), folder| break_at(point, name, &window, folder),
    )?;
    drive.report(&report(&done))?;
    Ok(done.iter().all(|broken| broken.common.problems.is_empty()))
}

/// At most `count` of them, at even distances.
fn evenly(points: &[Point], count: usize) -> Vec<Point> {
    let count = count.min(points.len());
    (0..count).map(|index| points[index * points.len() / count]).collect()
}

fn key(point: &Point) -> String {
    let who = if point.crashing { "crashing" } else { "stopped" };
    format!("{who} {:x}", point.address)
}

/// Where the capture image is entered: the same in every boot of a build.
fn capture_entry(out: &Path) -> Result<u64> {
    let outcome = harness::run(&options(out), &mut |_| ())?;
    let vmcore = outcome.vmcore.as_deref().with_context(|| {
        format!("the plain run was not captured: {outcome}\n{}", outcome.console.tail(20))
    })?;
    let dump = Dump::open(vmcore).context("the dump of the plain run")?;
    Ok(dump.facts.as_ref().context("no boot facts in the dump")?.image_entry)
}

/// Breaks the crash at `point`.
fn break_at(point: &Point, name: &str, window: &Window, folder: &Path) -> Result<Broken> {
    let mut common =
        Common { key: key(point), verdict: String::new(), problems: vec![], milliseconds: 0 };
    let mut cause = None;
    for _ in 0..TRIES {
        let mut options = options(folder);
        let socket = Gdb::wanted_by(&mut options);
        let running = harness::start(&options)?;
        let hit = inject(&socket, point, window);
        let outcome = running.finish(&mut |_| ())?;
        common.milliseconds += outcome.report.duration_ms;
        match hit {
            Ok(true) => {}
            Ok(false) => {
                common.verdict = NOT_REACHED.into();
                continue;
            }
            Err(error) => common.problems.push(format!("{error:#}")),
        }
        let verdict = outcome.report.verdict;
        common.verdict = counted(verdict).into();
        if !matches!(verdict, Verdict::Captured | Verdict::LastWords | Verdict::Incomplete) {
            common.problems.push(outcome.to_string());
        }
        let dump = outcome.vmcore.as_deref().and_then(|path| Dump::open(path).ok());
        cause = dump.and_then(|dump| Some(dump.handoff.as_ref()?.cause.message().to_owned()));
        break;
    }
    Ok(Broken { common, function: name.to_owned(), cause })
}

/// Lets the machine come to `point` and sends the CPU away from it. False: it never came.
fn inject(socket: &Path, point: &Point, window: &Window) -> Result<bool> {
    let mut gdb = Gdb::connect(socket, TIMEOUT)?;
    gdb.break_at(window.panic)?;
    let Some(stop) = gdb.run()? else { return Ok(false) };
    let crashing = stop.cpu;
    gdb.no_break_at(window.panic)?;
    gdb.break_at(window.capture)?;
    // Where the two begin they stand already.
    let mut reached = point.crashing && point.address == window.panic;
    if point.crashing && !reached {
        reached = come_to(&mut gdb, point.address, window.capture, |cpu| cpu == crashing)?;
    } else if !point.crashing {
        // What the others execute before they are asked to stop is ordinary work.
        reached = come_to(&mut gdb, window.stop, window.capture, |cpu| cpu != crashing)?
            && (point.address == window.stop
                || come_to(&mut gdb, point.address, window.capture, |cpu| cpu != crashing)?);
    }
    if reached {
        gdb.send_to(if point.crashing { crashing } else { 1 - crashing }, NOWHERE)?;
    }
    // This takes the breakpoints away.
    gdb.leave()?;
    Ok(reached)
}

/// Runs until a CPU that is `wanted` is about to execute `address`. False: the machine came
/// to its `end`, where there is a breakpoint as well, before that.
fn come_to(gdb: &mut Gdb, address: u64, end: u64, wanted: impl Fn(u32) -> bool) -> Result<bool> {
    gdb.break_at(address)?;
    loop {
        let Some(stop) = gdb.run()? else { return Ok(false) };
        let at = gdb.instruction_pointer(stop.cpu)?;
        if at == address && wanted(stop.cpu) {
            gdb.no_break_at(address)?;
            return Ok(true);
        }
        if at == end {
            return Ok(false);
        }
        // The other CPU came by: past the breakpoint, and on.
        gdb.no_break_at(address)?;
        gdb.step(stop.cpu)?;
        gdb.break_at(address)?;
    }
}

/// Counts by verdict, and what each function's instructions came to.
fn report(done: &[Broken]) -> String {
    let mut words: Vec<&str> = done.iter().map(|broken| broken.common.verdict.as_str()).collect();
    words.sort_unstable();
    words.dedup();
    let count = |of: &dyn Fn(&Broken) -> bool| done.iter().filter(|broken| of(broken)).count();
    let mut text = format!("{} instructions broken, one run each.\n\n", done.len());
    text.push_str("| verdict | instructions |\n|---|---|\n");
    for word in &words {
        let _ = writeln!(text, "| {word} | {} |", count(&|b| b.common.verdict == **word));
    }
    text.push_str("\n| function |");
    let mut rule = String::from("|---|");
    for word in &words {
        let _ = write!(text, " {word} |");
        rule.push_str("---|");
    }
    let _ = writeln!(text, "\n{rule}");
    let mut functions: Vec<&str> = done.iter().map(|broken| broken.function.as_str()).collect();
    functions.sort_unstable();
    functions.dedup();
    for function in functions {
        let _ = write!(text, "| `{function}` |");
        for word in &words {
            let of = |b: &Broken| b.function == function && b.common.verdict == **word;
            let _ = write!(text, " {} |", count(&of));
        }
        text.push('\n');
    }
    for broken in done.iter().filter(|broken| !broken.common.problems.is_empty()) {
        let problems = broken.common.problems.join("; ");
        let _ = writeln!(text, "- {} in `{}`: {problems}", broken.common.key, broken.function);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_even_and_never_more_than_there_is() {
        let points: Vec<_> = (0..10).map(|address| Point { crashing: true, address }).collect();
        let picked = |count| -> Vec<u64> {
            evenly(&points, count).iter().map(|point| point.address).collect()
        };
        assert_eq!(picked(5), [0, 2, 4, 6, 8]);
        assert_eq!(picked(3), [0, 3, 6]);
        assert_eq!(picked(99).len(), 10);
    }
}
