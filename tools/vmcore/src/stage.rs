//! A stage's ELF file as it lies in the log of a slot: header, and chunks of memory.

use std::fmt;
use std::io;
use std::sync::Mutex;

use vmcore_format::area::{
    ChunkEntry, ENTRY_BYTES, PAIR_VERSION, SlotOpen, StageSeal, chunk_area, chunk_kind, lz4_blocks,
};
use zerocopy::FromBytes;

use crate::file::{Part, Storage};
use crate::pair::Half;

/// Chunks kept after they were read: whoever reads a dump page by page reads each chunk
/// from the disk and checks it once.
const KEPT: usize = 8;
/// Most chunks a table may list: 16 GiB of memory in pieces of 4 KiB.
const MOST_CHUNKS: u64 = 4 << 20;

/// Why a chunk cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkFault {
    /// It could not be read from the disk.
    Unreadable,
    /// Its compressed form is damaged.
    Lz4,
    /// Its content or its place is not what was sealed.
    Checksum,
    /// It was damaged when the core file was extracted, which lacks it for that reason.
    LeftOut,
}

impl fmt::Display for ChunkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "cannot be read",
            Self::Lz4 => "does not decompress",
            Self::Checksum => "does not match its checksum",
            Self::LeftOut => "was damaged when the core was extracted, and is not in it",
        })
    }
}

/// A chunk that cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChunk {
    /// Its number in the table.
    pub index: usize,
    /// Physical address of its memory.
    pub address: u64,
    /// Bytes of memory.
    pub bytes: u64,
    /// What is wrong.
    pub fault: ChunkFault,
}

impl fmt::Display for BadChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, address, bytes, fault } = self;
        write!(f, "chunk {index}, {bytes} bytes of memory at {address:#x}, {fault}")
    }
}

impl std::error::Error for BadChunk {}

/// The number of a chunk, and its memory or what is wrong with it.
type Kept = (usize, Result<Vec<u8>, ChunkFault>);

/// The file of one stage.
#[derive(Debug)]
pub struct StageFile {
    slot: Part,
    /// The slot with the rest of the chunks, when it is needed.
    other: Option<Part>,
    open: SlotOpen,
    header: Vec<u8>,
    entries: Vec<ChunkEntry>,
    /// Where in the file the memory of each chunk begins.
    starts: Vec<u64>,
    bytes: u64,
    /// Chunks that were read lately, the latest first.
    kept: Mutex<Vec<Kept>>,
}

impl StageFile {
    /// Reads the header and the table that `seal` names in `slot`, and holds them against
    /// it. `other` is the slot with the other half of the dump, or why it is not at hand.
    /// `lenient` goes on where they do not match, as long as they lead anywhere.
    ///
    /// # Errors
    /// In words what is wrong.
    pub(crate) fn open(
        slot: Part,
        other: &Result<Half, String>,
        open: &SlotOpen,
        seal: &StageSeal,
        lenient: bool,
    ) -> Result<Self, String> {
        let part = |what: &str, offset, bytes, sealed: u32| {
            let read =
                slot.read_up_to(offset, bytes).map_err(|error| format!("{what}: {error}"))?;
            let found = crc32fast::hash(&read);
            if read.len() as u64 != bytes {
                return Err(format!("{what}: cut short"));
            }
            if found != sealed && !lenient {
                return Err(format!(
                    "{what} does not match its seal: checksum {sealed:08x} sealed, {found:08x} found"
                ));
            }
            Ok(read)
        };
        if seal.header_bytes > crate::dump::HEADER_LIMIT {
            return Err("the seal claims an impossibly large header".into());
        }
        if seal.chunks() > MOST_CHUNKS {
            return Err("the seal claims an impossibly large table of chunks".into());
        }
        let header =
            part("the dump's header", seal.header_offset, seal.header_bytes, seal.header_crc32)?;
        let table =
            part("the table of chunks", seal.table_offset, seal.table_bytes, seal.table_crc32)?;
        let mut entries = Vec::with_capacity(seal.chunks() as usize);
        let mut starts = Vec::with_capacity(seal.chunks() as usize);
        let mut bytes = seal.header_bytes;
        for (index, entry) in table.chunks_exact(ENTRY_BYTES as usize).enumerate() {
            let mut entry = ChunkEntry::read_from_bytes(entry).unwrap_or_default();
            if seal.version < PAIR_VERSION {
                // Zero in every table ever written; what it means here came with version 3.
                entry.area = chunk_area::OWN;
            }
            let home = match (entry.area, other) {
                (chunk_area::OTHER, Ok(half)) => half.slot.bytes(),
                (chunk_area::OTHER, Err(why)) => return Err(why.clone()),
                _ => slot.bytes(),
            };
            if !entry.is_sound(home) {
                return Err(format!("the table of chunks: entry {index} leads nowhere"));
            }
            entries.push(entry);
            starts.push(bytes);
            bytes += u64::from(entry.memory_bytes);
        }
        if bytes != seal.elf_bytes {
            let sealed = seal.elf_bytes;
            return Err(format!("the chunks make a file of {bytes} bytes, the seal says {sealed}"));
        }
        let kept = Mutex::default();
        let other = other.as_ref().ok().map(|half| half.slot.clone());
        Ok(Self { slot, other, open: *open, header, entries, starts, bytes, kept })
    }

