//! How a chunk is stored: as it is or compressed, by this CPU or by another.

use core::sync::atomic::{Ordering, compiler_fence};

use storage::area::StorageError;
use vmcore_format::area::{BLOCK_BYTES, ChunkEntry, chunk_area, chunk_kind};

use super::{Buffers, End, Stream};
use crate::auto::Way;
use crate::chunk_sizes;
use crate::crash::Range;
use crate::lanes::{Lanes, Sending, Spot};
use crate::worker_pool::{Done, Order, WorkerPool};

impl Stream<'_> {
    /// How the next chunk is stored, which begins like `sample`.
    pub(super) fn way(&mut self, sample: &[u8]) -> Result<Way, StorageError> {
        let can_pack = self.crew.as_ref().is_some_and(|crew| crew.can_pack());
        if !can_pack || !self.sharing || self.moving.all {
            return Ok(Way::Raw);
        }
        if !self.may_pack() {
            if !self.budget_told {
                self.budget_told = true;
                self.host.say(format_args!(
                    "capture: no room to list more compressed chunks: the rest is stored as it is"
                ));
            }
            self.finish()?;
            return Ok(Way::Raw);
        }
        let Some(crew) = self.crew.as_deref_mut() else { return Ok(Way::Raw) };
        let Some(auto) = &mut self.auto else { return Ok(Way::Lz4) };
        if auto.wants_a_look()
            && let Some(buffer) = crew.buffer(|bytes| self.lanes.are_reading(bytes))
        {
            if auto.is_new() {
                // Does not count: the code was in no cache.
                crew.look(sample, buffer);
            }
            let begin = self.host.tsc();
            let (bytes, stored) = crew.look(sample, buffer);
            let ns = self.host.ns(self.host.tsc().wrapping_sub(begin));
            auto.looked(bytes as u64, stored as u64, ns);
            crew.give_back(buffer);
        }
        let way = auto.choose();
        if way == Way::Raw && self.promised > 0 {
            // The disk is not measured while others send to it.
            self.finish()?;
        }
        Ok(way)
    }

    /// Returns true if there is room to list one more compressed chunk, and all memory behind it
    /// stored as it is, each run of it ending in a short chunk.
    fn may_pack(&self) -> bool {
        let chunks = self.lists.chunks.len() as u64;
        let runs = self.lists.pieces.len().saturating_sub(self.piece_count) as u64;
        let done = self.finished.saturating_add(self.counts.memory);
        let raw = self.total.saturating_sub(done).div_ceil(self.chunk_bytes.max(1));
        let needed = raw.saturating_add(runs.min(chunk_sizes::spare(chunks)));
        chunks.saturating_sub(self.chunk_count as u64) > needed
    }

    /// Stores a chunk in the way that was chosen.
    pub(super) fn store(
        &mut self,
        way: Way,
        range: Range,
        bytes: &'static [u8],
    ) -> Result<Result<(), End>, StorageError> {
        if self.moving.touches(range)
            && let Some(mut still) = self.still.take()
        {
            let outcome = self.copied(&mut still, range, bytes);
            self.still = Some(still);
            return outcome;
        }
        if way == Way::Lz4 && range.bytes <= self.pack_bytes {
            return self.packed(range, bytes);
        }
        let index = match self.sent(range, bytes)? {
            Ok(index) => index,
            Err(end) => return Ok(Err(end)),
        };
        // By this CPU, which has just looked at it, while the disk fetches it: another one would
        // have to find its way to the same memory again.
        self.check(index, ChunkEntry::hash(bytes));
        self.sweep()?;
        Ok(Ok(()))
    }

    /// Stores a chunk of memory that a CPU or a device may be writing: a copy of it, so that the
    /// checksum is of the bytes that the disk gets.
    fn copied(
        &mut self,
        still: &mut Buffers<'_>,
        range: Range,
        bytes: &[u8],
    ) -> Result<Result<(), End>, StorageError> {
        let bytes = self.steady(still, bytes)?;
        Ok(self.sent(range, bytes)?.map(|index| self.check(index, ChunkEntry::hash(bytes))))
    }

    /// Copies `bytes` to where nothing writes them.
    fn steady<'b>(
        &mut self,
        still: &'b mut Buffers<'_>,
        bytes: &'b [u8],
    ) -> Result<&'b [u8], StorageError> {
        // As long as a disk fetches from all of them.
        while free(still, &self.lanes).is_none() {
            self.collect()?;
        }
        match free(still, &self.lanes).and_then(|copy| copy.get_mut(..bytes.len())) {
            Some(copy) => {
                copy.copy_from_slice(bytes);
                Ok(copy)
            }
            None => Ok(bytes),
        }
    }

    /// Sends a chunk as it lies in memory, and lists it without its checksum, which can be
    /// taken while the disk fetches it.
    fn sent(&mut self, range: Range, bytes: &[u8]) -> Result<Result<usize, End>, StorageError> {
        let index = match self.list(range) {
            Ok(index) => index,
            Err(end) => return Ok(Err(end)),
        };
        let begin = self.host.tsc();
        let spot = self.append_raw(bytes)?;
        if let Some(auto) = &mut self.auto {
            let ns = self.host.ns(self.host.tsc().wrapping_sub(begin));
            auto.sent(range.bytes, ns);
        }
        self.fill(index, chunk_kind::RAW, spot, range.bytes, None);
        Ok(Ok(index))
    }

    /// Gives a chunk away to be compressed. Waits for a buffer, and works itself meanwhile.
    fn packed(
        &mut self,
        range: Range,
        bytes: &'static [u8],
    ) -> Result<Result<(), End>, StorageError> {
        let index = match self.list(range) {
            Ok(index) => index,
            Err(end) => return Ok(Err(end)),
        };
        let mut buffer = None;
        // Until a job is back, or given up, or the disk has fetched one: each has its end.
        while self.crew.as_ref().is_some_and(|crew| crew.can_pack()) {
            let lanes = &self.lanes;
            let crew = self.crew.as_deref_mut();
            buffer = crew.and_then(|crew| crew.buffer(|bytes| lanes.are_reading(bytes)));
            if buffer.is_some() {
                break;
            }
            if !self.sweep()? {
                self.collect()?;
            }
        }
        self.promised += range.bytes;
        if self.promised == range.bytes {
            self.packed_ns = self.host.now_ns();
        }
        // Without a buffer, or a desk for the job, it is stored as it is.
        let given = self.crew.as_deref_mut().zip(buffer).is_some_and(|(crew, buffer)| {
            let given = crew.give(index, bytes, buffer);
            given.map_err(|buffer| crew.give_back(buffer)).is_ok()
        });
        if !given {
            self.plain(index, bytes)?;
        }
        self.sweep()?;
        Ok(Ok(()))
    }

    /// Takes back what the crew has done; false when that was nothing.
    fn sweep(&mut self) -> Result<bool, StorageError> {
        let mut some = false;
        while let Some(done) = self.crew.as_deref_mut().and_then(WorkerPool::collect) {
            some = true;
            self.done(done)?;
        }
        let now = self.host.running_ns();
        if let Some(order) = self.crew.as_deref_mut().and_then(|crew| crew.overdue(now)) {
            some = true;
            self.host.say(format_args!("capture: a helping CPU does not answer: done without it"));
            self.plain(order.chunk, order.memory)?;
        }
        Ok(some)
    }

    /// Waits until the crew has nothing left to do.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(&mut self) -> Result<(), StorageError> {
        // Each job is done, or given up when its time is over.
        while self.crew.as_ref().is_some_and(|crew| crew.outstanding() > 0) {
            if !self.sweep()? {
                self.collect()?;
            }
        }
        Ok(())
    }

    /// Stores what came back.
    fn done(&mut self, done: Done) -> Result<(), StorageError> {
        let Done { order: Order { chunk, memory, .. }, hash, stored, out } = done;
        let bytes = memory.len() as u64;
        let took = self.host.now_ns().saturating_sub(self.packed_ns);
        let sent = match stored {
            Some(stored) => {
                let padded = stored.next_multiple_of(BLOCK_BYTES as usize);
                self.append_raw(out.get(..padded).unwrap_or_default())
                    .map(|spot| (chunk_kind::LZ4, spot, stored as u64))
            }
            None => self.append_raw(memory).map(|spot| (chunk_kind::RAW, spot, bytes)),
        };
        if let Some(crew) = self.crew.as_deref_mut() {
            crew.give_back(out);
        }
        let (kind, spot, stored) = sent?;
        self.promised = self.promised.saturating_sub(bytes);
        if kind == chunk_kind::LZ4 {
            self.counts.compressed += bytes;
        }
        self.fill(chunk, kind, spot, stored, Some(hash));
        if let Some(auto) = &mut self.auto {
            auto.packed(bytes, stored, took);
        }
        // Behind the waiting for the disk.
        self.packed_ns = self.host.now_ns();
        Ok(())
    }

    /// Stores as it is what was to be compressed.
    fn plain(&mut self, index: usize, bytes: &[u8]) -> Result<(), StorageError> {
        let spot = self.append_raw(bytes)?;
        let length = bytes.len() as u64;
        self.promised = self.promised.saturating_sub(length);
        self.fill(index, chunk_kind::RAW, spot, length, Some(ChunkEntry::hash(bytes)));
        Ok(())
    }

    /// Lists a chunk of the present piece, of which nothing but its memory is known yet;
    /// returns its number.
    pub(super) fn list(&mut self, memory: Range) -> Result<usize, End> {
        let index = self.chunk_count;
        let Some(place) = self.lists.chunks.get_mut(index) else {
            return Err(End::TooMany);
        };
        *place = ChunkEntry {
            address: memory.start,
            memory_bytes: memory.bytes as u32,
            ..ChunkEntry::default()
        };
        self.chunk_count += 1;
        self.note();
        if let Some(piece) = self.present() {
            piece.file_bytes += memory.bytes;
        }
        self.counts.memory += memory.bytes;
        Ok(index)
    }

    /// Says how chunk `index` is stored, and what its memory's checksum is, if that is known.
    pub(super) fn fill(
        &mut self,
        index: usize,
        kind: u32,
        spot: Spot,
        stored: u64,
        hash: Option<u64>,
    ) {
        let Some(entry) = self.lists.chunks.get_mut(index) else { return };
        (entry.kind, entry.stored_bytes) = (kind, stored as u32);
        (entry.area, entry.offset) = (spot.area, spot.offset);
        self.counts.stored += stored;
        if kind == chunk_kind::ZERO {
            self.counts.zero += u64::from(entry.memory_bytes);
        }
        if let Some(hash) = hash {
            self.check(index, hash);
        }
    }

    /// The checksum of chunk `index`, now that it is known. The last word about it: whoever
    /// comes after a fault takes a chunk with a checksum for whole.
    fn check(&mut self, index: usize, hash: u64) {
        let Some(entry) = self.lists.chunks.get_mut(index) else { return };
        if entry.kind != chunk_kind::ZERO {
            let checksum = entry.bind(hash, &self.lanes.main.open);
            compiler_fence(Ordering::Release);
            entry.checksum = checksum;
        }
    }

    /// Sends memory to the end of a log; returns where that was.
    fn append_raw(&mut self, bytes: &[u8]) -> Result<Spot, StorageError> {
        // Until a disk has done something, or missed its deadline.
        let sending = loop {
            match self.lanes.begin(bytes)? {
                Some(sending) => break sending,
                None => self.collect()?,
            }
        };
        self.send(sending, bytes)?;
        self.note();
        Ok(sending.spot)
    }

    /// Sends what is left of `bytes`, straight out of memory.
    pub(super) fn send(&mut self, mut sending: Sending, bytes: &[u8]) -> Result<(), StorageError> {
        while sending.done < bytes.len() {
            if !self.lanes.go_on(&mut sending, bytes)? {
                self.collect()?;
            }
        }
        Ok(())
    }

    /// Makes what the other disk has of the stage durable and seals it there, or writes it to
    /// the first when the other is gone. From then on nothing of memory is on its way.
    ///
    /// # Errors
    /// When the first disk fails, or has no room.
    pub fn settle(&mut self, index: u32, kind: u32) -> Result<(), StorageError> {
        self.lanes.drain()?;
        self.lanes.seal_other(index, kind);
        self.tell_of_loss();
        if self.lanes.lost().is_some() {
            self.bring_back()?;
            self.lanes.drain()?;
        }
        Ok(())
    }

    /// Writes to the first disk what only the other had, out of the same memory.
    fn bring_back(&mut self) -> Result<(), StorageError> {
        let mut still = self.still.take();
        for index in 0..self.chunk_count {
            let Some(&entry) = self.lists.chunks.get(index) else { break };
            if entry.area != chunk_area::OTHER {
                continue;
            }
            let memory = self.memory;
            let range = Range { start: entry.address, bytes: u64::from(entry.memory_bytes) };
            let mut bytes = memory.bytes(range);
            if self.moving.touches(range)
                && let Some(still) = &mut still
            {
                bytes = self.steady(still, bytes)?;
            }
            let spot = self.append_raw(bytes)?;
            let hash = Some(ChunkEntry::hash(bytes));
            self.fill(index, chunk_kind::RAW, spot, range.bytes, hash);
        }
        self.still = still;
        Ok(())
    }

    /// Says, once, that the other disk is gone.
    fn tell_of_loss(&mut self) {
        if let Some(error) = self.lanes.lost().filter(|_| !self.loss_told) {
            self.loss_told = true;
            self.host.say(format_args!("capture: the other disk: {error}: goes on with one"));
        }
    }

    /// Instead of waiting: asks the disks what they have done, and does a job.
    fn collect(&mut self) -> Result<(), StorageError> {
        self.lanes.poll()?;
        self.tell_of_loss();
        self.show();
        if !self.crew.as_deref_mut().is_some_and(WorkerPool::help) {
            core::hint::spin_loop();
        }
        Ok(())
    }
}

/// A buffer that no device fetches from.
fn free<'a>(buffers: &'a mut Buffers<'_>, lanes: &Lanes<'_>) -> Option<&'a mut [u8]> {
    let buffer = buffers.iter_mut().find(|buffer| !lanes.are_reading(buffer));
    buffer.map(|buffer| &mut **buffer)
}
