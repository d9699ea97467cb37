//! What the running workload says in a crash.

use core::fmt;
use core::sync::atomic::Ordering;

use epitaph_workload::LAST_WORDS_BYTES;
use heapless::String;
use machine::cell::SetOnce;

use super::{JOB, name_of, running};
use crate::crash::note;

static WORDS: SetOnce<Report> = SetOnce::new();

/// One line, cut when it is full.
struct Report(String<LAST_WORDS_BYTES>);

impl fmt::Write for Report {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| {
            let character = if character.is_control() { ' ' } else { character };
            self.0.push(character).map_err(|_| fmt::Error)
        })
    }
}

/// Returns true if there is a workload to be asked.
pub fn wanted() -> bool {
    JOB.load(Ordering::Relaxed) != 0
}

/// Asks the running workload where it stood, and keeps the answer for the log and the last
/// words. Called once, on the crashing CPU, after the others were stopped and the records were
/// sealed.
///
/// This is the one place where the crash path trusts code that is not its own. If that
/// crashes as well, or does not return in time, the crash path gives up this step, and nothing
/// else.
pub fn ask() {
    let Some(workload) = running() else { return };
    let mut words = Report(String::new());
    // Fails only when it is full, or when the workload gives up: what there is, is kept.
    let _ = workload.last_words(&mut words);
    if !words.0.is_empty() {
        note!("crash: {} says: {}", workload.name(), words.0);
        WORDS.set(words);
    }
}

/// The name of the workload that was running, and what it said, once it was asked.
pub fn kept() -> Option<(&'static str, &'static str)> {
    let name = name_of(JOB.load(Ordering::Relaxed))?;
    Some((name, &WORDS.get()?.0))
}
