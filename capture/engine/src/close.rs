//! Closing a stage that a fault, or a disk that failed, has cut short: what of it is on the disk
//! is made a dump of.
//!
//! The flow that wrote the stage never goes on, and what it was changing may be changed by
//! half. So nothing of it is taken over: the chunks and pieces it had listed are read like
//! those of a stranger. The list of what was sealed has to match the checksum in its seal, or
//! nothing is closed. Behind that, a chunk counts when its entry is sound, when it has its
//! checksum, which is written last, and when it lies between the last seal and the end of the
//! log. The others, those that helpers were working on among them, become holes in the dump
//! that it names. Nothing of the crashed memory's content is read again.
//!
//! All this comes before the first word to the disk. Then the requests in flight are waited
//! for, and table, header and seal are written in the same order as ever: what was sealed
//! before stands where it stood, and is the dump still when this fails.

use core::fmt;

use block::{BlockDevice, drain};
use storage::area::{Block, SlotLocation, StorageError};
use vmcore_format::area::{
    BLOCK_BYTES, ChunkEntry, ENTRY_BYTES, SlotOpen, StageSeal, chunk_area, chunk_kind, incomplete,
};
use vmcore_format::notes::{CaptureMetrics, ExcludedRange, excluded_reason};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::crash::{Crash, Range};
use crate::extents::Used;
use crate::host::Host;
use crate::ledger::{Ledger, Open};
use crate::notes::{self, Contents};
use crate::plan::Plan;
use crate::stage::{self, MAX_EXCLUDED};
use crate::stream::Piece;

/// What is known of a dump from its first stage on, and does not change any more.
#[derive(Clone, Copy)]
pub struct Case {
    /// What happened.
    pub crash: Crash<'static>,
    /// What is dumped.
    pub plan: &'static Plan,
    /// The slot.
    pub place: SlotLocation,
    /// The dump.
    pub open: SlotOpen,
    /// What the header says of the capture.
    pub metrics: CaptureMetrics,
}

/// What the interrupted flow has left in memory.
pub trait InterruptedLists {
    /// The chunk of this number, as far as its entry was written.
    fn chunk(&self, index: usize) -> Option<ChunkEntry>;

    /// The piece of this number.
    fn piece(&self, index: usize) -> Option<Piece>;

    /// So many bytes of memory of one's own, all zero.
    fn memory(&self, bytes: usize) -> Option<&'static mut [u8]>;
}

/// Why a stage was not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseError {
    /// Nothing was sealed before, or a seal was just being written.
    NotOpen,
    /// The lists do not agree; says which.
    Damaged(&'static str),
    /// There is no memory for a header.
    Memory,
    /// The disk failed, or has no room.
    StorageError(StorageError),
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOpen => f.write_str("no stage was being written behind a sealed one"),
            Self::Damaged(what) => write!(f, "{what} cannot be believed any more"),
            Self::Memory => f.write_str("no memory for its header"),
            Self::StorageError(problem) => problem.fmt(f),
        }
    }
}

impl From<StorageError> for CloseError {
    fn from(problem: StorageError) -> Self {
        Self::StorageError(problem)
    }
}

impl From<block::Error> for CloseError {
    fn from(error: block::Error) -> Self {
        Self::StorageError(StorageError::Disk(error))
    }
}

/// Why a stage is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause<'a> {
    /// A fault of the image: one line of text.
    Fault(&'a str),
    /// A disk failed. The flow that wrote the stage is sound.
    Disk,
}

impl Cause<'_> {
    /// The text for the header, empty when there is no fault.
    const fn text(&self) -> &str {
        match self {
            Self::Fault(text) => text,
            Self::Disk => "",
        }
    }

    /// Why memory is left out: one of [`excluded_reason`].
    const fn excluded(&self) -> u64 {
        match self {
            Self::Fault(_) => excluded_reason::FAULT,
            Self::Disk => excluded_reason::DISK,
        }
    }
}

