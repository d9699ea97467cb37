//! A stage's ELF file as it lies in the log of a slot: header, and chunks of memory.

use std::fmt;
use std::io;
use std::sync::Mutex;

use vmcore_format::area::{
    ChunkEntry, ENTRY_BYTES, PAIR_VERSION, SlotOpen, StageSeal, chunk_area, chunk_kind, lz4_blocks,
};
use vmcore_format::notes::ChunkChecksum;
use zerocopy::FromBytes;

use crate::file::{Part, Storage};
use crate::pair::Half;
use table::{Bounds, Home, MOST_CHUNKS, Placed};

mod table;

/// Chunks kept after they were read: whoever reads a dump page by page reads each chunk
/// from the disk and checks it once.
const KEPT: usize = 8;
/// Bytes of chunks kept, unless one alone is larger.
const KEPT_BYTES: usize = 64 << 20;

/// Why a chunk cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkFault {
    /// It could not be read from the disk.
    Unreadable,
    /// The disk, the image of it, or the core file ends before it.
    BehindEnd,
    /// Its entry in the table is damaged, or contradicts others.
    Entry,
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
            Self::BehindEnd => "lies behind the end of the disk or file",
            Self::Entry => "has no sound entry in the table of chunks",
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
    /// Byte of the disk where it is stored; `None` for one of a core file.
    pub place: Option<u64>,
    /// True if that is the other disk of a dump that two disks shared.
    pub elsewhere: bool,
    /// What is wrong.
    pub fault: ChunkFault,
}

impl fmt::Display for BadChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, address, bytes, place, elsewhere, fault } = self;
        write!(f, "chunk {index}, {bytes} bytes of memory at {address:#x}, ")?;
        if let Some(place) = place {
            let disk = if *elsewhere { "the other disk" } else { "the disk" };
            write!(f, "stored at byte {place} of {disk}, ")?;
        }
        write!(f, "{fault}")
    }
}

impl std::error::Error for BadChunk {}

impl BadChunk {
    /// Returns the chunk with this number of a core file with a fault.
    pub(crate) const fn of_core(index: usize, chunk: &ChunkChecksum, fault: ChunkFault) -> Self {
        let (address, bytes) = (chunk.address, chunk.bytes);
        Self { index, address, bytes, place: None, elsewhere: false, fault }
    }
}

/// A stretch of a stage's file whose memory is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First byte in the file.
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
    /// Reason why.
    pub fault: ChunkFault,
}

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
    /// The chunks that are believed, by their place in the file.
    placed: Vec<Placed>,
    bytes: u64,
    /// Records that do not match their seal and were read all the same, in words.
    warnings: Vec<String>,
    /// Chunks that were read lately, the latest first.
    kept: Mutex<Vec<Kept>>,
}

/// A slot with a stage, and what is known of its place.
#[derive(Clone, Debug)]
pub(crate) struct StageSlot<'a> {
    /// The bytes of the slot, cut off where the disk ends.
    pub(crate) part: Part,
    /// Bytes it has by the header of its area.
    pub(crate) bytes: u64,
    /// The slot with the other half of the dump, or why it is not at hand.
    pub(crate) other: &'a Result<Half, String>,
    /// The record that opened it.
    pub(crate) open: &'a SlotOpen,
}

