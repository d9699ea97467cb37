//! `blkverify`: writes every block of a data disk and reads it back, many at a time.
//!
//! `workload=blkverify,blocks=1024`. The disk is a virtio one beside that of the dump, blank
//! or labelled by an earlier run; any other is left alone (see [`crate::work::disk`]). A unit is 64
//! blocks: those of the round before are read and checked, then written anew, then read and
//! checked again, with up to [`WINDOW`] requests of a CPU in flight.
//!
//! What proves the result: each word of a block says which block it is of, and of which
//! round. The digest is how many blocks were right.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use block::Error;
use block::virtio::Ticket;
use epitaph_workload::{Context, Digest, Parameter, Setup, SetupError, Workload};
use heapless::Deque;
use machine::cpu;

use crate::log;
use crate::work::blocks::{self, BLOCK_BYTES};
use crate::work::disk;

/// Blocks of a unit.
const UNIT_BLOCKS: u64 = 64;
/// Requests that a CPU keeps in flight.
const WINDOW: usize = 48;

static BLOCKS: AtomicU64 = AtomicU64::new(0);
/// Blocks on their way, on all CPUs: read, and written.
static READING: AtomicU64 = AtomicU64::new(0);
static WRITING: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// The workload.
#[derive(Debug)]
pub struct Blkverify;

/// What is done with the blocks of a unit.
#[derive(Clone, Copy)]
enum Pass {
    /// Writes them for this generation.
    Write(u64),
    /// Reads them, which should be of this one.
    Check(u64),
}

/// A request under way, and the block it is for.
struct Pending {
    ticket: Ticket,
    position: u64,
}

impl Pass {
    const fn counter(self) -> &'static AtomicU64 {
        match self {
            Self::Write(_) => &WRITING,
            Self::Check(_) => &READING,
        }
    }

    /// Does it to `positions`; returns how many blocks came out right.
    fn run(self, positions: core::ops::Range<u64>, context: &Context<'_>) -> Result<u64, Error> {
        let mut pending: Deque<Pending, WINDOW> = Deque::new();
        let mut block = [0; BLOCK_BYTES];
        let (mut next, mut right) = (positions.start, 0);
        while next < positions.end || !pending.is_empty() {
            context.beat();
            let started = match next < positions.end && !pending.is_full() {
                true => self.begin(next, &mut block)?,
                false => None,
            };
            if let Some(ticket) = started {
                // There is room, as just seen.
                let _ = pending.push_back(Pending { ticket, position: next });
                self.counter().fetch_add(1, Ordering::Relaxed);
                next += 1;
            } else if let Some(oldest) = pending.front()
                && let Some(result) = take_back(&oldest.ticket, &mut block)?
            {
                result?;
                right += u64::from(self.is_right(oldest.position, &block));
                pending.pop_front();
                self.counter().fetch_sub(1, Ordering::Relaxed);
            } else {
                cpu::pause();
            }
        }
        Ok(right)
    }

    /// Starts it for one block; `None` when the disk is busy or another CPU has it.
    fn begin(self, position: u64, block: &mut [u8; BLOCK_BYTES]) -> Result<Option<Ticket>, Error> {
        let begun = disk::try_with(|disk| match self {
            Self::Write(generation) => {
                blocks::fill(block, position, generation);
                disk.write(position, block)
            }
            Self::Check(_) => disk.read(position),
        });
        Ok(begun.transpose()?.flatten())
    }

    /// Whether a block that came back is as it should be; says so when it is not.
    fn is_right(self, position: u64, block: &[u8; BLOCK_BYTES]) -> bool {
        let Self::Check(generation) = self else { return true };
        let wrong = blocks::first_wrong(block, position, generation);
        if let Some((at, found)) = wrong {
            WRONG.fetch_add(1, Ordering::Relaxed);
            log!(
                "blkverify: block {position} is WRONG at byte {at}: {found:#018x} is not of \
                 generation {generation}"
            );
        }
        wrong.is_none()
    }
}

/// Takes a request back when it is done.
fn take_back(
    ticket: &Ticket,
    block: &mut [u8; BLOCK_BYTES],
) -> Result<Option<Result<(), Error>>, Error> {
    let polled = disk::try_with(|disk| disk.poll().map(|()| disk.finish(ticket, block)));
    Ok(polled.transpose()?.flatten())
}

impl Workload for Blkverify {
    fn name(&self) -> &'static str {
        "blkverify"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter { name: "blocks", default: 1024, lowest: UNIT_BLOCKS, highest: 1 << 32 }]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        let mut refusals = disk::Refusals::new();
        let there = disk::open(&mut refusals).ok_or_else(|| {
            SetupError::new(format_args!("no disk to write to (give it a blank one): {refusals}"))
        })?;
        let blocks = setup.value("blocks").min(there);
        BLOCKS.store(blocks, Ordering::Relaxed);
        Ok(blocks.div_ceil(UNIT_BLOCKS))
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        let first = unit * UNIT_BLOCKS;
        let positions = first..(first + UNIT_BLOCKS).min(BLOCKS.load(Ordering::Relaxed));
        let generation = context.round() + 1;
        let passes =
            [Pass::Check(context.round()), Pass::Write(generation), Pass::Check(generation)];
        let mut right = 0;
        // Nothing is known of what stood there before the first round.
        for pass in passes.into_iter().skip(usize::from(context.round() == 0)) {
            match pass.run(positions.clone(), context) {
                Ok(_) if matches!(pass, Pass::Write(_)) => {}
                Ok(blocks) => right += blocks,
                Err(error) => {
                    log!("blkverify: unit {unit} FAILED: {error}");
                    break;
                }
            }
        }
        Digest::number(right)
    }

    fn expected(&self, round: u64) -> Digest {
        let checks = if round == 0 { 1 } else { 2 };
        Digest::number(BLOCKS.load(Ordering::Relaxed) * checks)
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let [reading, writing, wrong] =
            [&READING, &WRITING, &WRONG].map(|figure| figure.load(Ordering::Relaxed));
        write!(words, "{reading} reads and {writing} writes under way, {wrong} blocks wrong")
    }
}
