//! What the crashing CPU writes down, and the jump.

use core::sync::atomic::Ordering;

use handoff::crash::{RegistersFrom, RungSignal, StoppedBy, cpu_flags, set_text};
use handoff::tables::{MAX_LOCKS, MAX_WORDS};
use handoff::{
    Cause, CpuRecord, Handoff, LockRecord, MAX_CPUS, Table, WorkloadWords, X86Registers,
};
use machine::breadcrumb::RunProgress;
use machine::cell::{SetOnce, TakeOnce};
use machine::{cpu, jump, lock};

use super::{stop, stopper};
use crate::arming::arm::{self, Interference};
use crate::arming::last_run;
use crate::base::devices::in_flight;
use crate::base::{clock, console, cpus};
use crate::work::workload;

/// The records, in memory that exists before the crash.
struct Records {
    handoff: Handoff,
    cpus: [CpuRecord; MAX_CPUS],
}

/// Bytes of a workload's name in a CPU's record.
const NAME_BYTES: usize = size_of_val(&zeroed_cpu().workload);

static RECORDS: TakeOnce<Records> =
    TakeOnce::new(Records { handoff: zeroed_handoff(), cpus: [zeroed_cpu(); MAX_CPUS] });
static CAUSE: SetOnce<Cause> = SetOnce::new();
/// Set once the records have been sealed for the first time.
static SEALED: SetOnce<()> = SetOnce::new();
/// The records, once nothing is added to them any more.
static WRITTEN: SetOnce<&'static Records> = SetOnce::new();

/// What is found out after that, through pointers that the crash may have damaged: each table is
/// in its place once it is complete.
static NAMES: TakeOnce<[[u8; NAME_BYTES]; MAX_CPUS]> = TakeOnce::new([[0; NAME_BYTES]; MAX_CPUS]);
static NAMED: SetOnce<&'static [[u8; NAME_BYTES]; MAX_CPUS]> = SetOnce::new();
static LOCKS: TakeOnce<[LockRecord; MAX_LOCKS]> = TakeOnce::new([zeroed_lock(); MAX_LOCKS]);
/// The locks entered, and how many there are.
static SURVEYED: SetOnce<(&'static [LockRecord], u32)> = SetOnce::new();
static WORDS: TakeOnce<heapless::Vec<WorkloadWords, MAX_WORDS>> =
    TakeOnce::new(heapless::Vec::new());
static SAID: SetOnce<&'static heapless::Vec<WorkloadWords, MAX_WORDS>> = SetOnce::new();

/// Zeros, which any of the record's fields may hold; lives in `.bss`.
const fn zeroed_handoff() -> Handoff {
    zerocopy::transmute!([0u8; size_of::<Handoff>()])
}

const fn zeroed_cpu() -> CpuRecord {
    zerocopy::transmute!([0u8; size_of::<CpuRecord>()])
}

const fn zeroed_lock() -> LockRecord {
    zerocopy::transmute!([0u8; size_of::<LockRecord>()])
}

/// Keeps the cause of the first crash.
pub fn keep_cause(cause: &Cause) {
    CAUSE.set(*cause);
}

/// Why everything stopped.
pub fn cause() -> Option<&'static Cause> {
    CAUSE.get()
}

/// The records as they were sealed last: from here on they are only read. `None` when they could
/// not be written.
fn written() -> Option<&'static Records> {
    SEALED.get()?;
    if let Some(records) = RECORDS.take() {
        WRITTEN.set(records);
    }
    WRITTEN.get().copied()
}

/// The CPU records, once they are written and complete.
pub fn cpu_records() -> &'static [CpuRecord] {
    written().and_then(|records| records.cpus.get(..cpus::count())).unwrap_or_default()
}

