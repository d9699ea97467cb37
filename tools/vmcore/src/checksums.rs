//! The checksums that travel with an extracted core: one for each chunk of its memory, as in
//! the dump area that it was extracted from, and one for its headers.

use handoff::Range;
use vmcore_format::area::{ChunkEntry, SlotOpen, chunk_kind};
use vmcore_format::core::note_size;
use vmcore_format::notes::{
    self, CHECKSUMS_VERSION, Checksums, ChunkChecksum, EPITAPH_OWNER, HASH_NAME, chunk_state,
};
use vmcore_format::reader::FileSegment;
use zerocopy::{FromBytes, IntoBytes};

use crate::dump::{Memory, MemoryFault, Unchecked};
use crate::stage::{BadChunk, ChunkFault, StageFile};
use crate::{Dump, Result};

/// Largest chunk that is believed, in bytes, unless it is of zeros or left out: it is read in one
/// piece. The capture image makes none that is larger; up to 16 GiB of memory its chunks have
/// 1 MiB.
const CHUNK_LIMIT: u64 = 1 << 30;
/// Bytes of a chunk of zeros that are compared at a time.
const STEP: u64 = 1 << 20;

/// The chunks of a dump and their checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChunkTable {
    sequence: u64,
    nonce: u64,
    /// By address, without overlaps.
    chunks: Vec<ChunkChecksum>,
}

impl ChunkTable {
    /// Collects the checksums of a stage whose memory is in `segments`: those of the chunks that
    /// are believed.
    ///
    /// # Errors
    /// Says which chunk makes no sense.
    pub(crate) fn of_stage(file: &StageFile, segments: &[FileSegment]) -> Result<Self, String> {
        let mut chunks = Vec::new();
        for entry in file.believed() {
            chunks.push(ChunkChecksum {
                address: entry.address,
                bytes: u64::from(entry.memory_bytes),
                checksum: if entry.kind == chunk_kind::ZERO { 0 } else { entry.checksum },
                kind: entry.kind,
                state: chunk_state::PRESENT,
            });
        }
        // Memory that the capture found to be zero is in no chunk.
        for segment in segments {
            let (load, zero) = (&segment.load, segment.load.memory_bytes - segment.load.file_bytes);
            if zero > 0 {
                chunks.push(ChunkChecksum {
                    address: load.physical_address + load.file_bytes,
                    bytes: zero,
                    kind: chunk_kind::ZERO,
                    ..ChunkChecksum::default()
                });
            }
        }
        let (sequence, nonce) = file.identity();
        Self::sorted(sequence, nonce, chunks)
    }

