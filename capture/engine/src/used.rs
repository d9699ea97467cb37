//! Which memory was in use: the frame allocator's bitmap, as it lies in the crashed memory.

use vmcore_format::PAGE_BYTES;
use zerocopy::FromBytes;

use crate::crash::{Crash, MAX_RANGES, Range};
use crate::extents::UsedPages;
use crate::stream::Memory;

/// Pages in a row, and the bit of the first.
#[derive(Clone, Copy)]
struct Block {
    first: u64,
    pages: u64,
    bit: u64,
}

/// The bitmap. It has no checksum: the crashed system was writing it until the end. What is
/// wrong in it moves memory from one stage to another and loses none.
pub struct UsedFrames<'a> {
    blocks: heapless::Vec<Block, MAX_RANGES>,
    words: &'a [u64],
    frames: u64,
}

impl<'a> UsedFrames<'a> {
    /// Returns the bitmap that `crash` describes; `None` when there is none, or it is no memory.
    #[must_use]
    pub fn find(crash: &Crash<'_>, memory: &'a dyn Memory) -> Option<Self> {
        let map = crash.used?;
        let bytes = map.pages.div_ceil(64).checked_mul(8)?;
        let bitmap = Range { start: map.address, bytes };
        // Whole pages around it, since that is what can be asked for.
        let start = bitmap.start / PAGE_BYTES * PAGE_BYTES;
        let end = bitmap.start.checked_add(bytes)?.checked_next_multiple_of(PAGE_BYTES)?;
        let pages = Range::between(start, end);
        let known = bytes > 0 && start > 0 && crash.is_ram(bitmap);
        if !known || crash.is_withheld(pages) || memory.readable(pages) < pages.bytes {
            return None;
        }
        let content = memory.bytes(pages).get((bitmap.start - start) as usize..)?;
        let words = <[u64]>::ref_from_bytes(content.get(..bytes as usize)?).ok()?;
        let mut blocks = heapless::Vec::new();
        let mut bit = 0;
        for entry in crash.ram() {
            let first = entry.range.start.div_ceil(PAGE_BYTES);
            let pages = (entry.range.end() / PAGE_BYTES).saturating_sub(first);
            // As many places as there are entries.
            let _ = blocks.push(Block { first, pages, bit });
            bit += pages;
        }
        Some(Self { blocks, words, frames: map.pages })
    }

    /// Whether one of the bits from `start` to before `end` is set, or has no meaning.
    fn any(&self, start: u64, end: u64) -> bool {
        if end > self.frames {
            return true;
        }
        let mut at = start;
        while at < end {
            let (word, shift) = (at / 64, at % 64);
            let bits = (64 - shift).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << shift;
            match self.words.get(word as usize) {
                Some(found) if found & mask == 0 => at += bits,
                _ => return true,
            }
        }
        false
    }
}

impl UsedPages for UsedFrames<'_> {
    fn any_used(&self, range: Range) -> bool {
        let (first, end) = (range.start / PAGE_BYTES, range.end().div_ceil(PAGE_BYTES));
        let block = self
            .blocks
            .iter()
            .find(|block| block.first <= first && end <= block.first.saturating_add(block.pages));
        block.is_none_or(|block| {
            self.any(block.bit + (first - block.first), block.bit + (end - block.first))
        })
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::crash::{MemoryClass, MemoryRange, UsedBitmap};
    use crate::fake;

    /// Memory that holds these words from 1 MiB on.
    struct Bitmap(Vec<u64>);

    impl Memory for Bitmap {
        fn readable(&self, range: Range) -> u64 {
            range.bytes
        }

        fn bytes(&self, range: Range) -> &[u8] {
            &self.0.as_bytes()[(range.start - 0x10_0000) as usize..][..range.bytes as usize]
        }
    }

    #[test]
    fn a_bit_is_a_page_of_ram_and_gaps_have_none() {
        let map = [(0, 0x9_fc00), (0x10_0000, 0x100_0000)].map(|(start, end)| MemoryRange {
            range: Range::between(start, end),
            source: start,
            class: MemoryClass::Ram,
        });
        let with = |pages| {
            let used = Some(UsedBitmap { address: 0x10_0008, pages });
            Crash { memory: &map, used, ..fake::crash() }
        };
        let low = 0x9f;
        let mut words = vec![0u64; 1024];
        // The page at 3 MiB: the first half MiB of pages ends at 0x9f000.
        let bit = low + (0x30_0000 - 0x10_0000) / PAGE_BYTES;
        words[1 + bit as usize / 64] = 1 << (bit % 64);
        let memory = Bitmap(words);
        let used = UsedFrames::find(&with(low + 0xf00), &memory).unwrap();
        let page = |start| used.any_used(Range { start, bytes: PAGE_BYTES });
        assert!(page(0x30_0000) && !page(0x30_1000) && !page(0x2f_f000) && !page(0x9_e000));
        assert!(used.any_used(Range { start: 0x20_0000, bytes: 0x20_0000 }));
        assert!(!used.any_used(Range { start: 0x30_1000, bytes: 0xcf_f000 }));
        assert!(!used.any_used(Range { start: 0x10_0000, bytes: 0x20_0000 }));
        // What the bitmap does not reach, and what is no RAM, counts as in use.
        assert!(page(0xa_0000) && page(0x200_0000));
        let used = UsedFrames::find(&with(100), &memory).unwrap();
        assert!(used.any_used(Range { start: 0x70_0000, bytes: PAGE_BYTES }));
    }

    #[test]
    fn a_bitmap_nowhere_is_none() {
        let memory = Bitmap(vec![0; 512]);
        let none = |used, map: &[MemoryRange]| {
            UsedFrames::find(&Crash { used, memory: map, ..fake::crash() }, &memory).is_none()
        };
        let ram = |start, end| {
            [MemoryRange {
                range: Range::between(start, end),
                source: start,
                class: MemoryClass::Ram,
            }]
        };
        let bitmap = |address, pages| Some(UsedBitmap { address, pages });
        assert!(none(None, &ram(0, u64::MAX)));
        assert!(none(bitmap(0x10_0000, 64), &[]));
        assert!(none(bitmap(u64::MAX - 7, u64::MAX), &ram(0, u64::MAX)));
        assert!(none(bitmap(0x10_0000, 0), &ram(0x10_0000, 0x20_0000)));
        assert!(!none(bitmap(0x10_0000, 64), &ram(0x10_0000, 0x20_0000)));
    }
}
