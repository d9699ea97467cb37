//! `cargo xtask requirements`: what stopping a machine requires, and the tests that show it.
//!
//! The rows are in `rows.rs`. A test says in its documentation what it proves, as
//! `/// Proves R1, L5.`, and `scan.rs` finds it; so a test cannot be named that does not
//! exist. The table is `docs/requirements.md`. `cargo xtask test` fails when a row has no
//! test, when the table is not the one that the sources give, and when a test that proves
//! something was not run.

mod rows;
mod scan;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use e2e::harness;

use rows::{OPEN, ROWS};
use scan::Proof;

/// Where the table lies.
const PAGE: &str = "docs/requirements.md";

/// What to do with the table.
#[derive(clap::Args)]
pub struct Arguments {
    /// Do not write the table; fail when it is not up to date
    #[arg(long)]
    check: bool,
}

/// Writes the table, or checks it.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.check {
        return Ok(if hold()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let (proofs, wrong) = scan::tree()?;
    let page = page(&proofs);
    std::fs::write(harness::root().join(PAGE), &page).with_context(|| format!("write {PAGE}"))?;
    print!("{page}");
    let mut wrong = wrong;
    wrong.extend(gaps(&proofs));
    wrong.iter().for_each(|line| eprintln!("{line}"));
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether every row has its test and the table is up to date; prints what is not.
pub fn hold() -> Result<bool> {
    let (proofs, mut wrong) = scan::tree()?;
    wrong.extend(gaps(&proofs));
    let written = std::fs::read_to_string(harness::root().join(PAGE)).unwrap_or_default();
    if written != page(&proofs) {
        wrong.push(format!("{PAGE} is not up to date: run `cargo xtask requirements`"));
    }
    wrong.iter().for_each(|line| println!("{line}"));
    Ok(wrong.is_empty())
}

/// Tests that prove something and are not among the tests that were `run`.
pub fn not_run(run: &BTreeSet<String>) -> Result<Vec<String>> {
    let (proofs, _) = scan::tree()?;
    let missing = proofs.into_iter().filter(|proof| !run.contains(&proof.test));
    let mut lines: Vec<_> =
        missing.map(|proof| format!("{}: {} was not run", proof.row, proof.test)).collect();
    lines.dedup();
    Ok(lines)
}

/// Rows without a test, tests for rows that do not exist, and open rows that are closed.
fn gaps(proofs: &[Proof]) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in ROWS {
        let proved = proofs.iter().any(|proof| proof.row == row.id);
        let open = OPEN.iter().any(|(id, _)| *id == row.id);
        match (proved, open) {
            (false, false) => wrong.push(format!("{}: no test proves it: {}", row.id, row.text)),
            (true, true) => wrong.push(format!("{}: proved, and still listed as open", row.id)),
            _ => {}
        }
    }
    for proof in proofs {
        if !ROWS.iter().any(|row| row.id == proof.row) {
            wrong.push(format!("{} proves {}, which is no row", proof.test, proof.row));
        }
    }
    wrong
}

/// The table.
fn page(proofs: &[Proof]) -> String {
    let mut text = String::from(
        "# What stopping a machine requires\n\n\
         Written by `cargo xtask requirements`; the rows are in\n\
         `tools/xtask/src/requirements/rows.rs`, and a test says itself what it proves.\n\n\
         R is what the ladder has to do, L what others had to learn. Tests without a folder are\n\
         in `tests/tests/e2e/`.\n\n\
         | | requirement | shown by |\n|---|---|---|\n",
    );
    for row in ROWS {
        let mut tests: Vec<String> = proofs
            .iter()
            .filter(|proof| proof.row == row.id)
            .map(|proof| format!("`{}`{}", proof.test, proof.place()))
            .collect();
        tests.sort();
        tests.dedup();
        if let Some((_, why)) = OPEN.iter().find(|(id, _)| *id == row.id) {
            tests.push(format!("open: {why}"));
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} | {} | {} |", row.id, row.text, tests.join("<br>"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_test_and_a_test_without_a_row_are_found() {
        let proof = |row: &str| Proof { row: row.into(), test: "a::b".into(), folder: None };
        let all: Vec<Proof> = ROWS
            .iter()
            .filter(|row| OPEN.iter().all(|(id, _)| *id != row.id))
            .map(|row| proof(row.id))
            .collect();
        assert_eq!(gaps(&all), Vec::<String>::new());
        assert_eq!(gaps(&all[1..]).len(), 1);
        let with_wrong = [&all[..], &[proof("R99")]].concat();
        assert_eq!(gaps(&with_wrong).len(), 1);
    }
}
