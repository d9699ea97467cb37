//! `vmcore verify`: computes every checksum there is, and says what does not match.

use serde::{Deserialize, Serialize};

use crate::Dump;
use crate::json::Hex;
use crate::text::{bytes, clean, count};

/// What was computed; the JSON of `vmcore verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Bytes of memory whose checksums were computed.
    pub checked: Hex,
    /// Bytes of memory that stand under no checksum: those of a file, or of an older dump.
    pub unchecked: Hex,
    /// Pieces of memory, each under a checksum of its own.
    pub chunks: u64,
    /// What does not match, a line each; the first few hundred.
    pub bad: Vec<String>,
    /// How many do not match.
    pub bad_count: u64,
    /// `good`, `damaged`, or `absent`: nothing that is here is damaged, and half of the dump is on a
    /// disk that is not at hand.
    pub state: State,
    /// Stages half of which is on a disk that is not at hand, which is named; a line each.
    pub absent: Vec<String>,
    /// Whether everything that was meant to be in the dump is there.
    pub complete: bool,
    /// What is not as it should be, without being in the way.
    pub warnings: Vec<String>,
}

/// The verdict over all checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All match.
    Good,
    /// Some do not.
    Damaged,
    /// All that are here match, and the other half of the dump is not here.
    Absent,
}

/// Lines kept of what does not match: a disk that is damaged all over says the same again.
const MOST_LINES: usize = 256;

/// Computes the checksums of every chunk of `dump`; those of its records, its header and its
/// table were computed when it was opened. `progress` hears of bytes done and bytes in all.
pub fn verify(dump: &Dump, progress: &mut dyn FnMut(u64, u64)) -> Verified {
    let stored = dump.stored.as_ref();
    let mut verified = Verified {
        checked: Hex(0),
        unchecked: Hex(0),
        chunks: 0,
        bad: Vec::new(),
        bad_count: 0,
        state: State::Good,
        absent: stored.map(|stored| stored.absent.clone()).unwrap_or_default(),
        complete: dump.is_complete(),
        warnings: dump.warnings.clone(),
    };
    if !verified.absent.is_empty() {
        verified.state = State::Absent;
    }
    // A stage that was sealed and does not verify was passed over, which is no good sign.
    for refused in stored.iter().flat_map(|stored| &stored.refused) {
        verified.add(refused.clone());
    }
    for broken in dump.stage_file().iter().flat_map(|file| file.warnings()) {
        verified.add(broken.clone());
    }
    let memory: u64 = dump.segments().iter().map(|segment| segment.load.file_bytes).sum();
    let Some(file) = dump.stage_file() else {
        verified.unchecked = Hex(memory);
        return verified;
    };
    for (index, entry) in file.entries().iter().enumerate() {
        if let Err(bad) = file.check_chunk(index) {
            verified.add(bad.to_string());
        }
        verified.chunks += 1;
        verified.checked.0 += u64::from(entry.memory_bytes);
        progress(verified.checked.0, memory);
    }
    verified
}

impl Verified {
    fn add(&mut self, line: String) {
        self.state = State::Damaged;
        self.bad_count += 1;
        if self.bad.len() < MOST_LINES {
            self.bad.push(line);
        }
    }

    /// Returns true if everything that was sealed is here, and as it was sealed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.state == State::Good
    }

    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = match (self.state != State::Damaged, self.chunks) {
            (true, 0) => {
                format!(
                    "Headers are good; no checksums over {} of memory.\n",
                    bytes(self.unchecked.0)
                )
            }
            (true, chunks) => {
                format!(
                    "Good: {} of memory in {}.\n",
                    bytes(self.checked.0),
                    count(chunks, "chunk")
                )
            }
            (false, chunks) => {
                format!("DAMAGED: {} of {} do not match.\n", self.bad_count, count(chunks, "chunk"))
            }
        };
        for line in &self.absent {
            out += &format!("ABSENT: {}\n", clean(line));
        }
        if !self.complete {
            out += "INCOMPLETE: not everything that was meant to be in the dump is there.\n";
        }
        for line in &self.bad {
            out += &format!("  {}\n", clean(line));
        }
        for warning in &self.warnings {
            out += &format!("warning: {}\n", clean(warning));
        }
        out
    }
}
