//! `cargo xtask bench stop`: how long it takes to stop all CPUs, beside the least it can.
//!
//! The appliance rehearses stops and takes plain interrupt round trips in turns, in one boot
//! and under one load, by its own time-stamp counter. Under emulation on few cores either
//! says more about the host's scheduler than about the ladder; their ratio is the figure.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Boot, Console, Options};
use serde::Serialize;

use crate::{build, setup};

/// What is measured.
#[derive(clap::Args)]
pub struct Arguments {
    /// Pairs of a rehearsed stop and a round trip, per row
    #[arg(long, default_value_t = 200)]
    pairs: u32,
    /// Virtual CPUs, a boot each; `N:idle` or `N:busy` for one load alone
    #[arg(long, value_delimiter = ',', default_value = "2,4,8,64,288:idle")]
    cpus: Vec<String>,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One line of the table; times in nanoseconds.
#[derive(Serialize)]
struct Row {
    cpus: u32,
    load: String,
    host_cores: usize,
    pairs: usize,
    failed: u32,
    trip: Spread,
    stop: Spread,
    release: Spread,
}

/// How samples are spread.
#[derive(Serialize)]
struct Spread {
    median: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

impl Spread {
    fn of(mut samples: Vec<u64>) -> Option<Self> {
        samples.sort_unstable();
        // The smallest sample that at least so many of a hundred do not exceed.
        let at = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100).max(1);
            samples.get(rank - 1).copied()
        };
        Some(Self { median: at(50)?, p90: at(90)?, p99: at(99)?, max: at(100)? })
    }
}

/// Measures and prints the table, a line as soon as it is known.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if !(1..=500).contains(&arguments.pairs) {
        bail!("--pairs: 1 to 500");
    }
    setup::ensure()?;
    build::quiet()?;
    let mut rows = Vec::new();
    println!(
        "| CPUs | load | host cores | pairs | | median | p90 | p99 | max | p90 / p90 of trip |"
    );
    println!("|--:|---|--:|--:|---|--:|--:|--:|--:|--:|");
    for word in &arguments.cpus {
        for row in boot(word, arguments.pairs)? {
            row.print();
            rows.push(row);
        }
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("the figures as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One boot, a row for each load.
fn boot(word: &str, pairs: u32) -> Result<Vec<Row>> {
    let (cpus, load) = word.split_once(':').unwrap_or((word, "both"));
    let cpus = cpus.parse().with_context(|| format!("--cpus {word}"))?;
    let options = Options {
        cpus,
        disks: Vec::new(),
        command_line: format!("workload=sieve,n=100000 bench_stop={pairs},{load}"),
        timeout: Duration::from_secs(600),
        tidy: true,
        ..Options::new(Boot::Pvh, harness::fresh_folder(&format!("bench-stop-{cpus}"))?)
    };
    let outcome = harness::run(&options, &mut |_| ())?;
    if !outcome.as_expected() {
        bail!("{outcome}\n{}", outcome.console.tail(20));
    }
    let loads = ["idle", "busy"].into_iter().filter(|one| load == "both" || load == *one);
    loads.map(|load| row(&outcome.console, cpus, load)).collect()
}

fn row(console: &Console, cpus: u32, load: &str) -> Result<Row> {
    let spread = |kind: &str| {
        let marker = format!("bench: {load} {kind} ");
        let lines = console.all_after(&marker).flat_map(str::split_whitespace);
        let samples: Result<Vec<u64>, _> = lines.map(str::parse).collect();
        let samples = samples.with_context(|| format!("samples of {load} {kind}"))?;
        let count = samples.len();
        Spread::of(samples).map(|spread| (spread, count)).with_context(|| format!("no {marker}"))
    };
    let done = console.after(&format!("bench: {load} done, ")).context("the measurement's end")?;
    let failed = done.split_whitespace().next().and_then(|word| word.parse().ok());
    let ((trip, pairs), (stop, _), (release, _)) =
        (spread("trip")?, spread("stop")?, spread("release")?);
    Ok(Row {
        cpus,
        load: load.to_owned(),
        host_cores: std::thread::available_parallelism().map_or(0, usize::from),
        pairs,
        failed: failed.context("how many failed")?,
        trip,
        stop,
        release,
    })
}

impl Row {
    fn print(&self) {
        let kinds = [("round trip", &self.trip), ("stop", &self.stop), ("release", &self.release)];
        for (kind, spread) in kinds {
            let ratio = spread.p90 as f64 / self.trip.p90.max(1) as f64;
            println!(
                "| {} | {} | {} | {} | {kind} | {} | {} | {} | {} | {ratio:.2} |",
                self.cpus,
                self.load,
                self.host_cores,
                self.pairs,
                time(spread.median),
                time(spread.p90),
                time(spread.p99),
                time(spread.max),
            );
        }
        if self.failed > 0 {
            println!("{} of the pairs above had a CPU that did not answer", self.failed);
        }
    }
}

/// Nanoseconds as people read them, three digits.
fn time(ns: u64) -> String {
    match ns as f64 {
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_the_samples() {
        let spread = Spread::of((1..=200).rev().collect()).expect("samples");
        assert_eq!((spread.median, spread.p90, spread.p99, spread.max), (100, 180, 198, 200));
        assert!(Spread::of(Vec::new()).is_none());
        let one = Spread::of(vec![7]).expect("a sample");
        assert_eq!((one.median, one.max), (7, 7));
    }

    #[test]
    fn a_row_is_read_off_the_console() {
        let text = "[0.1] bench: idle trip 1000 3000\n[0.1] bench: idle trip 2000\n\
                    [0.1] bench: idle stop 4000 4000 4000\n[0.1] bench: idle release 1 1 1\n\
                    [0.1] bench: idle done, 1 of 4 failed\n";
        let row = row(&Console::new(text.into()), 4, "idle").expect("a row");
        assert_eq!((row.pairs, row.failed), (3, 1));
        assert_eq!((row.trip.median, row.trip.max, row.stop.p90), (2000, 3000, 4000));
    }
}