/// Closes the stage that `ledger` says is open, for the reason that `cause` gives.
///
/// # Errors
/// Says why not. What was sealed before is as it was.
pub fn close(
    device: &mut dyn BlockDevice,
    host: &dyn Host,
    case: &Case,
    ledger: &Ledger,
    left: &dyn InterruptedLists,
    used: Option<Used<'_>>,
    cause: Cause<'_>,
) -> Result<StageSeal, CloseError> {
    let begin = host.tsc();
    let open = ledger.open().ok_or(CloseError::NotOpen)?;
    // Whatever goes wrong from here on, it is not tried again.
    ledger.hold();
    let kept = SealedPart { open: &open, left, slot_bytes: case.place.bytes() };
    let mut seal = StageSeal::new(&case.open);
    let (pieces, first_new) = kept.pieces(&mut seal)?;
    let new = pieces.get(first_new..).unwrap_or_default();
    let (excluded, count) = left_out(case, &open, used, new, (left, cause.excluded()))?;
    let excluded = excluded.get(..count).unwrap_or_default();
    let (data, memory) = pieces.iter().fold((0, 0), |(data, memory), piece| {
        (data + piece.file_bytes, memory + piece.file_bytes + piece.zero_bytes)
    });
    let mut metrics = case.metrics;
    (metrics.stage, metrics.stage_kind) = (open.index + 1, open.kind);
    metrics.pages = memory / vmcore_format::PAGE_BYTES;
    let bytes = notes::bytes_needed(&case.crash, pieces.len(), count);
    let header = left.memory(bytes as usize).ok_or(CloseError::Memory)?;
    let contents = Contents { pieces, excluded, fault: cause.text() };
    // Twice: the account in the header holds the size of the file.
    let layout =
        notes::build(header, &case.crash, contents, &metrics).map_err(StorageError::Header)?;
    metrics.bytes_written = layout.file_bytes;
    let layout =
        notes::build(header, &case.crash, contents, &metrics).map_err(StorageError::Header)?;
    let header = header.get(..layout.header_bytes as usize).unwrap_or_default();
    let room = seal.table_bytes.next_multiple_of(BLOCK_BYTES) + layout.header_bytes;
    if open.mark.at.saturating_add(room) > case.place.bytes() {
        return Err(StorageError::SlotTooSmall(case.place.bytes()).into());
    }

    drain(device)?;
    seal.kind = open.kind;
    seal.table_offset = open.mark.at;
    let mut log = Log::new(device, case.place.offset() + open.mark.at);
    for entry in kept.entries() {
        log.write(entry.as_bytes())?;
    }
    log.pad()?;
    seal.table_crc32 = core::mem::take(&mut log.hasher).finalize();
    seal.header_offset = seal.table_offset + log.written;
    log.write(header)?;
    log.pad()?;
    seal.log_end = open.mark.at + log.written;
    seal.header_bytes = layout.header_bytes;
    seal.header_crc32 = crc32fast::hash(header);
    seal.elf_bytes = layout.header_bytes + data;
    device.flush()?;
    seal.incomplete = match cause {
        Cause::Fault(_) => incomplete::FAULT,
        Cause::Disk => incomplete::DISK,
    };
    seal.region_bytes_used = case.metrics.region_bytes_used;
    seal.sealed_tsc = host.tsc();
    seal.write_ns = host.ns(seal.sealed_tsc.wrapping_sub(begin));
    seal.duration_ns = host.ns(seal.sealed_tsc.saturating_sub(case.crash.time.jump_tsc));
    let crash = case.crash.time.crash_tsc;
    if crash != 0 {
        seal.crash_ns = host.ns(seal.sealed_tsc.saturating_sub(crash));
    }
    case.place.seal(device, ledger.seal_block(open.index), &mut seal)?;
    Ok(seal)
}

/// What of the lists can be believed.
struct SealedPart<'a> {
    open: &'a Open,
    left: &'a dyn InterruptedLists,
    slot_bytes: u64,
}