fn fill(
    record: &mut CpuRecord,
    index: usize,
    cpu: &cpus::Cpu,
    crashed: Option<usize>,
    asked_tsc: Option<u64>,
) {
    let (registers, from) = cpu.registers.load();
    record.index = index as u32;
    record.hardware_id = cpus::apic_id(index).into();
    record.registers_at = CpuRecord::REGISTERS_AT;
    record.flags = cpu_flags::COUNTED | cpu.found.load(Ordering::Relaxed);
    record.nmi_count = cpu.nmis.load(Ordering::Relaxed);
    record.stop_nmi_count = cpu.stop_nmis.load(Ordering::Relaxed);
    record.live_nmi_count = cpu.questions.load(Ordering::Relaxed);
    record.locks_held = lock::held_by(index);
    record.mce_count = cpu.machine_checks.load(Ordering::Relaxed);
    record.latency_ns = u64::MAX;
    record.unit = cpu.unit.load(Ordering::Relaxed);
    if let Some(stacks) = cpu.stacks() {
        record.stack = stacks.main();
    }
    record.stopped_by = if crashed == Some(index) {
        StoppedBy::CRASH
    } else if !cpus::running(index) {
        StoppedBy::NEVER_STARTED
    } else {
        stop::how_stopped(index)
    };
    // A CPU that did not acknowledge may have been interrupted in the middle of a save; what
    // it holds is not more than the last that is known.
    let (registers, from) = match (record.stopped_by, from) {
        (_, RegistersFrom::NONE) | (StoppedBy::NEVER_STARTED, _) => {
            (X86Registers::default(), RegistersFrom::NONE)
        }
        (StoppedBy::INIT | StoppedBy::NOT_STOPPED, _) => (registers, RegistersFrom::LAST_KNOWN),
        _ => (registers, from),
    };
    record.set_x86(&registers);
    record.registers_from = from;
    record.stopped_tsc = cpu.stopped_tsc.load(Ordering::Relaxed);
    let stopped_tsc = match record.stopped_by {
        StoppedBy::IRQ | StoppedBy::NMI => Some(record.stopped_tsc),
        // It cannot acknowledge: what is known is when INIT was sent.
        StoppedBy::INIT => stop::timeline()
            .iter()
            .find(|send| send.kind == RungSignal::INIT)
            .map(|send| send.sent_tsc),
        _ => None,
    };
    if let (Some(stopped), Some(asked)) = (stopped_tsc, asked_tsc) {
        record.latency_ns = clock::ns(stopped.saturating_sub(asked));
    }
}

/// Writes what a dump cannot do without, and seals it. `nested` counts how often the crash path
/// itself crashed. Nothing here follows a pointer that lies in memory which anything else writes.
pub fn write(nested: u32) {
    let sealed = RECORDS.lend(|records| {
        records.fill(cause(), nested, stopper());
        records.seal();
    });
    if sealed.is_some() {
        SEALED.set(());
    }
}

/// Looks up the names of the workloads that the CPUs were running.
pub fn name_workloads() {
    if let Some(names) = NAMES.take() {
        look_up_names(names);
        NAMED.set(names);
    }
    if let (Some(words), Some((name, said))) = (WORDS.take(), workload::report::kept()) {
        // The first of at most one.
        let _ = words.push(WorkloadWords::new(name, said));
        SAID.set(words);
    }
}

fn look_up_names(names: &mut [[u8; NAME_BYTES]; MAX_CPUS]) {
    for (field, cpu) in names.iter_mut().zip(cpus::all()) {
        if let Some(name) = workload::name_of(cpu.workload.load(Ordering::Relaxed)) {
            set_text(field, name);
        }
    }
}

/// Walks the list of locks.
pub fn survey_locks() {
    let Some(locks) = LOCKS.take() else { return };
    let (entered, known) = lock::survey(locks);
    SURVEYED.set((locks.get(..entered).unwrap_or_default(), known as u32));
}

/// Adds to the records what was found since they were sealed, and seals them once more.
pub fn complete(nested: u32) {
    let completed = RECORDS.lend(|records| {
        records.add(nested);
        records.seal();
    });
    if completed.is_some() {
        SEALED.set(());
    }
}

