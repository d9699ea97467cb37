//! The page pattern of the `memstamp` workload, which the host checks in a dump.
//!
//! A stamped page holds its own address and the round in which it was written. A dump that
//! has the right bytes at the wrong address, or an older version of them, fails the check.
//!
//! The appliance publishes an array of [`StampSlice`] as the workload's table of the hand-off,
//! and the dump holds that array as a note.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First word of a stamped page of which no word repeats.
pub const STAMP_MAGIC: u64 = u64::from_le_bytes(*b"EPISTAMP");
/// First word of a stamped page whose second half repeats its first half.
pub const REPEAT_MAGIC: u64 = u64::from_le_bytes(*b"EPISTMP2");
/// Words of a page.
pub const PAGE_WORDS: usize = 512;
/// "Nobody is writing here" in [`StampSlice::writer`].
pub const NO_WRITER: u32 = u32::MAX;

/// A run of pages that one CPU at a time fills, in address order, epoch after epoch.
///
/// Pages below `next` hold `epoch`; pages above hold `epoch - 1` (nothing, when that is
/// 0); the page at `next` holds either, or is being written when `writer` names a CPU.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StampSlice {
    /// Physical address of the first page.
    pub start: u64,
    /// Pages in the run.
    pub pages: u32,
    /// Index of the CPU that is writing the page at `next`, or [`NO_WRITER`].
    pub writer: u32,
    /// The epoch being written, from 1.
    pub epoch: u32,
    /// Pages that hold it already.
    pub next: u32,
}

const _: () = assert!(core::mem::size_of::<StampSlice>() == 24);

/// Why a page is not the stamp it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StampFault {
    /// The magic is not there.
    NotStamped,
    /// Stamped for another address; holds that address.
    WrongAddress(u64),
    /// Stamped in another epoch; holds that epoch.
    WrongEpoch(u64),
    /// The header is right, the body or the checksum is not.
    Damaged,
}

/// What a page is filled with behind its first words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// No word repeats: no compressor gets anywhere.
    Plain,
    /// The second half repeats the first: compressors of the LZ family store half of it.
    Repeat,
}

impl Pattern {
    const fn magic(self) -> u64 {
        match self {
            Self::Plain => STAMP_MAGIC,
            Self::Repeat => REPEAT_MAGIC,
        }
    }

    /// Words of the body behind which it begins anew.
    const fn period(self) -> usize {
        match self {
            Self::Plain => PAGE_WORDS - BODY,
            Self::Repeat => (PAGE_WORDS - BODY) / 2,
        }
    }
}

/// Layout of a stamped page: magic, address, epoch, checksum, then the pattern.
const BODY: usize = 4;

fn step(state: u64) -> u64 {
    // Weyl sequence, as in splitmix64: one add per word keeps the fill at memory speed.
    state.wrapping_add(0x9e37_79b9_7f4a_7c15)
}

fn seed(address: u64, epoch: u64) -> u64 {
    (address ^ epoch.rotate_left(40)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Fills one page.
pub fn fill(page: &mut [u64; PAGE_WORDS], address: u64, epoch: u64, pattern: Pattern) {
    let mut sum = 0u64;
    for part in page[BODY..].chunks_mut(pattern.period()) {
        let mut word = seed(address, epoch);
        for slot in part {
            word = step(word);
            *slot = word;
            sum = sum.rotate_left(1) ^ word;
        }
    }
    page[0] = pattern.magic();
    page[1] = address;
    page[2] = epoch;
    page[3] = sum;
}

/// Checks one page for `address` and `epoch`, in whichever pattern it says it has.
///
/// # Errors
/// Says in what way the page differs.
pub fn check(page: &[u64; PAGE_WORDS], address: u64, epoch: u64) -> Result<(), StampFault> {
    let pattern = match page[0] {
        STAMP_MAGIC => Pattern::Plain,
        REPEAT_MAGIC => Pattern::Repeat,
        _ => return Err(StampFault::NotStamped),
    };
    if page[1] != address {
        return Err(StampFault::WrongAddress(page[1]));
    }
    if page[2] != epoch {
        return Err(StampFault::WrongEpoch(page[2]));
    }
    let mut sum = 0u64;
    for part in page[BODY..].chunks(pattern.period()) {
        let mut word = seed(address, epoch);
        for &found in part {
            word = step(word);
            if found != word {
                return Err(StampFault::Damaged);
            }
            sum = sum.rotate_left(1) ^ found;
        }
    }
    if sum == page[3] { Ok(()) } else { Err(StampFault::Damaged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_passes_only_where_and_when_it_was_stamped() {
        for pattern in [Pattern::Plain, Pattern::Repeat] {
            let mut page = [0; PAGE_WORDS];
            assert_eq!(check(&page, 0x5000, 1), Err(StampFault::NotStamped));
            fill(&mut page, 0x5000, 3, pattern);
            assert_eq!(check(&page, 0x5000, 3), Ok(()));
            assert_eq!(check(&page, 0x6000, 3), Err(StampFault::WrongAddress(0x5000)));
            assert_eq!(check(&page, 0x5000, 2), Err(StampFault::WrongEpoch(3)));
            for word in 3..PAGE_WORDS {
                let mut flipped = page;
                flipped[word] ^= 1 << (word % 64);
                assert_eq!(check(&flipped, 0x5000, 3), Err(StampFault::Damaged), "word {word}");
            }
        }
    }

    #[test]
    fn a_page_repeats_only_when_asked_to() {
        let mut page = [0; PAGE_WORDS];
        let half = (PAGE_WORDS - BODY) / 2;
        fill(&mut page, 0x5000, 3, Pattern::Repeat);
        assert_eq!(page[BODY..BODY + half], page[BODY + half..]);
        fill(&mut page, 0x5000, 3, Pattern::Plain);
        assert_ne!(page[BODY..BODY + half], page[BODY + half..]);
        // One kind of page is never taken for the other.
        page[0] = REPEAT_MAGIC;
        assert_eq!(check(&page, 0x5000, 3), Err(StampFault::Damaged));
    }
}