impl SealedPart<'_> {
    /// Whether the chunk of an entry behind the last seal is on the disk, or on its way there.
    fn is_whole(&self, entry: &ChunkEntry) -> bool {
        let inside = || {
            let end = entry.offset.saturating_add(entry.log_bytes());
            entry.offset >= self.open.sealed.mark.at && end <= self.open.mark.at
        };
        // Words whose meaning is not known here are none of this disk's.
        entry.is_sound(self.slot_bytes)
            && entry.area == chunk_area::OWN
            && (entry.kind == chunk_kind::ZERO || entry.checksum != 0 && inside())
    }

    /// The entries of the table: those of the last seal, and behind them whatever is whole.
    fn entries(&self) -> impl Iterator<Item = ChunkEntry> {
        let sealed = self.open.sealed.mark.chunks;
        (0..self.open.mark.chunks).filter_map(move |index| {
            let entry = self.left.chunk(index)?;
            (index < sealed || self.is_whole(&entry)).then_some(entry)
        })
    }

    /// The pieces that the memory of these entries is made of, and how many of them stood
    /// under the last seal; into `seal` goes what the stage adds.
    fn pieces(&self, seal: &mut StageSeal) -> Result<(&'static [Piece], usize), CloseError> {
        let Open { mark, sealed, .. } = *self.open;
        let damaged = CloseError::Damaged;
        if sealed.mark.chunks > mark.chunks || sealed.mark.pieces > mark.pieces {
            return Err(damaged("the record of how far it came"));
        }
        let mut hasher = crc32fast::Hasher::new();
        let mut memory = 0u64;
        for index in 0..sealed.mark.chunks {
            let entry = self.left.chunk(index).ok_or(damaged("the list of chunks"))?;
            hasher.update(entry.as_bytes());
            memory = memory.saturating_add(u64::from(entry.memory_bytes));
        }
        if hasher.finalize() != sealed.table_crc32 {
            return Err(damaged("the list of what was sealed"));
        }
        let behind = || (sealed.mark.chunks..mark.chunks).filter_map(|at| self.left.chunk(at));
        let broken = behind().filter(|entry| !self.is_whole(entry)).count();
        let most = mark.pieces + 2 * broken + 1;
        let mut pieces = Pieces { list: records(self.left, most)?, count: 0 };
        for index in 0..sealed.mark.pieces {
            let piece = self.left.piece(index).ok_or(damaged("the list of pieces"))?;
            memory = memory.wrapping_sub(piece.file_bytes);
            pieces.push(piece);
        }
        if memory != 0 {
            return Err(damaged("the list of pieces"));
        }
        let first_new = pieces.count;
        let mut entries = behind().peekable();
        for index in sealed.mark.pieces..mark.pieces {
            let piece = self.left.piece(index).ok_or(damaged("the list of pieces"))?;
            let end = piece.start.checked_add(piece.file_bytes);
            let end = end.ok_or(damaged("the list of pieces"))?;
            let mut part = Piece { start: piece.start, ..Piece::default() };
            let mut at = piece.start;
            while let Some(entry) = entries.next_if(|entry| at < end && entry.address == at) {
                let bytes = u64::from(entry.memory_bytes);
                let next = at.saturating_add(bytes);
                if self.is_whole(&entry) && next <= end {
                    part.file_bytes += bytes;
                    add(seal, &entry);
                } else {
                    pieces.push(part);
                    part = Piece { start: next, ..Piece::default() };
                }
                at = next;
            }
            // Short of its end when the last chunk of all was just being listed.
            if at == end {
                part.zero_bytes = piece.zero_bytes;
                seal.memory_bytes += piece.zero_bytes;
                seal.zero_bytes += piece.zero_bytes;
            }
            pieces.push(part);
        }
        // That chunk may be of no piece yet, and then it is not whole either.
        if entries.any(|entry| self.is_whole(&entry)) {
            return Err(damaged("the list of pieces"));
        }
        seal.table_bytes = self.entries().count() as u64 * ENTRY_BYTES;
        let Pieces { list, count } = pieces;
        Ok((list.get(..count).unwrap_or_default(), first_new))
    }
}

/// A list that pieces are put at the end of.
struct Pieces {
    list: &'static mut [Piece],
    count: usize,
}

impl Pieces {
    /// Puts one down; one of nothing is none.
    fn push(&mut self, piece: Piece) {
        if piece.file_bytes + piece.zero_bytes > 0
            && let Some(place) = self.list.get_mut(self.count)
        {
            *place = piece;
            self.count += 1;
        }
    }
}

