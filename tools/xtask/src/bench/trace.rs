//! `cargo xtask bench trace`: what the flight recorder costs.
//!
//! The appliance measures with the recorder on and off in turns, in one boot: single events
//! in cycles of its time-stamp counter, and rounds of the workload `ring`, which does little
//! but take locks and interrupt CPUs, so that it records more than any other.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::harness::{self, Boot, Console, Options};
use serde::Serialize;

use super::{median, sorted};
use crate::{build, setup};

/// What is measured.
#[derive(clap::Args)]
pub struct Arguments {
    /// Pairs of a round with the recorder on and one with it off, per row
    #[arg(long, default_value_t = 31)]
    pairs: u32,
    /// Virtual CPUs, a boot each
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    cpus: Vec<u32>,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    cpus: u32,
    host_cores: usize,
    /// Cycles of an event, recorded.
    event_on: Vec<f64>,
    /// Cycles of an event that is not recorded.
    event_off: Vec<f64>,
    /// Nanoseconds of a round, recorded.
    round_on: Vec<f64>,
    /// Nanoseconds of a round that is not recorded.
    round_off: Vec<f64>,
    /// Events recorded in a round.
    events: Vec<f64>,
}

/// Measures and prints the table, a line as soon as it is known.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if !(1..=128).contains(&arguments.pairs) {
        bail!("--pairs: 1 to 128");
    }
    setup::ensure()?;
    build::quiet()?;
    println!(
        "| CPUs | host cores | pairs | cycles an event, on | off | events in a round of `ring` | \
         ms a round, on | off | cost |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut rows = Vec::new();
    for &cpus in &arguments.cpus {
        let row = boot(cpus, arguments.pairs)?;
        println!("{}", row.line());
        rows.push(row);
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("the figures as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn boot(cpus: u32, pairs: u32) -> Result<Row> {
    let options = Options {
        cpus,
        disks: Vec::new(),
        command_line: format!("workload=ring,numbers=1048576 bench_trace={pairs}"),
        timeout: Duration::from_secs(300),
        tidy: true,
        ..Options::new(Boot::Pvh, harness::fresh_folder(&format!("bench-trace-{cpus}"))?)
    };
    let outcome = harness::run(&options, &mut |_| ())?;
    if !outcome.as_expected() {
        bail!("{outcome}\n{}", outcome.console.tail(20));
    }
    Row::read(&outcome.console, cpus, pairs as usize)
}

impl Row {
    fn read(console: &Console, cpus: u32, pairs: usize) -> Result<Self> {
        let samples = |kind: &str| -> Result<Vec<f64>> {
            let marker = format!("bench: {kind} ");
            let words = console.all_after(&marker).flat_map(str::split_whitespace);
            let samples: Result<Vec<f64>, _> = words.map(str::parse).collect();
            let samples = samples.with_context(|| format!("samples of {kind}"))?;
            ensure!(samples.len() == pairs, "{} samples of {kind}, not {pairs}", samples.len());
            Ok(samples)
        };
        let row = Self {
            cpus,
            host_cores: std::thread::available_parallelism().map_or(0, usize::from),
            event_on: samples("event on")?,
            event_off: samples("event off")?,
            round_on: samples("ring on")?,
            round_off: samples("ring off")?,
            events: samples("ring events")?,
        };
        // A recorder that was off all the time would cost nothing.
        ensure!(row.events.iter().all(|&events| events > 0.0), "a round without an event");
        Ok(row)
    }

    /// What recording adds to a round, in percent of one without, by the pairs: what disturbs
    /// the host for longer than a pair disturbs both of it.
    fn costs(&self) -> Vec<f64> {
        let pairs = self.round_on.iter().zip(&self.round_off);
        sorted(pairs.map(|(on, off)| (on / off - 1.0) * 100.0).collect())
    }

    fn line(&self) -> String {
        let spread = |values: &[f64], unit: f64, digits: usize| {
            let values = sorted(values.iter().map(|value| value / unit).collect());
            let (least, most) = (values[0], values[values.len() - 1]);
            format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(&values))
        };
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} % |",
            self.cpus,
            self.host_cores,
            self.round_on.len(),
            spread(&self.event_on, 1.0, 0),
            spread(&self.event_off, 1.0, 0),
            spread(&self.events, 1.0, 0),
            spread(&self.round_on, 1e6, 0),
            spread(&self.round_off, 1e6, 0),
            spread(&self.costs(), 1.0, 1),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[0.1] bench: event on 300 310\n[0.1] bench: event on 320\n\
                        [0.1] bench: event off 20 21 22\n\
                        [0.1] bench: ring on 110000000 330000000 105000000\n\
                        [0.1] bench: ring off 100000000 300000000 100000000\n\
                        [0.1] bench: ring events 1000 1001 1002\n";

    #[test]
    fn the_cost_is_that_of_pairs() {
        let row = Row::read(&Console::new(TEXT.into()), 4, 3).expect("a row");
        // The slow pair is slow on both sides and counts as any other.
        assert_eq!(median(&row.costs()).round(), 10.0);
        assert!(row.line().ends_with(
            "| 310 (300 to 320) | 21 (20 to 22) | 1001 (1000 to 1002) | 110 (105 to 330) | \
             100 (100 to 300) | 10.0 (5.0 to 10.0) % |"
        ));
    }

    #[test]
    fn missing_samples_and_a_recorder_that_was_off_are_refused() {
        assert!(Row::read(&Console::new(TEXT.into()), 4, 4).is_err());
        let off = TEXT.replace("events 1000", "events 0");
        assert!(Row::read(&Console::new(off), 4, 3).is_err());
    }
}
