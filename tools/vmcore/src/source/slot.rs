//! The records of a slot: what stands in it, and how far that is known.

use std::io;

use vmcore_format::area::{
    AreaError, AreaHeader, BLOCK_BYTES, COLLECTED_BLOCK, Collected, MAX_STAGES, SlotOpen,
    StageSeal, seal_offset,
};

use crate::file::Part;
use crate::pair;
use crate::text::clean;

/// What stands in a slot.
#[derive(Debug)]
pub enum Slot {
    /// No dump was ever begun here.
    Empty,
    /// Something is there that cannot be read.
    Unreadable {
        /// Why not.
        why: String,
        /// A seal stands behind it of a dump that was not collected: a dump may be here.
        sealed: bool,
    },
    /// The disk fails where the open record stands: a dump may be here.
    Failed {
        /// The error of the disk.
        why: String,
    },
    /// A dump that was begun.
    Begun {
        /// Its open record.
        open: Box<SlotOpen>,
        /// The seals that belong to it, with the index of the stage.
        seals: Vec<(usize, StageSeal)>,
        /// Seals that are damaged or cannot be read, with the index of the stage and the reason.
        torn: Vec<(usize, String)>,
        /// The note that it is in safety elsewhere.
        collected: Option<Collected>,
        /// Why the block of that note cannot be read; `None` when it could.
        note_failure: Option<String>,
    },
}

impl Slot {
    /// Sequence number of a dump that can be read.
    pub(super) fn sealed(&self) -> Option<u64> {
        match self {
            Self::Begun { open, seals, .. } if !seals.is_empty() && self.memory_of().is_none() => {
                Some(open.sequence)
            }
            _ => None,
        }
    }

    /// What stands here, in a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Empty => "empty".into(),
            Self::Unreadable { why, sealed: false } => format!("unreadable: {why}"),
            Self::Unreadable { why, sealed: true } => {
                format!("unknown: the open record is damaged ({why}), a seal stands behind it")
            }
            Self::Failed { why } => format!("unknown: the open record cannot be read ({why})"),
            Self::Begun { open, collected, .. } if self.memory_of().is_some() => {
                let collected = if collected.is_some() { ", collected" } else { "" };
                let whole = pair::name(&open.other_area, open.other_slot);
                format!(
                    "memory of dump {}, the rest of which is in {whole}{collected}",
                    open.other_sequence
                )
            }
            Self::Begun { open, seals, torn, .. } if seals.is_empty() && !torn.is_empty() => {
                let message = clean(open.message());
                format!("dump {}, whose seals are damaged ({message})", open.sequence)
            }
            Self::Begun { open, seals, .. } if seals.is_empty() => {
                let message = clean(open.message());
                format!("dump {} was begun and never sealed ({message})", open.sequence)
            }
            Self::Begun { open, seals, collected, .. } => {
                let collected = if collected.is_some() { ", collected" } else { "" };
                let (sealed, planned) = (seals.len(), open.stages);
                format!("dump {}, {sealed} of {planned} stages sealed{collected}", open.sequence)
            }
        }
    }
}

/// Why a seal cannot be had.
enum Trouble {
    /// The disk fails there.
    Disk(io::Error),
    /// What stands there is no seal.
    Record(AreaError),
}

impl Trouble {
    /// Returns true if nothing stands there.
    const fn is_blank(&self) -> bool {
        matches!(self, Self::Record(AreaError::Blank | AreaError::TooShort))
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk(error) => write!(f, "it cannot be read ({error})"),
            Self::Record(error) => error.fmt(f),
        }
    }
}

impl Slot {
    /// Reads the records of a slot. A block that the disk fails to read costs what it holds and
    /// nothing else.
    pub(super) fn read(part: &Part, area: &AreaHeader, offset: u64) -> Self {
        let block = |at: u64| {
            let at = offset.saturating_add(at);
            if at >= part.bytes() { Ok(Vec::new()) } else { part.read_up_to(at, BLOCK_BYTES) }
        };
        let (collected, note_failure) = match block(COLLECTED_BLOCK * BLOCK_BYTES) {
            Ok(block) => (Collected::check(&block).ok(), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let mut found = Vec::new();
        for stage in 0..MAX_STAGES {
            let Some(at) = seal_offset(stage) else { break };
            let seal = block(at).map_err(Trouble::Disk);
            let seal =
                seal.and_then(|block| StageSeal::check(&block, area).map_err(Trouble::Record));
            found.push((stage, seal));
        }
        // A seal that stands there, whole or not, unless it is of a dump in safety.
        let waits = |seal: &Result<StageSeal, Trouble>| match (seal, &collected) {
            (Ok(seal), Some(note)) => (seal.sequence, seal.nonce) != (note.sequence, note.nonce),
            (Ok(_), None) => true,
            (Err(trouble), _) => !trouble.is_blank(),
        };
        let sealed = found.iter().any(|(_, seal)| waits(seal));
        let open = match block(0) {
            Ok(open) => SlotOpen::check(&open),
            Err(error) => return Self::Failed { why: error.to_string() },
        };
        let open = match open {
            Ok(open) => open,
            Err(AreaError::Blank) if !found.iter().any(|(_, seal)| seal.is_ok() && waits(seal)) => {
                return Self::Empty;
            }
            Err(AreaError::Version(version)) => {
                let why = format!("a dump of version {version}, which is not known here");
                return Self::Unreadable { why, sealed };
            }
            Err(error) => return Self::Unreadable { why: error.to_string(), sealed },
        };
        let (mut seals, mut torn) = (Vec::new(), Vec::new());
        for (stage, seal) in found {
            match seal {
                // What an older dump left behind seals nothing.
                Ok(seal) if seal.belongs_to(&open) => seals.push((stage, seal)),
                Ok(_) => {}
                Err(trouble) if trouble.is_blank() => {}
                Err(trouble) if stage < open.stages as usize => {
                    torn.push((stage, trouble.to_string()));
                }
                Err(_) => {}
            }
        }
        let collected = collected.filter(|collected| collected.belongs_to(&open));
        Self::Begun { open: Box::new(open), seals, torn, collected, note_failure }
    }

    /// Returns true if a dump may be here that cannot be told from none: its open record is
    /// damaged, or all of its seals are.
    pub(crate) const fn is_unknown(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::Failed { .. } => true,
            Self::Unreadable { sealed, .. } => *sealed,
            Self::Begun { seals, torn, collected, .. } => {
                collected.is_none() && seals.is_empty() && !torn.is_empty()
            }
        }
    }
}
