//! `vmcore last-words`: finds the last words in a console's text, for when there is no
//! dump.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vmcore_format::last_words::{State, records};

use crate::text::{clean, count};
use crate::{Error, Result};

/// Largest console text read.
const CONSOLE_LIMIT: u64 = 1 << 30;

/// A record of last words; the JSON of `vmcore last-words`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWords {
    /// How much of it arrived: `complete`, `incomplete` (its end is missing), `damaged`
    /// (lines in the middle are missing) or `newer` (of a version not known here).
    pub state: String,
    /// The lines that can be believed.
    pub lines: Vec<String>,
    /// How many records stand before this one in the same text.
    pub earlier: u64,
}

/// Finds the newest record in the text of a console.
///
/// # Errors
/// When the file cannot be read or holds no trace of last words.
pub fn last_words(console: &Path) -> Result<LastWords> {
    let size = std::fs::metadata(console).map_err(Error::io(console, "look at it"))?.len();
    if size > CONSOLE_LIMIT {
        return Err(Error::foreign(console, "too large for the text of a console"));
    }
    let bytes = std::fs::read(console).map_err(Error::io(console, "read it"))?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = records(&text).collect();
    let Some(newest) = all.last() else {
        let what = format!("{}: no last words in this text", console.display());
        return Err(Error::NotInDump(what));
    };
    let state = match newest.state {
        State::Complete => "complete",
        State::Incomplete => "incomplete",
        State::Damaged => "damaged",
        State::Newer(_) => "newer",
    };
    Ok(LastWords {
        state: state.into(),
        lines: newest.lines().map(str::to_owned).collect(),
        earlier: all.len() as u64 - 1,
    })
}

impl LastWords {
    /// The record for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let state = match &*self.state {
            "complete" => "Complete: every line arrived and is intact.",
            "incomplete" => "INCOMPLETE: the end is missing.",
            "newer" => "Of a NEWER version: the lines may mean something else.",
            _ => "DAMAGED: lines are missing in the middle.",
        };
        let mut out = format!("{state}\n\n");
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
