//! Which slot of a dump area takes the next dump.

use vmcore_format::area::{AreaHeader, SlotOpen, StageSeal};

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing, or nothing that can be read.
    Nothing,
    /// A dump that was begun and never sealed; holds its sequence number.
    Abandoned(u64),
    /// A dump with at least one sealed stage; holds its sequence number.
    Sealed(u64),
}

impl core::fmt::Display for Content {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Nothing => f.write_str("free"),
            Self::Abandoned(old) => write!(f, "replaces dump {old}, which was never sealed"),
            Self::Sealed(old) => write!(f, "all slots hold sealed dumps: replaces dump {old}"),
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

/// What the record blocks of a slot say: `open`, and `seal`, one of those behind it.
#[must_use]
pub fn content(area: &AreaHeader, open: &[u8], seal: &[u8]) -> Content {
    let Ok(open) = SlotOpen::check(open) else { return Content::Nothing };
    match StageSeal::check(seal, area) {
        Ok(seal) if seal.belongs_to(&open) => Content::Sealed(open.sequence),
        _ => Content::Abandoned(open.sequence),
    }
}

/// Chooses among `contents`, one per slot: an empty slot first, then the oldest dump that
/// was never sealed, then the oldest sealed one. `None` when there is no slot at all.
#[must_use]
pub fn choose(contents: &[Content]) -> Option<Choice> {
    let rank = |content: &Content| match *content {
        Content::Nothing => (0, 0),
        Content::Abandoned(sequence) => (1, sequence),
        Content::Sealed(sequence) => (2, sequence),
    };
    let newest = contents.iter().map(|content| rank(content).1).max()?;
    let (slot, replaces) = contents.iter().enumerate().min_by_key(|(_, content)| rank(content))?;
    Some(Choice { slot: slot as u32, sequence: newest.saturating_add(1), replaces: *replaces })
}

#[cfg(test)]
mod tests {
    use super::Content::{Abandoned, Nothing, Sealed};
    use super::*;

    fn chosen(contents: &[Content]) -> (u32, u64, Content) {
        let choice = choose(contents).unwrap();
        (choice.slot, choice.sequence, choice.replaces)
    }

    #[test]
    fn an_empty_slot_comes_first_and_a_sealed_dump_last() {
        assert_eq!(chosen(&[Sealed(4), Abandoned(9), Nothing, Nothing]), (2, 10, Nothing));
        assert_eq!(chosen(&[Sealed(4), Abandoned(9), Abandoned(5)]), (2, 10, Abandoned(5)));
        assert_eq!(chosen(&[Sealed(4), Sealed(3), Sealed(5)]), (1, 6, Sealed(3)));
        assert_eq!(chosen(&[Nothing]), (0, 1, Nothing));
        assert_eq!(choose(&[]), None);
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
        seal.elf_offset = vmcore_format::area::DATA_OFFSET;
        seal.elf_bytes = 8192;
        seal.header_bytes = 4096;
        seal.seal();
        assert_eq!(content(&area, open.as_bytes(), seal.as_bytes()), Sealed(7));
        open.nonce = 71;
        open.seal();
        assert_eq!(content(&area, open.as_bytes(), seal.as_bytes()), Abandoned(7));
        open.sequence = 8;
        assert_eq!(content(&area, open.as_bytes(), seal.as_bytes()), Nothing, "checksum is stale");
    }
}