    /// Reads the descriptor of a note of checksums.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn parse(desc: &[u8]) -> Result<(Self, u32), String> {
        let (head, rest) = Checksums::read_from_prefix(desc).map_err(|_| "cut short".to_owned())?;
        if head.version != CHECKSUMS_VERSION {
            return Err(format!("unknown version {}", head.version));
        }
        let found = own_crc32(desc);
        if found != head.own_crc32 {
            let noted = head.own_crc32;
            return Err(format!("checksum {noted:08x} noted, {found:08x} found"));
        }
        let entry = size_of::<ChunkChecksum>();
        let fits = u64::try_from(rest.len() / entry) == Ok(head.chunks)
            && rest.len().is_multiple_of(entry)
            && head.size as usize == size_of::<Checksums>()
            && head.entry_bytes as usize == entry;
        if !fits {
            return Err("its sizes contradict each other".into());
        }
        if head.hash != HASH_NAME {
            return Err("of a hash that is not known here".into());
        }
        let read = |bytes| ChunkChecksum::read_from_bytes(bytes).unwrap_or_default();
        let chunks = rest.chunks_exact(entry).map(read).collect();
        Ok((Self::sorted(head.sequence, head.nonce, chunks)?, head.header_crc32))
    }

    fn sorted(sequence: u64, nonce: u64, mut chunks: Vec<ChunkChecksum>) -> Result<Self, String> {
        chunks.sort_by_key(|chunk| chunk.address);
        let mut end = 0;
        for chunk in &chunks {
            let known = match chunk.kind {
                chunk_kind::ZERO => true,
                // What was left out is never read.
                chunk_kind::RAW | chunk_kind::LZ4 => {
                    chunk.bytes <= CHUNK_LIMIT || chunk.state == chunk_state::LEFT_OUT
                }
                _ => false,
            };
            let behind = chunk.address.checked_add(chunk.bytes).filter(|_| chunk.address >= end);
            let state = chunk.state <= chunk_state::LEFT_OUT;
            match behind {
                Some(behind) if known && state && chunk.bytes > 0 => end = behind,
                _ => return Err(format!("the chunk at {:#x} makes no sense", chunk.address)),
            }
        }
        Ok(Self { sequence, nonce, chunks })
    }

    /// Says where the memory of `segments`, sorted by address, is not the memory of the chunks
    /// that are present.
    ///
    /// # Errors
    /// Names the first such address.
    pub(crate) fn covers(&self, segments: &[FileSegment]) -> Result<(), String> {
        let present = self.chunks.iter().filter(|chunk| chunk.state == chunk_state::PRESENT);
        let chunks = joined(present.map(|chunk| (chunk.address, chunk.bytes)));
        let memory = joined(
            segments
                .iter()
                .map(|segment| (segment.load.physical_address, segment.load.memory_bytes)),
        );
        if chunks == memory {
            return Ok(());
        }
        let differ = chunks.iter().zip(&memory).find(|(one, other)| one != other);
        let (one, other) = differ.map_or_else(
            || (chunks.get(memory.len()), memory.get(chunks.len())),
            |(one, other)| (Some(one), Some(other)),
        );
        let at = one.into_iter().chain(other).map(|range| range.start).min().unwrap_or(0);
        Err(format!("the memory from {at:#x} on is not that of the chunks"))
    }

    /// The chunks, by address.
    pub(crate) fn chunks(&self) -> &[ChunkChecksum] {
        &self.chunks
    }

    /// The number of the chunk that holds `address`.
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        let behind = self.chunks.partition_point(|chunk| chunk.address <= address);
        let index = behind.checked_sub(1)?;
        (address - self.chunks[index].address < self.chunks[index].bytes).then_some(index)
    }

    /// Marks the chunks that have memory in `ranges`, which are sorted and do not overlap, as
    /// left out. Memory there that is in no chunk, since its entry on the disk was damaged, is
    /// listed as well.
    pub(crate) fn leave_out(&mut self, ranges: &[Range]) {
        let mut unlisted = Vec::new();
        for range in ranges {
            let mut at = range.start;
            let first = self.chunks.partition_point(|chunk| chunk.address + chunk.bytes <= at);
            let behind = self.chunks.partition_point(|chunk| chunk.address < range.end());
            for chunk in &mut self.chunks[first..behind.max(first)] {
                chunk.state = chunk_state::LEFT_OUT;
                list(&mut unlisted, at, chunk.address);
                at = chunk.address + chunk.bytes;
            }
            list(&mut unlisted, at, range.end());
        }
        self.chunks.extend(unlisted);
        self.chunks.sort_by_key(|chunk| chunk.address);
    }

    /// Reads the chunk `index` from `memory` and compares it with its checksum.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self, index: usize, memory: &Unchecked<'_>) -> Result<(), BadChunk> {
        let chunk = &self.chunks[index];
        let bad = |fault| BadChunk::of_core(index, chunk, fault);
        let unreadable = |fault: MemoryFault| match fault {
            MemoryFault::Damaged(found) => BadChunk { index, ..found },
            MemoryFault::NotInDump(_) | MemoryFault::Unreadable(_) => bad(ChunkFault::Unreadable),
        };
        if chunk.kind == chunk_kind::ZERO {
            let end = chunk.address + chunk.bytes;
            let mut buffer = vec![0; chunk.bytes.min(STEP) as usize];
            let mut at = chunk.address;
            while at < end {
                // Memory without bytes in the file, of whatever size, is zero by definition.
                let (filled, until) = memory.extent(at).map_err(unreadable)?;
                let until = until.min(end);
                if filled {
                    let part = &mut buffer[..(until - at).min(STEP) as usize];
                    memory.read(at, part).map_err(unreadable)?;
                    if part.iter().any(|&byte| byte != 0) {
                        return Err(bad(ChunkFault::Checksum));
                    }
                    at += part.len() as u64;
                } else {
                    at = until;
                }
            }
            return Ok(());
        }
        // Bounded when the table was read.
        let mut buffer = vec![0; chunk.bytes as usize];
        memory.read(chunk.address, &mut buffer).map_err(unreadable)?;
        let entry = ChunkEntry {
            address: chunk.address,
            memory_bytes: chunk.bytes as u32,
            kind: chunk.kind,
            ..ChunkEntry::default()
        };
        let mut open = SlotOpen::new();
        (open.sequence, open.nonce) = (self.sequence, self.nonce);
        if entry.bind(ChunkEntry::hash(&buffer), &open) == chunk.checksum {
            Ok(())
        } else {
            Err(bad(ChunkFault::Checksum))
        }
    }

    /// Returns the chunks of the core file `dump` that are present and do not match.
    pub(crate) fn damaged<'a>(&'a self, dump: &'a Dump) -> impl Iterator<Item = BadChunk> + 'a {
        let present = |index: &usize| self.chunks[*index].state == chunk_state::PRESENT;
        let all = (0..self.chunks.len()).filter(present);
        all.filter_map(|index| self.check(index, &Unchecked(dump)).err())
    }

    /// Bytes of the note's descriptor.
    pub(crate) fn note_bytes(&self) -> usize {
        size_of::<Checksums>() + size_of_val(self.chunks.as_slice())
    }

    /// Returns true if the note stands among the others, and not behind the memory.
    pub(crate) fn in_header(&self) -> bool {
        self.note_bytes() <= notes::CHECKSUMS_IN_HEADER
    }

    /// Bytes of the whole note.
    pub(crate) fn note_size(&self) -> usize {
        note_size(EPITAPH_OWNER.len(), self.note_bytes())
    }

    /// The descriptor of the note for a file whose header has this checksum.
    pub(crate) fn note(&self, header_crc32: u32) -> Vec<u8> {
        let head = Checksums {
            version: CHECKSUMS_VERSION,
            size: size_of::<Checksums>() as u32,
            entry_bytes: size_of::<ChunkChecksum>() as u32,
            own_crc32: 0,
            header_crc32,
            reserved: 0,
            hash: HASH_NAME,
            sequence: self.sequence,
            nonce: self.nonce,
            chunks: self.chunks.len() as u64,
        };
        let mut desc = head.as_bytes().to_vec();
        desc.extend(self.chunks.as_bytes());
        let own = own_crc32(&desc).to_le_bytes();
        desc[OWN_CRC32..OWN_CRC32 + own.len()].copy_from_slice(&own);
        desc
    }
}

