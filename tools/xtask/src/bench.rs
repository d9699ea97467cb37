//! `cargo xtask bench`: how long a capture takes.
//!
//! All times are the guest's own time-stamp counter, read by the appliance and the capture
//! image; nothing is measured through the console. A figure in MiB/s says more about the
//! host's storage and its emulator than about the capture, so every one stands beside a
//! raw write of as many bytes through the same driver in the same boot, and the ratio of
//! the two is what to compare.

mod dump;
mod host;
mod journal;
mod kdump;
mod stop;
mod table;
mod trace;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Boot, Images, Options, parse_size};
use serde::Serialize;
use vmcore::Dump;

use crate::step::step;
use crate::{build, setup};

/// What is measured, and how often.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Boots; every figure is the median over them
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Virtual CPUs
    #[arg(long, default_value_t = 4)]
    cpus: u32,
    /// Memory, as 512M or 2G
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    mem: u64,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Measurements of other things than the capture.
#[derive(clap::Subcommand)]
enum Other {
    /// Crash to every sealed stage, raw, compressed and chosen, beside QEMU's own dumps
    Dump(dump::Arguments),
    /// Crash to a flushed dump, beside Linux kdump on the same virtual machine
    Kdump(kdump::Arguments),
    /// How long it takes to stop all CPUs, beside an interrupt round trip
    Stop(stop::Arguments),
    /// What the flight recorder costs: an event, and of a workload
    Trace(trace::Arguments),
    /// How much faster a second CPU makes each workload
    Workloads(workloads::Arguments),
}

/// One boot.
#[derive(Serialize)]
struct Sample {
    panic_to_jump_ns: u64,
    jump_to_entered_ns: u64,
    jump_to_sealed_ns: u64,
    dump_bytes: u64,
    dump_ns: u64,
    raw_bytes: u64,
    raw_ns: u64,
    region_used_bytes: u64,
    region_bytes: u64,
}

/// Everything a reader of the figures needs.
#[derive(Serialize)]
struct Figures {
    host_cores: usize,
    cpus: u32,
    memory_bytes: u64,
    accelerator: &'static str,
    images: Vec<(String, u64)>,
    runs: Vec<Sample>,
}

/// Measures and prints.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.other {
        Some(Other::Dump(arguments)) => return dump::main(arguments),
        Some(Other::Kdump(arguments)) => return kdump::main(arguments),
        Some(Other::Stop(arguments)) => return stop::main(arguments),
        Some(Other::Trace(arguments)) => return trace::main(arguments),
        Some(Other::Workloads(arguments)) => return workloads::main(arguments),
        None => {}
    }
    if arguments.runs == 0 {
        bail!("--runs: at least 1");
    }
    setup::ensure()?;
    let images = step("build the images", build::quiet)?;
    let mut runs = Vec::new();
    for number in 1..=arguments.runs {
        let name = format!("run {number} of {}", arguments.runs);
        runs.push(step(&name, || sample(arguments))?);
    }
    let figures = Figures {
        host_cores: std::thread::available_parallelism().map_or(0, usize::from),
        cpus: arguments.cpus,
        memory_bytes: arguments.mem,
        accelerator: "tcg",
        images: sizes(&images)?,
        runs,
    };
    print(&figures);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures)?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
        println!("as JSON in {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Boots once, crashes under load, and reads the figures off the disk.
fn sample(arguments: &Arguments) -> Result<Sample> {
    let options = Options {
        cpus: arguments.cpus,
        memory: arguments.mem,
        crash: Some("panic".into()),
        command_line: "workload=sieve workload=memstamp capture_bench=raw".into(),
        dense_disks: true,
        ..Options::new(Boot::Pvh, harness::fresh_folder("bench")?)
    };
    let outcome = harness::run(&options, &mut |_| ())?;
    if !outcome.as_expected() {
        bail!("{outcome}\nthe console ends:\n{}", outcome.console.tail(20));
    }
    let dump = Dump::open(outcome.out.join("disk.img"))?;
    let handoff = dump.handoff.as_ref().context("the dump holds no hand-off")?;
    let facts = dump.facts.as_ref().context("the dump holds no boot facts")?;
    let metrics = dump.metrics.context("the dump holds no figures")?;
    let seal = dump.stored.as_ref().and_then(|stored| stored.seal()).context("no seal")?;
    let between = |from: u64, to: u64| {
        dump.nanoseconds(to.saturating_sub(from)).context("the clock was not calibrated")
    };
    Ok(Sample {
        panic_to_jump_ns: between(handoff.cause.tsc, handoff.jump_tsc)?,
        jump_to_entered_ns: between(handoff.jump_tsc, metrics.entered_tsc)?,
        jump_to_sealed_ns: seal.duration_ns,
        dump_bytes: seal.elf_bytes,
        dump_ns: seal.write_ns,
        raw_bytes: seal.raw_bytes,
        raw_ns: seal.raw_ns,
        region_used_bytes: seal.region_bytes_used,
        region_bytes: facts.region.bytes,
    })
}

fn sizes(images: &Images) -> Result<Vec<(String, u64)>> {
    let named = [
        ("appliance, as booted", &images.bootable),
        ("appliance, with debug information", &images.appliance),
        ("capture image, as loaded", &images.capture),
        ("capture image, with debug information", &images.capture_debug),
    ];
    let size = |(name, path): (&str, &PathBuf)| {
        let bytes = std::fs::metadata(path).context("a built image")?.len();
        Ok((name.to_owned(), bytes))
    };
    named.into_iter().map(size).collect()
}

fn print(figures: &Figures) {
    println!(
        "\n{} CPUs and {} MiB under emulation on {} host cores, {} runs",
        figures.cpus,
        figures.memory_bytes >> 20,
        figures.host_cores,
        figures.runs.len()
    );
    println!("{:<26} {:>12} {:>12} {:>12}", "", "median", "least", "most");
    let row = |name: &str, unit: &str, value: &dyn Fn(&Sample) -> f64| {
        let values = sorted(figures.runs.iter().map(value).collect());
        println!(
            "{name:<26} {:>12.3} {:>12.3} {:>12.3} {unit}",
            median(&values),
            values[0],
            values[values.len() - 1]
        );
    };
    row("panic to jump", "ms", &|run| run.panic_to_jump_ns as f64 / 1e6);
    row("jump to capture's entry", "ms", &|run| run.jump_to_entered_ns as f64 / 1e6);
    row("jump to sealed", "ms", &|run| run.jump_to_sealed_ns as f64 / 1e6);
    row("dump size", "MiB", &|run| mib(run.dump_bytes));
    row("dump", "MiB/s", &|run| rate(run.dump_bytes, run.dump_ns));
    row("raw write, same driver", "MiB/s", &|run| rate(run.raw_bytes, run.raw_ns));
    row("dump rate / raw rate", "", &|run| {
        rate(run.dump_bytes, run.dump_ns) / rate(run.raw_bytes, run.raw_ns)
    });
    row("reserved region used", "MiB", &|run| mib(run.region_used_bytes));
    row("reserved region", "MiB", &|run| mib(run.region_bytes));
    for (name, bytes) in &figures.images {
        println!("{name:<40} {:>9} KiB", bytes.div_ceil(1024));
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn rate(bytes: u64, nanoseconds: u64) -> f64 {
    mib(bytes) / (nanoseconds as f64 / 1e9)
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The middle one, or the mean of the middle two.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&sorted(vec![3.0, 1.0, 2.0])), 2.0);
        assert_eq!(median(&sorted(vec![4.0, 1.0, 2.0, 3.0])), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }
}
