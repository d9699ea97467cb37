//! Sizes of chunks and of the lists that name them, for any amount of memory.
//!
//! A dump lists its chunks in memory of the reserved region, 40 bytes for each, and that
//! memory does not grow with the machine. A chunk stored as it is may be as large as it has to
//! be; a compressed one holds 1 MiB at most ([`MAX_CHUNK_BYTES`]). So with more memory than
//! goes into the list in pieces of 1 MiB, chunks stored as they are get larger and take half
//! of the list at most, and what is left of it is a budget for compressed ones. When it is
//! spent, the rest of the dump is stored as it is, and the console says so.
//!
//! For example, with 256 GiB of memory and `dump=lz4`: a list of 24,576 chunks, 8,192 of them
//! spare, chunks of 32 MiB for memory stored as it is, and room to compress 8 GiB.

use vmcore_format::area::{ENTRY_BYTES, MAX_CHUNK_BYTES};

use crate::stream::Piece;

/// Chunks that are listed at most: a list of 960 KiB.
pub const MAX_CHUNKS: u64 = 24 << 10;
/// Chunks that a list has room for at least, however little memory there is for it.
const MIN_CHUNKS: u64 = 1 << 10;
/// Chunks listed besides one for every piece of memory of the usual size: every run of
/// memory may end in a short one.
const SPARE_CHUNKS: u64 = 8192;
/// The largest chunk that is stored as it is, in bytes: its size is 32 bits wide on the disk,
/// and a reader may hold all of it in memory.
const MAX_RAW_BYTES: u64 = 1 << 30;
/// The smallest chunk that is compressed, in bytes: the smaller they are, the more CPUs have
/// room for one, and the more often the disk is asked to write one.
const SMALL_CHUNK_BYTES: u64 = 256 << 10;
/// Runs of memory that are listed: where there is room, and at least.
const PIECES: [u64; 3] = [8192, 2048, 512];

/// Sizes for a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSizes {
    /// Chunks that are listed.
    pub chunks: u64,
    /// Bytes of memory in a chunk that is stored as it is.
    pub raw_bytes: u64,
    /// Bytes of memory in a chunk that is compressed.
    pub packed_bytes: u64,
}

/// Chunks of a list of `chunks` that are kept for short ones.
#[must_use]
pub const fn spare(chunks: u64) -> u64 {
    if chunks / 3 < SPARE_CHUNKS { chunks / 3 } else { SPARE_CHUNKS }
}

/// Returns how many chunks of `bytes` it takes for `memory_bytes`.
const fn count(memory_bytes: u64, bytes: u64) -> u64 {
    match memory_bytes.saturating_add(bytes).saturating_sub(1).checked_div(bytes) {
        Some(count) => count,
        None => u64::MAX,
    }
}

/// Returns `bytes` or its smallest double of which `memory_bytes` hold `most` at most; not
/// more than `limit`.
const fn grown(mut bytes: u64, memory_bytes: u64, most: u64, limit: u64) -> u64 {
    while count(memory_bytes, bytes) > most && bytes < limit {
        bytes *= 2;
    }
    bytes
}

impl ChunkSizes {
    /// Returns the sizes for a dump of `memory_bytes` that may be `packed`, with a list of
    /// `most` chunks at most.
    #[must_use]
    pub const fn new(memory_bytes: u64, packed: bool, most: u64) -> Self {
        let all = if most < MAX_CHUNKS { most } else { MAX_CHUNKS };
        let room = all - spare(all);
        let packed_bytes = grown(SMALL_CHUNK_BYTES, memory_bytes, room, MAX_CHUNK_BYTES);
        let whole = count(memory_bytes, packed_bytes) <= room;
        let for_raw = if packed && !whole { room / 2 } else { room };
        let raw_bytes = grown(MAX_CHUNK_BYTES, memory_bytes, for_raw, MAX_RAW_BYTES);
        let usual = count(memory_bytes, if packed { packed_bytes } else { raw_bytes });
        let wanted = usual.saturating_add(SPARE_CHUNKS);
        Self { chunks: if wanted < all { wanted } else { all }, raw_bytes, packed_bytes }
    }

    /// Returns how much of a dump of `memory_bytes` can be compressed at least, in bytes, where
    /// no run of memory is short.
    #[must_use]
    pub const fn packed_budget(&self, memory_bytes: u64) -> u64 {
        let room = self.chunks - spare(self.chunks);
        let left = room.saturating_sub(count(memory_bytes, self.raw_bytes));
        let budget = left.saturating_mul(self.packed_bytes);
        if count(memory_bytes, self.packed_bytes) <= room || budget > memory_bytes {
            memory_bytes
        } else {
            budget
        }
    }
}

