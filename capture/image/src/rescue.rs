//! After a fault of the image itself: the stage that was being written is closed, so that the
//! dump on the disk says how it ended and holds what had been written.
//!
//! Everything this takes is put down here beforehand, apart from the flow that is interrupted:
//! the dump's slot and header, how far the log has come, where its lists lie. The disk is lent
//! through here, so that it is known whether a call to it was under way; then its driver may
//! have been in the middle of a change, and it is not touched any more.

use block::{Accepted, BlockDevice, Error, Identity, Source};
use capture_engine::close::{self, Case, Cause, CloseError, InterruptedLists};
use capture_engine::crash::SourcedMemory;
use capture_engine::ledger::Ledger;
use capture_engine::stream::Piece;
use capture_engine::used::UsedFrames;
use machine::capture::after::{ForGood, Lent, Loan, Remains};
use machine::capture::cell::TryCell;
use machine::capture::memory;
use storage::amount::Mib;
use vmcore_format::PAGE_BYTES;
use vmcore_format::area::{ChunkEntry, StageSeal, stage_kind};

use crate::bare::Bare;
use crate::console::say;
use crate::physical::Dumped;
use crate::{finish, hw_watchdog};

/// How far the log has come.
pub static LEDGER: Ledger = Ledger::new();

/// The dump that is being written.
static CASE: TryCell<Option<Case>> = TryCell::new(None);

/// The disk it is written to.
static DISK: Lent<AnyDisk> = Lent::new();

/// A disk of whatever kind.
struct AnyDisk;

impl Loan for AnyDisk {
    type Of<'a> = dyn BlockDevice + 'a;
}

/// Where the lists of the log lie, and the memory that is dumped.
#[derive(Clone, Copy)]
struct Lists {
    chunks: Remains<ChunkEntry>,
    pieces: Remains<Piece>,
    memory: &'static SourcedMemory<Dumped>,
}

static LISTS: TryCell<Option<Lists>> = TryCell::new(None);

/// Remembers where the lists of the log lie.
pub fn remember(
    chunks: &mut &'static mut [ChunkEntry],
    pieces: &mut &'static mut [Piece],
    memory: &'static SourcedMemory<Dumped>,
) {
    let lists = Lists { chunks: Remains::of(chunks), pieces: Remains::of(pieces), memory };
    LISTS.with(|place| *place = Some(lists));
}

/// Has the dump of `case` written to `disk` by `write`, which is given another way to the
/// same disk.
pub fn lend<R>(
    disk: &mut dyn BlockDevice,
    case: Case,
    write: impl FnOnce(&mut dyn BlockDevice) -> R,
) -> R {
    // What is known is about a disk before this one.
    LEDGER.hold();
    CASE.with(|place| *place = Some(case));
    let mut loan = OnLoan { identity: disk.identity().clone() };
    DISK.lend(disk, || write(&mut loan))
}

/// Closes the stage that was being written when all else was `over`; `fault` is what happened.
pub fn close(over: &ForGood, fault: &str) {
    let case = CASE.with(|case| *case).flatten();
    let (Some(case), Some(lists), Some(open)) =
        (case, LISTS.with(|lists| *lists).flatten(), LEDGER.open())
    else {
        return;
    };
    hw_watchdog::feed();
    let kind = stage_kind::name(open.kind);
    match DISK.with(|disk| close_on(disk, &case, over, lists, fault)) {
        Some(Ok(seal)) => {
            finish::keep_closed(seal.kind);
            say!(
                "capture: closed stage `{kind}` after the fault: {} of memory, {} stored",
                Mib(seal.memory_bytes),
                Mib(seal.stored_bytes),
            );
        }
        Some(Err(why)) => say!("capture: stage `{kind}` is not closed: {why}"),
        None => say!("capture: stage `{kind}` is not closed: its disk was being spoken to"),
    }
}

fn close_on(
    disk: &mut dyn BlockDevice,
    case: &Case,
    over: &ForGood,
    lists: Lists,
    fault: &str,
) -> Result<StageSeal, CloseError> {
    let used = UsedFrames::find(&case.crash, lists.memory);
    let used = used.as_ref().map(|used| case.plan.extents.adapt(used));
    let left = LeftBehind { over, lists };
    close::close(disk, &Bare, case, &LEDGER, &left, used, Cause::Fault(fault))
}

/// Finds so many bytes of memory, all zero.
pub fn memory(bytes: usize) -> Option<&'static mut [u8]> {
    let pages = memory::pages(bytes.div_ceil(PAGE_BYTES as usize))?;
    pages.fill(0);
    Some(pages)
}

/// What the interrupted flow has left.
struct LeftBehind<'a> {
    over: &'a ForGood,
    lists: Lists,
}

impl InterruptedLists for LeftBehind<'_> {
    fn chunk(&self, index: usize) -> Option<ChunkEntry> {
        self.lists.chunks.get(self.over, index)
    }

    fn piece(&self, index: usize) -> Option<Piece> {
        self.lists.pieces.get(self.over, index)
    }

    fn memory(&self, bytes: usize) -> Option<&'static mut [u8]> {
        self::memory(bytes)
    }
}

/// The disk on loan: each call goes to it, marked as being under way.
struct OnLoan {
    identity: Identity,
}

impl BlockDevice for OnLoan {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error> {
        DISK.with(|disk| disk.submit_write(offset, source)).unwrap_or(Err(Error::GivenUp))
    }

    fn poll(&mut self) -> Result<u64, Error> {
        DISK.with(|disk| disk.poll()).unwrap_or(Err(Error::GivenUp))
    }

    fn in_flight(&self) -> usize {
        DISK.with(|disk| disk.in_flight()).unwrap_or(0)
    }

    fn is_reading(&self, source: Source) -> bool {
        DISK.with(|disk| disk.is_reading(source)).unwrap_or(true)
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        DISK.with(|disk| disk.write(offset, from)).unwrap_or(Err(Error::GivenUp))
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        DISK.with(|disk| disk.read(offset, into)).unwrap_or(Err(Error::GivenUp))
    }

    fn start_flush(&mut self) -> Result<Accepted, Error> {
        DISK.with(|disk| disk.start_flush()).unwrap_or(Err(Error::GivenUp))
    }

    fn flush(&mut self) -> Result<(), Error> {
        DISK.with(|disk| disk.flush()).unwrap_or(Err(Error::GivenUp))
    }
}
