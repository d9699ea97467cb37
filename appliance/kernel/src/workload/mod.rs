//! Running workloads on every core, and knowing that the result is right.
//!
//! A workload cuts its work into units. Any CPU takes any unit; the digests of all units
//! are added up and compared with what is expected, so the verdict does not depend on how
//! many CPUs there are. One workload runs at a time, on all CPUs.

pub mod memstamp;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use machine::apic::{self, Ipi};
use machine::cell::SetOnce;
use machine::cpu;

use crate::cmdline::WorkloadChoice;
use crate::{clock, cpus, inject, log};

/// Vector that wakes idle CPUs.
pub const VECTOR_WAKE: u8 = 0xe1;
/// Nanoseconds between progress lines.
const PROGRESS_NS: u64 = 1_000_000_000;

/// Work that all CPUs share.
pub trait Workload: Sync {
    /// Its name on the command line and in the dump; up to 16 bytes are kept there.
    fn name(&self) -> &'static str;

    /// Gets ready, on one CPU, and says how many units a round has.
    ///
    /// # Errors
    /// Says why it cannot run, and what to change.
    fn prepare(&self, choice: &WorkloadChoice) -> Result<u64, &'static str>;

    /// Does one unit of round `round` (from 0) and returns its digest. Calls [`beat`] often.
    fn run(&self, unit: u64, round: u64) -> u64;

    /// What the digests of a round must add up to, wrapping.
    fn expected(&self) -> u64;
}

/// A sign of life, from inside a unit: at least every few milliseconds.
pub fn beat() {
    inject::beat();
}

static LIST: SetOnce<&'static [&'static dyn Workload]> = SetOnce::new();
/// The workload to work on, as its index plus one; 0 while there is none.
static JOB: AtomicU32 = AtomicU32::new(0);
/// CPUs between looking at `JOB` and leaving it.
static BUSY: AtomicU32 = AtomicU32::new(0);
static ROUND: AtomicU64 = AtomicU64::new(0);
static UNITS: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
static DIGEST: AtomicU64 = AtomicU64::new(0);

/// The name of the workload with `number` (index plus one).
pub fn name_of(number: u32) -> Option<&'static str> {
    let index = (number as usize).checked_sub(1)?;
    LIST.get()?.get(index).map(|workload| workload.name())
}

/// Works on the current job until it has no more units.
fn take_part() {
    BUSY.fetch_add(1, Ordering::SeqCst);
    let number = JOB.load(Ordering::SeqCst);
    if let Some(workload) =
        (number as usize).checked_sub(1).and_then(|index| LIST.get()?.get(index))
    {
        let me = cpus::current();
        me.workload.store(number, Ordering::Relaxed);
        let mut reported = clock::now_ns();
        loop {
            let unit = NEXT.fetch_add(1, Ordering::Relaxed);
            let units = UNITS.load(Ordering::Relaxed);
            if unit >= units {
                break;
            }
            me.unit.store(unit, Ordering::Relaxed);
            let digest = workload.run(unit, ROUND.load(Ordering::Relaxed));
            DIGEST.fetch_add(digest, Ordering::Relaxed);
            let done = DONE.fetch_add(1, Ordering::Release) + 1;
            if cpus::current_index() == 0 && clock::now_ns() - reported > PROGRESS_NS {
                reported = clock::now_ns();
                log!("{}: {} % ({done} of {units} units)", workload.name(), done * 100 / units);
            }
        }
        me.unit.store(u64::MAX, Ordering::Relaxed);
        me.workload.store(0, Ordering::Relaxed);
    }
    BUSY.fetch_sub(1, Ordering::SeqCst);
}

/// What a CPU other than the boot processor does for as long as it runs.
pub fn work() -> ! {
    loop {
        take_part();
        inject::idle_beat();
        cpu::interrupts_off();
        let more = JOB.load(Ordering::SeqCst) != 0
            && NEXT.load(Ordering::Relaxed) < UNITS.load(Ordering::Relaxed);
        if more || inject::planned() {
            cpu::interrupts_on();
        } else {
            cpu::interrupts_on_and_halt();
        }
    }
}

/// Runs one round of a workload on all CPUs; returns the digest.
fn round(number: u32, units: u64, round: u64) -> u64 {
    ROUND.store(round, Ordering::Relaxed);
    UNITS.store(units, Ordering::Relaxed);
    NEXT.store(0, Ordering::Relaxed);
    DONE.store(0, Ordering::Relaxed);
    DIGEST.store(0, Ordering::Relaxed);
    JOB.store(number, Ordering::SeqCst);
    let me = apic::id();
    for cpu in cpus::all() {
        let apic_id = cpu.apic_id.load(Ordering::Relaxed);
        if apic_id != me && cpu.started.load(Ordering::Relaxed) {
            apic::send(apic_id, Ipi::Fixed(VECTOR_WAKE));
        }
    }
    take_part();
    // The others finish their last units; nobody may look at the job when it changes.
    while DONE.load(Ordering::Acquire) < units {
        inject::idle_beat();
        cpu::pause();
    }
    JOB.store(0, Ordering::SeqCst);
    while BUSY.load(Ordering::SeqCst) != 0 {
        inject::idle_beat();
        cpu::pause();
    }
    DIGEST.load(Ordering::Relaxed)
}

/// Runs the chosen workloads, on the boot processor, until all have ended right or one has
/// not; with a crash or wedge planned, again and again until it strikes. Returns whether
/// the results were right.
pub fn run(list: &'static [&'static dyn Workload], chosen: &[WorkloadChoice]) -> bool {
    LIST.set(list);
    let mut prepared: heapless::Vec<(u32, &dyn Workload, u64), 8> = heapless::Vec::new();
    for choice in chosen {
        let found = list.iter().enumerate().find(|(_, workload)| workload.name() == choice.name);
        let Some((index, &workload)) = found else {
            log!("verdict: FAILED no workload is named `{}`", choice.name);
            return false;
        };
        inject::stage("workload-chosen");
        match workload.prepare(choice) {
            Ok(units) => {
                if prepared.push((index as u32 + 1, workload, units)).is_err() {
                    log!("warning: workload={}: at most 8 at once", choice.name);
                }
            }
            Err(reason) => {
                log!("verdict: FAILED {}: {reason}", choice.name);
                return false;
            }
        }
    }
    inject::stage("workload-prepared");
    let mut right = true;
    for number in 0.. {
        for &(job, workload, units) in &prepared {
            let start = clock::now_ns();
            let digest = round(job, units, number);
            let expected = workload.expected();
            let ms = (clock::now_ns() - start) / 1_000_000;
            let name = workload.name();
            if digest == expected {
                log!("{name}: round {number} right: {digest} ({units} units, {ms} ms)");
            } else {
                log!("{name}: round {number} WRONG: {digest}, expected {expected}");
                right = false;
            }
        }
        inject::stage("round-done");
        if !right || !inject::planned() {
            break;
        }
        inject::warm();
    }
    right
}
