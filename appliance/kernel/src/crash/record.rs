//! What the crashing CPU writes down, and the jump.

use core::sync::atomic::Ordering;

use handoff::crash::{cpu_flags, registers_from, rung, set_text, stopped_by};
use handoff::tables::{MAX_LOCKS, MAX_WORDS};
use handoff::{
    Cause, CpuRecord, Handoff, LockRecord, MAX_CPUS, StampRange, Table, WorkloadWords, X86Registers,
};
use machine::breadcrumb::RunProgress;
use machine::cell::{SetOnce, TakeOnce};
use machine::{cpu, jump, lock};

use super::{stop, stopper};
use crate::arming::{arm, last_run};
use crate::base::devices::in_flight;
use crate::base::{clock, console, cpus};
use crate::watch::hw_watchdog;
use crate::work::workload;

/// The records, in memory that exists before the crash.
struct Records {
    handoff: Handoff,
    cpus: [CpuRecord; MAX_CPUS],
    words: heapless::Vec<WorkloadWords, MAX_WORDS>,
    locks: [LockRecord; MAX_LOCKS],
}

static RECORDS: TakeOnce<Records> = TakeOnce::new(Records {
    handoff: zeroed_handoff(),
    cpus: [zeroed_cpu(); MAX_CPUS],
    words: heapless::Vec::new(),
    locks: [zeroed_lock(); MAX_LOCKS],
});
static CAUSE: SetOnce<Cause> = SetOnce::new();
static WRITTEN: SetOnce<&'static Records> = SetOnce::new();

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

/// The CPU records, once they are written.
pub fn cpu_records() -> &'static [CpuRecord] {
    WRITTEN.get().and_then(|records| records.cpus.get(..cpus::count())).unwrap_or_default()
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
    if let Some(name) = workload::name_of(cpu.workload.load(Ordering::Relaxed)) {
        set_text(&mut record.workload, name);
    }
    record.stopped_by = if crashed == Some(index) {
        stopped_by::CRASH
    } else if !cpus::running(index) {
        stopped_by::NEVER_STARTED
    } else {
        stop::how_stopped(index)
    };
    // A CPU that did not acknowledge may have been interrupted in the middle of a save; what
    // it holds is not more than the last that is known.
    let (registers, from) = match (record.stopped_by, from) {
        (_, registers_from::NONE) | (stopped_by::NEVER_STARTED, _) => {
            (X86Registers::default(), registers_from::NONE)
        }
        (stopped_by::INIT | stopped_by::NOT_STOPPED, _) => (registers, registers_from::LAST_KNOWN),
        _ => (registers, from),
    };
    record.set_x86(&registers);
    record.registers_from = from;
    record.stopped_tsc = cpu.stopped_tsc.load(Ordering::Relaxed);
    let stopped_tsc = match record.stopped_by {
        stopped_by::IRQ | stopped_by::NMI => Some(record.stopped_tsc),
        // It cannot acknowledge: what is known is when INIT was sent.
        stopped_by::INIT => {
            stop::timeline().iter().find(|send| send.kind == rung::INIT).map(|send| send.sent_tsc)
        }
        _ => None,
    };
    if let (Some(stopped), Some(asked)) = (stopped_tsc, asked_tsc) {
        record.latency_ns = clock::ns(stopped.saturating_sub(asked));
    }
}

/// Writes the records. `nested` counts how often the crash path itself crashed.
pub fn write(nested: u32) {
    let Some(records) = RECORDS.take() else { return };
    records.fill(cause(), nested, stopper());
    records.seal();
    WRITTEN.set(records);
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
            record.registers_from = registers_from::SELF;
        }
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
        let (address, count) = workload::memstamp::table();
        handoff.stamps = StampRange { address, count };
        (handoff.log, handoff.log_held) = (console::log_range(), console::held() as u32);
        for (place, entry) in handoff.in_flight.iter_mut().zip(in_flight::list()) {
            *place = entry;
            handoff.in_flight_count += 1;
        }
        handoff.in_flight_lost = in_flight::lost();
        handoff.stopped_tsc = stop::finished_tsc();
        if let Some((name, words)) = workload::report::kept() {
            // The first of at most one.
            let _ = self.words.push(WorkloadWords::new(name, words));
        }
        handoff.words = Table::of(self.words.as_ptr() as u64, &self.words);
        let (entered, known) = lock::survey(&mut self.locks);
        let locks = self.locks.get(..entered).unwrap_or_default();
        handoff.locks = Table::of(self.locks.as_ptr() as u64, locks);
        handoff.locks_known = known as u32;
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
    let Some(records) = WRITTEN.get() else { return "the crash records could not be written" };
    let way_out = match arm::way_out(stop::since_the_signal()) {
        Ok(way_out) => way_out,
        Err(reason) => return reason,
    };
    last_run::mark(RunProgress::Left);
    hw_watchdog::before_dump();
    // As short as can be: what else there is to be said waits.
    console::at_once(format_args!("capture: leaving"));
    jump::leave(way_out.root, way_out.entry, (&raw const records.handoff) as u64)
}
