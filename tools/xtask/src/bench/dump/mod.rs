//! `cargo xtask bench dump`: from the crash to each sealed stage, beside what QEMU takes to
//! write the same guest's memory from outside.
//!
//! Both sides write to a file all of whose blocks were written before, and flush it. Memory
//! is filled by `memstamp` first. The capture's times are the guest's own, read off the seals
//! of a dump that was verified; QEMU's are the host's. Boots of all cases alternate, and so
//! does which side goes first.

mod boot;
mod host;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::harness::{self, parse_size};
use serde::Serialize;

use self::boot::{Case, Limit, Sample};
use super::{median, mib, rate, sorted};
use crate::step::step;
use crate::{build, setup};

/// Ways to store memory.
const WAYS: [&str; 3] = ["raw", "lz4", "auto"];
/// Limits of the disk, in bytes a second.
const SLOW: u64 = 100_000_000;
const FAST: u64 = 500_000_000;

/// What is measured.
#[derive(clap::Args)]
pub struct Arguments {
    /// Boots of every case; every figure is the median over them
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Virtual CPUs
    #[arg(long, default_value_t = 4)]
    cpus: u32,
    /// Memory, as 512M or 2G; the cases with a limited disk take the first
    #[arg(long, value_delimiter = ',', default_value = "1G,4G", value_parser = parse_size)]
    mem: Vec<u64>,
    /// Leave out the cases with a limited disk
    #[arg(long)]
    unlimited: bool,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A case and what its boots came to.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    case: Case,
    samples: Vec<Sample>,
}

/// Measures and prints.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.runs == 0 || arguments.mem.is_empty() {
        bail!("--runs and --mem: at least one");
    }
    setup::ensure()?;
    step("build the images", build::quiet)?;
    let mut rows: Vec<Row> =
        cases(arguments).into_iter().map(|case| Row { case, samples: Vec::new() }).collect();
    let file = harness::fresh_folder("bench-dump-host")?.join("memory");
    for run in 0..arguments.runs {
        let forwards = run % 2 == 0;
        let order = |index: usize| if forwards { index } else { rows.len() - 1 - index };
        let order: Vec<_> = (0..rows.len()).map(order).collect();
        let mut prepared = 0;
        for index in order {
            let case = rows[index].case.clone();
            if prepared != case.memory {
                host::prepare(&file, case.memory)?;
                prepared = case.memory;
            }
            let name = format!("run {} of {}: {}", run + 1, arguments.runs, name(&case));
            let sample = step(&name, || boot::measure(&case, forwards, &file))?;
            rows[index].samples.push(sample);
        }
    }
    std::fs::remove_file(&file).context("remove the host's file")?;
    print(&rows);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("the figures as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn cases(arguments: &Arguments) -> Vec<Case> {
    let cpus = arguments.cpus;
    let mut cases = Vec::new();
    for &memory in &arguments.mem {
        let case = |storing| Case { memory, cpus, storing, limit: Limit::None };
        cases.extend(WAYS.map(case));
        // What the other CPUs are good for.
        cases.push(Case { cpus: 1, ..case("lz4") });
    }
    let limits = [Limit::Fixed(SLOW), Limit::Fixed(FAST), Limit::Changed(SLOW, FAST)];
    for limit in limits.into_iter().filter(|_| !arguments.unlimited) {
        let memory = arguments.mem[0];
        cases.extend(WAYS.map(|storing| Case { memory, cpus, storing, limit }));
    }
    cases
}

fn name(case: &Case) -> String {
    let Case { memory, cpus, storing, limit } = case;
    format!("{} MiB, {cpus} CPUs, dump={storing}{}", memory >> 20, limited(*limit))
}

fn limited(limit: Limit) -> String {
    match limit {
        Limit::None => String::new(),
        Limit::Fixed(bytes) => format!(", disk {} MB/s", bytes / 1_000_000),
        Limit::Changed(from, to) => {
            format!(", disk {} then {} MB/s", from / 1_000_000, to / 1_000_000)
        }
    }
}

