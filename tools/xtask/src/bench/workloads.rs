//! `cargo xtask bench workloads`: how much faster a second CPU makes each of them.
//!
//! Machines with one and with two CPUs are booted in turns, and each runs one round of every
//! built-in workload. What disturbs the host for longer than two boots disturbs both of a
//! pair, so the ratio is taken pair by pair. The digests of all boots have to be the same,
//! except where a digest counts what memory there is.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::harness::{self, Boot, Console, DataDisk, Options};
use serde::Serialize;

use super::{median, sorted};
use crate::{build, setup};

/// What is measured: parameters that make a round long enough for a clock in milliseconds,
/// and for what an emulator spends on translating code to vanish.
const WORK: &[(&str, &str)] = &[
    ("sieve", "n=100000000"),
    ("memstamp", ""),
    ("queens", "n=14"),
    ("hashtree", "leaves=16384"),
    ("bank", "transfers=5000"),
    ("ring", "numbers=1048576"),
    ("heap", "steps=250"),
    ("blkverify", "blocks=16384"),
];
/// Its digest is the number of pages it has stamped, and a second CPU takes a few for its
/// stacks.
const COUNTS_PAGES: &str = "memstamp";
/// Bytes of the disk that `blkverify` works on.
const DATA: u64 = 128 << 20;

/// How often it is measured.
#[derive(clap::Args)]
pub struct Arguments {
    /// Pairs of a boot with one CPU and one with two
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A round of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Round {
    digest: String,
    units: String,
    milliseconds: u64,
}

/// One line of the table; times in milliseconds, a place for each pair.
#[derive(Serialize)]
struct Row {
    workload: String,
    units: String,
    digest: String,
    one: Vec<f64>,
    two: Vec<f64>,
}

/// Measures and prints the table; fails when digests differ.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.pairs == 0 {
        bail!("--pairs: at least 1");
    }
    setup::ensure()?;
    build::quiet()?;
    let mut rows: Vec<Row> = Vec::new();
    for pair in 0..arguments.pairs {
        let turns = if pair % 2 == 0 { [1, 2] } else { [2, 1] };
        for cpus in turns {
            let rounds = boot(cpus)?;
            note(&mut rows, cpus, rounds)?;
        }
        eprintln!("pair {} of {}", pair + 1, arguments.pairs);
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} host cores, {} pairs of boots\n", arguments.pairs);
    println!("| workload | units | ms on 1 CPU | on 2 CPUs | times as fast |");
    println!("|---|--:|--:|--:|--:|");
    for row in &rows {
        println!("{}", row.line());
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("the figures as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Name and parameters, as the command line has them.
fn word((name, parameters): (&str, &str)) -> String {
    let comma = if parameters.is_empty() { "" } else { "," };
    format!("{name}{comma}{parameters}")
}

/// One boot: a round of each.
fn boot(cpus: u32) -> Result<Vec<Round>> {
    let words: Vec<_> = WORK.iter().map(|&work| format!("workload={}", word(work))).collect();
    let options = Options {
        cpus,
        disks: Vec::new(),
        data_disk: Some(DataDisk::blank(DATA)),
        command_line: words.join(" "),
        timeout: Duration::from_secs(600),
        tidy: true,
        ..Options::new(Boot::Pvh, harness::fresh_folder("bench-workloads")?)
    };
    let outcome = harness::run(&options, &mut |_| ())?;
    if !outcome.as_expected() {
        bail!("{outcome}\n{}", outcome.console.tail(20));
    }
    WORK.iter().map(|(name, _)| round(&outcome.console, name)).collect()
}

/// What the console says of the first round of `name`: `DIGEST (N units, N ms)`.
fn round(console: &Console, name: &str) -> Result<Round> {
    let said = console.after(&format!("{name}: round 0 right: "));
    let said = said.with_context(|| format!("{name} did not end right"))?;
    let parsed = said.split_once(" (").and_then(|(digest, rest)| {
        let (units, rest) = rest.split_once(" units, ")?;
        let milliseconds = rest.strip_suffix(" ms)")?.parse().ok()?;
        Some(Round { digest: digest.to_owned(), units: units.to_owned(), milliseconds })
    });
    parsed.with_context(|| format!("'{said}' is no result"))
}

/// Adds the rounds of a boot.
fn note(rows: &mut Vec<Row>, cpus: u32, rounds: Vec<Round>) -> Result<()> {
    if rows.is_empty() {
        let row = |(&work, round): (&(&str, &str), &Round)| Row {
            workload: word(work),
            units: round.units.clone(),
            digest: round.digest.clone(),
            one: Vec::new(),
            two: Vec::new(),
        };
        rows.extend(WORK.iter().zip(&rounds).map(row));
    }
    for (row, round) in rows.iter_mut().zip(rounds) {
        ensure!(
            row.digest == round.digest || row.workload == COUNTS_PAGES,
            "{}: {} on {cpus} CPUs, and {} before",
            row.workload,
            round.digest,
            row.digest
        );
        let times = if cpus == 1 { &mut row.one } else { &mut row.two };
        times.push(round.milliseconds as f64);
    }
    Ok(())
}

impl Row {
    /// How many times as fast two CPUs are, by the pairs.
    fn ratios(&self) -> Vec<f64> {
        sorted(self.one.iter().zip(&self.two).map(|(one, two)| one / two.max(1.0)).collect())
    }

    fn line(&self) -> String {
        let spread = |values: &[f64], digits: usize| {
            let values = sorted(values.to_vec());
            let (least, most) = (values[0], values[values.len() - 1]);
            format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(&values))
        };
        format!(
            "| `{}` | {} | {} | {} | {} |",
            self.workload,
            self.units,
            spread(&self.one, 0),
            spread(&self.two, 0),
            spread(&self.ratios(), 2),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_read_off_the_console() {
        let text = "[1.0] queens: 50 % (98 of 196 units)\n\
                    [1.4] queens: round 0 right: 365596 (196 units, 1363 ms)\n";
        let console = Console::new(text.into());
        let round = round(&console, "queens").expect("a round");
        assert_eq!((round.digest.as_str(), round.milliseconds), ("365596", 1363));
        assert!(super::round(&console, "sieve").is_err());
    }

    #[test]
    fn ratios_are_those_of_pairs_and_digests_must_agree() {
        let rounds = |digest: &str, milliseconds| {
            let round = Round { digest: digest.to_owned(), units: "9".to_owned(), milliseconds };
            vec![round; WORK.len()]
        };
        let mut rows = Vec::new();
        for (cpus, milliseconds) in [(1, 1000), (2, 500), (2, 2000), (1, 3000)] {
            note(&mut rows, cpus, rounds("7", milliseconds)).expect("the same digest");
        }
        assert_eq!(rows[0].ratios(), [1.5, 2.0]);
        let line = "| `sieve,n=100000000` | 9 | 2000 (1000 to 3000) | 1250 (500 to 2000) | \
                    1.75 (1.50 to 2.00) |";
        assert_eq!(rows[0].line(), line);
        assert!(note(&mut rows, 1, rounds("8", 1)).is_err());
    }
}
