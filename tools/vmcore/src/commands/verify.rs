//! `vmcore verify`: computes every checksum there is, and says what does not match.

use serde::{Deserialize, Serialize};
use vmcore_format::notes::{ChunkChecksum, chunk_state};

use crate::Dump;
use crate::checksums::ChunkTable;
use crate::dump::Unchecked;
use crate::stage::StageFile;
use crate::text::{bytes, clean, count};

/// The verdict over all checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All memory was under a checksum, and everything matches.
    Good,
    /// Something does not match.
    Damaged,
    /// All that is here matches, and half of the dump is on a disk that is not at hand.
    Absent,
    /// Nothing was found wrong, but there are no checksums of the memory: a core file that was
    /// not extracted by this program, or a dump of version 1.
    NoChecksums,
}

/// What was computed; the JSON of `vmcore verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether the dump can be believed.
    pub state: State,
    /// Bytes of memory whose checksums were computed.
    pub checked_bytes: u64,
    /// Bytes of memory that stand under no checksum.
    pub unchecked_bytes: u64,
    /// Pieces of memory, each under a checksum of its own.
    pub chunks: u64,
    /// What does not match, a line each; the first few hundred.
    pub bad: Vec<String>,
    /// How many do not match.
    pub bad_count: u64,
    /// Memory that was damaged when the core was extracted, and is not in it, a line each.
    pub left_out: Vec<String>,
    /// Stages half of which is on a disk that is not at hand, which is named; a line each.
    pub absent: Vec<String>,
    /// Whether everything that was meant to be in the dump is there.
    pub complete: bool,
    /// What is not as it should be, without being in the way.
    pub warnings: Vec<String>,
}

/// Lines kept of what does not match: a disk that is damaged all over says the same again.
const MOST_LINES: usize = 256;

/// Computes the checksums of every chunk of `dump`; those of its records, its header and its
/// table were computed when it was opened. `progress` hears of bytes done and bytes in all.
pub fn verify(dump: &Dump, progress: &mut dyn FnMut(u64, u64)) -> Verified {
    let stored = dump.stored.as_ref();
    let mut verified = Verified {
        state: State::Good,
        checked_bytes: 0,
        unchecked_bytes: 0,
        chunks: 0,
        bad: Vec::new(),
        bad_count: 0,
        left_out: Vec::new(),
        absent: stored.map(|stored| stored.absent.clone()).unwrap_or_default(),
        complete: dump.is_complete(),
        warnings: dump.warnings.clone(),
    };
    // Records that do not verify; a stage that was sealed and passed over.
    for damage in dump.damage().iter().filter(|damage| damage.address.is_none()) {
        verified.add(damage.what.clone());
    }
    match (dump.stage_file(), dump.checksums()) {
        (Some(file), _) => verified.stage(file, progress),
        (None, Some(table)) => verified.core(dump, table, progress),
        (None, None) => {
            let bytes = dump.segments().iter().map(|segment| segment.load.file_bytes);
            verified.unchecked_bytes = bytes.fold(0, u64::saturating_add);
        }
    }
    verified.state = if verified.bad_count > 0 {
        State::Damaged
    } else if !verified.absent.is_empty() {
        State::Absent
    } else if verified.chunks == 0 && verified.unchecked_bytes > 0 {
        State::NoChecksums
    } else {
        State::Good
    };
    verified
}

impl Verified {
    fn add(&mut self, line: String) {
        self.bad_count += 1;
        if self.bad.len() < MOST_LINES {
            self.bad.push(line);
        }
    }

    /// Verifies the chunks of a stage on a disk.
    fn stage(&mut self, file: &StageFile, progress: &mut dyn FnMut(u64, u64)) {
        let sizes = file.entries().iter().map(|entry| u64::from(entry.memory_bytes));
        let all = sizes.fold(0, u64::saturating_add);
        for (index, entry) in file.entries().iter().enumerate() {
            if let Err(bad) = file.check_chunk(index) {
                self.add(bad.to_string());
            }
            self.chunks += 1;
            self.checked_bytes = self.checked_bytes.saturating_add(u64::from(entry.memory_bytes));
            progress(self.checked_bytes, all);
        }
    }

    /// Verifies the chunks of a core file.
    fn core(&mut self, dump: &Dump, table: &ChunkTable, progress: &mut dyn FnMut(u64, u64)) {
        let present = |chunk: &&ChunkChecksum| chunk.state == chunk_state::PRESENT;
        let sizes = table.chunks().iter().filter(present).map(|chunk| chunk.bytes);
        let all = sizes.fold(0, u64::saturating_add);
        for (index, chunk) in table.chunks().iter().enumerate() {
            if !present(&chunk) {
                let (bytes, address) = (chunk.bytes, chunk.address);
                self.left_out.push(format!("{bytes} bytes of memory at {address:#x}"));
                continue;
            }
            if let Err(bad) = table.check(index, &Unchecked(dump)) {
                self.add(bad.to_string());
            }
            self.chunks += 1;
            self.checked_bytes = self.checked_bytes.saturating_add(chunk.bytes);
            progress(self.checked_bytes, all);
        }
    }

    /// Returns true if all memory was under a checksum, all of it is here, and it is as it was
    /// sealed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.state == State::Good
    }

    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let chunks = count(self.chunks, "chunk");
        let mut out = match self.state {
            State::NoChecksums => format!(
                "no checksums: cannot be verified ({} of memory; the headers are sound).\n",
                bytes(self.unchecked_bytes)
            ),
            State::Good | State::Absent => {
                format!("Good: {} of memory in {chunks}.\n", bytes(self.checked_bytes))
            }
            State::Damaged => {
                format!("DAMAGED: {} of {chunks} do not match.\n", self.bad_count)
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
        for line in &self.left_out {
            out += &format!("left out: {}\n", clean(line));
        }
        for warning in &self.warnings {
            out += &format!("warning: {}\n", clean(warning));
        }
        out
    }
}
