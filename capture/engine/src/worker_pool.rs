//! Compressing, shared out to every CPU that has time.
//!
//! The CPU that writes the dump puts jobs down on desks ([`Desk`]), each with the memory it
//! is about and a buffer for the result. Helpers take what waits, in any order; the writing
//! CPU does the same whenever it would only wait. So with no helper at all everything is done
//! by one CPU, in the same code.
//!
//! A helper may be lost: a machine check, an NMI that does not end, a fault. Its job is then
//! given up after a while and its memory stored as it is; desk and buffer stay with the
//! helper, should it ever write to them.

use desk::Desk;
use lz4_flex::block::CompressTable;
use vmcore_format::area::{ChunkEntry, LZ4_BLOCK_BYTES};

use crate::codec;
use crate::host::Host;

/// Jobs that lie on desks at the same time.
pub const DESKS: usize = 24;
/// How long a helper may take for a job, from when that is first noticed: a thousand times
/// what it takes, since a virtual CPU may be kept waiting itself.
const PATIENCE_NS: u64 = 2_000_000_000;

/// How often a helper looks for a job before it goes to sleep, from which only an interrupt wakes
/// it. More looks would take time from the others where there are fewer CPUs than it seems.
const LOOKS: u32 = 300;

/// Memory a result is compressed into.
pub type Buffer = &'static mut [u8];

/// Bytes of a buffer that every chunk of `chunk_bytes` that shrinks can be compressed into: a
/// block is begun while less than the chunk is in it.
#[must_use]
pub const fn buffer_bytes(chunk_bytes: u64) -> usize {
    (chunk_bytes + LZ4_BLOCK_BYTES) as usize
}

/// Memory to take the checksum of and to compress, and a buffer for that.
#[derive(Debug)]
pub struct Job {
    memory: &'static [u8],
    out: Buffer,
    hash: u64,
    stored: Option<usize>,
}

impl Job {
    const fn new(memory: &'static [u8], out: Buffer) -> Self {
        Self { memory, out, hash: 0, stored: None }
    }

    /// Does it. Without a table nothing is compressed.
    fn run(&mut self, table: Option<&mut CompressTable>) {
        self.hash = ChunkEntry::hash(self.memory);
        self.stored = table.and_then(|table| codec::pack(table, self.memory, self.out));
    }
}

/// Does the jobs that wait on `desks` until none has come for a while, with a compressor's
/// `table`; calls `begin` before each.
pub fn work(desks: &[Desk<Job>], mut table: Option<&mut CompressTable>, begin: impl Fn()) {
    let mut looks = 0;
    while looks < LOOKS {
        let Some(mut job) = desks.iter().find_map(Desk::claim) else {
            looks += 1;
            core::hint::spin_loop();
            continue;
        };
        begin();
        job.run(table.as_deref_mut());
        looks = 0;
    }
}

/// How many of `helpers` are to help, when they and the writing CPU, all of them busy for
/// `watched_ns`, had a core for `ran_ns` together.
///
/// More CPUs than cores, as a hypervisor may give them, take turns: one that waits for its turn has
/// a job that the others wait for, and the disk's own threads want a core as well.
#[must_use]
pub const fn wanted(helpers: usize, ran_ns: u64, watched_ns: u64) -> usize {
    let cores = match ran_ns.saturating_add(watched_ns / 2).checked_div(watched_ns) {
        Some(cores) => cores as usize,
        None => return helpers,
    };
    // One core is the writing CPU's. Never nobody: a helper works while it writes.
    let most = if cores > 2 { cores - 1 } else { 1 };
    if helpers < most { helpers } else { most }
}

/// The first `most` of the helpers that have `answered`, a bit for each: one that never did is not
/// waited for, and another stands in for it.
#[must_use]
pub const fn on_call(answered: u32, most: usize) -> u32 {
    let (mut left, mut chosen) = (answered, 0);
    let mut count = 0;
    while left != 0 && count < most {
        chosen |= left & left.wrapping_neg();
        left &= left - 1;
        count += 1;
    }
    chosen
}

/// The CPUs that help.
pub trait Helpers {
    /// How many help at the same time, when `lost` of them are lost.
    fn count(&self, lost: usize) -> usize;

    /// How many of them have done something.
    fn worked(&self) -> usize;

    /// Sends one that has nothing to do to the desks, when `lost` of them are lost. Does not wait.
    fn wake(&self, lost: usize);
}

/// What a job was about, in case it never comes back.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Number of its chunk.
    pub chunk: usize,
    /// The memory.
    pub memory: &'static [u8],
    /// When somebody was first seen to be at it, 0 before that.
    seen_ns: u64,
}

/// A job that is done.
#[derive(Debug)]
pub struct Done {
    /// What it was about.
    pub order: Order,
    /// The memory's checksum.
    pub hash: u64,
    /// Bytes it was compressed into, at the start of `out`; `None` when it did not shrink.
    pub stored: Option<usize>,
    /// The buffer, to be given back.
    pub out: Buffer,
}

/// The writing CPU's side of the desks.
pub struct WorkerPool {
    desks: &'static [Desk<Job>],
    helpers: &'static dyn Helpers,
    /// The writing CPU's own.
    table: Option<&'static mut CompressTable>,
    /// Those that lie on no desk; a device may still be fetching from them.
    buffers: heapless::Vec<Buffer, DESKS>,
    orders: [Option<Order>; DESKS],
    lost: usize,
}

