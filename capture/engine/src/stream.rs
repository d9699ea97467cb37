//! Memory on its way into the log of a slot, chunk by chunk: what becomes a chunk, and what
//! is left out. How a chunk is stored is in `store.rs`.

use storage::area::StorageError;
use vmcore_format::PAGE_BYTES;
use vmcore_format::area::{ChunkEntry, MAX_CHUNK_BYTES, chunk_area, chunk_kind};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::auto::{Auto, Way};
use crate::crash::Range;
use crate::host::Host;
use crate::lanes::{Lanes, Sending, Spot};
use crate::ledger::{Ledger, Mark};
use crate::rate::StageProgress;
use crate::scan;
use crate::worker_pool::WorkerPool;

mod store;

/// Two buffers: one is filled while the disk fetches the other.
pub type Buffers<'a> = [&'a mut [u8]; 2];

/// Ranges of unreadable memory that are listed.
pub const MAX_HOLES: usize = 64;

/// The crashed memory, as far as it is dumped.
pub trait Memory {
    /// How many bytes at the start of `range`, which is whole pages, can be read.
    fn readable(&self, range: Range) -> u64;

    /// How many bytes at the start of `range`, of which not even the first page can be read, are
    /// known to be like that: whole pages, a page at least.
    fn unreadable(&self, _range: Range) -> u64 {
        PAGE_BYTES
    }

    /// The bytes of `range`, which can be read, where a device can fetch them as well.
    /// Nothing writes there any more. At address 0, one page at a time.
    fn bytes(&self, range: Range) -> &[u8];
}

/// Memory that something may write while it is dumped: a CPU that could not be stopped, or a
/// device with requests in flight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moving<'a> {
    /// All of it may be written.
    pub all: bool,
    /// These parts of it may be.
    pub ranges: &'a [Range],
}

