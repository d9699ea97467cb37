//! `--large-machines`: 16 GiB, 64 and 288 CPUs, each crashed and captured, one at a time.
//!
//! A fixed list. What is not promised by the catalogue is looked at here: that the dump of a
//! large memory accounts for all of it, and that a crowd of CPUs is stopped by the interrupt
//! but for a few that come late.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::catalogue::{self, Finding, Scenario, Side, Strikes};
use e2e::harness::{self, Options, Outcome};
use serde::{Deserialize, Serialize};

use vmcore::{Dump, Info, OpenOptions, Source};

use super::drive::{Common, Drive, Ended, counted};

/// Bytes of the large memory.
const MEMORY: u64 = 16 << 30;
/// Bytes that 288 CPUs have room in, each with its guarded stacks and its ring of events.
const MEMORY_OF_MANY: u64 = 512 << 20;
/// CPUs beside the large memory.
const FEW: u32 = 4;
/// The crowds.
const MANY: [u32; 2] = [64, 288];
/// What a crowd goes through.
const CROWD: [(&str, Option<&str>); 3] =
    [("panic", None), ("panic", Some("irqs-off")), ("parallel-panic", None)];
/// Memory that firmware keeps for itself below 1 MiB and at its top, in bytes at most.
const FIRMWARE: u64 = 2 << 20;
/// The word of `vmcore info` for memory that a further stage would have held.
const LATER_STAGE: &str = "later-stage";
/// Its words for what is no memory to use.
const NOT_RAM: [&str; 3] = ["not-ram", "firmware", "bad"];
/// How long one of them may take: 288 CPUs on two cores are slow.
const TIMEOUT: Duration = Duration::from_secs(600);

/// One machine's end.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    #[serde(flatten)]
    common: Common,
    /// How many CPUs were stopped in which way.
    stopped: Vec<(String, usize)>,
    /// Bytes of memory in the dump.
    dumped: u64,
    /// Of them, those that were not stored because they are zero.
    zero: u64,
    /// Chunks of memory whose checksums were computed.
    chunks: u64,
}

impl Ended for Run {
    fn common(&self) -> &Common {
        &self.common
    }
}

/// A machine.
struct Plan {
    scenario: Scenario,
    memory: u64,
    command_line: &'static str,
}

impl Plan {
    fn key(&self) -> String {
        let memory = self.memory >> 20;
        format!("{}, {memory} MiB, {}", self.scenario, self.command_line)
    }

    fn options(&self, out: &Path) -> Options {
        Options {
            memory: self.memory,
            // Windows are those that the machine measures for itself.
            command_line: self.command_line.into(),
            timeout: TIMEOUT,
            ..self.scenario.options(out.to_owned())
        }
    }
}

/// The list.
fn plans() -> Result<Vec<Plan>> {
    let plan = |crash, wedge: Option<&str>, cpus, memory, command_line| {
        let crash = catalogue::crash(crash).context("a crash of the catalogue")?;
        let wedge = wedge.and_then(catalogue::wedge);
        let scenario = Scenario::new(crash, wedge, cpus, Side::Ap);
        Ok(Plan { scenario, memory, command_line })
    };
    // One that has written to nearly all of its memory, and one that has not: the host needs
    // as much for the first, and for its dump; the other's dump is nearly all zero.
    let words = ["workload=memstamp pages=used", "workload=sieve pages=all"];
    let mut plans: Vec<Plan> = words
        .into_iter()
        .map(|words| plan("panic", None, FEW, MEMORY, words))
        .collect::<Result<_>>()?;
    for cpus in MANY {
        for (crash, wedge) in CROWD {
            plans.push(plan(crash, wedge, cpus, MEMORY_OF_MANY, "workload=sieve,n=1000000")?);
        }
    }
    Ok(plans)
}

/// Runs those that have `only` in their names; whether all were captured as they should be.
pub fn main(drive: &Drive, only: Option<&str>) -> Result<bool> {
    let mut plans = plans()?;
    plans.retain(|plan| only.is_none_or(|word| plan.key().contains(word)));
    let done = drive.one_by_one().run(&plans, Plan::key, run)?;
    let report = report(&done);
    print!("{report}");
    drive.report(&report)?;
    Ok(done.iter().all(|run| run.wrong().is_none()))
}

fn run(plan: &Plan, folder: &Path) -> Result<Run> {
    let outcome = harness::run(&plan.options(folder), &mut |_| ())?;
    let found = Finding::read(&plan.scenario, &outcome);
    let mut run = Run {
        common: Common {
            key: plan.key(),
            verdict: counted(found.verdict).to_owned(),
            problems: found.problems,
            milliseconds: outcome.report.duration_ms,
        },
        stopped: count(&found.stopped),
        dumped: 0,
        zero: 0,
        chunks: 0,
    };
    if let Err(error) = look(plan, &outcome, &mut run) {
        run.common.problems.push(format!("{error:#}"));
    }
    Ok(run)
}

/// How often each word occurs, in the order of their first.
fn count(words: &[&str]) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for word in words {
        match counts.iter_mut().find(|(other, _)| other == word) {
            Some((_, count)) => *count += 1,
            None => counts.push(((*word).to_owned(), 1)),
        }
    }
    counts
}

