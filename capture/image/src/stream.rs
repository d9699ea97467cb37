//! Memory on its way into the log of a slot, chunk by chunk.
//!
//! Longer than most, because every way of storing a chunk changes the one state of a log that
//! grows.

use block::{Accepted, BlockDevice, Source, drain};
use handoff::Range;
use place::area::Problem;
use vmcore_format::PAGE_BYTES;
use vmcore_format::area::{
    BLOCK_BYTES, ChunkEntry, LZ4_BLOCK_BYTES, MAX_CHUNK_BYTES, SlotOpen, chunk_kind,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::auto::{Auto, Way};
use crate::codec::{self, Codec};
use crate::host::Host;
use crate::rate::Progress;
use crate::scan;

/// Two buffers: one is filled while the disk fetches the other.
pub type Buffers<'a> = [&'a mut [u8]; 2];

/// Chunks there may be besides one for every [`MAX_CHUNK_BYTES`] of memory: every piece may
/// end in a short one.
pub const SPARE_CHUNKS: u64 = 8192;
/// Chunks there may be at all. With more memory than that makes, chunks are larger.
pub const MAX_CHUNKS: u64 = 24 << 10;
/// Pieces there may be. Behind that, zero pages are no reason for another one.
pub const MAX_PIECES: usize = 8192;
/// Pieces kept back from zero pages: the memory of a stage comes in runs, each of which
/// needs one.
const KEPT_PIECES: usize = 4096;

/// Ranges of unreadable memory that are listed.
pub const MAX_HOLES: usize = 64;

/// The crashed memory, as far as it is dumped.
pub trait Memory {
    /// How many bytes at the start of `range`, which is whole pages, can be read.
    fn readable(&self, range: Range) -> u64;

    /// The bytes of `range`, which can be read, where a device can fetch them as well.
    /// Nothing writes there any more. At address 0, one page at a time.
    fn bytes(&self, range: Range) -> &[u8];
}

/// A run of memory in the file: what becomes one program header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Piece {
    /// Physical address.
    pub start: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Zero bytes behind them that are not.
    pub zero_bytes: u64,
}

/// Room for the lists of what was written.
#[derive(Debug)]
pub struct Lists<'a> {
    /// The chunks of all stages so far.
    pub chunks: &'a mut [ChunkEntry],
    /// The pieces of all stages so far.
    pub pieces: &'a mut [Piece],
}

/// What was written so far, and what of it by the present stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of memory, zero pages included.
    pub memory: u64,
    /// Bytes stored.
    pub stored: u64,
    /// Bytes of zero pages not stored.
    pub zero: u64,
    /// Bytes of memory that could not be read.
    pub unreadable: u64,
    /// Bytes of memory stored compressed.
    pub compressed: u64,
}

/// Why a stage ends before all of its memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The time is up.
    Deadline,
    /// The slot has no room for more.
    SlotFull,
    /// There is no room to list more.
    TooMany,
}

/// The log of a slot while it grows.
pub struct Stream<'a> {
    /// The disk.
    pub device: &'a mut dyn BlockDevice,
    /// Time and the console.
    pub host: &'a dyn Host,
    /// The crashed memory.
    pub memory: &'a dyn Memory,
    /// The dump the chunks belong to.
    pub open: SlotOpen,
    /// Byte offset of the slot on the disk.
    pub slot: u64,
    /// Bytes of the slot.
    pub slot_bytes: u64,
    /// Offset in the slot of the next chunk.
    pub at: u64,
    /// When to stop, in ns of the host's clock.
    pub deadline_ns: u64,
    /// Bytes of memory in a chunk.
    pub chunk_bytes: u64,
    /// What was written.
    pub lists: Lists<'a>,
    /// Of `lists.chunks`, those in use.
    pub chunk_count: usize,
    /// Of `lists.pieces`, those in use.
    pub piece_count: usize,
    /// What the present stage has written.
    pub counts: Counts,
    /// Bytes of memory that is dumped at most.
    pub total: u64,
    /// Bytes of memory that earlier stages have written.
    pub finished: u64,
    /// What shows how far it is.
    pub progress: Progress,
    /// What it takes to compress; `None` where everything is stored as it is.
    pub codec: Option<Codec<'a>>,
    /// Where memory is copied to before it is stored; `None` where nothing can write it.
    pub still: Option<Buffers<'a>>,
    /// Decides between raw and compressed; `None` where that was asked for.
    pub auto: Option<Auto>,
    /// Memory that could not be read, as far as there is room to list it.
    pub holes: heapless::Vec<Range, MAX_HOLES>,
}

