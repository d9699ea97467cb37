//! Which slot of a dump area takes the next dump.

use block::BlockDevice;
use vmcore_format::area::{
    AreaError, AreaHeader, BLOCK_BYTES, COLLECTED_BLOCK, Collected, MAX_STAGES, NEWEST_VERSION,
    SlotOpen, StageSeal, is_whole,
};

use crate::area::{BLANK, Block, is_blank, read_block};

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: no dump was ever begun.
    Nothing,
    /// A dump that was begun and never sealed; holds its sequence number.
    Abandoned(u64),
    /// A dump that is in safety elsewhere; holds its sequence number.
    Collected(u64),
    /// A dump with at least one sealed stage that nobody has collected; holds its sequence
    /// number.
    Sealed(u64),
    /// A damaged record, behind which a sealed dump may stand; holds the sequence number that a
    /// record beside it names, 0 where there is none.
    Unknown(u64),
    /// A dump of a newer build, which this one cannot read.
    Newer,
    /// Whatever it is, the disk has failed there; holds the sequence number, 0 where it is unknown.
    Refused(u64),
}

impl Content {
    /// Returns the sequence number of what is in the slot, 0 where there is none.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        match *self {
            Self::Abandoned(sequence)
            | Self::Collected(sequence)
            | Self::Sealed(sequence)
            | Self::Unknown(sequence)
            | Self::Refused(sequence) => sequence,
            Self::Nothing | Self::Newer => 0,
        }
    }
}

impl core::fmt::Display for Content {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Nothing => f.write_str("free"),
            Self::Abandoned(old) => write!(f, "replaces dump {old}, which was never sealed"),
            Self::Collected(old) => write!(f, "replaces dump {old}, which was collected"),
            Self::Sealed(old) => write!(f, "replaces dump {old}, which nobody collected"),
            Self::Unknown(_) => f.write_str("replaces a dump whose record is damaged"),
            Self::Newer => f.write_str("replaces a dump of a newer build"),
            Self::Refused(_) => f.write_str("where the disk has failed"),
        }
    }
}

/// The slot to write, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its number.
    pub slot: u32,
    /// Sequence number of the new dump.
    pub sequence: u64,
    /// What is lost by it.
    pub replaces: Content,
}

/// A dump that was found in a slot.
#[derive(Clone, Copy, Debug)]
pub struct FoundDump<'a> {
    /// What it is, and when it was.
    pub open: &'a SlotOpen,
    /// Nobody has it in safety elsewhere.
    pub uncollected: bool,
    /// Bytes of memory in its sealed stages.
    pub memory_bytes: u64,
    /// How long it took to write them, in nanoseconds, flushes included.
    pub write_ns: u64,
}

/// What the seals of a slot say, read one after the other.
#[derive(Default)]
struct Seals {
    /// Stages of the dump that the open record began.
    own: u32,
    /// Records that cannot be read, or are no seals.
    damaged: u32,
    /// Seals of any dump: the highest sequence number, and its nonce.
    newest: Option<(u64, u64)>,
    /// Seals of more than one dump.
    mixed: bool,
    memory_bytes: u64,
    write_ns: u64,
}

impl Seals {
    /// Takes note of a record block, `None` where it cannot be read.
    fn add(&mut self, area: &AreaHeader, open: Option<&SlotOpen>, block: Option<&Block>) {
        let seal = match block.map(|block| StageSeal::check(block, area)) {
            Some(Ok(seal)) => seal,
            Some(Err(AreaError::Blank)) => return,
            Some(Err(_)) | None => {
                self.damaged += 1;
                return;
            }
        };
        let name = (seal.sequence, seal.nonce);
        self.mixed |= self.newest.is_some_and(|newest| newest != name);
        self.newest = self.newest.max(Some(name));
        if open.is_some_and(|open| seal.belongs_to(open)) {
            self.own += 1;
            self.memory_bytes = self.memory_bytes.saturating_add(seal.memory_bytes);
            self.write_ns = self.write_ns.saturating_add(seal.write_ns);
        }
    }
}

