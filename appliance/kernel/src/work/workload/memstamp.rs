//! `memstamp`: fills nearly all free memory with pages that know where they are.
//!
//! Each round checks what the round before wrote and stamps every page anew. Each slice of
//! memory publishes how far its round has got and which page is being written, so that a
//! dump taken at any moment can be checked page by page.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use epitaph_workload::{Context, Digest, Parameter, Setup, SetupError, Workload};
use handoff::WorkloadTable;
use memstamp::{NO_WRITER, Pattern, StampSlice};

use crate::base::memory::{self, PageRun};
use crate::log;

/// Slices at most; each is one unit of work.
const MAX_SLICES: usize = 2048;
/// Pages in a slice, unless memory is so large that the slices have to be longer.
const SLICE_PAGES: u64 = 512;
/// Percent of free memory that is stamped, unless it is to be less; the rest is for whoever comes
/// later.
const PERCENT: u64 = 90;
/// Pages between two signs of life.
const BEAT_PAGES: u64 = 32;

/// [`StampSlice`], as it is written while others may read it.
#[repr(C)]
struct Published {
    start: AtomicU64,
    pages: AtomicU32,
    writer: AtomicU32,
    /// `epoch` in the low half, `next` in the high half: they change together.
    progress: AtomicU64,
}

const _: () = {
    assert!(size_of::<Published>() == size_of::<StampSlice>());
    assert!(core::mem::offset_of!(StampSlice, epoch) == 16);
    assert!(core::mem::offset_of!(StampSlice, next) == 20);
};

impl Published {
    const fn new() -> Self {
        Self {
            start: AtomicU64::new(0),
            pages: AtomicU32::new(0),
            writer: AtomicU32::new(NO_WRITER),
            progress: AtomicU64::new(0),
        }
    }

    fn publish(&self, epoch: u64, next: u64) {
        self.progress.store(epoch | next << 32, Ordering::Release);
    }
}

static TABLE: [Published; MAX_SLICES] = [const { Published::new() }; MAX_SLICES];
static RUNS: [PageRun; MAX_SLICES] = [const { PageRun::new() }; MAX_SLICES];
static SLICES: AtomicU64 = AtomicU64::new(0);
static PAGES: AtomicU64 = AtomicU64::new(0);
/// Pages repeat their first half, for whoever measures compression.
static REPEAT: AtomicBool = AtomicBool::new(false);

// The size that an entry has when the hand-off says 0.
const _: () = assert!(size_of::<StampSlice>() == WorkloadTable::DEFAULT_ENTRY_BYTES as usize);

/// Returns where the [`StampSlice`]s are, for the hand-off.
#[must_use]
pub fn table() -> WorkloadTable {
    let address = TABLE.as_ptr() as u64;
    // At most `MAX_SLICES`.
    match SLICES.load(Ordering::Acquire) as u32 {
        0 => WorkloadTable::default(),
        count => WorkloadTable { address, count, entry_bytes: 0 },
    }
}

/// The workload.
#[derive(Debug)]
pub struct Memstamp;

impl Workload for Memstamp {
    fn name(&self) -> &'static str {
        "memstamp"
    }

    fn parameters(&self) -> &'static [Parameter] {
        const REPEAT: Parameter = Parameter { name: "repeat", default: 0, lowest: 0, highest: 1 };
        const SHARE: Parameter =
            Parameter { name: "percent", default: PERCENT, lowest: 1, highest: PERCENT };
        &[REPEAT, SHARE]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        REPEAT.store(setup.value("repeat") == 1, Ordering::Relaxed);
        let (free, _) = memory::counts();
        let wanted = free * setup.value("percent") / 100;
        let mut length = SLICE_PAGES.max(wanted.div_ceil(MAX_SLICES as u64 - 64));
        let mut slices = 0;
        let mut pages = 0;
        while pages < wanted && slices < MAX_SLICES {
            if !RUNS[slices].fill(length.min(wanted - pages)) {
                // No run of this length is left: take shorter ones, down to a page.
                length /= 2;
                if length == 0 {
                    break;
                }
                continue;
            }
            let (start, filled) = RUNS[slices].extent();
            TABLE[slices].start.store(start, Ordering::Relaxed);
            TABLE[slices].pages.store(filled as u32, Ordering::Relaxed);
            pages += filled;
            slices += 1;
        }
        if slices == 0 {
            return Err(SetupError::new(format_args!(
                "no free memory to stamp; give the machine more"
            )));
        }
        PAGES.store(pages, Ordering::Relaxed);
        SLICES.store(slices as u64, Ordering::Release);
        let share = pages * 100 / free.max(1);
        log!("memstamp: {pages} pages in {slices} slices, {share} % of free memory");
        Ok(slices as u64)
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        let round = context.round();
        let (run, published) = (&RUNS[unit as usize], &TABLE[unit as usize]);
        let (_, pages) = run.extent();
        let epoch = round + 1;
        let pattern = if REPEAT.load(Ordering::Relaxed) { Pattern::Repeat } else { Pattern::Plain };
        published.writer.store(context.cpu() as u32, Ordering::Relaxed);
        published.publish(epoch, 0);
        let mut right = 0;
        for index in 0..pages {
            if index % BEAT_PAGES == 0 {
                context.beat();
            }
            let intact = run.with_page(index, |page, address| {
                let intact = round == 0 || memstamp::check(page, address, round).is_ok();
                memstamp::fill(page, address, epoch, pattern);
                intact
            });
            right += u64::from(intact == Some(true));
            published.publish(epoch, index + 1);
        }
        published.writer.store(NO_WRITER, Ordering::Relaxed);
        Digest::number(right)
    }

    fn expected(&self, _round: u64) -> Digest {
        Digest::number(PAGES.load(Ordering::Relaxed))
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let slices = (SLICES.load(Ordering::Relaxed) as usize).min(MAX_SLICES);
        let writing = TABLE[..slices]
            .iter()
            .filter(|slice| slice.writer.load(Ordering::Relaxed) != NO_WRITER);
        let pages = PAGES.load(Ordering::Relaxed);
        write!(words, "{pages} pages in {slices} slices, {} being written", writing.count())
    }
}