/// Sizes of all lists of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListSizes {
    /// Of its chunks.
    pub chunks: ChunkSizes,
    /// Runs of memory that are listed.
    pub pieces: u64,
}

impl ListSizes {
    /// Returns the largest lists for a dump of `memory_bytes` that may be `packed` in
    /// `left` bytes; `header` says how many bytes the dump's header takes with so many runs.
    /// `None` where not even the smallest lists fit.
    #[must_use]
    pub fn fit(
        memory_bytes: u64,
        packed: bool,
        left: u64,
        header: impl Fn(u64) -> u64,
    ) -> Option<Self> {
        PIECES.into_iter().find_map(|pieces| {
            let beside = header(pieces).checked_add(pieces * size_of::<Piece>() as u64)?;
            let most = left.checked_sub(beside)? / ENTRY_BYTES;
            let enough = most >= MIN_CHUNKS + pieces;
            enough.then(|| Self { chunks: ChunkSizes::new(memory_bytes, packed, most), pieces })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const SIZES: [u64; 10] = [
        96 * MIB,
        GIB,
        4 * GIB,
        15 * GIB,
        16 * GIB,
        17 * GIB,
        64 * GIB,
        256 * GIB,
        512 * GIB,
        1 << 40,
    ];

    #[test]
    fn every_amount_of_memory_fits_the_list() {
        for memory in SIZES {
            for packed in [false, true] {
                for most in [2048, 8192, u64::MAX] {
                    let sizes = ChunkSizes::new(memory, packed, most);
                    let ChunkSizes { chunks, raw_bytes, packed_bytes } = sizes;
                    let case = format!("{memory:#x} {packed} {most}: {sizes:?}");
                    assert!(chunks <= most.min(MAX_CHUNKS), "{case}");
                    assert!(
                        (SMALL_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&packed_bytes),
                        "{case}"
                    );
                    assert!((MAX_CHUNK_BYTES..=MAX_RAW_BYTES).contains(&raw_bytes), "{case}");
                    assert!(memory.div_ceil(raw_bytes) + spare(chunks) <= chunks + 1, "{case}");
                    let budget = sizes.packed_budget(memory);
                    assert!(budget <= memory && (budget > 0 || !packed), "{case}");
                }
            }
        }
    }

    #[test]
    fn up_to_16_gib_all_of_it_may_be_compressed() {
        let sizes = |memory| ChunkSizes::new(memory, true, u64::MAX);
        for (memory, packed_bytes) in [(96 * MIB, 256 << 10), (GIB, 256 << 10), (15 * GIB, MIB)] {
            let sizes = sizes(memory);
            assert_eq!((sizes.raw_bytes, sizes.packed_bytes), (MIB, packed_bytes));
            assert_eq!(sizes.packed_budget(memory), memory);
        }
    }

    #[test]
    fn above_16_gib_there_is_a_budget_for_compressed_memory() {
        for (memory, raw, budget) in
            [(17, 4 * MIB, 12032), (256, 32 * MIB, 8192), (1024, 128 * MIB, 8192)]
        {
            let sizes = ChunkSizes::new(memory * GIB, true, u64::MAX);
            let wanted = ChunkSizes { chunks: MAX_CHUNKS, raw_bytes: raw, packed_bytes: MIB };
            assert_eq!((sizes, sizes.packed_budget(memory * GIB)), (wanted, budget * MIB));
            // What is not compressed takes chunks half as large.
            let raw_only = ChunkSizes::new(memory * GIB, false, u64::MAX);
            assert_eq!(raw_only.raw_bytes, raw / 2);
        }
    }

    #[test]
    fn where_there_is_little_room_the_lists_are_shorter() {
        let header = |pieces: u64| 64 * pieces + 4096;
        let fit = |left| ListSizes::fit(1 << 40, true, left, header);
        let pieces = |left| fit(left).map(|sizes| (sizes.pieces, sizes.chunks.chunks));
        assert_eq!(pieces(4 << 20), Some((8192, MAX_CHUNKS)));
        assert_eq!(pieces(600 << 10), Some((2048, 10752)));
        assert_eq!(pieces(200 << 10), Some((512, 3891)));
        assert_eq!(pieces(64 << 10), None);
        assert_eq!(pieces(0), None);
    }
}
