//! A stage: its memory, the table of all chunks so far, a header over all of them, a seal.

use block::Error;
use storage::area::StorageError;
use vmcore_format::area::{
    BLOCK_BYTES, ENTRY_BYTES, MAX_STAGES, StageSeal, incomplete, stage_kind,
};
use vmcore_format::notes::{CaptureMetrics, ExcludedRange, excluded_reason};
use zerocopy::IntoBytes;

use crate::crash::{Crash, Range};
use crate::extents::Used;
use crate::notes::{self, Contents};
use crate::plan::Plan;
use crate::stream::{Counts, End, MAX_HOLES, Stream};
use crate::worker_pool::DESKS;

mod salvage;

pub use salvage::Salvage;

/// Excluded ranges that are listed: what no stage holds, what a later stage holds, and
/// what the present one had to leave out.
pub const MAX_EXCLUDED: usize = 6144;

/// Pieces, and ranges left out, that there may be more of when a fault ends a stage: each job of
/// the crew that is not back is a hole in a piece.
const CUT: usize = 2 * DESKS;

/// The stages of a dump that goes as far as `wanted`, one of [`stage_kind`].
#[must_use]
pub const fn planned(wanted: u32) -> &'static [u32] {
    match wanted {
        stage_kind::MINI => &[stage_kind::MINI],
        stage_kind::ALL => &[stage_kind::MINI, stage_kind::USED, stage_kind::ALL],
        _ => &[stage_kind::MINI, stage_kind::USED],
    }
}

/// Everything the stages of one dump share.
pub struct Writer<'a> {
    /// What happened.
    pub crash: &'a Crash<'a>,
    /// What is dumped.
    pub plan: &'a Plan,
    /// Which memory was in use; unknown while that has not been looked at.
    pub used: Option<Used<'a>>,
    /// The log of the slot.
    pub stream: Stream<'a>,
    /// Room for the list of what is not in a file.
    pub excluded: &'a mut [ExcludedRange],
    /// Of these, those in use.
    pub excluded_count: usize,
    /// Room for a header.
    pub header: &'a mut [u8],
    /// What the header says of the capture.
    pub metrics: CaptureMetrics,
    /// High-water mark of the reserved region in bytes.
    pub region_bytes_used: u64,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Its seal.
    pub seal: StageSeal,
    /// What it wrote.
    pub counts: Counts,
    /// Why there is no point in another one.
    pub end: Option<End>,
}