/// Writes the records of a crash that has not been, of which `cause` tells, and in which the
/// running CPU, with these `registers`, is the only one. Hands `then` the address of the hand-off,
/// which is no more afterwards. `None` when there has been a crash.
pub fn rehearse<R>(
    cause: &Cause,
    registers: &X86Registers,
    then: impl FnOnce(u64) -> R,
) -> Option<R> {
    RECORDS.lend(|records| {
        let index = cause.cpu as usize;
        records.fill(Some(cause), 0, Some(index));
        if let Some(record) = records.cpus.get_mut(index) {
            record.set_x86(registers);
            record.registers_from = RegistersFrom::SELF;
        }
        records.seal();
        // For a crash that comes later: where code is slow the first time, this was it.
        NAMES.lend(look_up_names);
        LOCKS.lend(|locks| {
            lock::survey(locks);
            locks.fill(zeroed_lock());
        });
        records.add(0);
        records.seal();
        let result = then((&raw const records.handoff) as u64);
        records.handoff = zeroed_handoff();
        result
    })
}

impl Records {
    /// Fills in what is known: why, how often the crash path itself crashed, and which CPU it was.
    fn fill(&mut self, cause: Option<&Cause>, nested: u32, crashed: Option<usize>) {
        let timeline = stop::timeline();
        let asked_tsc = timeline.first().map(|rung| rung.sent_tsc);
        for (index, (record, cpu)) in self.cpus.iter_mut().zip(cpus::all()).enumerate() {
            fill(record, index, cpu, crashed, asked_tsc);
        }
        let handoff = &mut self.handoff;
        *handoff = Handoff::new();
        if let Some(cause) = cause {
            handoff.cause = *cause;
            handoff.unix_time = clock::unix_time_at(cause.tsc);
        }
        handoff.nested = nested;
        handoff.facts = arm::facts_address().unwrap_or(0);
        handoff.cpus = self.cpus.as_ptr() as u64;
        for (slot, rung) in handoff.timeline.iter_mut().zip(timeline) {
            *slot = *rung;
            handoff.timeline_count += 1;
        }
        handoff.workload_table = workload::memstamp::table();
        (handoff.log, handoff.log_held) = (console::log_range(), console::held() as u32);
        for (place, entry) in handoff.in_flight.iter_mut().zip(in_flight::list()) {
            *place = entry;
            handoff.in_flight_count += 1;
        }
        handoff.in_flight_lost = in_flight::lost();
        handoff.stopped_tsc = stop::finished_tsc();
    }

    /// Adds what can be lost without losing the dump.
    fn add(&mut self, nested: u32) {
        if let Some(names) = NAMED.get() {
            for (record, name) in self.cpus.iter_mut().zip(names.iter()) {
                record.workload = *name;
            }
        }
        let handoff = &mut self.handoff;
        handoff.nested = nested;
        (handoff.log, handoff.log_held) = (console::log_range(), console::held() as u32);
        if let Some(words) = SAID.get() {
            handoff.words = Table::of(words.as_ptr() as u64, words);
        }
        if let Some((locks, known)) = SURVEYED.get() {
            handoff.locks = Table::of(locks.as_ptr() as u64, locks);
            handoff.locks_known = *known;
        }
    }

    /// The last word: from here on it is only read.
    fn seal(&mut self) {
        self.handoff.jump_tsc = cpu::rdtsc();
        self.handoff.seal(self.cpus.get(..cpus::count()).unwrap_or_default());
    }
}

/// Jumps into the capture image. Returns only when there is none to be trusted, with the
/// reason.
pub fn jump() -> &'static str {
    let Some(records) = written() else { return "the crash records could not be written" };
    if stop::since_the_signal() == Interference::Unknown {
        arm::mend_park();
    }
    let way_out = match arm::way_out(stop::since_the_signal()) {
        Ok(way_out) => way_out,
        Err(reason) => return reason,
    };
    last_run::mark(RunProgress::Left);
    // As short as can be: what else there is to be said waits.
    console::at_once(format_args!("capture: leaving"));
    jump::leave(way_out.root, way_out.entry, (&raw const records.handoff) as u64)
}
