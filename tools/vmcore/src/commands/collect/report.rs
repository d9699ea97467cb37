//! The result of `vmcore collect`: its JSON and its text.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::commands::extract::{LeftOut, render_left_out};
use crate::text::{bytes, clean};

/// A dump that was taken, or why it was not; the JSON of each in `vmcore collect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The disk, the one with its records where it was on two.
    pub disk: PathBuf,
    /// Slot it is in.
    pub slot: u32,
    /// Its sequence number.
    pub sequence: u64,
    /// Cause of the crash, in a line.
    pub message: String,
    /// GNU build-id of the crashed image.
    pub build_id: String,
    /// When, in seconds of Unix time; `null` when that is not known.
    pub unix_s: Option<u64>,
    /// The ELF core file; `null` when there is none.
    pub core: Option<PathBuf>,
    /// A copy of the slot as it lies on the disk, instead of a core, where nothing of a damaged
    /// dump could be read; `null` when there is none.
    pub slot_copy: Option<PathBuf>,
    /// Bytes of the core, or of the copy.
    pub bytes: u64,
    /// True if everything that was meant to be in the dump is there.
    pub complete: bool,
    /// True if every checksum was right.
    pub verified: bool,
    /// True if the core holds the undamaged part of a damaged dump.
    pub salvaged: bool,
    /// True if the slot was marked as collected.
    pub marked: bool,
    /// Memory that a salvaged core lacks.
    pub left_out: Vec<LeftOut>,
    /// Problems with the dump, a line each.
    pub warnings: Vec<String>,
}

/// A disk that could not be read, or a dump that could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The disk.
    pub disk: PathBuf,
    /// The error, in words.
    pub reason: String,
    /// Advice; `null` when there is none.
    pub hint: Option<String>,
    /// True if something on the disk is damaged.
    pub damaged: bool,
}

/// A slot of which nothing can be said: a dump may be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// The disk.
    pub disk: PathBuf,
    /// The slot.
    pub slot: u32,
    /// Byte of the disk where the slot begins.
    pub offset: u64,
    /// The damage, in words.
    pub reason: String,
}

/// All that was taken off the disks; the JSON of `vmcore collect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// The disks, each once.
    pub disks: Vec<PathBuf>,
    /// Every dump that had not been collected, oldest first on each disk.
    pub dumps: Vec<Taken>,
    /// Dumps that had been collected before.
    pub collected_before: u64,
    /// Slots with memory of a dump whose records are on no disk that was given, in words.
    pub halves: Vec<String>,
    /// Slots whose records are damaged: whether a dump is there is not known.
    pub unknown: Vec<Unknown>,
    /// Disks that could not be read and dumps that could not be written; the others were taken.
    pub failures: Vec<Failure>,
    /// Remarks, for example that a disk was given twice.
    pub notes: Vec<String>,
}

impl Failure {
    pub(super) fn new(disk: PathBuf, error: &Error) -> Self {
        let (reason, hint) = (error.to_string(), error.hint().map(str::to_owned));
        Self { disk, reason, hint, damaged: error.is_damage() }
    }
}

impl Taken {
    /// Returns true if a file holds all that could be read, so that the slot may be used again.
    #[must_use]
    pub const fn is_safe(&self) -> bool {
        self.core.is_some() || self.slot_copy.is_some()
    }

    /// Renders one line, and the problems below it.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = match (&self.core, &self.slot_copy) {
            (Some(core), _) => {
                let whole = match (self.salvaged, self.complete) {
                    (true, _) => ", SALVAGED of a damaged dump",
                    (false, true) => "",
                    (false, false) => ", INCOMPLETE",
                };
                format!("{}: {}{whole}", core.display(), bytes(self.bytes))
            }
            (None, Some(copy)) => {
                format!(
                    "{}: {}, COPY of a slot with a damaged dump",
                    copy.display(),
                    bytes(self.bytes)
                )
            }
            (None, None) => format!("{}: slot {}: NOT TAKEN", self.disk.display(), self.slot),
        };
        out += &format!(", dump {}: {}\n", self.sequence, clean(&self.message));
        out.extend(render_left_out(&self.left_out).lines().map(|line| format!("  {line}\n")));
        for warning in &self.warnings {
            out += &format!("  warning: {}\n", clean(warning));
        }
        out
    }
}

impl Unknown {
    /// Renders one line.
    #[must_use]
    pub fn render(&self) -> String {
        let (disk, slot, offset) = (self.disk.display(), self.slot, self.offset);
        format!("{disk}: slot {slot}, at byte {offset} of the disk: {}", clean(&self.reason))
    }
}

impl Collection {
    /// Returns true if every disk was read, and every dump on them verified and was taken.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.is_damaged() && self.failures.is_empty()
    }

    /// Returns true if something is damaged, or half of a dump is missing.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.halves.is_empty()
            || !self.unknown.is_empty()
            || self.failures.iter().any(|failure| failure.damaged)
            || self.dumps.iter().any(|dump| !dump.verified)
    }

    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out: String = self.dumps.iter().map(Taken::render).collect();
        if self.dumps.is_empty() && self.unknown.is_empty() && !self.disks.is_empty() {
            let before = match self.collected_before {
                0 => "there is none".into(),
                number => format!("{number} of them collected before"),
            };
            let failed = |disk: &&PathBuf| self.failures.iter().all(|one| one.disk != **disk);
            let read = self.disks.iter().filter(failed);
            let disks: Vec<_> = read.map(|disk| disk.display().to_string()).collect();
            if !disks.is_empty() {
                out = format!("{}: no dump to collect, {before}.\n", disks.join(", "));
            }
        }
        for half in &self.halves {
            out += &format!("left where it is: {}\n", clean(half));
        }
        for unknown in &self.unknown {
            out += &format!("UNKNOWN: {}\n", unknown.render());
        }
        for failure in &self.failures {
            out += &format!("NOT DONE: {}\n", clean(&failure.reason));
        }
        for note in &self.notes {
            out += &format!("note: {}\n", clean(note));
        }
        out
    }
}