/// Counts a chunk into what the stage adds.
fn add(seal: &mut StageSeal, entry: &ChunkEntry) {
    let bytes = u64::from(entry.memory_bytes);
    seal.memory_bytes += bytes;
    seal.stored_bytes += u64::from(entry.stored_bytes);
    match entry.kind {
        chunk_kind::ZERO => seal.zero_bytes += bytes,
        chunk_kind::LZ4 => seal.compressed_bytes += bytes,
        _ => {}
    }
}

/// What is not in the file: what no stage holds, what a later one was to hold, and what is
/// missing of this one, which has come as far as `pieces`. A list, and how much of it is used.
fn left_out(
    case: &Case,
    open: &Open,
    used: Option<Used<'_>>,
    pieces: &[Piece],
    (left, reason): (&dyn InterruptedLists, u64),
) -> Result<(&'static [ExcludedRange], usize), CloseError> {
    let extents = &case.plan.extents;
    let later = || extents.behind(open.kind, used);
    let runs = || extents.runs(open.kind, used);
    let most = case.plan.excluded.len() + later().count() + runs().count() + pieces.len();
    let list: &'static mut [ExcludedRange] = records(left, most.min(MAX_EXCLUDED))?;
    let mut count = 0;
    for &range in &case.plan.excluded {
        stage::list(list, &mut count, range);
    }
    let mut exclude = |range: Range, reason| {
        if range.bytes > 0 {
            let range = ExcludedRange { start: range.start, bytes: range.bytes, reason };
            stage::list(list, &mut count, range);
        }
    };
    for range in later() {
        exclude(range, excluded_reason::LATER_STAGE);
    }
    let mut pieces = pieces.iter().peekable();
    for run in runs() {
        let mut at = run.start;
        let inside = |piece: &&Piece| {
            let bytes = piece.file_bytes.saturating_add(piece.zero_bytes);
            run.holds(piece.start, bytes)
        };
        while let Some(piece) = pieces.next_if(inside) {
            if piece.start < at {
                return Err(CloseError::Damaged("the order of the pieces"));
            }
            exclude(Range::between(at, piece.start), reason);
            at = piece.start + piece.file_bytes + piece.zero_bytes;
        }
        exclude(Range::between(at, run.end()), reason);
    }
    if pieces.peek().is_some() {
        return Err(CloseError::Damaged("where the pieces lie"));
    }
    Ok((list, count))
}

/// Room for `count` records, all zero.
fn records<T>(left: &dyn InterruptedLists, count: usize) -> Result<&'static mut [T], CloseError>
where
    T: FromBytes + FromZeros + IntoBytes + Immutable + KnownLayout,
{
    let bytes = count.saturating_mul(size_of::<T>());
    let memory = left.memory(bytes).and_then(|memory| memory.get_mut(..bytes));
    let memory = memory.ok_or(CloseError::Memory)?;
    <[T]>::mut_from_bytes(memory).map_err(|_| CloseError::Memory)
}

/// The end of the log, written block by block.
struct Log<'a> {
    device: &'a mut dyn BlockDevice,
    /// Byte offset on the disk of the next block.
    to: u64,
    block: Block,
    filled: usize,
    /// Bytes so far, padding included.
    written: u64,
    /// Of what was put in, without padding.
    hasher: crc32fast::Hasher,
}

impl<'a> Log<'a> {
    fn new(device: &'a mut dyn BlockDevice, to: u64) -> Self {
        let block = [0; BLOCK_BYTES as usize];
        Self { device, to, block, filled: 0, written: 0, hasher: crc32fast::Hasher::new() }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.hasher.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let free = self.block.get_mut(self.filled..).unwrap_or_default();
            let (now, later) =
                rest.split_at_checked(free.len().min(rest.len())).unwrap_or((rest, &[]));
            free.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.filled += now.len();
            rest = later;
            if self.filled == self.block.len() {
                self.pad()?;
            }
        }
        Ok(())
    }

    /// Writes what there is of a block, with zeros behind it.
    fn pad(&mut self) -> Result<(), StorageError> {
        if self.filled > 0 {
            self.block.get_mut(self.filled..).unwrap_or_default().fill(0);
            self.device.write(self.to, &self.block)?;
            self.filled = 0;
            self.to += BLOCK_BYTES;
            self.written += BLOCK_BYTES;
        }
        Ok(())
    }
}