/// The median over the boots of a row.
fn over(row: &Row, value: impl Fn(&Sample) -> f64) -> f64 {
    median(&sorted(row.samples.iter().map(value).collect()))
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn sealed(sample: &Sample, kind: &str) -> f64 {
    sample.stages.iter().find(|stage| stage.kind == kind).map_or(0.0, |stage| ms(stage.sealed_ns))
}

/// The rate of the dump as stored, over the rate of a write without any work.
fn of_raw(sample: &Sample) -> f64 {
    rate(sample.stored_bytes(), sample.write_ns()) / rate(sample.raw_bytes, sample.raw_ns)
}

fn print(rows: &[Row]) {
    println!(
        "\nMedians of {} boots on {} host cores under emulation; times in ms from the crash.\n",
        rows.first().map_or(0, |row| row.samples.len()),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    println!(
        "| MiB | CPUs | dump= | disk, MB/s | mini | used | all | memory, MiB | stored, MiB \
         | MiB/s | raw MiB/s | stored rate / raw rate | region, MiB |"
    );
    println!("|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for row in rows {
        let raw = row.case.storing == "raw";
        let if_raw = |text: String| if raw { text } else { String::new() };
        println!(
            "| {} | {} | {} | {} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} | {:.1} |",
            row.case.memory >> 20,
            row.case.cpus,
            row.case.storing,
            limited(row.case.limit).trim_start_matches(", disk ").trim_end_matches(" MB/s"),
            over(row, |sample| sealed(sample, "mini")),
            over(row, |sample| sealed(sample, "used")),
            over(row, |sample| sealed(sample, "all")),
            over(row, |sample| mib(sample.memory_bytes())),
            over(row, |sample| mib(sample.stored_bytes())),
            over(row, |sample| rate(sample.memory_bytes(), sample.write_ns())),
            if_raw(format!("{:.0}", over(row, |sample| rate(sample.raw_bytes, sample.raw_ns)))),
            if_raw(format!("{:.2}", over(row, of_raw))),
            over(row, |sample| mib(sample.region_bytes)),
        );
    }
    println!(
        "\n| MiB | CPUs | dump= | crash to `all`, ms | dump-guest-memory, ms | of it | mapped-ram, ms | of it |"
    );
    println!("|--:|--:|---|--:|--:|--:|--:|--:|");
    for row in rows.iter().filter(|row| row.case.limit == Limit::None) {
        let host = |value: fn(&Sample) -> Option<u64>| {
            let ratio = over(row, |sample| {
                value(sample).map_or(f64::NAN, |ns| sample.sealed_ns() as f64 / ns as f64)
            });
            (over(row, |sample| value(sample).map_or(f64::NAN, ms)), ratio)
        };
        let (core, core_ratio) = host(|sample| sample.core_ns);
        let (mapped, mapped_ratio) = host(|sample| sample.mapped_ns);
        println!(
            "| {} | {} | {} | {:.0} | {core:.0} | {core_ratio:.2} | {mapped:.0} | {mapped_ratio:.2} |",
            row.case.memory >> 20,
            row.case.cpus,
            row.case.storing,
            over(row, |sample| ms(sample.sealed_ns())),
        );
    }
    println!();
    for row in rows.iter().filter(|row| row.case.storing == "auto") {
        let same = |storing: &str| {
            rows.iter().find(|other| {
                other.case
                    == Case {
                        storing: WAYS.into_iter().find(|way| *way == storing).unwrap_or("raw"),
                        ..row.case.clone()
                    }
            })
        };
        let took = |row: &Row| over(row, |sample| sample.write_ns() as f64);
        if let (Some(one), Some(other)) = (same("raw"), same("lz4")) {
            let best = took(one).min(took(other));
            println!("{}: {:.2} of the better choice's rate", name(&row.case), best / took(row));
        }
    }
    for row in rows.iter().filter(|row| row.case.cpus == 1) {
        let many = rows.iter().find(|other| {
            let (a, b) = (&other.case, &row.case);
            (a.memory, a.storing, a.limit) == (b.memory, b.storing, b.limit) && a.cpus > 1
        });
        if let Some(many) = many {
            let took = |row: &Row| over(row, |sample| sample.write_ns() as f64);
            println!(
                "{}: {:.2} times the rate of one CPU",
                name(&many.case),
                took(row) / took(many)
            );
        }
    }
}
