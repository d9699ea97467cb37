//! Running workloads on every core, and knowing that the result is right.
//!
//! A workload cuts its work into units. Any CPU takes any unit; the digests of all units
//! are merged and compared with what is expected, so the verdict does not depend on how
//! many CPUs there are. One workload runs at a time, on all CPUs.

pub mod blkverify;
mod lent;
pub mod memstamp;
pub mod report;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use epitaph_workload::{Digest, Setup, SetupError, Workload};
use handoff::trace::EventKind;
use machine::apic::{self, Ipi};
use machine::cell::SetOnce;
use machine::lock::Lock;
use machine::{cpu, trace};

pub use self::lent::{VECTOR_CALL, on_call};
use crate::arming::target;
use crate::base::{clock, cpus};
use crate::firmware::cmdline::WorkloadChoice;
use crate::trial::{self, bench, faults};
use crate::work::load;
use crate::{log, options};

/// Vector that wakes idle CPUs.
pub const VECTOR_WAKE: u8 = 0xe1;
/// Nanoseconds between progress lines.
const PROGRESS_NS: u64 = 1_000_000_000;
/// Workloads that can be chosen at once.
const MAX_CHOSEN: usize = 8;

static LIST: SetOnce<&'static [&'static dyn Workload]> = SetOnce::new();
/// The workload to work on, as its index plus one; 0 while there is none.
static JOB: AtomicU32 = AtomicU32::new(0);
/// CPUs between looking at `JOB` and leaving it.
static BUSY: AtomicU32 = AtomicU32::new(0);
static ROUND: AtomicU64 = AtomicU64::new(0);
static UNITS: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
/// The digests of the units done, merged; none yet at the start of a round.
static MERGED: Lock<Option<Digest>> = Lock::new("digests", None);

/// The workload with `number` (index plus one).
fn with_number(number: u32) -> Option<&'static dyn Workload> {
    let index = (number as usize).checked_sub(1)?;
    LIST.get()?.get(index).copied()
}

/// The workload that is being worked on.
fn running() -> Option<&'static dyn Workload> {
    with_number(JOB.load(Ordering::SeqCst))
}

/// The name of the workload with `number` (index plus one).
pub fn name_of(number: u32) -> Option<&'static str> {
    with_number(number).map(Workload::name)
}

/// The workload that is being worked on, its round, the units done and all of them.
pub fn progress() -> Option<(&'static str, u64, u64, u64)> {
    let name = running()?.name();
    let [round, done, units] = [&ROUND, &DONE, &UNITS].map(|word| word.load(Ordering::Relaxed));
    Some((name, round, done, units))
}

/// Works on the current job until it has no more units.
fn take_part() {
    // Whoever ends a round waits for a moment in which nobody is busy, and there would be none if
    // those came and went that find nothing to do.
    if JOB.load(Ordering::SeqCst) == 0 {
        return;
    }
    BUSY.fetch_add(1, Ordering::SeqCst);
    let number = JOB.load(Ordering::SeqCst);
    if let Some(workload) = with_number(number) {
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
            trace::record(EventKind::UNIT, unit, u64::from(number));
            let digest = workload.run(unit, &lent::context());
            trace::record(EventKind::UNIT_END, unit, u64::from(number));
            let mut merged = MERGED.lock();
            *merged = Some(merged.map_or(digest, |so_far| workload.merge(so_far, digest)));
            drop(merged);
            let done = DONE.fetch_add(1, Ordering::Release) + 1;
            if cpus::current_index() == 0 && clock::now_ns() - reported > PROGRESS_NS {
                reported = clock::now_ns();
                log!("{}: {} % ({done} of {units} units)", workload.name(), done * 100 / units);
                target::look_again_when_due();
            }
        }
        me.unit.store(u64::MAX, Ordering::Relaxed);
        me.workload.store(0, Ordering::Relaxed);
    }
    BUSY.fetch_sub(1, Ordering::SeqCst);
}

