//! What a scenario left behind, held against what its faults promise.

use anyhow::{Context, Result};
use handoff::CpuRecord;
use vmcore::{Dump, Image};

use super::Scenario;
use super::faults::{Reached, Strikes};
use crate::harness::{Outcome, Verdict};

/// What one run left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it ended.
    pub verdict: Verdict,
    /// Per CPU, how it was stopped; empty without a dump.
    pub stopped: Vec<&'static str>,
    /// Whether every CPU that stays in a function for ever was found in it; `None` when there
    /// is none, or nothing is known of it.
    pub in_loop: Option<bool>,
    /// What is not as promised.
    pub problems: Vec<String>,
}

/// Innermost functions among which the one is looked for that a CPU stays in: below it there
/// may be a few inlined ones. One that crashed by itself has its crash path below it.
const INNERMOST: usize = 8;
const INNERMOST_OF_THE_CRASH: usize = 20;

impl Finding {
    /// Reads what `outcome` left.
    #[must_use]
    pub fn read(scenario: &Scenario, outcome: &Outcome) -> Self {
        let verdict = outcome.report.verdict;
        let mut found = Self { verdict, stopped: vec![], in_loop: None, problems: vec![] };
        if verdict != outcome.report.expected {
            found.problems.push(outcome.to_string());
        }
        if verdict == Verdict::Captured
            && let Err(error) = found.read_dump(scenario, outcome)
        {
            found.problems.push(format!("{error:#}"));
        }
        found
    }

    fn read_dump(&mut self, scenario: &Scenario, outcome: &Outcome) -> Result<()> {
        let path = outcome.vmcore.as_deref().context("captured, and no vmcore")?;
        let dump = Dump::open(path).context("open the vmcore")?;
        let image = vmcore::find_image(&dump, Some(&outcome.report.image)).context("the image")?;
        self.stopped =
            dump.cpus.iter().map(|cpu| cpu.stopped_by.name().unwrap_or_default()).collect();
        self.problems.extend(dump.warnings.iter().map(|warning| format!("warning: {warning}")));
        if dump.cpus.len() != scenario.cpus as usize {
            self.problems.push(format!("{} CPUs in the dump", dump.cpus.len()));
        }
        let crashed = self.check_cause(scenario, &dump)?;
        for cpu in &dump.cpus {
            let how = cpu.stopped_by.name().unwrap_or_default();
            let from = cpu.registers_from.name().unwrap_or_default();
            let allowed = allowed(scenario, crashed, cpu.index);
            if !allowed.contains(&how) {
                let wanted = allowed.join(" or ");
                self.problems.push(format!("CPU {}: {how} where {wanted} was due", cpu.index));
            }
            let fits = match how {
                "init" | "not-stopped" => {
                    scenario.crash.smears || ["last-known", "none"].contains(&from)
                }
                "irq" | "nmi" => from == "interrupted",
                _ => ["self", "interrupted"].contains(&from),
            };
            if !fits {
                self.problems.push(format!("CPU {}: {how}, registers {from}", cpu.index));
            }
            if how == "irq" && !may_count_nmis(scenario, cpu) && cpu.nmi_count != 0 {
                self.problems.push(format!("CPU {}: {} NMIs seen", cpu.index, cpu.nmi_count));
            }
            if let Some(function) = stays_in(scenario, cpu.index)
                && from != "none"
                && !(scenario.crash.smears && ["init", "not-stopped"].contains(&how))
            {
                self.check_place(&dump, &image, cpu.index, function)?;
            }
        }
        Ok(())
    }

    /// Checks who crashed and of what; the crashing CPU.
    fn check_cause(&mut self, scenario: &Scenario, dump: &Dump) -> Result<u32> {
        let cause = &dump.handoff.as_ref().context("no hand-off in the dump")?.cause;
        let kind = cause.kind.name().unwrap_or_default();
        let mut wrong = |what: String| self.problems.push(what);
        if kind != scenario.crash.kind {
            wrong(format!("cause {kind} where {} was due", scenario.crash.kind));
        }
        let vector = (cause.vector != u32::MAX).then_some(cause.vector);
        if vector != scenario.crash.vector {
            wrong(format!("vector {vector:?} where {:?} was due", scenario.crash.vector));
        }
        let fits = match scenario.crash.strikes {
            Strikes::Itself => cause.cpu == scenario.on,
            Strikes::Everyone => {
                scenario.crash.reaches_all || scenario.wedge_of(cause.cpu).is_none()
            }
            Strikes::Stuck { .. } => {
                // Alone a CPU notices only itself.
                let helpers = usize::from(scenario.helper().is_some());
                let alone = scenario.cpus as usize == 1 + scenario.wedges.len() + helpers;
                (cause.cpu == scenario.on) == alone && scenario.wedge_of(cause.cpu).is_none()
            }
        };
        if !fits {
            wrong(format!("CPU {} is said to have crashed", cause.cpu));
        }
        Ok(cause.cpu)
    }