impl StageFile {
    /// Reads the header and the table that `seal` names in a slot, and holds them against
    /// it. `lenient` goes on where they do not match, with what can be believed.
    ///
    /// # Errors
    /// In words what is wrong.
    pub(crate) fn open(
        slot: &StageSlot<'_>,
        seal: &StageSeal,
        lenient: bool,
    ) -> Result<Self, String> {
        let base = slot.part.base();
        let mut warnings = Vec::new();
        let mut read = |what: &str, offset: u64, bytes: u64, sealed: u32| {
            let what = format!("{what}, at byte {} of the disk,", base + offset);
            if offset.checked_add(bytes).is_none_or(|end| end > slot.part.bytes()) {
                return Err(format!("{what} is cut short: the disk ends before it does"));
            }
            let read = slot.part.read_up_to(offset, bytes);
            let read = read.map_err(|error| format!("{what} cannot be read: {error}"))?;
            let found = crc32fast::hash(&read);
            let matches = found == sealed;
            if !matches {
                let what = format!(
                    "{what} does not match its seal: checksum {sealed:08x} sealed, {found:08x} found"
                );
                if !lenient {
                    return Err(what);
                }
                warnings.push(what);
            }
            Ok((read, matches))
        };
        if seal.header_bytes > crate::dump::HEADER_LIMIT {
            return Err("the seal claims an impossibly large header".into());
        }
        if seal.chunks() > MOST_CHUNKS {
            return Err("the seal claims an impossibly large table of chunks".into());
        }
        let (header, _) =
            read("the dump's header", seal.header_offset, seal.header_bytes, seal.header_crc32)?;
        let (table, proven) =
            read("the table of chunks", seal.table_offset, seal.table_bytes, seal.table_crc32)?;
        let mut entries = Vec::with_capacity(table.len() / ENTRY_BYTES as usize);
        for entry in table.chunks_exact(ENTRY_BYTES as usize) {
            let mut entry = ChunkEntry::read_from_bytes(entry).unwrap_or_default();
            if seal.version < PAIR_VERSION {
                // Zero in every table ever written; what it means here came with version 3.
                entry.area = chunk_area::OWN;
            }
            if let (chunk_area::OTHER, Err(why)) = (entry.area, slot.other) {
                return Err(why.clone());
            }
            entries.push(entry);
        }
        let half = slot.other.as_ref().ok();
        let bounds = Bounds {
            own: Home { slot_bytes: slot.bytes, log_end: seal.log_end },
            other: half.map(|half| Home { slot_bytes: half.slot_bytes, log_end: half.log_end }),
            taken: [(seal.table_offset, seal.table_bytes), (seal.header_offset, seal.header_bytes)],
            elf_bytes: seal.elf_bytes,
            header_bytes: seal.header_bytes,
            segments: table::segments(&header, seal.elf_bytes)
                .map_err(|what| format!("the dump's header: {what}"))?,
        };
        let mut file = Self {
            slot: slot.part.clone(),
            other: half.map(|half| half.slot.clone()),
            open: *slot.open,
            header,
            entries: Vec::new(),
            placed: Vec::new(),
            bytes: seal.elf_bytes,
            warnings,
            kept: Mutex::default(),
        };
        file.placed = match bounds.check(&entries) {
            Err(what) if lenient => {
                file.warnings.push(what);
                bounds.salvage(&entries, proven, &|entry| file.decode(entry).is_ok())?
            }
            checked => checked?,
        };
        file.entries = entries;
        Ok(file)
    }

    /// The chunks, in the order of the table.
    #[must_use]
    pub fn entries(&self) -> &[ChunkEntry] {
        &self.entries
    }

    /// Returns the records that do not match their seal and were read all the same, in words.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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

    /// Holds a chunk against its checksum, like [`StageFile::chunk`]. A chunk of zeros takes no
    /// memory for that, whatever its size.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// When there is no such chunk.
    pub fn check_chunk(&self, index: usize) -> Result<(), BadChunk> {
        if self.entries[index].kind == chunk_kind::ZERO {
            return Ok(());
        }
        self.chunk(index).map(drop)
    }

    /// The chunks that are believed, in the order of the file.
    pub(crate) fn believed(&self) -> impl Iterator<Item = &ChunkEntry> {
        self.placed.iter().map(|place| &self.entries[place.number as usize])
    }

    /// Sequence number and nonce of the dump, which are part of every checksum.
    pub(crate) const fn identity(&self) -> (u64, u64) {
        (self.open.sequence, self.open.nonce)
    }

