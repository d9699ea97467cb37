//! What stands in the blocks of a data disk, and which disk may be one.
//!
//! Every block knows its position and its generation, in each of its words, so a block that
//! is old, torn, or somewhere else is told from the right one. Block 0 is the disk's label.
//! A disk is written to when it has that label or is blank at both ends, where every
//! partition table, file system and dump area keeps what it is known by.

use epitaph_workload::Random;
use vmcore_format::area::AREA_MAGIC;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes at each end of a disk that must be blank before it is written to: far more than
/// any label's place.
pub const ENDS_BYTES: u64 = 256 << 10;

/// What the label begins with.
const LABEL: [u8; 8] = *b"EPIBLKV\x01";
/// Set in front of the position for the label, which is no data block.
const LABEL_WORDS: u64 = u64::MAX;

/// The words of data block `position` in `generation`.
fn words(position: u64, generation: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::for_unit(generation, position, 0);
    let own = [position, generation];
    let rest = core::iter::repeat_with(move || random.next());
    own.into_iter().chain(rest).take(BLOCK_BYTES / 8)
}

/// Fills `block` for `position` and `generation`.
pub fn fill(block: &mut [u8; BLOCK_BYTES], position: u64, generation: u64) {
    for (bytes, word) in block.chunks_exact_mut(8).zip(words(position, generation)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Byte offset of the first word that is not as [`fill`] leaves it, with what stands there.
#[must_use]
pub fn first_wrong(
    block: &[u8; BLOCK_BYTES],
    position: u64,
    generation: u64,
) -> Option<(usize, u64)> {
    let found = block.chunks_exact(8).map(|bytes| {
        // Chunks of eight bytes have eight bytes.
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    });
    let wrong = found.zip(words(position, generation)).enumerate();
    wrong
        .into_iter()
        .find(|(_, (found, word))| found != word)
        .map(|(at, (found, _))| (at * 8, found))
}

/// Fills `block` as the label of a data disk.
pub fn fill_label(block: &mut [u8; BLOCK_BYTES]) {
    fill(block, LABEL_WORDS, 0);
    block[..8].copy_from_slice(&LABEL);
}

/// What the first block of a disk says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Its label says that it is a data disk.
    Ours,
    /// Nothing, so far.
    Blank,
    /// A dump area.
    DumpArea,
    /// A partition table, or a boot record.
    Partitions,
    /// Something else.
    Foreign,
}

impl Owner {
    /// From the first block.
    #[must_use]
    pub fn of(first: &[u8; BLOCK_BYTES]) -> Self {
        let mut label = [0; BLOCK_BYTES];
        fill_label(&mut label);
        // The boot record's mark, and the table of the other kind in the second sector, of
        // 512 bytes; one of 4096 is preceded by the boot record's mark (UEFI 2.10, §5.2).
        let partitions = first[510..512] == [0x55, 0xaa] || first[512..520] == *b"EFI PART";
        match first {
            first if *first == label => Self::Ours,
            first if first.starts_with(&AREA_MAGIC) => Self::DumpArea,
            _ if partitions => Self::Partitions,
            first if is_blank(first) => Self::Blank,
            _ => Self::Foreign,
        }
    }

    /// A word for a refusal.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "a data disk",
            Self::Blank => "blank",
            Self::DumpArea => "a dump area",
            Self::Partitions => "partitioned",
            Self::Foreign => "not blank",
        }
    }
}

/// Whether there is nothing in `bytes`.
#[must_use]
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_right_in_one_place_and_generation_only() {
        let mut block = [0; BLOCK_BYTES];
        fill(&mut block, 7, 3);
        assert_eq!(first_wrong(&block, 7, 3), None);
        assert_eq!(first_wrong(&block, 8, 3), Some((0, 7)));
        assert_eq!(first_wrong(&block, 7, 2), Some((8, 3)));
        block[BLOCK_BYTES - 1] ^= 0x80;
        assert_eq!(first_wrong(&block, 7, 3).map(|(at, _)| at), Some(BLOCK_BYTES - 8));
    }

    #[test]
    fn only_blank_disks_and_our_own_are_ours() {
        let mut block = [0; BLOCK_BYTES];
        assert_eq!(Owner::of(&block), Owner::Blank);
        block[BLOCK_BYTES - 1] = 1;
        assert_eq!(Owner::of(&block), Owner::Foreign);
        block[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(Owner::of(&block), Owner::Partitions);
        block[..8].copy_from_slice(&AREA_MAGIC);
        assert_eq!(Owner::of(&block), Owner::DumpArea);
        fill_label(&mut block);
        assert_eq!(Owner::of(&block), Owner::Ours);
        block[4000] ^= 1;
        assert_eq!(Owner::of(&block), Owner::Foreign);
    }
}
