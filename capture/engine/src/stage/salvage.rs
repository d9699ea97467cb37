//! Closing a stage behind the first sealed one when a disk has failed: what it has kept is a dump.
//!
//! The lists are those of the running flow, so they are right but for what the disk lost: a chunk
//! whose write failed, was still being put together, or lies on a disk that is gone. Those become
//! holes. The rest is [closed](crate::close) like a stage that a fault has ended.
//!
//! Table and header go in front of the first byte that could not be written, over the last chunks
//! there: a disk that is full, as a thin volume gets, still takes what goes where it has kept
//! something before.

use block::Error;
use storage::area::{StorageError, is_local};
use vmcore_format::area::{
    BLOCK_BYTES, ChunkEntry, ENTRY_BYTES, StageSeal, chunk_area, chunk_kind,
};
use zerocopy::IntoBytes;

use super::{MAX_EXCLUDED, Writer};
use crate::close::{Case, Cause, CloseError, InterruptedLists, close};
use crate::notes;
use crate::stream::Piece;

/// Failures of requests that are waited for at most: more than can be in flight.
const MAX_FAILURES: usize = 64;
/// Bytes that are passed over where a table or a header could not be written: the most that
/// drivers write at once through memory of their own.
const PASSED_OVER: u64 = 64 << 10;

/// What closing a stage takes besides the writer.
pub struct Salvage<'a> {
    /// The dump.
    pub case: &'a Case,
    /// Finds so many bytes of memory, all zero.
    pub memory: &'a dyn Fn(usize) -> Option<&'static mut [u8]>,
}

/// The lists of the flow.
struct Lists<'a> {
    chunks: &'a [ChunkEntry],
    pieces: &'a [Piece],
    memory: &'a dyn Fn(usize) -> Option<&'static mut [u8]>,
}

impl InterruptedLists for Lists<'_> {
    fn chunk(&self, index: usize) -> Option<ChunkEntry> {
        self.chunks.get(index).copied()
    }

    fn piece(&self, index: usize) -> Option<Piece> {
        self.pieces.get(index).copied()
    }

    fn memory(&self, bytes: usize) -> Option<&'static mut [u8]> {
        (self.memory)(bytes)
    }
}

impl Writer<'_> {
    /// Closes stage `index`, from 1, of kind `kind`, which ended with `problem`: some requests to
    /// the first disk failed, or the other one is gone and the first has no room for what it had.
    ///
    /// # Errors
    /// When the first disk does not answer any more, failed at something that no chunk can be
    /// named for, or has no room. What was sealed before is as it was.
    pub fn close_after(
        &mut self,
        index: u32,
        kind: u32,
        problem: &StorageError,
        salvage: &Salvage<'_>,
    ) -> Result<StageSeal, CloseError> {
        let mut first_bad = None;
        match problem {
            StorageError::Disk(error) if is_local(error) => self.lose(error, &mut first_bad)?,
            StorageError::SlotTooSmall(_) if self.stream.lanes.lost().is_some() => {}
            _ => return Err((*problem).into()),
        }
        let host = self.stream.host;
        if let Some(crew) = self.stream.crew.as_deref_mut() {
            crew.recall(host);
        }
        self.settle_requests(&mut first_bad)?;
        let stream = &self.stream;
        let ledger = stream.ledger;
        ledger.begin(index, kind);
        let open = ledger.open().ok_or(CloseError::NotOpen)?;
        // What another disk had of earlier stages may have been brought back since.
        let sealed = stream.lists.chunks.get(..open.sealed.mark.chunks).unwrap_or_default();
        ledger.sealed(open.sealed.mark, crc32fast::hash(sealed.as_bytes()));
        let chunks = stream.lists.chunks.get(..stream.chunk_count).unwrap_or_default();
        let new = chunks.get(open.sealed.mark.chunks..).unwrap_or_default();
        let lost = |entry: &&ChunkEntry| {
            entry.area != chunk_area::OWN || entry.kind != chunk_kind::ZERO && entry.checksum == 0
        };
        // Each loss may cut a piece in two, and is listed.
        let cuts = 2 * new.iter().filter(lost).count();
        let excluded = (self.excluded_count + cuts + stream.piece_count).min(MAX_EXCLUDED);
        let needed = (chunks.len() as u64 * ENTRY_BYTES).next_multiple_of(BLOCK_BYTES)
            + notes::bytes_needed(self.crash, stream.piece_count + cuts, excluded);
        let stream = &mut self.stream;
        let last = stream.lanes.main.place.bytes().saturating_sub(needed);
        let mut mark = stream.mark();
        // Chunks behind that make room for table and header.
        let before = first_bad.and_then(|first| first.checked_sub(needed));
        let end = before.filter(|&before| before > open.sealed.mark.at).unwrap_or(mark.at);
        mark.at = end.min(last) / BLOCK_BYTES * BLOCK_BYTES;
        mark.at = mark.at.max(open.sealed.mark.at);
        ledger.set(mark);
        let lists = Lists {
            chunks: stream.lists.chunks.get(..stream.chunk_count).unwrap_or_default(),
            pieces: stream.lists.pieces.get(..stream.piece_count).unwrap_or_default(),
            memory: salvage.memory,
        };
        let device = &mut *stream.lanes.main.device;
        close(device, host, salvage.case, ledger, &lists, self.used, Cause::Disk)
    }

    /// Waits for what is in flight, and takes note of what fails.
    fn settle_requests(&mut self, first_bad: &mut Option<u64>) -> Result<(), CloseError> {
        for _ in 0..MAX_FAILURES {
            match self.stream.lanes.drain() {
                Ok(()) => return Ok(()),
                Err(StorageError::Disk(error)) if is_local(&error) => {
                    self.lose(&error, first_bad)?;
                }
                Err(problem) => return Err(problem.into()),
            }
        }
        Err(CloseError::StorageError(StorageError::Disk(Error::GivenUp)))
    }

    /// Takes the checksum from the chunk that a failed request was about, so that it does not
    /// count; or passes over the place where a table or a header could not be written.
    fn lose(&mut self, error: &Error, first_bad: &mut Option<u64>) -> Result<(), CloseError> {
        let Error::Io(offset) = *error else { return Err((*error).into()) };
        let main = &mut self.stream.lanes.main;
        let at = offset.checked_sub(main.place.offset()).ok_or(*error)?;
        *first_bad = Some(first_bad.map_or(at, |first| first.min(at)));
        if at >= main.at {
            main.at = at.saturating_add(PASSED_OVER) / BLOCK_BYTES * BLOCK_BYTES;
            return Ok(());
        }
        let chunks = self.stream.lists.chunks.get_mut(..self.stream.chunk_count);
        let holds = |entry: &&mut ChunkEntry| {
            let end = entry.offset.saturating_add(entry.log_bytes());
            entry.area == chunk_area::OWN
                && entry.kind != chunk_kind::ZERO
                && (entry.offset..end).contains(&at)
        };
        match chunks.unwrap_or_default().iter_mut().find(holds) {
            Some(entry) => entry.checksum = 0,
            // Memory on its way is listed before its place is known; without that it has no
            // checksum either. A flush is about all that was written before.
            None if at >= vmcore_format::area::DATA_OFFSET => {}
            None => return Err((*error).into()),
        }
        Ok(())
    }
}
