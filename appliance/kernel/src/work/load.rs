//! Load beside the workloads, on request: `load=SECONDS`.
//!
//! For so long the workloads go on round after round, and at signs of life of theirs, chosen
//! at random, the CPU that gave one does something else first: it takes a block off a shelf,
//! looks whether every word of it is still there, and puts another of random size in its
//! place; it interrupts a random CPU; it calls all others and waits; it changes its own
//! tick. None of this may change a digest.

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_workload::Random;
use machine::apic::{self, Ipi};
use machine::cpu;
use machine::lock::Lock;

use crate::base::{clock, cpus, xcall};
use crate::watch::lockup;
use crate::work::workload;
use crate::{log, options};

/// Blocks on the shelf.
const BLOCKS: usize = 64;
/// Words a block has at most.
const MAX_WORDS: u64 = 8192;
/// Of so many signs of life, each number below stands for one thing to do.
const CHANCES: u64 = 128;
/// How many times faster than usual a tick may come. Watchers count in ticks of their own,
/// and a threshold is at least ten times as many.
const FASTEST_TICK: u64 = 4;

/// Numbers from a seed, and the seed.
struct Block {
    seed: u64,
    words: Vec<u64>,
}

/// One CPU's block is another's to check and to give back.
static SHELF: Lock<[Option<Block>; BLOCKS]> = Lock::new("load shelf", [const { None }; BLOCKS]);

static BEATS: AtomicU64 = AtomicU64::new(0);
static CHECKED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);
static UNANSWERED: AtomicU64 = AtomicU64::new(0);
static TICKS_CHANGED: AtomicU64 = AtomicU64::new(0);

/// Whether there is time left.
pub fn goes_on() -> bool {
    options().is_some_and(|options| clock::now_ns() < options.load_s.saturating_mul(1_000_000_000))
}

/// Called at every sign of life of a workload.
pub fn beat() {
    // A workload may give one while it holds a lock, where none of this is due.
    if options().is_none_or(|options| options.load_s == 0) || !cpu::interrupts_enabled() {
        return;
    }
    let beat = BEATS.fetch_add(1, Ordering::Relaxed);
    let mut random = Random::for_unit(cpu::rdtsc(), beat, cpus::current_index() as u64);
    match random.below(CHANCES) {
        0..=15 => change_a_block(&mut random),
        16..=23 => interrupt_somebody(&mut random),
        24 => {
            CALLS.fetch_add(1, Ordering::Relaxed);
            let late = xcall::on_others(|| ()) as u64;
            UNANSWERED.fetch_add(late, Ordering::Relaxed);
        }
        25 => {
            TICKS_CHANGED.fetch_add(1, Ordering::Relaxed);
            lockup::hurry(1 + random.below(FASTEST_TICK) as u32);
        }
        _ => {}
    }
}

fn change_a_block(random: &mut Random) {
    let fresh = fill(random.next(), 1 + random.below(MAX_WORDS));
    let at = random.below(BLOCKS as u64) as usize;
    // Neither made nor checked with the lock held.
    let old = core::mem::replace(&mut SHELF.lock()[at], fresh);
    let Some(Block { seed, words }) = old else { return };
    CHECKED.fetch_add(1, Ordering::Relaxed);
    let mut numbers = Random::new(seed);
    if let Some(place) = words.iter().position(|&word| word != numbers.next()) {
        WRONG.fetch_add(1, Ordering::Relaxed);
        log!("load: WRONG: word {place} of a block of {} at {:p}", words.len(), words.as_ptr());
    }
}

/// A block of `count` words, when memory has room for it.
fn fill(seed: u64, count: u64) -> Option<Block> {
    let mut words = Vec::new();
    if words.try_reserve_exact(count as usize).is_err() {
        REFUSED.fetch_add(1, Ordering::Relaxed);
        return None;
    }
    let mut numbers = Random::new(seed);
    words.extend((0..count).map(|_| numbers.next()));
    Some(Block { seed, words })
}

fn interrupt_somebody(random: &mut Random) {
    let whom = random.below(cpus::count() as u64) as usize;
    if cpus::running(whom) {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
        apic::send(cpus::apic_id(whom), Ipi::Fixed(workload::VECTOR_WAKE));
    }
}

/// Says what was done, if anything was asked for. False: a block was not as it had been left.
pub fn finish() -> bool {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    if options().is_some_and(|options| options.load_s > 0) {
        log!(
            "load: {} blocks checked, {} wrong, {} refused; {} interrupts; {} calls, {} late \
             answers; {} changes of a tick",
            count(&CHECKED),
            count(&WRONG),
            count(&REFUSED),
            count(&INTERRUPTS),
            count(&CALLS),
            count(&UNANSWERED),
            count(&TICKS_CHANGED)
        );
    }
    count(&WRONG) == 0
}
