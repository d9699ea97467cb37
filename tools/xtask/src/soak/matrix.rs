//! `--matrix`: every crash with every wedge, on 1, 2, 4 and 8 CPUs, on both sides.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use e2e::catalogue::{self, Finding, Scenario, Side};
use e2e::harness;
use serde::{Deserialize, Serialize};

use super::drive::{Common, Drive, Ended, counted};

/// One cell of the matrix.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Cell {
    #[serde(flatten)]
    common: Common,
    /// Per CPU, how it was stopped.
    stopped: Vec<String>,
    /// Whether wedged CPUs were found in their loops.
    in_loop: Option<bool>,
}

impl Ended for Cell {
    fn common(&self) -> &Common {
        &self.common
    }
}

/// The word for a cell that cannot be run.
const NO_MEANING: &str = "no-meaning";

/// Runs it; whether all of it was as the catalogue promises.
pub fn main(drive: &Drive, only: Option<&str>) -> Result<bool> {
    let cells: Vec<(Scenario, Side)> = catalogue::all()
        .filter(|(scenario, _)| only.is_none_or(|word| scenario.to_string().contains(word)))
        .collect();
    // Two cells without a meaning can have one name: the side tells them apart.
    let key = |(scenario, side): &(Scenario, Side)| format!("{scenario}, {}", side.name());
    let done = drive.run(&cells, key, |cell, folder| run(cell, key(cell), folder))?;
    drive.report(&table(&cells, &done))?;
    Ok(done.iter().all(|cell| cell.common.problems.is_empty()))
}

fn run((scenario, _): &(Scenario, Side), key: String, folder: &Path) -> Result<Cell> {
    if let Some(reason) = scenario.senseless() {
        let verdict = NO_MEANING.to_owned();
        let common = Common { key, verdict, problems: vec![], milliseconds: 0 };
        return Ok(Cell { common, stopped: vec![reason.to_owned()], in_loop: None });
    }
    let outcome = harness::run(&scenario.options(folder.to_owned()), &mut |_| ())?;
    let found = Finding::read(scenario, &outcome);
    let common = Common {
        key,
        verdict: counted(found.verdict).to_owned(),
        problems: found.problems,
        milliseconds: outcome.report.duration_ms,
    };
    let stopped = found.stopped.into_iter().map(str::to_owned).collect();
    Ok(Cell { common, stopped, in_loop: found.in_loop })
}

/// A letter for each way to stop.
fn letter(stopped: &str) -> char {
    match stopped {
        "crash" => 'C',
        "irq" => 'i',
        "nmi" => 'n',
        "init" => 'I',
        "self" => 's',
        "not-stopped" => '!',
        _ => '?',
    }
}

/// One line per crash and wedge, one column per number of CPUs and side.
fn table(cells: &[(Scenario, Side)], done: &[Cell]) -> String {
    let mut columns: Vec<(u32, Side)> =
        cells.iter().map(|(scenario, side)| (scenario.cpus, *side)).collect();
    columns.sort_unstable();
    columns.dedup();
    let mut text = String::from(
        "Letters, one per CPU: C crashed, i stopped by IRQ, n by NMI, I by INIT, s by itself, \
         ! not stopped.\n`@`: every CPU that stays in a loop was found in it. An empty cell has \
         no meaning; why is in results.jsonl.\n\n| crash | wedge |",
    );
    let mut rule = String::from("|---|---|");
    for (cpus, side) in &columns {
        // Writing to a string cannot fail, here and below.
        let _ = write!(text, " {cpus} {} |", side.name());
        rule.push_str("---|");
    }
    let _ = writeln!(text, "\n{rule}");
    let name = |scenario: &Scenario| {
        let wedge = scenario.wedges.first().map_or("", |(wedge, _)| wedge.name);
        (scenario.crash.name, wedge)
    };
    let mut rows: Vec<(&str, &str)> = cells.iter().map(|(scenario, _)| name(scenario)).collect();
    rows.dedup();
    for row in rows {
        let _ = write!(text, "| {} | {} |", row.0, row.1);
        for (cpus, side) in &columns {
            let at = cells.iter().position(|(scenario, of)| {
                (scenario.cpus, *of, name(scenario)) == (*cpus, *side, row)
            });
            let shown = at.and_then(|at| done.get(at)).map(cell).unwrap_or_default();
            let _ = write!(text, " {shown} |");
        }
        text.push('\n');
    }
    let wrong: Vec<_> = done.iter().filter(|cell| !cell.common.problems.is_empty()).collect();
    let _ = writeln!(text, "\n{} of {} cells not as promised.", wrong.len(), done.len());
    for cell in wrong {
        let _ = writeln!(text, "- {}: {}", cell.common.key, cell.common.problems.join("; "));
    }
    text
}

fn cell(cell: &Cell) -> String {
    if cell.common.verdict == NO_MEANING {
        return String::new();
    }
    let letters: String = cell.stopped.iter().map(|stopped| letter(stopped)).collect();
    let verdict = match cell.common.verdict.as_str() {
        "captured" => "",
        other => other,
    };
    let place = match cell.in_loop {
        Some(true) => "@",
        Some(false) => " elsewhere",
        None => "",
    };
    let wrong = if cell.common.problems.is_empty() { "" } else { " **wrong**" };
    format!("{verdict}{letters}{place}{wrong}")
}
