//! Answers about a dump: the answer itself, the damage met on the way to it, the exit code.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use vmcore::Dump;
use vmcore::dump::Damage;

use super::{From, complain, print, say, verdict};

/// Most places of damage that are named on stderr; the JSON has all.
const NAMED: usize = 20;

/// What a command answers.
pub struct Answer<T> {
    /// Its JSON.
    pub value: T,
    /// Its text.
    pub text: String,
    /// Whether the answer is a good one.
    pub good: bool,
}

impl<T> Answer<T> {
    /// An answer that is good as long as nothing is damaged.
    pub const fn new(value: T, text: String) -> Self {
        Self { value, text, good: true }
    }
}

/// The JSON of commands that answer for every CPU.
#[derive(Serialize)]
pub struct List<T> {
    pub cpus: Vec<T>,
}

/// The JSON of an answer and of the damage that was met.
#[derive(Serialize)]
struct Whole<'a, T> {
    #[serde(flatten)]
    value: &'a T,
    damage_met: &'a [Damage],
}

/// Opens the dump, lets `work` answer, and prints that. Damage that was met is named on stderr
/// and in the JSON; the exit code is then 3, with or without an answer.
pub fn about<T: Serialize>(
    from: &From,
    work: impl FnOnce(&Dump) -> Result<Answer<T>>,
) -> Result<ExitCode> {
    let dump = from.open()?;
    let outcome = work(&dump);
    let damage = dump.damage();
    for place in damage.iter().take(NAMED) {
        say(&format!("damaged: {}", place.what));
    }
    if damage.len() > NAMED {
        say(&format!("damaged: {} more places", damage.len() - NAMED));
    }
    match outcome {
        Ok(Answer { value, text, good }) => {
            let whole = Whole { value: &value, damage_met: &damage };
            print(from.json, &whole, || text)?;
            Ok(verdict(good && damage.is_empty()))
        }
        Err(error) if !damage.is_empty() => {
            complain(&error);
            Ok(ExitCode::from(3))
        }
        Err(error) => Err(error),
    }
}