impl Moving<'_> {
    /// Returns true if some of `range` may be written.
    #[must_use]
    pub fn touches(&self, range: Range) -> bool {
        self.all || self.ranges.iter().any(|part| part.overlaps(&range))
    }
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
    /// The disks, and what is free of their slots.
    pub lanes: Lanes<'a>,
    /// Time and the console.
    pub host: &'a dyn Host,
    /// The crashed memory.
    pub memory: &'static dyn Memory,
    /// When to stop, in ns that the machine ran ([`Host::running_ns`]).
    pub deadline_ns: u64,
    /// Bytes of memory in a chunk that is stored as it is.
    pub chunk_bytes: u64,
    /// How far it is, for whoever comes after a fault.
    pub ledger: &'a Ledger,
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
    pub progress: StageProgress,
    /// Who compresses and takes checksums; `None` where the writing CPU does all of it.
    pub crew: Option<&'a mut WorkerPool>,
    /// Bytes of memory in a chunk that is compressed.
    pub pack_bytes: u64,
    /// Whether the crew is asked at all: not in the first stage, which is sealed before
    /// others have woken up.
    pub sharing: bool,
    /// Bytes of memory that jobs of the crew are about, which take at most so much room.
    pub promised: u64,
    /// When compressed memory last came off the crew, or a job of it was the first.
    pub packed_ns: u64,
    /// Memory that something may write while it is dumped.
    pub moving: Moving<'a>,
    /// Where such memory is copied to before it is stored; `None` without room for that.
    pub still: Option<Buffers<'a>>,
    /// Decides between raw and compressed; `None` where that was asked for.
    pub auto: Option<Auto>,
    /// Whether it was said that the other disk is gone.
    pub loss_told: bool,
    /// Whether it was said that no more chunks are compressed, for want of room to list them.
    pub budget_told: bool,
    /// Memory that could not be read, as far as there is room to list it.
    pub holes: heapless::Vec<Range, MAX_HOLES>,
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
    ) -> Result<Result<(), (End, u64)>, StorageError> {
        let mut at = run.start;
        // Zero pages before `at` that are in no chunk and in no piece yet.
        let mut zeros = 0;
        if !self.begin(at) {
            return Ok(Err((End::TooMany, at)));
        }
        while at < run.end() {
            self.show();
            if self.host.running_ns() >= self.deadline_ns {
                return Ok(Err((End::Deadline, self.end(at, zeros))));
            }
            // No reference goes to address 0; that page is a copy and goes alone.
            let most = if at == 0 { PAGE_BYTES } else { self.chunk_bytes };
            let mut window = Range { start: at, bytes: most.min(run.end() - at) };
            if self.moving.touches(window) {
                // As large as what it is copied to.
                window.bytes = window.bytes.min(MAX_CHUNK_BYTES);
            }
            let readable = self.memory.readable(window);
            if readable == 0 {
                let gap = self.memory.unreadable(window).min(window.bytes).max(PAGE_BYTES);
                self.end(at, zeros);
                zeros = 0;
                self.skip(Range { start: at, bytes: gap });
                at += gap;
                if !self.begin(at) {
                    return Ok(Err((End::TooMany, at)));
                }
                continue;
            }
            let memory = self.memory;
            let bytes = memory.bytes(Range { start: at, bytes: readable });
            let lead = scan::leading_zeros(bytes);
            // Behind that, zero pages are no reason for another piece: the memory of a stage comes
            // in runs, each of which needs one.
            let cut = self.piece_count < self.lists.pieces.len() / 2;
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
            let way = self.way(bytes.get(lead as usize..).unwrap_or_default())?;
            let most = match way {
                Way::Raw => readable,
                Way::Lz4 => readable.min(self.pack_bytes.max(lead + PAGE_BYTES)),
            };
            let rest = bytes.get(lead as usize..most as usize).unwrap_or_default();
            let data = lead + scan::leading_data(rest);
            let chunk = Range { start: at, bytes: data };
            self.lanes.kept = reserve(self.piece_count + 1, self.chunk_count + 2);
            if !self.lanes.fit(self.promised + data) {
                // What is being compressed may take less than was promised.
                self.finish()?;
                if !self.lanes.fit(data) {
                    return Ok(Err((End::SlotFull, self.end(at, 0))));
                }
            }
            let bytes = bytes.get(..data as usize).unwrap_or_default();
            if let Err(end) = self.store(way, chunk, bytes)? {
                return Ok(Err((end, self.end(at, 0))));
            }
            at += data;
        }
        self.end(at, zeros);
        Ok(Ok(()))
    }

    /// Zero pages that are not worth a piece of their own: a chunk that takes no room.
    fn zeros(&mut self, range: Range) -> Result<(), End> {
        let nowhere = Spot { area: chunk_area::OWN, offset: 0 };
        self.list(range).map(|index| self.fill(index, chunk_kind::ZERO, nowhere, 0, None))
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
        self.note();
        true
    }

    /// Ends the present piece with the zero bytes before `at`; hands `at` through.
    fn end(&mut self, at: u64, zeros: u64) -> u64 {
        if let Some(piece) = self.present() {
            piece.zero_bytes = zeros;
            if piece.file_bytes + zeros == 0 {
                self.piece_count -= 1;
                self.note();
            }
        }
        self.counts.memory += zeros;
        self.counts.zero += zeros;
        at
    }

    /// How far it is.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        Mark { chunks: self.chunk_count, pieces: self.piece_count, at: self.lanes.main.at }
    }

    /// A stage begins, which a fault would close. Not one that two disks share: what is on the
    /// other is not known to be durable before the stage is sealed there, so what was sealed
    /// has to do.
    pub fn begin_stage(&self, index: u32, kind: u32) {
        if self.lanes.is_alone() {
            self.ledger.begin(index, kind);
        } else {
            self.ledger.hold();
        }
    }

    /// Says how far it is, to whoever comes after a fault.
    fn note(&self) {
        self.ledger.set(self.mark());
    }

    fn present(&mut self) -> Option<&mut Piece> {
        self.lists.pieces.get_mut(self.piece_count.checked_sub(1)?)
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
    /// in requests of at most `most` bytes, and flushes it. Returns how many bytes that were.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn send_again(&mut self, most: usize) -> Result<u64, StorageError> {
        let mut bytes = 0;
        for index in 0..self.chunk_count {
            let Some(&entry) = self.lists.chunks.get(index) else { break };
            if entry.kind == chunk_kind::RAW {
                let range = Range { start: entry.address, bytes: u64::from(entry.memory_bytes) };
                let memory = self.memory;
                let mut spot = Spot { area: entry.area, offset: entry.offset };
                for part in memory.bytes(range).chunks(most.max(1)) {
                    self.send(Sending { spot, done: 0 }, part)?;
                    spot.offset += part.len() as u64;
                }
                bytes += range.bytes;
            }
        }
        self.lanes.drain()?;
        self.lanes.flush()?;
        Ok(bytes)
    }

    /// Takes the checksum of every chunk that has one once more, and returns of how many bytes
    /// that was, and how many of them are not what they were.
    #[must_use]
    pub fn check_again(&self) -> (u64, usize) {
        let stored = self.table().iter().filter(|entry| entry.kind != chunk_kind::ZERO);
        stored.fold((0, 0), |(bytes, changed), entry| {
            let range = Range { start: entry.address, bytes: u64::from(entry.memory_bytes) };
            let hash = ChunkEntry::hash(self.memory.bytes(range));
            let same = entry.bind(hash, &self.lanes.main.open) == entry.checksum;
            (bytes + range.bytes, changed + usize::from(!same))
        })
    }

    /// Appends a header through memory of the driver, and returns its offset in the slot.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, StorageError> {
        self.lanes.main.append(bytes)
    }

    /// Appends the table of all chunks so far, and returns its offset in the slot.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn append_table(&mut self) -> Result<u64, StorageError> {
        let table = self.lists.chunks.get(..self.chunk_count).unwrap_or_default();
        self.lanes.main.append(table.as_bytes())
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
