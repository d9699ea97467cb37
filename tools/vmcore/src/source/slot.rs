//! The records of a slot: what stands in it, and how far that is known.

use std::path::Path;

use vmcore_format::area::{
    AreaError, AreaHeader, BLOCK_BYTES, COLLECTED_BLOCK, Collected, MAX_STAGES, SlotOpen,
    StageSeal, seal_offset,
};

use crate::file::Part;
use crate::text::clean;
use crate::{Error, Result, pair};

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
    /// A dump that was begun.
    Begun {
        /// Its open record.
        open: Box<SlotOpen>,
        /// The seals that belong to it, with the index of the stage.
        seals: Vec<(usize, StageSeal)>,
        /// Seals that are damaged, with the index of the stage and what is wrong.
        torn: Vec<(usize, AreaError)>,
        /// The note that it is in safety elsewhere.
        collected: Option<Collected>,
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

impl Slot {
    pub(super) fn read(path: &Path, part: &Part, area: &AreaHeader, offset: u64) -> Result<Self> {
        let block = |at: u64| {
            let at = offset + at;
            if at >= part.bytes() {
                return Ok(Vec::new());
            }
            part.read_up_to(at, BLOCK_BYTES).map_err(Error::io(path, "read a slot"))
        };
        let collected = Collected::check(&block(COLLECTED_BLOCK * BLOCK_BYTES)?).ok();
        let mut found = Vec::new();
        for stage in 0..MAX_STAGES {
            let Some(at) = seal_offset(stage) else { break };
            found.push((stage, StageSeal::check(&block(at)?, area)));
        }
        // A seal that stands there, whole or not, unless it is of a dump in safety.
        let waits = |seal: &Result<StageSeal, AreaError>| match (seal, &collected) {
            (Ok(seal), Some(note)) => (seal.sequence, seal.nonce) != (note.sequence, note.nonce),
            (Ok(_), None) => true,
            (Err(error), _) => !matches!(error, AreaError::Blank | AreaError::TooShort),
        };
        let sealed = found.iter().any(|(_, seal)| waits(seal));
        let open = match SlotOpen::check(&block(0)?) {
            Ok(open) => open,
            Err(AreaError::Blank) if !found.iter().any(|(_, seal)| seal.is_ok() && waits(seal)) => {
                return Ok(Self::Empty);
            }
            Err(AreaError::Version(version)) => {
                let why = format!("a dump of version {version}, which is not known here");
                return Ok(Self::Unreadable { why, sealed });
            }
            Err(error) => return Ok(Self::Unreadable { why: error.to_string(), sealed }),
        };
        let (mut seals, mut torn) = (Vec::new(), Vec::new());
        for (stage, seal) in found {
            match seal {
                // What an older dump left behind seals nothing.
                Ok(seal) if seal.belongs_to(&open) => seals.push((stage, seal)),
                Ok(_) | Err(AreaError::Blank | AreaError::TooShort) => {}
                Err(error) if stage < open.stages as usize => torn.push((stage, error)),
                Err(_) => {}
            }
        }
        let collected = collected.filter(|collected| collected.belongs_to(&open));
        Ok(Self::Begun { open: Box::new(open), seals, torn, collected })
    }

    /// Returns true if a dump may be here that cannot be told from none: its open record is
    /// damaged, or all of its seals are.
    pub(crate) const fn is_unknown(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::Unreadable { sealed, .. } => *sealed,
            Self::Begun { seals, torn, collected, .. } => {
                collected.is_none() && seals.is_empty() && !torn.is_empty()
            }
        }
    }
}