    fn check_place(&mut self, dump: &Dump, image: &Image, cpu: u32, function: &str) -> Result<()> {
        let backtraces = vmcore::commands::bt::select(dump, image, Some(cpu)).context("unwind")?;
        let crashed = dump.crashed_cpu() == Some(cpu);
        let depth = if crashed { INNERMOST_OF_THE_CRASH } else { INNERMOST };
        let frames = backtraces.iter().flat_map(|backtrace| &backtrace.frames).take(depth);
        let names: Vec<_> = frames.filter_map(|frame| frame.function.as_deref()).collect();
        let inside = names.iter().any(|name| name.contains(function));
        self.in_loop = Some(inside && self.in_loop.unwrap_or(true));
        if !inside {
            self.problems.push(format!("CPU {cpu} stands in {names:?}, not in {function}"));
        }
        Ok(())
    }
}

/// The ways in which CPU `index` may have come to stop.
fn allowed(scenario: &Scenario, crashed: u32, index: u32) -> Vec<&'static str> {
    if index == crashed {
        return vec!["crash"];
    }
    let mut ways = allowed_by_ladder(scenario, index);
    if scenario.crash.reaches_all {
        // Whatever comes first: the fault itself, or the stop.
        ways.extend(["self", "irq", "nmi"]);
    }
    ways
}

/// The same, as far as the ladder is concerned.
fn allowed_by_ladder(scenario: &Scenario, index: u32) -> Vec<&'static str> {
    if let Some(wedge) = scenario.wedge_of(index) {
        let irq_only = scenario.crash.irq_only;
        return match wedge.reached {
            // One that lets go may come to its own part of the crash before it is stopped.
            Reached::ByIrq if scenario.crash.strikes == Strikes::Everyone => {
                vec!["irq", "self", "nmi"]
            }
            Reached::ByIrq => vec!["irq"],
            Reached::InFunnel if scenario.crash.strikes == Strikes::Everyone => {
                vec!["irq", "self", "nmi", "init"]
            }
            // Nobody interrupts its waiting: it may come too late.
            Reached::InFunnel if irq_only => vec!["irq", "not-stopped"],
            // A host that is busy may let the windows behind the first pass as well.
            Reached::InFunnel if index == 0 => vec!["irq", "not-stopped"],
            Reached::InFunnel => vec!["irq", "init"],
            _ if irq_only => vec!["not-stopped"],
            Reached::ByNmi => vec!["nmi"],
            Reached::ByInit if index == 0 => vec!["not-stopped"],
            Reached::ByInit => vec!["init"],
        };
    }
    if scenario.helper() == Some(index) {
        return scenario.crash.helper.unwrap_or_default().to_vec();
    }
    match scenario.crash.strikes {
        Strikes::Stuck { rung, .. } if index == scenario.on => vec![rung],
        // Interrupts masked, on its way into the same crash.
        Strikes::Everyone => vec!["self", "nmi", "irq"],
        _ if scenario.crowded() => vec!["irq", "nmi"],
        _ => vec!["irq"],
    }
}

/// The function CPU `index` stays in for ever.
fn stays_in(scenario: &Scenario, index: u32) -> Option<&'static str> {
    match (scenario.wedge_of(index), scenario.crash.strikes) {
        (Some(wedge), _) => wedge.function,
        (None, Strikes::Stuck { function, .. }) if index == scenario.on => Some(function),
        _ => None,
    }
}

/// Whether NMIs that `cpu` has seen say nothing about the ladder.
fn may_count_nmis(scenario: &Scenario, cpu: &CpuRecord) -> bool {
    let in_funnel = |reached| reached == Reached::InFunnel;
    scenario.crash.sends_nmis
        || scenario.crowded()
        || scenario.wedge_of(cpu.index).is_some_and(|wedge| in_funnel(wedge.reached))
}