impl Writer<'_> {
    /// Writes and seals stage `index`, from 0, of kind `kind`. What cannot be written any
    /// more is left out, and the seal says why.
    ///
    /// # Errors
    /// When the disk fails, or there is no room even for a header.
    pub fn stage(&mut self, index: u32, kind: u32) -> Result<Outcome, StorageError> {
        self.stream.begin_stage(index, kind);
        let begin = self.stream.host.tsc();
        self.stream.finished += self.stream.counts.memory;
        self.stream.counts = Counts::default();
        self.begin_excluded(kind);
        let deadline = self.stream.deadline_ns;
        // Without the first stage there is nothing: it takes the time it needs, and needs as
        // little as can be, from nobody else.
        self.stream.sharing = index > 0;
        self.stream.lanes.sharing = index > 0;
        self.stream.lanes.other_bytes = 0;
        if index == 0 {
            self.stream.deadline_ns = u64::MAX;
            self.stream.ledger.set_skipped(0);
        }
        let end = self.write_memory(kind)?;
        self.stream.deadline_ns = deadline;
        self.stream.finish()?;
        self.stream.settle(index, kind)?;
        self.metrics.stage = index + 1;
        self.metrics.stage_kind = kind;
        self.metrics.cpus_working =
            self.stream.crew.as_ref().map_or(1, |crew| crew.worked()) as u32;
        (self.metrics.cpus_waiting, self.metrics.cpus_answered) = self.stream.host.helpers();
        let mut seal = self.append_header(kind)?;
        self.stream.lanes.main.device.flush()?;
        let host = self.stream.host;
        let jump = self.crash.time.jump_tsc;
        let crash = self.crash.time.crash_tsc;
        let counts = self.stream.counts;
        seal.incomplete = match end {
            Some(End::Deadline) => incomplete::DEADLINE,
            Some(End::SlotFull) => incomplete::SLOT_FULL,
            Some(End::TooMany) => incomplete::TOO_MANY,
            None if counts.unreadable > 0 => incomplete::UNREADABLE,
            None => incomplete::NOTHING,
        };
        seal.complete = u32::from(seal.incomplete == incomplete::NOTHING);
        seal.memory_bytes = counts.memory;
        seal.stored_bytes = counts.stored;
        seal.other_bytes = self.stream.lanes.other_bytes;
        seal.zero_bytes = counts.zero;
        seal.compressed_bytes = counts.compressed;
        seal.region_bytes_used = self.region_bytes_used;
        seal.sealed_tsc = host.tsc();
        seal.write_ns = host.ns(seal.sealed_tsc.wrapping_sub(begin));
        seal.duration_ns = host.ns(seal.sealed_tsc.saturating_sub(jump));
        if crash != 0 {
            seal.crash_ns = host.ns(seal.sealed_tsc.saturating_sub(crash));
        }
        self.stream.ledger.hold();
        self.write_seal(index, &mut seal)?;
        self.stream.ledger.sealed(self.stream.mark(), seal.table_crc32);
        Ok(Outcome { seal, counts, end })
    }

    /// Writes the seal of stage `index`, in the first record block behind the last one that can
    /// be written.
    fn write_seal(&mut self, index: u32, seal: &mut StageSeal) -> Result<(), StorageError> {
        let ledger = self.stream.ledger;
        let first = ledger.seal_block(index);
        let slot = self.stream.lanes.main.place.offset();
        for block in first..MAX_STAGES as u32 {
            match self.stream.lanes.main.seal(block, seal) {
                // Without the first seal another slot is as good, and all of it. A flush that
                // failed is about more than this block.
                Err(StorageError::Disk(Error::Io(at)))
                    if index > 0 && at == slot + (u64::from(block) + 1) * BLOCK_BYTES => {}
                written => return written.map(|()| ledger.set_skipped(block - index)),
            }
        }
        Err(StorageError::Disk(Error::Io(slot)))
    }

    /// Sends the memory of the stage; what it has to leave out is listed.
    fn write_memory(&mut self, kind: u32) -> Result<Option<End>, StorageError> {
        let (plan, used, crash) = (self.plan, self.used, self.crash);
        // What the stage leaves out when it ends early may take two entries more.
        let excluded = self.excluded_count + MAX_HOLES + 2 + CUT;
        let reserve = move |pieces: usize, chunks: usize| {
            let pieces = pieces + CUT;
            let table = (chunks as u64 * ENTRY_BYTES).next_multiple_of(BLOCK_BYTES);
            table + notes::bytes_needed(crash, pieces, excluded)
        };
        let mut end = None;
        for run in plan.extents.runs(kind, used) {
            let rest = match end {
                None => match self.stream.run(run, &reserve)? {
                    Ok(()) => continue,
                    Err((why, at)) => {
                        end = Some(why);
                        Range::between(at, run.end())
                    }
                },
                Some(_) => run,
            };
            self.exclude(
                rest,
                match end {
                    Some(End::Deadline) => excluded_reason::DEADLINE,
                    _ => excluded_reason::NO_ROOM,
                },
            );
        }
        Ok(end)
    }

    /// Lists what no stage holds and what a later one does.
    fn begin_excluded(&mut self, kind: u32) {
        self.excluded_count = 0;
        let plan = self.plan;
        for &range in &plan.excluded {
            self.list(range);
        }
        for range in plan.extents.behind(kind, self.used) {
            self.exclude(range, excluded_reason::LATER_STAGE);
        }
    }

    fn exclude(&mut self, range: Range, reason: u64) {
        if range.bytes > 0 {
            self.list(ExcludedRange { start: range.start, bytes: range.bytes, reason });
        }
    }

    fn list(&mut self, range: ExcludedRange) {
        list(self.excluded, &mut self.excluded_count, range);
    }

    /// Appends the table of chunks and the header, and describes them in a seal.
    fn append_header(&mut self, kind: u32) -> Result<StageSeal, StorageError> {
        for index in 0..self.stream.holes.len() {
            let Some(&hole) = self.stream.holes.get(index) else { break };
            self.exclude(hole, excluded_reason::UNREADABLE);
        }
        let mut seal = StageSeal::new(&self.stream.lanes.main.open);
        seal.kind = kind;
        let data: u64 = self.stream.pieces().iter().map(|piece| piece.file_bytes).sum();
        let memory: u64 =
            self.stream.pieces().iter().map(|piece| piece.file_bytes + piece.zero_bytes).sum();
        self.metrics.pages = memory / vmcore_format::PAGE_BYTES;
        self.metrics.region_bytes_used = self.region_bytes_used;
        let excluded = self.excluded.get(..self.excluded_count).unwrap_or_default();
        let lists = &self.stream.lists;
        let pieces = lists.pieces.get(..self.stream.piece_count).unwrap_or_default();
        let contents = Contents { pieces, excluded, fault: "" };
        // Twice: the account in the header holds the size of the file, which the size of
        // the header decides, which does not depend on the account.
        let layout = notes::build(self.header, self.crash, contents, &self.metrics)
            .map_err(StorageError::Header)?;
        self.metrics.bytes_written = layout.file_bytes;
        let layout = notes::build(self.header, self.crash, contents, &self.metrics)
            .map_err(StorageError::Header)?;
        let chunks = self.stream.chunk_count;
        let table_bytes = chunks as u64 * ENTRY_BYTES;
        let needed = table_bytes.next_multiple_of(BLOCK_BYTES) + layout.header_bytes;
        let main = &self.stream.lanes.main;
        if needed > main.room() {
            return Err(StorageError::SlotTooSmall(main.place.bytes()));
        }
        let header = self.header.get(..layout.header_bytes as usize).unwrap_or_default();
        seal.table_bytes = table_bytes;
        seal.table_crc32 = crc32fast::hash(self.stream.table().as_bytes());
        seal.table_offset = self.stream.append_table()?;
        seal.header_offset = self.stream.append(header)?;
        seal.header_bytes = layout.header_bytes;
        seal.header_crc32 = crc32fast::hash(header);
        seal.elf_bytes = layout.header_bytes + data;
        seal.log_end = self.stream.lanes.main.at;
        Ok(seal)
    }
}

/// Lists a range behind the first `count` of `excluded`, or as the end of the last of them.
/// What finds no place in the list is in no piece either, and that is what counts.
pub(crate) fn list(excluded: &mut [ExcludedRange], count: &mut usize, range: ExcludedRange) {
    if let Some(last) = count.checked_sub(1).and_then(|at| excluded.get_mut(at))
        && last.reason == range.reason
        && last.start.checked_add(last.bytes) == Some(range.start)
    {
        last.bytes += range.bytes;
    } else if let Some(place) = excluded.get_mut(*count) {
        *place = range;
        *count += 1;
    }
}

#[cfg(test)]
mod tests;