    /// The chunks, in the order of the file.
    #[must_use]
    pub fn entries(&self) -> &[ChunkEntry] {
        &self.entries
    }

    /// Where in the file the memory of each chunk begins.
    pub(crate) fn starts(&self) -> &[u64] {
        &self.starts
    }

    /// Sequence number and nonce of the dump, which are part of every checksum.
    pub(crate) const fn identity(&self) -> (u64, u64) {
        (self.open.sequence, self.open.nonce)
    }

    /// The memory of a chunk, read from the disk and held against its checksum.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// When there is no such chunk.
    pub fn chunk(&self, index: usize) -> Result<Vec<u8>, BadChunk> {
        self.decode(&self.entries[index]).map_err(|fault| self.bad(index, fault))
    }

    fn bad(&self, index: usize, fault: ChunkFault) -> BadChunk {
        let entry = &self.entries[index];
        let (address, bytes) = (entry.address, u64::from(entry.memory_bytes));
        BadChunk { index, address, bytes, fault }
    }

    /// Returns the memory of a chunk, or what is wrong with it.
    fn decode(&self, entry: &ChunkEntry) -> Result<Vec<u8>, ChunkFault> {
        if entry.kind == chunk_kind::ZERO {
            return Ok(vec![0; entry.memory_bytes as usize]);
        }
        let home = match &self.other {
            Some(other) if entry.area == chunk_area::OTHER => other,
            _ => &self.slot,
        };
        let stored = match home.read_up_to(entry.offset, u64::from(entry.stored_bytes)) {
            Ok(stored) if stored.len() == entry.stored_bytes as usize => stored,
            _ => return Err(ChunkFault::Unreadable),
        };
        let memory = if entry.kind == chunk_kind::RAW {
            stored
        } else {
            let mut memory = vec![0; entry.memory_bytes as usize];
            if !unpack(&stored, &mut memory) {
                return Err(ChunkFault::Lz4);
            }
            memory
        };
        if entry.bind(ChunkEntry::hash(&memory), &self.open) == entry.checksum {
            Ok(memory)
        } else {
            Err(ChunkFault::Checksum)
        }
    }

    /// Calls `then` with the memory of a chunk, which is read when it is not at hand. Memory
    /// that does not match its checksum is never handed out.
    fn with_chunk<R>(&self, index: usize, then: impl FnOnce(&[u8]) -> R) -> io::Result<R> {
        // Nothing is left half done under the lock, so a thread that died holding it left
        // whole chunks.
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(number, _)| *number == index) {
            kept[..=at].rotate_right(1);
        } else {
            kept.truncate(KEPT - 1);
            let memory = self.decode(&self.entries[index]);
            kept.insert(0, (index, memory));
        }
        match &kept[0].1 {
            Ok(memory) => Ok(then(memory)),
            Err(fault) => Err(io::Error::new(io::ErrorKind::InvalidData, self.bad(index, *fault))),
        }
    }
}

impl Storage for StageFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn first_read(&self) -> u64 {
        // Memory is another matter: a damaged chunk must not hide what the header says.
        self.header.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut offset = offset;
        let mut rest = buffer;
        if let Some(from) = self.header.get(offset as usize..) {
            let take = from.len().min(rest.len());
            rest[..take].copy_from_slice(&from[..take]);
            offset += take as u64;
            rest = &mut rest[take..];
        }
        while !rest.is_empty() {
            let index = self.starts.partition_point(|&start| start <= offset).wrapping_sub(1);
            let start = *self.starts.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let take = self.with_chunk(index, |memory| {
                let from = memory.get((offset - start) as usize..).unwrap_or_default();
                let take = from.len().min(rest.len());
                rest[..take].copy_from_slice(&from[..take]);
                take
            })?;
            if take == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += take as u64;
            rest = &mut rest[take..];
        }
        Ok(())
    }
}

/// Decompresses a chunk into `memory`, which has its size; `false` when it is damaged.
fn unpack(stored: &[u8], memory: &mut [u8]) -> bool {
    let mut rest = &mut *memory;
    let bytes = rest.len() as u64;
    for block in lz4_blocks(stored, bytes) {
        let Some(block) = block else { return false };
        let (place, behind) = std::mem::take(&mut rest).split_at_mut(block.memory_bytes);
        let whole = if block.plain {
            place.copy_from_slice(block.stored);
            true
        } else {
            lz4_flex::block::decompress_into(block.stored, place)
                .is_ok_and(|bytes| bytes == place.len())
        };
        if !whole {
            return false;
        }
        rest = behind;
    }
    true
}
