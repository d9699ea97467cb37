//! `cargo xtask soak`: what takes longer than a test may.
//!
//! | option | what it runs | file |
//! |---|---|---|
//! | `--matrix` | every crash with every wedge on 1, 2, 4 and 8 CPUs | `matrix.rs` |
//! | `--runs N` | random machines, faults and wedges, from a seed | `random.rs` |
//! | `--instructions` | one panic, broken at each of its instructions in turn | `instructions.rs` |
//! | `--power-loss` | dumps cut off at every write and in between; machines killed | `power.rs` |
//! | `--large-machines` | 16 GiB, 64 and 288 CPUs, each crashed and captured | `large.rs` |
//! | `--wild` | memory damaged from outside, a word or a page at a time, then a crash | `wild/` |
//! | `--workloads MINUTES` | all workloads under random load, without a crash | `workloads.rs` |
//!
//! They run two machines at a time (the large ones one) and write each result down as it comes, so that
//! they can be interrupted and resumed (`drive.rs`). A run that left nothing at all is
//! *silent*; the command fails when there is one, or anything else is not as it should be.

mod drive;
mod instructions;
mod large;
mod matrix;
mod power;
mod random;
mod trace;
mod wild;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use e2e::harness;

use crate::{build, setup};

/// What to run. Exactly one of the first kinds.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub struct Arguments {
    /// Run the full product of crash, wedge, 1, 2, 4, 8 CPUs and the side it strikes on
    #[arg(long, group = "what")]
    matrix: bool,
    /// Run this many random machines; with --wild, damage memory in this many ways
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Damage memory that a crash relies on, one word or one page for each run
    #[arg(long, group = "what")]
    wild: bool,
    /// With --wild: every word of the variables that crash code uses, and every page
    #[arg(long, requires = "wild")]
    all: bool,
    /// Break one panic at each instruction it executes, one run for each
    #[arg(long, group = "what")]
    instructions: bool,
    /// Crash machines with 16 GiB, with 64 and with 288 CPUs, one at a time
    #[arg(long, group = "what")]
    large_machines: bool,
    /// Run all workloads under random load for so long
    #[arg(long, group = "what", value_name = "MINUTES")]
    workloads: Option<u64>,
    /// Replay what a power cut may leave of so many dumps, and kill so many machines
    #[arg(long, group = "what")]
    power_loss: bool,
    /// With --power-loss: dumps to record and replay
    #[arg(long, default_value_t = 20, value_name = "N")]
    dumps: usize,
    /// With --power-loss: machines to kill in the middle of a dump
    #[arg(long, default_value_t = 30, value_name = "N")]
    kills: usize,
    /// With --runs, --wild, --power-loss, --workloads: the seed of the first run; the others follow it
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// With --instructions: at most so many, evenly chosen
    #[arg(long, default_value_t = 3000, value_name = "N")]
    sample: usize,
    /// With --workloads: one machine with 16 GiB as well
    #[arg(long)]
    large: bool,
    /// With --matrix, --instructions, --large-machines, --wild: only what has this word in its
    /// name; with --wild also one damage, NAME+OFFSET=VALUE
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Go on where the last soak of this kind stopped
    #[arg(long)]
    resume: bool,
    /// Where results and the folders of bad runs go [default: target/soak/KIND]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

const HELP: &str = "\
Results are appended to DIR/results.jsonl, one line each; a table is written to DIR/report.md
at the end. The folder of a run that went wrong stays in DIR/bad, with console and dump.

Examples:
  cargo xtask soak --matrix                        half an hour or more; interrupt it at will,
  cargo xtask soak --matrix --resume               and go on
  cargo xtask soak --matrix --only irqs-off        part of it
  cargo xtask soak --runs 500                      prints the seed of every run that went wrong
  cargo xtask soak --runs 1 --seed 4711            one of them again
  cargo xtask soak --instructions --sample 200     a quick look
  cargo xtask soak --instructions --only 1013a40   one instruction again
  cargo xtask soak --wild --runs 5000              memory damaged at random
  cargo xtask soak --wild --only kernel::crash::CLAIM+0x0=0x1
  cargo xtask soak --power-loss                    20 dumps, 10,000 states, 30 kills
  cargo xtask soak --large-machines                takes 17 GiB of memory, 34 GiB of disk
  cargo xtask soak --workloads 20 --large          no crash; digests have to be right";

/// Damages of `--wild` without `--runs`.
const WILD_RUNS: u64 = 500;

/// Runs what was asked for; fails when something was not as it should be.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let kind = match arguments {
        Arguments { matrix: true, .. } => "matrix",
        Arguments { wild: true, .. } => "wild",
        Arguments { instructions: true, .. } => "instructions",
        Arguments { power_loss: true, .. } => "power-loss",
        Arguments { large_machines: true, .. } => "large-machines",
        Arguments { workloads: Some(_), .. } => "workloads",
        Arguments { runs: Some(_), .. } => "runs",
        _ => bail!(
            "say what: --matrix, --runs, --instructions, --wild, --power-loss, --large-machines \
             or --workloads (--help)"
        ),
    };
    setup::ensure()?;
    build::quiet()?;
    let folder = match &arguments.out {
        Some(folder) => folder.clone(),
        None => harness::target_dir().join("soak").join(kind),
    };
    let drive = drive::Drive::new(folder, arguments.resume)?;
    let good = match kind {
        "matrix" => matrix::main(&drive, arguments.only.as_deref())?,
        "runs" => random::main(&drive, arguments.runs.unwrap_or(0), arguments.seed)?,
        "instructions" => instructions::main(&drive, arguments.sample, arguments.only.as_deref())?,
        "large-machines" => large::main(&drive, arguments.only.as_deref())?,
        "wild" => {
            let choice = wild::Choice {
                runs: arguments.runs.unwrap_or(WILD_RUNS),
                seed: arguments.seed,
                all: arguments.all,
                only: arguments.only.as_deref(),
            };
            wild::main(&drive, choice)?
        }
        "power-loss" => power::main(&drive, arguments.dumps, arguments.kills, arguments.seed)?,
        _ => {
            let minutes = arguments.workloads.unwrap_or(0);
            workloads::main(&drive, minutes, arguments.large, arguments.seed)?
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