/// Puts the running CPU to the last unit of the round, unless it has one. A wedged CPU keeps
/// its unit for ever: the round does not end, and who got none of it would never have one for
/// a fault inside of work to strike in.
pub fn be_at_work() {
    let me = cpus::current();
    if me.unit.load(Ordering::Relaxed) == u64::MAX {
        me.workload.store(JOB.load(Ordering::SeqCst), Ordering::Relaxed);
        me.unit.store(UNITS.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }
}

/// What a CPU other than the boot processor does for as long as it runs.
pub fn work() -> ! {
    loop {
        take_part();
        trial::idle_beat();
        cpu::interrupts_off();
        let more = JOB.load(Ordering::SeqCst) != 0
            && NEXT.load(Ordering::Relaxed) < UNITS.load(Ordering::Relaxed);
        if more || faults::planned() {
            cpu::interrupts_on();
        } else {
            cpu::interrupts_on_and_halt();
        }
    }
}

/// Runs one round of a workload on all CPUs; returns the digest.
fn round(&Prepared { number, workload, units }: &Prepared, round: u64) -> Digest {
    ROUND.store(round, Ordering::Relaxed);
    UNITS.store(units, Ordering::Relaxed);
    NEXT.store(0, Ordering::Relaxed);
    DONE.store(0, Ordering::Relaxed);
    *MERGED.lock() = None;
    JOB.store(number, Ordering::SeqCst);
    let me = apic::id();
    for index in (0..cpus::count()).filter(|&index| cpus::running(index)) {
        let apic_id = cpus::apic_id(index);
        if apic_id != me {
            apic::send(apic_id, Ipi::Fixed(VECTOR_WAKE));
        }
    }
    take_part();
    // The others finish their last units; nobody may look at the job when it changes.
    while DONE.load(Ordering::Acquire) < units {
        trial::idle_beat();
        cpu::pause();
    }
    let merged = MERGED.lock().unwrap_or_default();
    let digest = workload.finish(merged, &lent::context());
    JOB.store(0, Ordering::SeqCst);
    while BUSY.load(Ordering::SeqCst) != 0 {
        trial::idle_beat();
        cpu::pause();
    }
    digest
}

/// A workload that is ready to run.
#[derive(Clone, Copy)]
pub struct Prepared {
    /// Its index plus one.
    number: u32,
    workload: &'static dyn Workload,
    units: u64,
}

impl Prepared {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.workload.name()
    }

    /// Runs round `number` of it on all CPUs: how many nanoseconds it took, if its digest was
    /// right.
    pub fn timed_round(&self, number: u64) -> Option<u64> {
        let start = clock::now_ns();
        let digest = round(self, number);
        let ns = clock::now_ns() - start;
        (digest == self.workload.expected(number)).then_some(ns)
    }
}

/// Gets the workload that was chosen ready.
#[expect(clippy::result_large_err, reason = "a refusal holds its own text: there is no heap")]
fn prepare(choice: &WorkloadChoice) -> Result<Prepared, SetupError> {
    let list = LIST.get().copied().unwrap_or_default();
    let found = list.iter().position(|workload| workload.name() == choice.name);
    let Some(index) = found else {
        return Err(SetupError::new(format_args!(
            "no workload has this name; there are:{}",
            Names(list)
        )));
    };
    let workload = list[index];
    trial::stage("workload-chosen");
    let asked = choice.values.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let setup = Setup::check(workload, asked, cpus::count())?.lent_by(&lent::Lent);
    let units = workload.prepare(&setup)?;
    Ok(Prepared { number: index as u32 + 1, workload, units })
}

/// The names of workloads, a space before each.
struct Names(&'static [&'static dyn Workload]);

impl core::fmt::Display for Names {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|workload| write!(f, " {}", workload.name()))
    }
}

/// Gets all that were chosen ready; says what is wrong with the first that cannot be.
#[expect(clippy::result_large_err, reason = "a refusal holds its own text: there is no heap")]
fn prepare_all(
    chosen: &[WorkloadChoice],
) -> Result<heapless::Vec<Prepared, MAX_CHOSEN>, (&str, SetupError)> {
    let mut prepared: heapless::Vec<Prepared, MAX_CHOSEN> = heapless::Vec::new();
    for choice in chosen {
        let refused = |refusal| (choice.name.as_str(), refusal);
        if prepared.iter().any(|one| one.workload.name() == choice.name) {
            return Err(refused(SetupError::new(format_args!("chosen twice; choose it once"))));
        }
        let one = prepare(choice).map_err(refused)?;
        let too_many = |_| SetupError::new(format_args!("at most {MAX_CHOSEN} workloads at once"));
        prepared.push(one).map_err(too_many).map_err(refused)?;
    }
    Ok(prepared)
}

/// Runs the chosen workloads, on the boot processor, until all have ended right or one has
/// not; with a crash or wedge planned, again and again until it strikes, and with a load for
/// as long as it lasts. Returns whether
/// the results were right.
pub fn run(list: &'static [&'static dyn Workload], chosen: &[WorkloadChoice]) -> bool {
    LIST.set(list);
    let prepared = match prepare_all(chosen) {
        Ok(prepared) => prepared,
        Err((name, refusal)) => {
            log!("verdict: FAILED {name}: {refusal}");
            return false;
        }
    };
    trial::stage("workload-prepared");
    if let Some(pairs) = options().and_then(|options| options.bench_trace) {
        return bench::recorder::costs(pairs as usize, &prepared);
    }
    let mut right = true;
    for number in 0.. {
        for one in &prepared {
            let Prepared { workload, units, .. } = *one;
            let start = clock::now_ns();
            let digest = round(one, number);
            let expected = workload.expected(number);
            let ms = (clock::now_ns() - start) / 1_000_000;
            let name = workload.name();
            target::look_again_when_due();
            if digest == expected {
                log!("{name}: round {number} right: {digest} ({units} units, {ms} ms)");
            } else {
                log!("{name}: round {number} WRONG: {digest}, expected {expected}");
                right = false;
            }
        }
        trial::stage("round-done");
        if !right || !(faults::planned() || load::goes_on()) {
            break;
        }
        faults::warm();
    }
    load::finish() && right
}
