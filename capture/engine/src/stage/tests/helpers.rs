//! Helpers for the tests: other CPUs, in one thread; a slot.

use std::cell::Cell;

use desk::Desk;
use lz4_flex::block::CompressTable;
use storage::area::{SlotLocation, StorageError, choose_place, find_area};
use storage::fake::FakeDisk;

use super::BYTES;
use crate::chunk_sizes::ChunkSizes;
use crate::worker_pool::{self, DESKS, Helpers, Job, WorkerPool, buffer_bytes};

/// Helpers that work in the moment they are woken, and of which every so many jobs one is
/// begun and never done.
struct Instant {
    desks: &'static [Desk<Job>],
    stuck_every: usize,
    woken: Cell<usize>,
}

impl Helpers for Instant {
    fn count(&self, lost: usize) -> usize {
        3_usize.saturating_sub(lost)
    }

    fn worked(&self) -> usize {
        1
    }

    fn wake(&self, _lost: usize) {
        self.woken.set(self.woken.get() + 1);
        if self.woken.get().is_multiple_of(self.stuck_every) {
            let job = self.desks.iter().find_map(Desk::claim);
            std::mem::forget(job.expect("whoever wakes has put something down"));
        } else if !self.woken.get().is_multiple_of(3) {
            // Every third is left to the CPU that writes.
            worker_pool::work(self.desks, Some(&mut CompressTable::large()), || ());
        }
    }
}

/// A crew of such helpers.
pub fn crew(stuck_every: usize) -> WorkerPool {
    let desks: &'static [Desk<Job>] = Box::leak(Box::new([const { Desk::new() }; DESKS]));
    let helpers = Box::leak(Box::new(Instant { desks, stuck_every, woken: Cell::new(0) }));
    let table: &'static mut _ = Box::leak(Box::new(CompressTable::large()));
    let mut crew = WorkerPool::new(desks, helpers, Some(table));
    for _ in 0..6 {
        crew.give_back(
            vec![0; buffer_bytes(ChunkSizes::new(BYTES, true, u64::MAX).packed_bytes)].leak(),
        );
    }
    crew
}

/// The slot that a dump on `disk` would go to.
pub fn find_place(disk: &mut FakeDisk, overwrite: bool) -> Result<SlotLocation, StorageError> {
    let area = find_area(disk)?.header;
    choose_place(disk, &area, overwrite, &mut |_| ())
}
