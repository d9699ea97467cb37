//! The flight recorder: what every CPU did last, in memory, for a dump.
//!
//! Each CPU has a ring of its own and writes no other, so nothing is shared and nothing is
//! waited for: a place is taken by one instruction that an interrupt cannot split, and then
//! filled. An interrupt that comes in between takes the next place. The layout, and how a
//! reader tells an event that was never finished, is `handoff::trace`.
//!
//! Recording is a handful of stores to memory that only this CPU writes. It goes on until
//! the machine stops: the stop itself is recorded as well.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use handoff::trace::{EventKind, RING_MAGIC, RingHeader, TraceEvent, TraceRange};

use crate::cell::SetOnce;
use crate::cpu;
use crate::identity::{self, Moment};

/// Events a ring holds: a power of two, so that a place is found by a mask.
pub const SLOTS: u64 = 2048;
/// Bytes of a ring.
pub const RING_BYTES: u64 = size_of::<RingHeader>() as u64 + SLOTS * EVENT_WORDS * 8;
const EVENT_WORDS: u64 = size_of::<TraceEvent>() as u64 / 8;
const RING_WORDS: usize = RING_BYTES as usize / 8;
const HEADER_WORDS: usize = size_of::<RingHeader>() / 8;
/// Word of the header that counts events.
const BEGUN: usize = 1;

const _: () = assert!(SLOTS.is_power_of_two() && EVENT_WORDS == 4);

static RINGS: SetOnce<&'static [AtomicU64]> = SetOnce::new();
static RECORDING: AtomicBool = AtomicBool::new(false);

/// Begins to record into `memory`, which is zero: a ring for each CPU that fits.
pub fn begin(memory: &'static [AtomicU64]) {
    for (index, ring) in memory.chunks_exact(RING_WORDS).enumerate() {
        ring[0].store(u64::from_le_bytes(RING_MAGIC), Ordering::Relaxed);
        ring[2].store(index as u64 | 1 << 32, Ordering::Relaxed);
    }
    if RINGS.set(memory) {
        RECORDING.store(true, Ordering::Release);
    }
}

/// Goes on recording, or stops for a while; without rings nothing is ever recorded. A CPU
/// may still finish the event it has begun.
pub fn go_on(recording: bool) {
    RECORDING.store(recording && RINGS.get().is_some(), Ordering::SeqCst);
}

/// Events that all CPUs have ever begun.
#[must_use]
pub fn begun() -> u64 {
    let rings = RINGS.get().into_iter().flat_map(|memory| memory.chunks_exact(RING_WORDS));
    rings.map(|ring| ring[BEGUN].load(Ordering::Relaxed)).sum()
}

/// Where the rings are.
#[must_use]
pub fn range() -> TraceRange {
    RINGS.get().map_or(TraceRange::default(), |memory| TraceRange {
        address: memory.as_ptr() as u64,
        ring_bytes: RING_BYTES as u32,
        rings: (memory.len() / RING_WORDS) as u32,
    })
}

/// Records an event of the running CPU; `kind` is one of `handoff::trace::event`, which says
/// what the two words are.
#[inline]
pub fn record(kind: EventKind, first: u64, second: u64) {
    if RECORDING.load(Ordering::Relaxed) {
        write(identity::moment(), kind, first, second);
    }
}

/// The same for whoever knows the moment already.
#[inline]
pub fn record_at(moment: Moment, kind: EventKind, first: u64, second: u64) {
    if RECORDING.load(Ordering::Relaxed) {
        write(moment, kind, first, second);
    }
}

#[inline(never)]
fn write(moment: Moment, kind: EventKind, first: u64, second: u64) {
    let (Some(index), Some(memory)) = (moment.cpu, RINGS.get()) else { return };
    let start = index * RING_WORDS;
    let Some(ring) = memory.get(start..start + RING_WORDS) else { return };
    let Some(begun) = ring.get(BEGUN) else { return };
    let number = cpu::count_up(begun);
    let at = HEADER_WORDS + ((number & (SLOTS - 1)) * EVENT_WORDS) as usize;
    let Some(slot) = ring.get(at..at + EVENT_WORDS as usize) else { return };
    let lap = (number / SLOTS + 1) & 0xffff_ffff;
    // Unfinished until the word that says what it is stands there. Only this CPU writes
    // here and stores become visible in their order, so the compiler is all there is to
    // hold to it.
    slot[1].store(0, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    slot[0].store(moment.tsc, Ordering::Relaxed);
    slot[2].store(first, Ordering::Relaxed);
    slot[3].store(second, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    slot[1].store(u64::from(kind.0) | lap << 32, Ordering::Relaxed);
}

/// The event of CPU `index` that is `back` events old, 0 for its last; `None` when there is
/// none, or it is just being written.
#[must_use]
pub fn event(index: usize, back: u64) -> Option<TraceEvent> {
    let start = index.checked_mul(RING_WORDS)?;
    let ring = RINGS.get()?.get(start..start + RING_WORDS)?;
    let number = ring.get(BEGUN)?.load(Ordering::Acquire).checked_sub(back + 1)?;
    let at = HEADER_WORDS + ((number & (SLOTS - 1)) * EVENT_WORDS) as usize;
    let [tsc, kind, first, second] = ring.get(at..at + EVENT_WORDS as usize)? else { return None };
    let (kind_before, lap) = (kind.load(Ordering::Acquire), number / SLOTS + 1);
    let event = TraceEvent {
        tsc: tsc.load(Ordering::Relaxed),
        kind: EventKind(kind_before as u32),
        lap: (kind_before >> 32) as u32,
        first: first.load(Ordering::Relaxed),
        second: second.load(Ordering::Relaxed),
    };
    // Whole only if nobody has begun to write over it meanwhile.
    let whole = event.kind.0 != 0
        && u64::from(event.lap) == lap & 0xffff_ffff
        && kind.load(Ordering::Acquire) == kind_before;
    whole.then_some(event)
}

/// Cycles that an event costs on the running CPU, or that it costs to find that nothing is
/// recorded: the mean over a ring full of them, which is then empty again. With interrupts
/// masked.
#[must_use]
pub fn measure() -> u64 {
    let Some(index) = identity::moment().cpu else { return 0 };
    let start = cpu::rdtsc();
    for number in 0..SLOTS {
        record(EventKind(0), number, 0);
    }
    let cycles = cpu::rdtsc().wrapping_sub(start);
    let ring = RINGS.get().and_then(|memory| memory.get(index * RING_WORDS..));
    for word in ring.iter().flat_map(|ring| ring.iter().take(RING_WORDS).skip(HEADER_WORDS)) {
        word.store(0, Ordering::Relaxed);
    }
    if let Some(begun) = ring.and_then(|ring| ring.get(BEGUN)) {
        begun.store(0, Ordering::Relaxed);
    }
    cycles / SLOTS
}