/// Reads the records of the slot at byte `offset` of `area`, and says what it holds. A dump with
/// a sealed stage is `told`.
///
/// A record that is damaged or cannot be read never makes a slot free: what stands behind it is
/// unknown, unless the collected record names the dump that all seals belong to.
///
/// # Errors
/// When the disk fails as a whole.
pub fn read(
    device: &mut dyn BlockDevice,
    area: &AreaHeader,
    offset: u64,
    told: &mut dyn FnMut(FoundDump<'_>),
) -> Result<Content, block::Error> {
    let (mut buffer, mut second) = (BLANK, BLANK);
    let first = read_block(device, offset, &mut buffer)?;
    let open = match first.as_ref().map(|block| SlotOpen::check(&block[..])) {
        Some(Err(AreaError::Version(version)))
            if version > NEWEST_VERSION
                && first.as_ref().is_some_and(|block| is_whole(&block[..])) =>
        {
            return Ok(Content::Newer);
        }
        Some(Err(AreaError::Blank)) => {
            // Records are never made blank: where a seal stands, one was lost.
            let seal = read_block(device, offset + BLOCK_BYTES, &mut second)?;
            if seal.is_some_and(|seal| is_blank(seal)) {
                return Ok(Content::Nothing);
            }
            None
        }
        Some(Err(_)) | None => None,
        Some(Ok(open)) => Some(open),
    };
    let mut seals = Seals::default();
    for stage in 1..=MAX_STAGES as u64 {
        let block = read_block(device, offset + stage * BLOCK_BYTES, &mut buffer)?;
        let blank = block.as_ref().is_some_and(|block| is_blank(block));
        // A stage whose seal could not be written is sealed in the block behind it.
        if blank && open.is_some_and(|open| stage > u64::from(open.stages)) {
            break;
        }
        seals.add(area, open.as_ref(), block.as_deref());
    }
    let collected = read_block(device, offset + COLLECTED_BLOCK * BLOCK_BYTES, &mut buffer)?;
    let collected = collected.and_then(|block| Collected::check(block).ok());
    let content = content(open.as_ref(), &seals, collected.as_ref());
    if let (Some(open), Content::Sealed(_) | Content::Collected(_)) = (&open, content)
        && seals.own > 0
    {
        let uncollected = matches!(content, Content::Sealed(_));
        let Seals { memory_bytes, write_ns, .. } = seals;
        told(FoundDump { open, uncollected, memory_bytes, write_ns });
    }
    Ok(content)
}

/// Decides what a slot holds by its records: the open record, `None` where it is damaged.
fn content(open: Option<&SlotOpen>, seals: &Seals, collected: Option<&Collected>) -> Content {
    let Some(open) = open else {
        let named = collected.map(|collected| (collected.sequence, collected.nonce));
        let all_collected = seals.damaged == 0 && !seals.mixed && seals.newest == named;
        return match (seals.newest, named) {
            (Some((sequence, _)), Some(_)) if all_collected => Content::Collected(sequence),
            (newest, named) => {
                let sequence = |name: Option<(u64, u64)>| name.map_or(0, |(sequence, _)| sequence);
                Content::Unknown(sequence(newest).max(sequence(named)))
            }
        };
    };
    let safe = collected.is_some_and(|collected| collected.belongs_to(open));
    match (seals.own, seals.damaged) {
        _ if safe => Content::Collected(open.sequence),
        (0, 0) => Content::Abandoned(open.sequence),
        // A seal that is damaged may have been one of this dump.
        (0, _) => Content::Unknown(open.sequence),
        _ => Content::Sealed(open.sequence),
    }
}

/// Chooses among `contents`, one per slot: an empty slot first, then the oldest dump that
/// was never sealed, then the oldest that was collected. A sealed dump that nobody has
/// collected, the oldest, only where `overwrite` allows it, and only behind all of those one
/// whose record is damaged. One that cannot be read because a newer build wrote it, and one where
/// the disk has failed, never. `None` when there is no slot to take.
#[must_use]
pub fn choose(contents: &[Content], overwrite: bool) -> Option<Choice> {
    let rank = |content: &Content| match content {
        Content::Nothing => 0,
        Content::Abandoned(_) => 1,
        Content::Collected(_) => 2,
        Content::Sealed(_) => 3,
        Content::Unknown(_) => 4,
        Content::Newer | Content::Refused(_) => 5,
    };
    let newest = contents.iter().map(Content::sequence).max()?;
    let (slot, replaces) = contents
        .iter()
        .enumerate()
        .filter(|(_, content)| match content {
            Content::Newer | Content::Refused(_) => false,
            Content::Sealed(_) | Content::Unknown(_) => overwrite,
            _ => true,
        })
        .min_by_key(|(_, content)| (rank(content), content.sequence()))?;
    Some(Choice { slot: slot as u32, sequence: newest.saturating_add(1), replaces: *replaces })
}

#[cfg(test)]
mod tests {
    use super::Content::{Abandoned, Collected as Safe, Nothing, Sealed, Unknown};
    use super::*;

    fn chosen(contents: &[Content]) -> (u32, u64, Content) {
        let choice = choose(contents, true).unwrap();
        (choice.slot, choice.sequence, choice.replaces)
    }

    #[test]
    fn an_empty_slot_comes_first_and_a_sealed_dump_last() {
        assert_eq!(chosen(&[Sealed(4), Abandoned(9), Nothing, Nothing]), (2, 10, Nothing));
        assert_eq!(chosen(&[Sealed(4), Abandoned(9), Abandoned(5)]), (2, 10, Abandoned(5)));
        assert_eq!(chosen(&[Sealed(4), Sealed(3), Sealed(5)]), (1, 6, Sealed(3)));
        assert_eq!(chosen(&[Nothing]), (0, 1, Nothing));
        assert_eq!(choose(&[], true), None);
        assert_eq!(chosen(&[Sealed(4), Safe(6), Safe(5)]), (2, 7, Safe(5)));
        assert_eq!(chosen(&[Safe(4), Abandoned(5)]), (1, 6, Abandoned(5)));
    }

    #[test]
    fn a_dump_that_nobody_collected_is_kept() {
        assert_eq!(choose(&[Sealed(1), Sealed(2)], false), None);
        let choice = choose(&[Sealed(1), Safe(3), Sealed(2)], false).unwrap();
        assert_eq!((choice.slot, choice.sequence), (1, 4));
    }

    #[test]
    fn a_slot_with_a_damaged_record_is_never_free() {
        assert_eq!(choose(&[Unknown(7)], false), None);
        assert_eq!(chosen(&[Unknown(7), Safe(9)]), (1, 10, Safe(9)));
        assert_eq!(chosen(&[Unknown(7), Sealed(9)]), (1, 10, Sealed(9)));
        // The last way out, where dumps may be overwritten at all.
        assert_eq!(chosen(&[Content::Newer, Unknown(7)]), (1, 8, Unknown(7)));
        assert_eq!(choose(&[Content::Refused(7), Content::Newer], true), None);
    }
}