    /// Reads every chunk, and says what of the file is not to be had and why. `progress` hears of
    /// bytes done and bytes in all.
    pub(crate) fn gaps(&self, progress: &mut dyn FnMut(u64, u64)) -> Vec<Gap> {
        let mut gaps: Vec<Gap> = Vec::new();
        let mut add = |gap: Gap| match gaps.last_mut() {
            _ if gap.start >= gap.end => {}
            Some(last) if (last.end, last.fault) == (gap.start, gap.fault) => last.end = gap.end,
            _ => gaps.push(gap),
        };
        let mut at = self.header.len() as u64;
        for place in &self.placed {
            let entry = &self.entries[place.number as usize];
            let end = place.start + u64::from(entry.memory_bytes);
            add(Gap { start: at, end: place.start, fault: ChunkFault::Entry });
            if let Err(bad) = self.check_chunk(place.number as usize) {
                add(Gap { start: place.start, end, fault: bad.fault });
            }
            at = end;
            progress(at, self.bytes);
        }
        add(Gap { start: at, end: self.bytes, fault: ChunkFault::Entry });
        gaps
    }

    /// Returns how many bytes from `offset` of the file on are zero because their chunk is one of
    /// zeros. A few bytes of the table claim gigabytes of them, so they are not read one by one.
    pub(crate) fn zeros_at(&self, offset: u64) -> u64 {
        let behind = self.placed.partition_point(|place| place.start <= offset);
        let place = behind.checked_sub(1).and_then(|index| self.placed.get(index));
        place.map_or(0, |place| {
            let entry = &self.entries[place.number as usize];
            let end = place.start + u64::from(entry.memory_bytes);
            if entry.kind == chunk_kind::ZERO { end.saturating_sub(offset) } else { 0 }
        })
    }

    /// The slot that a chunk is stored in.
    fn home(&self, entry: &ChunkEntry) -> &Part {
        match &self.other {
            Some(other) if entry.area == chunk_area::OTHER => other,
            _ => &self.slot,
        }
    }

    fn bad(&self, index: usize, fault: ChunkFault) -> BadChunk {
        let entry = &self.entries[index];
        let (address, bytes) = (entry.address, u64::from(entry.memory_bytes));
        let place = Some(self.home(entry).base().saturating_add(entry.offset));
        let elsewhere = entry.area == chunk_area::OTHER;
        BadChunk { index, address, bytes, place, elsewhere, fault }
    }

    /// Returns the memory of a chunk, or what is wrong with it.
    fn decode(&self, entry: &ChunkEntry) -> Result<Vec<u8>, ChunkFault> {
        if entry.kind == chunk_kind::ZERO {
            return Ok(vec![0; entry.memory_bytes as usize]);
        }
        let bytes = u64::from(entry.stored_bytes);
        let home = self.home(entry);
        if entry.offset.checked_add(bytes).is_none_or(|end| end > home.bytes()) {
            return Err(ChunkFault::BehindEnd);
        }
        let stored = home.read_up_to(entry.offset, bytes).map_err(|_| ChunkFault::Unreadable)?;
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
            let memory = self.decode(&self.entries[index]);
            kept.insert(0, (index, memory));
            let mut bytes = 0;
            kept.retain(|(number, memory)| {
                bytes += memory.as_ref().map_or(0, Vec::len);
                *number == index || bytes <= KEPT_BYTES
            });
            kept.truncate(KEPT);
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
            let behind = self.placed.partition_point(|place| place.start <= offset);
            let place = behind.checked_sub(1).and_then(|index| self.placed.get(index));
            let place = place.ok_or(io::ErrorKind::UnexpectedEof)?;
            let entry = &self.entries[place.number as usize];
            let inside = offset - place.start;
            let left = u64::from(entry.memory_bytes).saturating_sub(inside);
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            if take == 0 {
                // Behind the last chunk, or in the place of one that is not believed.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, later) = std::mem::take(&mut rest).split_at_mut(take);
            if entry.kind == chunk_kind::ZERO {
                now.fill(0);
            } else {
                let from = inside as usize;
                self.with_chunk(place.number as usize, |memory| {
                    now.copy_from_slice(&memory[from..from + take]);
                })?;
            }
            offset += take as u64;
            rest = later;
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
