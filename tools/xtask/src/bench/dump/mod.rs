//! `cargo xtask bench dump`: from the crash to each sealed stage, beside what QEMU takes to
//! write the same guest's memory from outside.
//!
//! Both sides write to a file all of whose blocks were written before, and flush it. Memory
//! is filled by `memstamp` first, with pages of which LZ4 stores half, or all. The capture's
//! times are the guest's own, read off the seals of a dump that was verified; QEMU's are the
//! host's. Boots of all cases alternate, and so does which side goes first.
//!
//! On a disk that swallows what it is given there is no dump to verify; its seals are kept.

mod boot;
mod case;
mod outside;
mod tables;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use e2e::harness::{self, parse_size};
use serde::Serialize;

use self::boot::Sample;
use self::case::{Case, Medium};
pub use self::outside::prepare as prepare_file;
use super::host::{Host, memory_left};
use super::journal::{Journal, Wanted};
use super::{median, rate, sorted};
use crate::step::step;
use crate::{build, setup};

/// What a machine takes beside its memory.
const BESIDE_MEMORY: u64 = 512 << 20;

/// What is measured.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub struct Arguments {
    /// Boots of every case; every figure is the median over them
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Virtual CPUs
    #[arg(long, default_value_t = 4)]
    cpus: u32,
    /// Memory, as 512M or 2G; limited disks, and pages that do not compress, take the first
    #[arg(long, value_delimiter = ',', default_value = "1G,4G", value_parser = parse_size)]
    mem: Vec<u64>,
    /// Memory that is dumped to a disk that swallows it
    #[arg(long, value_delimiter = ',', default_value = "1G,4G,16G", value_parser = parse_size)]
    swallow: Vec<u64>,
    /// One boot of every case with 512 MiB: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Only the rows with this word in their names
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Go on where the last measurement stopped
    #[arg(long)]
    resume: bool,
    /// Where results go [default: target/bench/dump]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

const HELP: &str = "\
Every boot's result is appended to DIR/results.jsonl; the tables go to DIR/report.md and all
figures to DIR/figures.json at the end. Interrupt it at will and go on with --resume.

It wants the host to itself: a load beside it shows in every figure, and the load is printed.
It takes the largest --mem three times on disk, and the largest --swallow once in memory; a
row that the host has no memory for is left out, and said.

Examples:
  cargo xtask bench dump --quick                    a few minutes
  cargo xtask bench dump                            forty minutes
  cargo xtask bench dump --only dump=auto --runs 3  some rows
  cargo xtask bench dump --swallow 1G,8G --only swallows";

/// A case and what its boots came to.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    case: Case,
    samples: Vec<Sample>,
}

/// Everything there is to know of a measurement.
#[derive(Serialize)]
struct Figures<'a> {
    host: &'a Host,
    runs: u32,
    rows: &'a [Row],
}

/// Measures and prints.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.runs == 0 || arguments.mem.is_empty() {
        bail!("--runs and --mem: at least one");
    }
    setup::ensure()?;
    step("build the images", build::quiet)?;
    let host = Host::look()?;
    let quick = [512 << 20];
    let (mem, swallow, runs) = match arguments.quick {
        true => (&quick[..], &quick[..], 1),
        false => (&arguments.mem[..], &arguments.swallow[..], arguments.runs),
    };
    let mut cases = case::all(mem, swallow, arguments.cpus);
    if let Some(word) = &arguments.only {
        cases.retain(|case| case.name().contains(word.as_str()));
        if cases.is_empty() {
            bail!("--only {word}: no row has that in its name");
        }
    }
    let folder = arguments.out.clone();
    let folder = folder.unwrap_or_else(|| harness::target_dir().join("bench").join("dump"));
    let settings = format!("{} virtual CPUs\n{}\n", arguments.cpus, host.describe());
    let mut journal = Journal::<Sample>::open(folder, &settings, arguments.resume)?;
    let fits = |case: &&Case| case.memory + BESIDE_MEMORY <= memory_left();
    let wanted = in_turns(&cases.iter().filter(fits).copied().collect::<Vec<_>>(), runs);
    let file = journal.folder().join("memory");
    let mut prepared = 0;
    journal.fill(&wanted, |wanted| {
        let found = cases.iter().find(|case| case.name() == wanted.row);
        let Some(case) = found else { bail!("no row is named {}", wanted.row) };
        if case.medium == Medium::Host && prepared != case.memory {
            outside::prepare(&file, case.memory)?;
            prepared = case.memory;
        }
        boot::measure(case, wanted.run % 2 == 1, &file)
    })?;
    if file.is_file() {
        std::fs::remove_file(&file)?;
    }
    let row = |case: &Case| Row {
        case: *case,
        samples: journal.of(&case.name()).into_iter().cloned().collect(),
    };
    let rows: Vec<Row> = cases.iter().map(row).collect();
    journal
        .report(&tables::report(&rows, &host, runs), &Figures { host: &host, runs, rows: &rows })?;
    Ok(ExitCode::SUCCESS)
}

/// All cases in their order, then all in the opposite order, and so on.
fn in_turns(cases: &[Case], runs: u32) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for run in 1..=runs {
        let each = cases.iter().map(|case| Wanted { row: case.name(), run, weight: case.weight() });
        if run % 2 == 1 { wanted.extend(each) } else { wanted.extend(each.rev()) }
    }
    wanted
}

/// The median over the boots of a row.
fn over(row: &Row, value: impl Fn(&Sample) -> f64) -> f64 {
    median(&sorted(row.samples.iter().map(value).collect()))
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn sealed(sample: &Sample, kind: &str) -> f64 {
    ms(sample.stage_ns(kind))
}

/// The rate of the dump as stored, over the rate of a write without any work.
fn of_raw(sample: &Sample) -> f64 {
    rate(sample.stored_bytes(), sample.write_ns()) / rate(sample.raw_bytes, sample.raw_ns)
}