/// Bytes of memory in a chunk of a dump of `memory_bytes`, so that the table has room.
#[must_use]
pub const fn chunk_bytes(memory_bytes: u64) -> u64 {
    let mut bytes = MAX_CHUNK_BYTES;
    while memory_bytes / bytes > MAX_CHUNKS - SPARE_CHUNKS && bytes < 1 << 30 {
        bytes *= 2;
    }
    bytes
}

/// Chunks that a dump of `memory_bytes` needs room for.
#[must_use]
pub const fn chunks_needed(memory_bytes: u64) -> u64 {
    memory_bytes / chunk_bytes(memory_bytes) + SPARE_CHUNKS
}

impl Stream<'_> {
    /// Writes one run of memory; `reserve` are the bytes of the slot that have to be left
    /// when it is done, for a given number of pieces and chunks.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn run(
        &mut self,
        run: Range,
        reserve: &dyn Fn(usize, usize) -> u64,
    ) -> Result<Result<(), (End, u64)>, Problem> {
        let mut at = run.start;
        // Zero pages before `at` that are in no chunk and in no piece yet.
        let mut zeros = 0;
        if !self.begin(at) {
            return Ok(Err((End::TooMany, at)));
        }
        while at < run.end() {
            self.show();
            if self.host.now_ns() >= self.deadline_ns {
                return Ok(Err((End::Deadline, self.end(at, zeros))));
            }
            // No reference goes to address 0; that page is a copy and goes alone.
            let most = if at == 0 { PAGE_BYTES } else { self.chunk_bytes };
            let window = Range { start: at, bytes: most.min(run.end() - at) };
            let readable = self.memory.readable(window);
            if readable == 0 {
                let page = Range { start: at, bytes: PAGE_BYTES };
                self.end(at, zeros);
                zeros = 0;
                self.skip(page);
                at += PAGE_BYTES;
                if !self.begin(at) {
                    return Ok(Err((End::TooMany, at)));
                }
                continue;
            }
            let memory = self.memory;
            let bytes = memory.bytes(Range { start: at, bytes: readable });
            let lead = scan::leading_zeros(bytes);
            let cut = self.piece_count + KEPT_PIECES < MAX_PIECES;
            if lead == readable {
                zeros += lead;
                at += lead;
                if !cut && zeros >= self.chunk_bytes {
                    if let Err(end) = self.zeros(Range::between(at - zeros, at)) {
                        return Ok(Err((end, self.end(at - zeros, 0))));
                    }
                    zeros = 0;
                }
                continue;
            }
            if cut && zeros + lead >= scan::ZERO_RUN {
                at += lead;
                self.end(at, zeros + lead);
                zeros = 0;
                if !self.begin(at) {
                    return Ok(Err((End::TooMany, at)));
                }
                continue;
            }
            if zeros > 0 {
                if let Err(end) = self.zeros(Range::between(at - zeros, at)) {
                    return Ok(Err((end, self.end(at - zeros, 0))));
                }
                zeros = 0;
            }
            let data = lead + scan::leading_data(bytes.get(lead as usize..).unwrap_or_default());
            let chunk = Range { start: at, bytes: data };
            let room = self.at + data + reserve(self.piece_count + 1, self.chunk_count + 2);
            if room > self.slot_bytes {
                return Ok(Err((End::SlotFull, self.end(at, 0))));
            }
            if let Err(end) = self.store(chunk, bytes.get(..data as usize).unwrap_or_default())? {
                return Ok(Err((end, self.end(at, 0))));
            }
            at += data;
        }
        self.end(at, zeros);
        Ok(Ok(()))
    }

    /// Zero pages that are not worth a piece of their own: a chunk that takes no room.
    fn zeros(&mut self, range: Range) -> Result<(), End> {
        self.push(range, chunk_kind::ZERO, 0, 0, 0)
    }

    /// Leaves out memory that cannot be read.
    fn skip(&mut self, range: Range) {
        self.counts.unreadable += range.bytes;
        match self.holes.last_mut().filter(|last| last.end() == range.start) {
            Some(last) => last.bytes += range.bytes,
            // What finds no place in the list is in no piece either.
            None => drop(self.holes.push(range)),
        }
    }

    /// Starts a piece; `false` when there is no room for it.
    fn begin(&mut self, start: u64) -> bool {
        let Some(piece) = self.lists.pieces.get_mut(self.piece_count) else { return false };
        *piece = Piece { start, file_bytes: 0, zero_bytes: 0 };
        self.piece_count += 1;
        true
    }

    /// Ends the present piece with the zero bytes before `at`; hands `at` through.
    fn end(&mut self, at: u64, zeros: u64) -> u64 {
        if let Some(piece) = self.present() {
            piece.zero_bytes = zeros;
            if piece.file_bytes + zeros == 0 {
                self.piece_count -= 1;
            }
        }
        self.counts.memory += zeros;
        self.counts.zero += zeros;
        at
    }

    fn present(&mut self) -> Option<&mut Piece> {
        self.lists.pieces.get_mut(self.piece_count.checked_sub(1)?)
    }

    /// Lists a chunk of the present piece.
    fn push(
        &mut self,
        memory: Range,
        kind: u32,
        offset: u64,
        stored: u64,
        hash: u64,
    ) -> Result<(), End> {
        let open = &self.open;
        let Some(place) = self.lists.chunks.get_mut(self.chunk_count) else {
            return Err(End::TooMany);
        };
        let mut entry = ChunkEntry {
            offset,
            address: memory.start,
            stored_bytes: stored as u32,
            memory_bytes: memory.bytes as u32,
            kind,
            reserved: 0,
            checksum: 0,
        };
        if kind != chunk_kind::ZERO {
            entry.checksum = entry.bind(hash, open);
        }
        *place = entry;
        self.chunk_count += 1;
        if let Some(piece) = self.present() {
            piece.file_bytes += memory.bytes;
        }
        self.counts.memory += memory.bytes;
        self.counts.stored += stored;
        if kind == chunk_kind::ZERO {
            self.counts.zero += memory.bytes;
        }
        Ok(())
    }

    /// Stores a chunk in the way that was asked for, or the one that is faster.
    fn store(&mut self, range: Range, bytes: &[u8]) -> Result<Result<(), End>, Problem> {
        if let Some(mut still) = self.still.take() {
            let outcome = self.copied(&mut still, range, bytes);
            self.still = Some(still);
            return outcome;
        }
        let Some(mut codec) = self.codec.take() else { return self.raw(range, bytes) };
        let outcome = if range.bytes > MAX_CHUNK_BYTES || self.way(&mut codec, bytes) == Way::Raw {
            self.raw(range, bytes)
        } else {
            self.packed(&mut codec, range, bytes)
        };
        self.codec = Some(codec);
        outcome
    }

    /// How the next chunk is stored.
    fn way(&mut self, codec: &mut Codec<'_>, bytes: &[u8]) -> Way {
        let Some(auto) = &mut self.auto else { return Way::Lz4 };
        if auto.wants_a_look()
            && let Some(buffer) = free(&mut codec.buffers, self.device)
        {
            let some = &bytes[..bytes.len().min(LZ4_BLOCK_BYTES as usize)];
            let begin = self.host.tsc();
            let stored = codec::pack(codec.table, some, buffer).unwrap_or(some.len());
            let ns = self.host.ns(self.host.tsc().wrapping_sub(begin));
            auto.packed(some.len() as u64, stored as u64, ns);
        }
        auto.choose()
    }

    /// Stores a chunk of memory that a CPU nobody could stop may be writing: a copy of it, so
    /// that the checksum is of the bytes that the disk gets.
    fn copied(
        &mut self,
        still: &mut Buffers<'_>,
        range: Range,
        bytes: &[u8],
    ) -> Result<Result<(), End>, Problem> {
        // As long as the disk fetches from all of them.
        while free(still, self.device).is_none() {
            self.collect()?;
        }
        let Some(copy) = free(still, self.device).and_then(|copy| copy.get_mut(..bytes.len()))
        else {
            return self.raw(range, bytes);
        };
        copy.copy_from_slice(bytes);
        self.raw(range, copy)
    }

    /// Sends a chunk as it lies in memory; its checksum is taken while the disk fetches it.
    fn raw(&mut self, range: Range, bytes: &[u8]) -> Result<Result<(), End>, Problem> {
        let offset = self.at;
        let begin = self.host.tsc();
        self.send(offset, bytes)?;
        if let Some(auto) = &mut self.auto {
            let ns = self.host.ns(self.host.tsc().wrapping_sub(begin));
            auto.sent(range.bytes, ns);
        }
        self.at += range.bytes.next_multiple_of(BLOCK_BYTES);
        let hash = ChunkEntry::hash(bytes);
        Ok(self.push(range, chunk_kind::RAW, offset, range.bytes, hash))
    }

    /// Compresses a chunk and sends that; raw when it does not shrink.
    fn packed(
        &mut self,
        codec: &mut Codec<'_>,
        range: Range,
        bytes: &[u8],
    ) -> Result<Result<(), End>, Problem> {
        // As long as the disk fetches from all of them.
        while free(&mut codec.buffers, self.device).is_none() {
            self.collect()?;
        }
        let Some(buffer) = free(&mut codec.buffers, self.device) else {
            return self.raw(range, bytes);
        };
        let begin = self.host.tsc();
        let hash = ChunkEntry::hash(bytes);
        let stored = codec::pack(codec.table, bytes, buffer);
        let ns = self.host.ns(self.host.tsc().wrapping_sub(begin));
        if let Some(auto) = &mut self.auto {
            auto.packed(range.bytes, stored.map_or(range.bytes, |bytes| bytes as u64), ns);
        }
        let Some(stored) = stored else { return self.raw(range, bytes) };
        let offset = self.at;
        let padded = stored.next_multiple_of(BLOCK_BYTES as usize);
        self.send(offset, buffer.get(..padded).unwrap_or_default())?;
        self.at += padded as u64;
        self.counts.compressed += range.bytes;
        Ok(self.push(range, chunk_kind::LZ4, offset, stored as u64, hash))
    }

    /// Sends bytes to `offset` of the slot, straight out of memory.
    fn send(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        let most = self.device.identity().max_write_bytes as usize;
        for (index, part) in bytes.chunks(most.max(1)).enumerate() {
            let to = self.slot + offset + (index * most) as u64;
            let from = source(part);
            while self.device.submit_write(to, from)? == Accepted::Full {
                self.collect()?;
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Problem> {
        self.device.poll()?;
        self.show();
        core::hint::spin_loop();
        Ok(())
    }

    /// Shows how far it is.
    fn show(&mut self) {
        let done = self.finished + self.counts.memory;
        self.host.progress(done, self.total);
        if let Some((percent, done, rate)) = self.progress.due(done, self.host.now_ns()) {
            self.host.say(format_args!("capture: {percent} % ({done}), {rate} MiB/s"));
        }
    }

    /// Sends the memory of every chunk that is stored as it was to the same place once more,
    /// and flushes it. Returns how many bytes that were.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn send_again(&mut self) -> Result<u64, Problem> {
        let mut bytes = 0;
        for index in 0..self.chunk_count {
            let Some(&entry) = self.lists.chunks.get(index) else { break };
            if entry.kind == chunk_kind::RAW {
                let range = Range { start: entry.address, bytes: u64::from(entry.memory_bytes) };
                let memory = self.memory;
                self.send(entry.offset, memory.bytes(range))?;
                bytes += range.bytes;
            }
        }
        drain(self.device)?;
        self.device.flush()?;
        Ok(bytes)
    }

    /// Appends a header through memory of the driver, and returns its offset in the slot.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, Problem> {
        append(self.device, self.slot, &mut self.at, bytes)
    }

    /// Appends the table of all chunks so far, and returns its offset in the slot.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn append_table(&mut self) -> Result<u64, Problem> {
        let table = self.lists.chunks.get(..self.chunk_count).unwrap_or_default();
        append(self.device, self.slot, &mut self.at, table.as_bytes())
    }

    /// The table of all chunks so far.
    #[must_use]
    pub fn table(&self) -> &[ChunkEntry] {
        self.lists.chunks.get(..self.chunk_count).unwrap_or_default()
    }

    /// All pieces so far.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        self.lists.pieces.get(..self.piece_count).unwrap_or_default()
    }
}

/// Writes `bytes` to `at` of the slot, padded to whole blocks; moves `at` behind them and
/// returns where it was.
fn append(
    device: &mut dyn BlockDevice,
    slot: u64,
    at: &mut u64,
    bytes: &[u8],
) -> Result<u64, Problem> {
    let offset = *at;
    let whole = bytes.len() / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
    let (blocks, rest) = bytes.split_at_checked(whole).unwrap_or_default();
    if !blocks.is_empty() {
        device.write(slot + offset, blocks)?;
    }
    if !rest.is_empty() {
        let mut block = [0; BLOCK_BYTES as usize];
        block.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        device.write(slot + offset + whole as u64, &block)?;
    }
    *at += (bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
    Ok(offset)
}

/// Where a device finds bytes: memory is mapped one to one.
fn source(bytes: &[u8]) -> Source {
    Source { address: bytes.as_ptr() as u64, bytes: bytes.len() as u64 }
}

/// A buffer that no device fetches from.
fn free<'a>(buffers: &'a mut Buffers<'_>, device: &dyn BlockDevice) -> Option<&'a mut [u8]> {
    let buffer = buffers.iter_mut().find(|buffer| !device.is_reading(source(buffer)));
    buffer.map(|buffer| &mut **buffer)
}
