//! Chunks: the memory of a dump, piece by piece, as it lies in the log of a slot.

use core::mem::{offset_of, size_of};

use rapidhash::v3::{DEFAULT_RAPID_SECRETS, rapidhash_v3_inline};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{BLOCK_BYTES, DATA_OFFSET, SlotOpen};
use crate::PAGE_BYTES;

/// Memory a compressed chunk holds at most, and the usual size of every other one.
pub const MAX_CHUNK_BYTES: u64 = 1 << 20;
/// Memory a chunk that is stored as it is holds at most. A machine's memory is divided into
/// some 24,000 chunks, so larger ones would be those of a machine of more than 24 TiB.
pub const MAX_RAW_BYTES: u64 = 1 << 30;
/// Memory that is compressed as one block, independent of all others.
pub const LZ4_BLOCK_BYTES: u64 = 64 << 10;
/// Bytes of a [`ChunkEntry`].
pub const ENTRY_BYTES: u64 = size_of::<ChunkEntry>() as u64;
/// Flag in the size of an LZ4 block: it stands there as it was in memory.
const PLAIN_BLOCK: u32 = 1 << 31;

/// Values of [`ChunkEntry::kind`]. A reader refuses others.
pub mod chunk_kind {
    /// The memory itself.
    pub const RAW: u32 = 1;
    /// A table of sizes, then independent LZ4 blocks, see [`super::lz4_blocks`].
    pub const LZ4: u32 = 2;
    /// All zero; nothing is stored.
    pub const ZERO: u32 = 3;
}

/// Values of [`ChunkEntry::area`]. A reader refuses others.
pub mod chunk_area {
    /// In the slot of its table.
    pub const OWN: u32 = 0;
    /// In the slot of the other area that the dump lies in.
    pub const OTHER: u32 = 1;
}

/// One chunk, in the table of its stage.
///
/// The memory of all chunks of a table, in its order, is the stage's ELF file from the
/// end of the header on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ChunkEntry {
    /// Offset of what is stored from the start of the slot that `area` says; a block multiple.
    pub offset: u64,
    /// Physical address of the memory.
    pub address: u64,
    /// Bytes stored; up to the next block boundary there are zeros.
    pub stored_bytes: u32,
    /// Bytes of memory; whole pages.
    pub memory_bytes: u32,
    /// One of [`chunk_kind`].
    pub kind: u32,
    /// One of [`chunk_area`].
    pub area: u32,
    /// What [`ChunkEntry::bind`] makes of the memory's content and its place.
    pub checksum: u64,
}

const _: () = {
    assert!(size_of::<ChunkEntry>() == 40);
    assert!(offset_of!(ChunkEntry, checksum) == 32);
};

impl ChunkEntry {
    /// The 64-bit checksum of memory, without its place: rapidhash V3 in its protected
    /// form (<https://github.com/Nicoshev/rapidhash>), seed 0. A multiply-fold hash, since
    /// that is what an emulated processor without vectors does fastest; protected, so that
    /// an operand that happens to be zero takes nothing with it. In its compact form, whose
    /// result is the same and whose state finds room in the registers: emulated, it is twice as
    /// fast as the one unrolled.
    #[must_use]
    pub fn hash(memory: &[u8]) -> u64 {
        rapidhash_v3_inline::<true, true, true>(memory, &DEFAULT_RAPID_SECRETS)
    }

    /// Binds a memory's [`hash`](Self::hash) to where the memory was and to the dump that
    /// `open` began: the same hash over six words, little endian — the memory's hash,
    /// sequence number, nonce, address, bytes of memory, kind. So a chunk of another place
    /// or of another dump does not pass for this one.
    #[must_use]
    pub fn bind(&self, hash: u64, open: &SlotOpen) -> u64 {
        let words = [
            hash,
            open.sequence,
            open.nonce,
            self.address,
            u64::from(self.memory_bytes),
            u64::from(self.kind),
        ];
        Self::hash(words.map(u64::to_le).as_bytes())
    }

    /// Bytes taken in the log, padding included.
    #[must_use]
    pub const fn log_bytes(&self) -> u64 {
        (self.stored_bytes as u64).next_multiple_of(BLOCK_BYTES)
    }

    /// Whether the entry can be followed in the slot that it names, of `slot_bytes` bytes: known
    /// kind and area, whole pages, sizes that fit the kind, inside the log.
    #[must_use]
    pub fn is_sound(&self, slot_bytes: u64) -> bool {
        let (memory, stored) = (u64::from(self.memory_bytes), u64::from(self.stored_bytes));
        let sizes = match self.kind {
            chunk_kind::RAW => memory <= MAX_RAW_BYTES && stored == memory,
            chunk_kind::LZ4 => memory <= MAX_CHUNK_BYTES && stored < memory,
            chunk_kind::ZERO => stored == 0,
            _ => false,
        };
        let end = self.offset.checked_add(self.log_bytes());
        let inside = self.offset >= DATA_OFFSET
            && self.offset.is_multiple_of(BLOCK_BYTES)
            && end.is_some_and(|end| end <= slot_bytes);
        sizes
            && self.area <= chunk_area::OTHER
            && memory > 0
            && memory.is_multiple_of(PAGE_BYTES)
            && self.address.checked_add(memory).is_some()
            && (stored == 0 || inside)
    }
}

/// Bytes of the table of sizes in front of the blocks of an LZ4 chunk of `memory_bytes`:
/// four for each block.
#[must_use]
pub const fn lz4_table_bytes(memory_bytes: u64) -> usize {
    memory_bytes.div_ceil(LZ4_BLOCK_BYTES) as usize * size_of::<u32>()
}

/// The entry of that table for a block of `bytes` bytes, `plain` when it is not compressed.
#[must_use]
pub const fn lz4_block_size(bytes: u32, plain: bool) -> u32 {
    if plain { bytes | PLAIN_BLOCK } else { bytes }
}

/// A block of an LZ4 chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lz4Block<'a> {
    /// What is stored: an LZ4 block without a frame, or the memory itself.
    pub stored: &'a [u8],
    /// Bytes of memory it stands for.
    pub memory_bytes: usize,
    /// It is the memory itself.
    pub plain: bool,
}

/// The blocks of an LZ4 chunk of `memory_bytes`, in order: `stored` begins with a 32-bit
/// size for each of them, whose highest bit says that the block is not compressed, and the
/// blocks follow without gaps. `None` in place of a block that leads out of the chunk.
pub fn lz4_blocks(stored: &[u8], memory_bytes: u64) -> impl Iterator<Item = Option<Lz4Block<'_>>> {
    let count = memory_bytes.div_ceil(LZ4_BLOCK_BYTES);
    let mut at = lz4_table_bytes(memory_bytes);
    (0..count).map(move |index| {
        let place = index as usize * size_of::<u32>();
        let size = stored.get(place..place + size_of::<u32>())?;
        let size = u32::from_le_bytes(size.try_into().ok()?);
        let bytes = (size & !PLAIN_BLOCK) as usize;
        let block = stored.get(at..at.checked_add(bytes)?)?;
        at += bytes;
        let memory = (memory_bytes - index * LZ4_BLOCK_BYTES).min(LZ4_BLOCK_BYTES) as usize;
        let plain = size & PLAIN_BLOCK != 0;
        (!plain || bytes == memory).then_some(Lz4Block {
            stored: block,
            memory_bytes: memory,
            plain,
        })
    })
}
