//! `--wild`: memory damaged from outside, as a wild write or a bad bit would, and then a crash.
//!
//! One machine is booted and saved (`state.rs`). Each run goes on from there: QEMU's debugger
//! stub writes over a word or a page (`damage.rs`, `places.rs`), the console is asked `ready`,
//! and the machine is told to panic, or sent an NMI where its console does not answer. Good is
//! a dump, or last words; and where `ready` said yes, a dump.

mod damage;
mod places;
mod state;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::harness::{Gdb, Running, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vmcore::Dump;

use self::damage::{Damage, PAGE, WORD};
use self::places::Places;
use self::state::State;
use super::drive::{Common, Drive, Ended, counted};
use super::random::any_seed;
use crate::step::step;

/// How long the console may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a crash may take until the capture image is entered.
const CRASH: Duration = Duration::from_secs(5);

/// One damage.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wild {
    #[serde(flatten)]
    common: Common,
    /// What `ready` said after the damage: `yes`, `no`, `maybe`, or `-` when nothing came.
    ready: String,
    /// What made the machine crash: `damage`, `panic` or `nmi`.
    by: String,
    /// What the dump says has crashed, if there is one.
    cause: Option<String>,
}

impl Ended for Wild {
    fn common(&self) -> &Common {
        &self.common
    }
}

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// Random damages.
    pub runs: u64,
    /// The seed of the first.
    pub seed: Option<u64>,
    /// Every damage, instead.
    pub all: bool,
    /// This damage instead, or every one whose name has this word.
    pub only: Option<&'a str>,
}

/// Runs the campaign; whether nothing was silent and no `ready: yes` was wrong.
pub fn main(drive: &Drive, choice: Choice<'_>) -> Result<bool> {
    let folder = drive.folder().join("state");
    if folder.is_dir() {
        std::fs::remove_dir_all(&folder).context("remove an earlier state")?;
    }
    let state = step("boot a machine and save it", || State::make(&folder))?;
    let places = Places::find(&state)?;
    println!("{}", places.summary(&state));
    let plans = match choice.only.map(str::parse::<Damage>) {
        Some(Ok(damage)) => vec![damage],
        Some(Err(_)) | None if choice.all || choice.only.is_some() => {
            let mut all = places.all(&state);
            all.retain(|damage| choice.only.is_none_or(|word| damage.to_string().contains(word)));
            all
        }
        _ => {
            let first = choice.seed.unwrap_or_else(any_seed);
            println!("seeds {first} to {}", first + choice.runs.saturating_sub(1));
            let seeds = first..first + choice.runs;
            let mut chosen: Vec<_> = seeds.map(|seed| places.random(seed, &state)).collect();
            let mut seen = std::collections::BTreeSet::new();
            chosen.retain(|damage| seen.insert(damage.to_string()));
            chosen
        }
    };
    let done = drive
        .run(&plans, Damage::to_string, |damage, folder| run(damage, &places, &state, folder))?;
    let report = report(&done);
    print!("{report}");
    drive.report(&report)?;
    std::fs::remove_dir_all(&folder).context("remove the state")?;
    Ok(done.iter().all(|wild| wild.wrong().is_none()))
}

fn run(damage: &Damage, places: &Places, state: &State, folder: &Path) -> Result<Wild> {
    let address = places.address(damage)?;
    let mut socket = None;
    let running = state.restore(folder, |options| socket = Some(Gdb::wanted_by(options)))?;
    let mut gdb = Gdb::connect(&socket.context("a stub")?, Duration::from_secs(20))?;
    gdb.physical_addresses()?;
    let length = if damage.page { PAGE } else { WORD };
    let words = (address..address + length).step_by(WORD as usize);
    let bytes: Vec<u8> =
        words.flat_map(|at| damage.value.of(state.word(at)).to_le_bytes()).collect();
    // The stub takes packets of 4096 letters.
    for (at, part) in (address..).step_by(1024).zip(bytes.chunks(1024)) {
        gdb.write(at, part)?;
    }
    gdb.leave()?;
    finish(damage, running)
}

/// Lets the damaged machine go on and crash, and judges it.
fn finish(damage: &Damage, mut running: Running) -> Result<Wild> {
    let crashing = |line: &str| {
        ["capture: ", "no-dump: ", "crash: ", "panic: "].iter().any(|word| line.contains(word))
    };
    running.machine.qmp().execute("cont", json!({}))?;
    running.say("ready")?;
    let answers = ["ready: yes", "ready: no", "ready: maybe"];
    let is_answer =
        |line: &str| crashing(line) || answers.iter().any(|answer| line.contains(answer));
    let said = running.machine.line_within(ANSWER, is_answer);
    let ready = said.as_deref().and_then(|line| line.split_once("ready: "));
    let ready = ready.and_then(|(_, rest)| rest.split([':', ' ']).next()).unwrap_or("-").to_owned();
    let mut by = "damage";
    if !said.as_deref().is_some_and(crashing) {
        let mut crashed = false;
        if ready != "-" {
            by = "panic";
            running.say("crash panic,cpu=1")?;
            crashed = running.machine.line_within(CRASH, crashing).is_some();
        }
        // From outside, where nobody listens; twice, as the first may have been taken for
        // something else.
        for _ in 0..2 {
            if crashed || running.machine.qmp().execute("inject-nmi", json!({})).is_err() {
                break;
            }
            by = "nmi";
            crashed = running.machine.line_within(CRASH, crashing).is_some();
        }
    }
    let outcome = running.finish(&mut |_| ())?;
    let verdict = outcome.report.verdict;
    let mut problems = Vec::new();
    let left = [Verdict::Captured, Verdict::Incomplete, Verdict::LastWords].contains(&verdict);
    if !left {
        problems.push(outcome.to_string());
    }
    if ready == "yes" && ![Verdict::Captured, Verdict::Incomplete].contains(&verdict) {
        problems.push(format!("'ready' said yes, and then: {outcome}"));
    }
    let dump = outcome.vmcore.as_deref().and_then(|path| Dump::open(path).ok());
    let cause = dump.and_then(|dump| Some(dump.handoff.as_ref()?.cause.message().to_owned()));
    let verdict = if verdict == Verdict::Hung { "hung" } else { counted(verdict) };
    let common = Common {
        key: damage.to_string(),
        verdict: verdict.into(),
        problems,
        milliseconds: outcome.report.duration_ms,
    };
    Ok(Wild { common, ready, by: by.into(), cause })
}

/// Counts by verdict and by what `ready` said, and lists what went wrong.
fn report(done: &[Wild]) -> String {
    let mut counts: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    for wild in done {
        *counts.entry((&wild.common.verdict, &wild.ready, &wild.by)).or_default() += 1;
    }
    let mut text = format!("{} damages.\n\n", done.len());
    text.push_str("| verdict | `ready` said | crashed by | damages |\n|---|---|---|---|\n");
    for ((verdict, ready, by), count) in counts {
        let _ = writeln!(text, "| {verdict} | {ready} | {by} | {count} |");
    }
    let wrong = done.iter().filter_map(|wild| Some((wild.key(), wild.wrong()?)));
    let lines: Vec<_> = wrong.map(|(key, wrong)| format!("- `{key}`: {wrong}\n")).collect();
    let _ = write!(text, "\n{} went wrong.\n{}", lines.len(), lines.concat());
    text
}
