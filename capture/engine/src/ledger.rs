//! How far the log of a slot has come, for whoever has to close it after a fault.
//!
//! The stream keeps its own counts where the compiler likes them best, and a fault may come
//! between any two instructions. So each time it has finished a change it says so here, in
//! atomics: what stands here is never ahead of what is in memory.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Chunks listed.
    pub chunks: usize,
    /// Pieces begun.
    pub pieces: usize,
    /// Offset in the slot of what comes next.
    pub at: u64,
}

/// What the last seal stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// How far it had come then.
    pub mark: Mark,
    /// CRC32 of the table of its chunks.
    pub table_crc32: u32,
}

/// A stage that is being written behind a sealed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its number, from 1: the first stage, 0, has no sealed one before it.
    pub index: u32,
    /// What it is to hold, one of `stage_kind`.
    pub kind: u32,
    /// How far it has come.
    pub mark: Mark,
    /// What stood before it.
    pub sealed: Sealed,
}

#[derive(Debug)]
struct Counts {
    chunks: AtomicUsize,
    pieces: AtomicUsize,
    at: AtomicU64,
}

impl Counts {
    const fn new() -> Self {
        Self { chunks: AtomicUsize::new(0), pieces: AtomicUsize::new(0), at: AtomicU64::new(0) }
    }

    // Each store behind everything that was written before it: a chunk that counts is listed.
    fn set(&self, mark: Mark) {
        self.chunks.store(mark.chunks, Ordering::Release);
        self.pieces.store(mark.pieces, Ordering::Release);
        self.at.store(mark.at, Ordering::Release);
    }

    fn get(&self) -> Mark {
        Mark {
            chunks: self.chunks.load(Ordering::Acquire),
            pieces: self.pieces.load(Ordering::Acquire),
            at: self.at.load(Ordering::Acquire),
        }
    }
}

/// The record itself; one for the image.
#[derive(Debug)]
pub struct Ledger {
    /// Number of the stage that can be closed; 0 while there is none.
    index: AtomicU32,
    kind: AtomicU32,
    now: Counts,
    sealed: Counts,
    table_crc32: AtomicU32,
    /// Record blocks of this slot that were passed over because no seal could be written there.
    skipped: AtomicU32,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// Of a log that does not exist yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            index: AtomicU32::new(0),
            kind: AtomicU32::new(0),
            now: Counts::new(),
            sealed: Counts::new(),
            table_crc32: AtomicU32::new(0),
            skipped: AtomicU32::new(0),
        }
    }

    /// Stage `index`, of `kind`, is being written from now on. The first one, 0, cannot be
    /// closed: there is nothing yet that a reader could begin with.
    pub fn begin(&self, index: u32, kind: u32) {
        self.kind.store(kind, Ordering::Release);
        self.index.store(index, Ordering::Release);
    }

    /// Nothing can be closed: before a seal is written, and for as long as nobody knows whether
    /// it reached the disk, since the one and the other would go to the same place.
    pub fn hold(&self) {
        self.index.store(0, Ordering::Release);
    }

    /// Returns the record block for the seal of stage `index`, counted like stages from 0.
    #[must_use]
    pub fn seal_block(&self, index: u32) -> u32 {
        index.saturating_add(self.skipped.load(Ordering::Acquire))
    }

    /// Sets how many record blocks were passed over; 0 when a slot was opened.
    pub fn set_skipped(&self, blocks: u32) {
        self.skipped.store(blocks, Ordering::Release);
    }

    /// What has been written is sealed as far as `mark`, under a table of that checksum.
    pub fn sealed(&self, mark: Mark, table_crc32: u32) {
        self.now.set(mark);
        self.sealed.set(mark);
        self.table_crc32.store(table_crc32, Ordering::Release);
    }

    /// It has come so far.
    pub fn set(&self, mark: Mark) {
        self.now.set(mark);
    }

    /// The stage that can be closed.
    #[must_use]
    pub fn open(&self) -> Option<Open> {
        let index = self.index.load(Ordering::Acquire);
        (index > 0).then(|| Open {
            index,
            kind: self.kind.load(Ordering::Acquire),
            mark: self.now.get(),
            sealed: Sealed {
                mark: self.sealed.get(),
                table_crc32: self.table_crc32.load(Ordering::Acquire),
            },
        })
    }
}