/// Lists the memory from `start` to `end` as left out.
fn list(chunks: &mut Vec<ChunkChecksum>, start: u64, end: u64) {
    if start < end {
        let (kind, state) = (chunk_kind::RAW, chunk_state::LEFT_OUT);
        let (address, bytes) = (start, end - start);
        chunks.push(ChunkChecksum { address, bytes, kind, state, ..ChunkChecksum::default() });
    }
}

/// Offset of [`Checksums::own_crc32`].
const OWN_CRC32: usize = std::mem::offset_of!(Checksums, own_crc32);

/// CRC32 of a descriptor with its own checksum as zero.
fn own_crc32(desc: &[u8]) -> u32 {
    let behind = OWN_CRC32 + size_of::<u32>();
    let mut crc = crc32fast::Hasher::new();
    crc.update(desc.get(..OWN_CRC32).unwrap_or_default());
    crc.update(&[0; size_of::<u32>()]);
    crc.update(desc.get(behind..).unwrap_or_default());
    crc.finalize()
}

/// CRC32 of a file's header without the descriptor of the note of checksums, where that stands
/// in it.
pub(crate) fn header_crc32(header: &[u8], desc: Option<std::ops::Range<usize>>) -> u32 {
    let desc = desc.unwrap_or(header.len()..header.len());
    let mut crc = crc32fast::Hasher::new();
    crc.update(header.get(..desc.start).unwrap_or_default());
    crc.update(header.get(desc.end..).unwrap_or_default());
    crc.finalize()
}

/// Ranges, given by address as start and length, with adjacent ones joined.
fn joined(ranges: impl Iterator<Item = (u64, u64)>) -> Vec<Range> {
    let mut all: Vec<Range> = Vec::new();
    for (start, bytes) in ranges.filter(|&(_, bytes)| bytes > 0) {
        match all.last_mut() {
            Some(last) if last.end() == start => last.bytes += bytes,
            _ => all.push(Range { start, bytes }),
        }
    }
    all
}
