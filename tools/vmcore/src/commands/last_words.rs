//! `vmcore last-words`: finds the last words in a console's text, for when there is no
//! dump.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmcore_format::last_words::{Frame, Record, State, frames, records};

use crate::file::Part;
use crate::kind::{self, SIGNATURE_BYTES};
use crate::text::{clean, count};
use crate::{Error, Result, console};

/// A record of last words; the JSON of `vmcore last-words`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWords {
    /// How much of it arrived: `complete`, `incomplete` (its end is missing), `damaged`
    /// (lines in the middle are missing) or `newer` (of a version not known here).
    pub state: String,
    /// The lines that can be believed.
    pub lines: Vec<String>,
    /// The lines that did not arrive.
    pub missing: Vec<Missing>,
    /// How many records stand before this one in the same text.
    pub earlier: u64,
}

/// A run of lines that did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Number of the first one; 0 is the line with the version.
    pub first: u32,
    /// Number of the last one; `null` where the end of the record is missing, so that
    /// nothing says how many lines it had.
    pub last: Option<u32>,
}

/// Finds the newest record in the text of a console; `-` is standard input.
///
/// # Errors
/// When the file cannot be read or holds no trace of last words.
pub fn last_words(console: &Path) -> Result<LastWords> {
    let text = console::read(console)?;
    let mut newest = None;
    let mut all = 0_u64;
    for record in records(&text) {
        newest = Some(record);
        all += 1;
    }
    let Some(newest) = newest else {
        let what = "no last words in this text";
        return Err(match other_kind(console) {
            Some(kind) => Error::not_a_console(console, format!("{what}: this is {kind}")),
            None => Error::NotInDump(format!("{}: {what}", console.display())),
        });
    };
    let state = match newest.state {
        State::Complete => "complete",
        State::Incomplete => "incomplete",
        State::Damaged => "damaged",
        State::Newer(_) => "newer",
    };
    let (lines, missing) = contents(&newest);
    Ok(LastWords { state: state.into(), lines, missing, earlier: all - 1 })
}

/// Names a file that is no text; `None` for one that may be, and for a stream.
fn other_kind(console: &Path) -> Option<String> {
    let part = Part::open(console).ok()?;
    kind::not_a_console(&part.read_up_to(0, SIGNATURE_BYTES).ok()?)
}

/// Returns the contents between the first and the last line, and the lines that are not
/// there. Of lines with the same number the first counts, so there are at most 65,536.
fn contents(record: &Record<'_>) -> (Vec<String>, Vec<Missing>) {
    let mut found = BTreeMap::new();
    for (_, frame) in frames(record.text) {
        if let Frame::Line { sequence, content } = frame {
            found.entry(u32::from(sequence)).or_insert(content);
        }
    }
    let mut missing = Vec::new();
    let mut next = 0;
    for &number in found.keys() {
        if number > next {
            missing.push(Missing { first: next, last: Some(number - 1) });
        }
        next = number + 1;
    }
    let ended = found.last_key_value().is_some_and(|(_, content)| content.starts_with(END));
    if !ended {
        missing.push(Missing { first: next, last: None });
    }
    let inner = found.iter().filter(|&(&number, content)| number > 0 && !content.starts_with(END));
    (inner.map(|(_, &content)| content.to_owned()).collect(), missing)
}

/// Begin of the last line of a record.
const END: &str = "end lines=";

impl LastWords {
    /// Returns true if every line arrived and its meaning is known.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.state == "complete"
    }

    /// Returns which lines did not arrive, in words; `None` when none is missing.
    #[must_use]
    pub fn loss(&self) -> Option<String> {
        /// Runs that are listed.
        const LISTED: usize = 8;
        if self.missing.is_empty() {
            return None;
        }
        let run = |run: &Missing| match *run {
            Missing { first, last: None } => format!("{first} and all behind it"),
            Missing { first, last: Some(last) } if first == last => first.to_string(),
            Missing { first, last: Some(last) } => format!("{first} to {last}"),
        };
        let mut runs: Vec<String> = self.missing.iter().take(LISTED).map(run).collect();
        if self.missing.len() > LISTED {
            runs.push(format!("{} more runs", self.missing.len() - LISTED));
        }
        Some(format!("not there or torn: line {}", runs.join(", ")))
    }

    /// The record for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let state = match &*self.state {
            "complete" => "Complete: every line arrived and is intact.",
            "incomplete" => "INCOMPLETE: the end is missing.",
            "newer" => "Of a NEWER version: the lines may mean something else.",
            _ => "DAMAGED: lines are missing in the middle.",
        };
        let mut out = format!("{state}\n");
        if let Some(loss) = self.loss() {
            out += &format!("{loss}\n");
        }
        out.push('\n');
        for line in &self.lines {
            out += &clean(line);
            out.push('\n');
        }
        if self.earlier > 0 {
            out += &format!("\n{} before this one.\n", count(self.earlier, "record"));
        }
        out
    }
}
