//! `--workloads MINUTES`: all workloads on random machines; every digest has to be right.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::harness::{self, Boot, DataDisk, Options, Verdict};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::drive::{Common, Drive, Ended, counted};
use super::random::any_seed;

/// Bytes of the disk that `blkverify` works on.
const DATA: u64 = 16 << 20;

/// One machine's end.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    #[serde(flatten)]
    common: Common,
    /// Its kernel command line.
    command_line: String,
    /// Rounds whose digest was right.
    right: usize,
    /// What was done beside them.
    load: String,
}

impl Ended for Run {
    fn common(&self) -> &Common {
        &self.common
    }

    fn wrong(&self) -> Option<String> {
        self.common.wrong().map(|wrong| format!("({}) {wrong}", self.command_line))
    }
}

/// What is to be run.
struct Plan {
    seed: u64,
    /// Memory in bytes, when it is not random.
    memory: Option<u64>,
}

/// Memory of the large machine in bytes.
const LARGE: u64 = 16 << 30;
/// No machine is done faster than this, so there are never more.
const LEAST_SECONDS: u64 = 1;

/// Runs machines for `minutes`; whether all digests were right.
pub fn main(drive: &Drive, minutes: u64, large: bool, seed: Option<u64>) -> Result<bool> {
    let first = seed.unwrap_or_else(any_seed);
    println!("seeds from {first}");
    let most = (minutes * 60 / LEAST_SECONDS * 2).max(1);
    let large = large.then_some(Plan { seed: first, memory: Some(LARGE) });
    let small = (first..first + most).map(|seed| Plan { seed, memory: None });
    let plans: Vec<Plan> = large.into_iter().chain(small).collect();
    let drive = drive.until(Instant::now() + Duration::from_secs(minutes * 60));
    let done = drive.run(&plans, key, run)?;
    let rounds: usize = done.iter().map(|run| run.right).sum();
    let wrong: Vec<_> = done.iter().filter(|run| run.wrong().is_some()).collect();
    let mut report = format!(
        "{} machines, {rounds} rounds right, {} machines not as they should be.\n",
        done.len(),
        wrong.len()
    );
    for run in &wrong {
        report.push_str(&format!("- {}: {}\n", run.key(), run.wrong().unwrap_or_default()));
    }
    print!("{report}");
    drive.report(&report)?;
    Ok(wrong.is_empty())
}

fn key(plan: &Plan) -> String {
    match plan.memory {
        Some(bytes) => format!("seed {} with {} GiB", plan.seed, bytes >> 30),
        None => format!("seed {}", plan.seed),
    }
}

/// The machine of a plan: all workloads, their sizes and seeds at random.
fn machine(plan: &Plan, out: &Path) -> Options {
    let mut rng = Rng::with_seed(plan.seed);
    let mut words = vec![
        format!("sieve,n={}", 10_u64.pow(rng.u32(5..=7))),
        "memstamp".into(),
        format!("queens,n={}", rng.u32(6..=12)),
        format!("hashtree,leaves={},seed={}", rng.u32(1..=4096), rng.u32(..)),
        format!(
            "bank,accounts={},transfers={},seed={}",
            rng.u32(2..=256),
            rng.u32(100..=4000),
            rng.u32(..)
        ),
        format!("ring,numbers={},seed={}", rng.u32(1..=256) * 1024, rng.u32(..)),
        format!("heap,steps={},seed={}", rng.u32(10..=200), rng.u32(..)),
        format!("blkverify,blocks={}", rng.u32(1..=32) * 64),
    ];
    rng.shuffle(&mut words);
    let mut words: Vec<_> = words.iter().map(|word| format!("workload={word}")).collect();
    // Heap, interrupts, calls and ticks at random beside them.
    words.push(format!("load={}", rng.u32(5..=20)));
    Options {
        cpus: rng.u32(1..=8),
        memory: plan.memory.unwrap_or_else(|| rng.u64(96..=512) << 20),
        disks: Vec::new(),
        data_disk: Some(DataDisk::blank(DATA)),
        command_line: words.join(" "),
        expect: Some(Verdict::Finished),
        timeout: Duration::from_secs(if plan.memory.is_some() { 600 } else { 120 }),
        tidy: true,
        ..Options::new(Boot::Pvh, out.to_owned())
    }
}

fn run(plan: &Plan, folder: &Path) -> Result<Run> {
    let options = machine(plan, folder);
    let outcome = harness::run(&options, &mut |_| ())?;
    let console = outcome.console.text();
    let right = console.lines().filter(|line| line.contains(" right: ")).count();
    let mut problems = Vec::new();
    if !outcome.as_expected() {
        problems.push(outcome.to_string());
    }
    problems.extend(console.lines().filter(|line| line.contains(" WRONG: ")).map(str::to_owned));
    let load = outcome.console.after("load: ").unwrap_or("not said").to_owned();
    let common = Common {
        key: key(plan),
        verdict: counted(outcome.report.verdict).to_owned(),
        problems,
        milliseconds: outcome.report.duration_ms,
    };
    Ok(Run { common, command_line: options.kernel_command_line(), right, load })
}