/// Looks at the dump on the disk, with all its checksums.
fn look(plan: &Plan, outcome: &Outcome, run: &mut Run) -> Result<()> {
    let disk = Source::open(outcome.out.join("disk.img")).context("the disk")?;
    let dump = disk.dump(OpenOptions::default()).context("the dump on the disk")?;
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    run.chunks = verified.chunks;
    let mut problems = Vec::new();
    if !(verified.is_good() && verified.complete && verified.chunks > 0) {
        problems.push(format!("verify: {}", verified.render()));
    }
    let info = vmcore::info(&dump);
    (run.dumped, run.zero) = (info.memory.dumped_bytes, info.memory.zero_bytes);
    problems.extend(account_for_memory(plan, &info));
    if plan.command_line.contains("memstamp") {
        let stamps = vmcore::stamps(&dump).context("the stamps")?;
        if !stamps.is_good() || stamps.verified == 0 {
            problems.push(format!("stamps: {stamps:?}"));
        }
    }
    if plan.scenario.crowded() {
        problems.extend(crowd(plan, &dump, &run.stopped));
    }
    run.common.problems.extend(problems);
    Ok(())
}

/// All memory is either in the dump or named as left out, and of the latter there is no more
/// than was asked for.
fn account_for_memory(plan: &Plan, info: &Info) -> Vec<String> {
    let mut problems = Vec::new();
    let (ram, dumped) = (info.memory.ram_bytes, info.memory.dumped_bytes);
    if ram < plan.memory - FIRMWARE {
        problems.push(format!("{ram} bytes of RAM of {}", plan.memory));
    }
    let left_out = |wanted: &dyn Fn(&str) -> bool| -> u64 {
        let of = info.excluded.iter().filter(|range| wanted(&range.reason));
        of.map(|range| range.bytes).sum()
    };
    let later = left_out(&|reason| reason == LATER_STAGE);
    // Memory is dumped by the page, and its ranges need not end at one.
    let named = dumped + left_out(&|reason| !NOT_RAM.contains(&reason));
    if named.abs_diff(ram) > FIRMWARE {
        problems.push(format!("{named} bytes are dumped or named as left out, of {ram}"));
    }
    let all = plan.command_line.contains("pages=all");
    if all == (later > 0) {
        problems.push(format!("{later} bytes were left for a later stage"));
    }
    // `memstamp` has nine tenths of what is free.
    if plan.memory == MEMORY && dumped < plan.memory / 10 * 8 {
        problems.push(format!("only {dumped} bytes are in the dump"));
    }
    problems
}

/// A crowd has registers for everybody, and most of it came by the interrupt or, where
/// everybody panics, by itself.
fn crowd(plan: &Plan, dump: &Dump, stopped: &[(String, usize)]) -> Vec<String> {
    let mut problems = Vec::new();
    let nobody =
        dump.cpus.iter().filter(|cpu| cpu.x86().is_none_or(|registers| registers.rip == 0)).count();
    if nobody > 0 {
        problems.push(format!("{nobody} CPUs without registers"));
    }
    let of =
        |word: &str| stopped.iter().find(|(other, _)| other == word).map_or(0, |(_, count)| *count);
    if plan.scenario.crash.strikes == Strikes::Everyone {
        if of("self") == 0 {
            problems.push("nobody raced".into());
        }
    } else if of("irq") <= of("nmi") {
        problems.push(format!("{} by IRQ, {} by NMI", of("irq"), of("nmi")));
    }
    problems
}

fn report(done: &[Run]) -> String {
    let mut text = String::from(
        "| machine | verdict | stopped | in the dump | of it zero | chunks verified | seconds |\n\
         |---|---|---|--:|--:|--:|--:|\n",
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for run in done {
        let stopped: Vec<_> =
            run.stopped.iter().map(|(word, count)| format!("{count} {word}")).collect();
        text.push_str(&format!(
            "| {} | {} | {} | {:.1} MiB | {:.1} MiB | {} | {:.1} |\n",
            run.key(),
            run.word(),
            stopped.join(", "),
            mib(run.dumped),
            mib(run.zero),
            run.chunks,
            run.common.milliseconds as f64 / 1000.0
        ));
    }
    let wrong: Vec<_> = done.iter().filter_map(|run| Some((run.key(), run.wrong()?))).collect();
    text.push_str(&format!("\n{} machines, {} not as they should be.\n", done.len(), wrong.len()));
    for (key, why) in wrong {
        text.push_str(&format!("- {key}: {why}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_of_the_list_has_a_meaning_and_can_be_run() {
        let plans = plans().expect("a list");
        assert_eq!(plans.len(), 2 + MANY.len() * CROWD.len());
        for plan in &plans {
            assert_eq!(plan.scenario.senseless(), None, "{}", plan.key());
            assert_eq!(plan.options(Path::new("x")).check(), Ok(()), "{}", plan.key());
        }
    }

    #[test]
    fn words_are_counted() {
        let counts = count(&["irq", "crash", "irq"]);
        assert_eq!(counts, [("irq".to_owned(), 2), ("crash".to_owned(), 1)]);
    }
}