impl WorkerPool {
    /// Nobody compresses before there are [buffers](Self::give_back) and a `table`.
    pub fn new(
        desks: &'static [Desk<Job>],
        helpers: &'static dyn Helpers,
        table: Option<&'static mut CompressTable>,
    ) -> Self {
        let buffers = heapless::Vec::new();
        Self { desks, helpers, table, buffers, orders: [None; DESKS], lost: 0 }
    }

    /// How many CPUs work at the same time at most, the writing one included.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.helpers.count(self.lost) + 1
    }

    /// How many CPUs have worked, the writing one included.
    #[must_use]
    pub fn worked(&self) -> usize {
        self.helpers.worked() + 1
    }

    /// Whether there is what it takes to compress.
    #[must_use]
    pub fn can_pack(&self) -> bool {
        self.table.is_some() && (!self.buffers.is_empty() || self.outstanding() > 0)
    }

    /// Jobs that are not back yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.orders.iter().flatten().count()
    }

    /// A buffer that no device fetches from, by what `fetched` says of its bytes.
    pub fn buffer(&mut self, fetched: impl Fn(&[u8]) -> bool) -> Option<Buffer> {
        let last = self.buffers.pop()?;
        if !fetched(last) {
            return Some(last);
        }
        match self.buffers.iter_mut().find(|buffer| !fetched(buffer)) {
            Some(free) => Some(core::mem::replace(free, last)),
            None => {
                self.give_back(last);
                None
            }
        }
    }

    /// Adds a buffer, or gives one back.
    pub fn give_back(&mut self, buffer: Buffer) {
        // As many places as desks; a buffer more than that is of no use.
        let _ = self.buffers.push(buffer);
    }

    /// Compresses the start of `memory` at once, to see how well that goes; returns of how
    /// many bytes, into how many.
    pub fn look(&mut self, memory: &[u8], out: &mut [u8]) -> (usize, usize) {
        let some = memory.get(..LZ4_BLOCK_BYTES as usize).unwrap_or(memory);
        let stored = self.table.as_deref_mut().and_then(|table| codec::pack(table, some, out));
        (some.len(), stored.unwrap_or(some.len()))
    }

    /// Puts a job down: the checksum of `memory`, which is of chunk `chunk`, and what it is
    /// when compressed, into `out`.
    ///
    /// # Errors
    /// Hands the buffer back when all desks are in use.
    pub fn give(&mut self, chunk: usize, memory: &'static [u8], out: Buffer) -> Result<(), Buffer> {
        let mut job = Job::new(memory, out);
        for (desk, order) in self.desks.iter().zip(&mut self.orders) {
            if order.is_some() {
                continue;
            }
            match desk.put(job) {
                Ok(()) => {
                    *order = Some(Order { chunk, memory, seen_ns: 0 });
                    self.helpers.wake(self.lost);
                    return Ok(());
                }
                // One that was given up.
                Err(back) => job = back,
            }
        }
        Err(job.out)
    }

    /// A job that is done.
    pub fn collect(&mut self) -> Option<Done> {
        for (desk, place) in self.desks.iter().zip(&mut self.orders) {
            if let Some(order) = *place
                && let Some(Job { out, hash, stored, .. }) = desk.collect()
            {
                *place = None;
                return Some(Done { order, hash, stored, out });
            }
        }
        None
    }

    /// Does a job that nobody has begun; false when there is none.
    pub fn help(&mut self) -> bool {
        let Some(mut job) = self.desks.iter().find_map(Desk::claim) else { return false };
        job.run(self.table.as_deref_mut());
        true
    }

    /// A job that a helper has been at for too long: it is given up, and with it the helper,
    /// the desk and the buffer. `now_ns` is of [`Host::running_ns`].
    pub fn overdue(&mut self, now_ns: u64) -> Option<Order> {
        for (desk, place) in self.desks.iter().zip(&mut self.orders) {
            let Some(order) = place else { continue };
            if !desk.is_taken() {
                continue;
            }
            if order.seen_ns == 0 {
                order.seen_ns = now_ns.max(1);
            } else if now_ns.saturating_sub(order.seen_ns) > PATIENCE_NS && desk.give_up() {
                self.lost += 1;
                return place.take();
            }
        }
        None
    }

    /// Waits for all jobs and drops what they made; for those of a disk that failed.
    pub fn recall(&mut self, host: &dyn Host) {
        // Each job is done, or given up when its time is over.
        while self.outstanding() > 0 {
            if let Some(Done { out, .. }) = self.collect() {
                self.give_back(out);
            } else if self.overdue(host.running_ns()).is_none() && !self.help() {
                core::hint::spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{on_call, wanted};

    #[test]
    fn as_many_help_as_there_are_cores_for() {
        let helpers = |helpers, tenths: u64| wanted(helpers, tenths * 800_000, 8_000_000);
        // Four CPUs on two cores, of which others take a little.
        assert_eq!((helpers(3, 20), helpers(3, 18), helpers(3, 22)), (1, 1, 1));
        assert_eq!((helpers(3, 40), helpers(3, 36), helpers(3, 30)), (3, 3, 2));
        // On one, and where the clock stood still.
        assert_eq!((helpers(3, 10), helpers(3, 0), wanted(3, 0, 0)), (1, 1, 3));
        // Never more than there are.
        assert_eq!((helpers(1, 90), helpers(0, 10)), (1, 0));
    }

    #[test]
    fn another_stands_in_for_one_that_never_answered() {
        assert_eq!((on_call(0b111, 1), on_call(0b110, 1), on_call(0b1010, 2)), (0b1, 0b10, 0b1010));
        // Nor for one that was lost: as many more are on call.
        assert_eq!((on_call(0b111, 2), on_call(0b111, 9), on_call(0, 1)), (0b11, 0b111, 0));
    }
}
