//! Which slot of a dump area takes the next dump.

use vmcore_format::area::{AreaHeader, Collected, SlotOpen, StageSeal};

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing, or nothing that can be read.
    Nothing,
    /// A dump that was begun and never sealed; holds its sequence number.
    Abandoned(u64),
    /// A dump that is in safety elsewhere; holds its sequence number.
    Collected(u64),
    /// A dump with at least one sealed stage that nobody has collected; holds its sequence
    /// number.
    Sealed(u64),
    /// A dump of a newer build, which this one cannot read.
    Newer,
}

impl core::fmt::Display for Content {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Nothing => f.write_str("free"),
            Self::Abandoned(old) => write!(f, "replaces dump {old}, which was never sealed"),
            Self::Collected(old) => write!(f, "replaces dump {old}, which was collected"),
            Self::Sealed(old) => write!(f, "replaces dump {old}, which nobody collected"),
            Self::Newer => f.write_str("replaces a dump of a newer build"),
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

/// What the record blocks of a slot say: `open`, one of the seals behind it, and the note
/// that the dump was collected.
#[must_use]
pub fn content(area: &AreaHeader, open: &[u8], seal: &[u8], collected: &[u8]) -> Content {
    let Ok(open) = SlotOpen::check(open) else { return Content::Nothing };
    match StageSeal::check(seal, area) {
        Ok(seal) if seal.belongs_to(&open) => match Collected::check(collected) {
            Ok(collected) if collected.belongs_to(&open) => Content::Collected(open.sequence),
            _ => Content::Sealed(open.sequence),
        },
        _ => Content::Abandoned(open.sequence),
    }
}

/// Chooses among `contents`, one per slot: an empty slot first, then the oldest dump that
/// was never sealed, then the oldest that was collected. A sealed dump that nobody has
/// collected, the oldest, only where `overwrite` allows it; one that cannot be read because a
/// newer build wrote it, never. `None` when there is no slot to take.
#[must_use]
pub fn choose(contents: &[Content], overwrite: bool) -> Option<Choice> {
    let rank = |content: &Content| match *content {
        Content::Nothing => (0, 0),
        Content::Abandoned(sequence) => (1, sequence),
        Content::Collected(sequence) => (2, sequence),
        Content::Sealed(sequence) => (3, sequence),
        Content::Newer => (4, 0),
    };
    let newest = contents.iter().map(|content| rank(content).1).max()?;
    let (slot, replaces) = contents
        .iter()
        .enumerate()
        .filter(|(_, content)| match content {
            Content::Newer => false,
            Content::Sealed(_) => overwrite,
            _ => true,
        })
        .min_by_key(|(_, content)| rank(content))?;
    Some(Choice { slot: slot as u32, sequence: newest.saturating_add(1), replaces: *replaces })
}

#[cfg(test)]
mod tests {
    use super::Content::{Abandoned, Collected as Safe, Nothing, Sealed};
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
    fn a_seal_of_an_older_dump_does_not_count() {
        use zerocopy::IntoBytes;
        let area = AreaHeader::plan(64 << 20, 1).unwrap();
        let mut open = SlotOpen::new();
        open.sequence = 7;
        open.nonce = 70;
        open.stages = 1;
        open.seal();
        let mut seal = StageSeal::new(&open);
        seal.header_offset = vmcore_format::area::DATA_OFFSET;
        seal.table_offset = vmcore_format::area::DATA_OFFSET;
        seal.elf_bytes = 8192;
        seal.header_bytes = 4096;
        seal.seal();
        let content = |open: &SlotOpen, seal: &StageSeal, collected: &[u8]| {
            content(&area, open.as_bytes(), seal.as_bytes(), collected)
        };
        assert_eq!(content(&open, &seal, &[0; 4096]), Sealed(7));
        let collected = Collected::of(&open, 1);
        assert_eq!(content(&open, &seal, collected.as_bytes()), Safe(7));
        let other = Collected::of(&SlotOpen { nonce: 71, ..open }, 1);
        assert_eq!(content(&open, &seal, other.as_bytes()), Sealed(7));
        open.nonce = 71;
        open.seal();
        assert_eq!(content(&open, &seal, &[]), Abandoned(7));
        open.sequence = 8;
        assert_eq!(content(&open, &seal, &[]), Nothing, "checksum is stale");
    }
}
