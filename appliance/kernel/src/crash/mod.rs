//! The crash path: from the moment something is wrong to the jump into the capture image.
//!
//! Every way to die ends in [`crash`]: `panic!`, exceptions, an NMI nobody asked for, a
//! lockup. What happens there moves through stages in one direction only:
//!
//! ```text
//! Calm → Claimed (→ Again) → Stopped → Sealed → Asked → Named → Surveyed → Recorded → Shown → Guarded → Jump
//!                                                                                                 └──→ LastWords → policy
//! ```
//!
//! * **Claimed.** One CPU wins a compare-exchange and is the crashing CPU from then on. It keeps
//!   cause and registers before anything else, checks the park area, begins (after which no CPU
//!   takes over), and leaves the stack that it crashed on for one of its own. A CPU that crashes
//!   at the same time loses: once the winner has begun, it keeps the registers it crashed with
//!   and stops itself through the same funnel that the stop interrupts lead to. The others get
//!   the first signal at once; while it is on its way, the cause is said.
//! * **Again.** A fault on the ladder has ended the first climb. The flight recorder is off, and
//!   the CPUs that have not stopped yet get the signals once more.
//! * **Stopped.** The ladder has been climbed: interrupt, NMI, INIT (see [`stop`]). Before
//!   it, other CPUs run and may hold locks; after it, every CPU that could be stopped has been.
//!   Nothing here waits for a lock before or after, so none needs to be broken open.
//! * **Sealed.** Cause, CPU records and ladder timeline stand in memory under their checksums
//!   (see [`record`]): all that a dump needs. What follows up to *Recorded* adds to them, and
//!   each of these steps may crash without harm to the others.
//! * **Asked.** The workload that was running has said where it stood: one line for the log
//!   and the last words. It is the only code here that is not the crash path's own. It has
//!   [a second](ASK_MS); a timer ends it then.
//! * **Named.** The workloads' names have been looked up, through pointers of theirs.
//! * **Surveyed.** The list of locks has been walked.
//! * **Recorded.** What was found is in the records, which are sealed once more.
//! * **Shown.** Where there is a screen, it says what happened (see [`page`]). Nobody waits
//!   for it any more: the others have stopped and the records stand.
//! * **Guarded.** The hardware watchdog has been given the time of a dump. A fault in that costs
//!   the watchdog and not the dump.
//! * **Jump.** The capture image was compared with the checksum taken when it was loaded, while
//!   the others were on their way; unless each of them has come to its stop by itself, it is once
//!   more. If it differs, jumping would be worse than stopping: last words, then the policy.
//!
//! If the crash path itself crashes on the crashing CPU, [`crash`] is entered again. The
//! stage says what was being done; that step is given up and the next one is taken. Each
//! stage can be given up only once, so this ends, at worst with last words, and below that
//! with the policy: by what ordinary memory holds first, by the sealed facts next, and at last
//! with a halted CPU.
//!
//! Nothing here allocates, takes a lock, or waits without a bound.

pub mod drill;
mod field;
pub mod last_words;
pub mod machine_check;
pub mod page;
pub mod record;
pub mod stop;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ::stop::claim::{Claim, Outcome};
use handoff::crash::{CauseKind, RegistersFrom, StoppedBy, set_text};
use handoff::trace::EventKind;
use handoff::{Cause, X86Registers};
use machine::breadcrumb::RunProgress;
use machine::trap::{TrapFrame, exception_name, vector};
use machine::{apic, boot, cpu, lock, registers, trace};

use self::field::Field;
use crate::arming::{arm, last_run, rehearsal};
use crate::base::{clock, console, cpus, heap};
use crate::trial::faults;
use crate::watch::{backtrace, hw_watchdog, lockup};
use crate::work::workload;

/// Nothing is wrong.
const CALM: u32 = 0;
/// A CPU has won and is stopping the others.
const CLAIMED: u32 = 1;
/// That has crashed; it is stopping them once more.
const AGAIN: u32 = 2;
/// They are as stopped as they will get; the records are being written.
const STOPPED: u32 = 3;
/// The records stand; the workload is being asked.
const SEALED: u32 = 4;
/// It has answered; the names of workloads are being looked up.
const ASKED: u32 = 5;
/// That is done; the locks are being surveyed.
const NAMED: u32 = 6;
/// That is done; the records are being completed.
const SURVEYED: u32 = 7;
/// The records are complete; the screen is being written.
const RECORDED: u32 = 8;
/// It says what happened; the hardware watchdog is being given the time of a dump.
const SHOWN: u32 = 9;
/// That is done; on the way to the capture image.
const GUARDED: u32 = 10;
/// There will be no dump; last words are being said.
const LAST_WORDS: u32 = 11;
/// Only the policy is left.
const FINISHED: u32 = 12;
/// The policy has crashed; it is carried out by the sealed facts alone.
const BY_FACTS: u32 = 13;

/// Vector of the deadline of a workload's last words, above the stop's: it gets through when
/// the task priority keeps everything else out.
pub const VECTOR_DEADLINE: u8 = 0xf1;
/// Task priority meanwhile: vectors below 0xf0 stay pending.
const ASK_PRIORITY: u8 = 0xe0;
/// Milliseconds that a workload has for its last words. They take microseconds.
pub const ASK_MS: u32 = 1000;
/// How long a loser waits for the winner to begin, in nanoseconds: the winner needs
/// microseconds, and a virtual machine may not run it for a while.
const BEGIN_NS: u64 = 1_000_000_000;
const VIRTUAL_BEGIN_NS: u64 = 5_000_000_000;

static STAGE: AtomicU32 = AtomicU32::new(CALM);
static NESTED: AtomicU32 = AtomicU32::new(0);
static CLAIM: Claim = Claim::new();
/// Set while the workload is asked for its last words.
static ASKING: AtomicBool = AtomicBool::new(false);
/// Set once the cause has been printed.
static ANNOUNCED: AtomicBool = AtomicBool::new(false);

/// Prints one line of the crash path.
macro_rules! say {
    ($($arguments:tt)*) => { $crate::base::console::emergency(format_args!($($arguments)*)) };
}
pub(crate) use say;

/// Logs one line of the crash path that need not be seen before the dump has begun.
macro_rules! note {
    ($($arguments:tt)*) => { $crate::base::console::later(format_args!($($arguments)*)) };
}
pub(crate) use note;

/// The CPU that is stopping the others, once there is one.
#[must_use]
pub fn stopper() -> Option<usize> {
    CLAIM.owner().map(|cpu| cpu as usize)
}

/// An empty cause for the running CPU.
fn cause(kind: CauseKind) -> Cause {
    Cause {
        kind,
        cpu: cpus::current_index() as u32,
        vector: u32::MAX,
        line: 0,
        error_code: 0,
        address: 0,
        tsc: cpu::rdtsc(),
        reserved: [0; 3],
        message: [0; handoff::crash::MESSAGE_BYTES],
        file: [0; 128],
    }
}

/// The cause of a crash that has not been.
#[must_use]
pub fn rehearsed_cause() -> Cause {
    let mut cause = cause(CauseKind::PANIC);
    set_text(&mut cause.message, "a rehearsal");
    cause
}

/// Where every `panic!` ends.
pub fn on_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let registers = registers::current();
    cpu::interrupts_off();
    let mut cause = cause(CauseKind::PANIC);
    let mut message = Field { bytes: &mut cause.message, used: 0 };
    // A field takes what fits and never fails.
    let _ = write!(message, "{}", info.message());
    if let Some(wanted) = heap::out_of_memory(cause.message()) {
        cause.kind = CauseKind::OOM;
        let mut message = Field { bytes: &mut cause.message, used: 0 };
        // As above; it is longer than what it replaces.
        let _ = write!(message, "{wanted}");
    }
    if let Some(location) = info.location() {
        set_text(&mut cause.file, location.file());
        cause.line = location.line();
    }
    crash(&cause, &registers, RegistersFrom::SELF)
}

/// Where every exception ends.
pub fn on_exception(frame: &TrapFrame) -> ! {
    let registers = registers::interrupted(frame);
    let mut cause = cause(CauseKind::EXCEPTION);
    cause.vector = frame.vector as u32;
    cause.error_code = frame.error_code;
    let name = exception_name(frame.vector);
    let mut message = Field { bytes: &mut cause.message, used: 0 };
    // As above.
    let _ = match frame.vector {
        vector::PAGE_FAULT | vector::DOUBLE_FAULT => {
            cause.address = registers.cr2;
            let what = page_fault_text(frame);
            write!(message, "{name}{what} at address {:#x}", registers.cr2)
        }
        _ => write!(message, "{name}, error code {:#x}", frame.error_code),
    };
    let guard = cpus::current()
        .stacks()
        .is_some_and(|stacks| stacks.guards().iter().any(|page| page.holds(registers.cr2, 1)));
    if guard && matches!(frame.vector, vector::PAGE_FAULT | vector::DOUBLE_FAULT) {
        let _ = message.write_str(" (guard page: the stack overflowed)");
    }
    crash(&cause, &registers, RegistersFrom::INTERRUPTED)
}

/// Where the watchdog ends, on behalf of a CPU that is stuck.
pub fn on_lockup(kind: CauseKind, text: fmt::Arguments<'_>) -> ! {
    let registers = registers::current();
    cpu::interrupts_off();
    let mut cause = cause(kind);
    let mut message = Field { bytes: &mut cause.message, used: 0 };
    // As above.
    let _ = message.write_fmt(text);
    crash(&cause, &registers, RegistersFrom::SELF)
}

/// What a page fault's error code says (Intel SDM vol. 3, 4.7).
fn page_fault_text(frame: &TrapFrame) -> &'static str {
    if frame.vector != vector::PAGE_FAULT {
        return "";
    }
    match (frame.error_code & 1 != 0, frame.error_code & 2 != 0, frame.error_code & 16 != 0) {
        (_, _, true) => ", execute",
        (true, true, _) => ", write to a protected page",
        (false, true, _) => ", write",
        (_, false, _) => ", read",
    }
}

/// Where every NMI enters. Returns only to the CPU that is stopping the others, for which
/// an NMI means nothing, to an interrupted save of registers, which goes on, and before a
/// crash from the question of a live backtrace.
pub fn on_nmi(frame: &TrapFrame) {
    let me = cpus::current();
    let index = cpus::current_index();
    if stopper().is_none() && rehearsal::note_nmi() {
        return;
    }
    if stopper().is_none() && backtrace::answer(index, frame) {
        // Should it get stuck for good later, this is better than nothing.
        me.registers.save(&registers::interrupted(frame), RegistersFrom::LAST_KNOWN);
        return;
    }
    me.nmis.fetch_add(1, Ordering::Relaxed);
    trace::record(EventKind::NMI, 0, frame.rip);
    match stopper() {
        Some(stopper) if stopper == index => {
            me.stop_nmis.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Some(_) => {
            me.stop_nmis.fetch_add(1, Ordering::Relaxed);
            // Sent by the stop, or from outside to every CPU at once.
            if !stop::saving(index) {
                stop::stop_this_cpu(stop::Entry::Nmi(frame));
            }
            return;
        }
        None => {}
    }
    // Whatever happens inside this handler, this is the last that is known for certain.
    me.registers.save(&registers::interrupted(frame), RegistersFrom::LAST_KNOWN);
    faults::on_nmi();
    let mut cause = cause(CauseKind::NMI);
    set_text(&mut cause.message, "NMI that nobody here asked for");
    crash(&cause, &registers::interrupted(frame), RegistersFrom::INTERRUPTED)
}

/// Where the stop interrupt enters, on its own vector. A stop is claimed before it is sent,
/// so one that finds no stopper is a rehearsal's, and returns.
pub fn on_stop_interrupt(frame: &TrapFrame) {
    apic::end_of_interrupt();
    match stopper() {
        // Sent by a rehearsal that the crash has ended.
        Some(stopper) if stopper == cpus::current_index() => {}
        Some(_) => stop::stop_this_cpu(stop::Entry::Irq(frame)),
        None => drill::take_part(frame),
    }
}

/// Where the deadline of a workload's last words enters. One that comes late means nothing.
pub fn on_deadline(frame: &TrapFrame) {
    apic::end_of_interrupt();
    if !ASKING.load(Ordering::Relaxed) || stopper() != Some(cpus::current_index()) {
        return;
    }
    let mut cause = cause(CauseKind::PANIC);
    set_text(&mut cause.message, "the workload's last words took too long");
    crash(&cause, &registers::interrupted(frame), RegistersFrom::INTERRUPTED)
}

/// Returns true while the claim is this CPU's; restores it when damage has made it none.
pub(super) fn claim_is_ours() -> bool {
    CLAIM.assert(cpus::current_index() as u32)
}

/// The one way out. `from` says how `registers` were obtained.
///
/// Nothing on the running stack is used once [`proceed`] has been reached: an NMI or a machine
/// check may have the same one.
fn crash(cause: &Cause, registers: &X86Registers, from: RegistersFrom) -> ! {
    cpu::interrupts_off();
    let index = cpus::current_index();
    let begun = match CLAIM.claim(index as u32) {
        Outcome::Won => {
            keep(cause, registers, from);
            arm::mend_park();
            CLAIM.begin(index as u32)
        }
        Outcome::Lost(winner) => {
            say!("crash: CPU {index} crashed as well, after CPU {winner}: {}", cause.message());
            if !await_beginning() && CLAIM.take_over(index as u32, winner) {
                say!("crash: CPU {winner} does nothing; CPU {index} takes over");
                keep(cause, registers, from);
                arm::mend_park();
                true
            } else {
                false
            }
        }
        Outcome::Nested => {
            // The step under way is given up, and with it what the step had turned on. What is
            // recorded of a crash can be done without, should it be that which crashed.
            let given_up = STAGE.fetch_add(1, Ordering::Relaxed);
            NESTED.fetch_add(1, Ordering::Relaxed);
            trace::go_on(false);
            ASKING.store(false, Ordering::Relaxed);
            lock::stay_interruptible(false);
            say!("crash: the crash path itself crashed (stage {given_up}): {}", cause.message());
            true
        }
    };
    if !begun {
        stop::stop_this_cpu(stop::Entry::Own(registers, from));
    }
    boot::continue_on_crash_stack(NESTED.load(Ordering::Relaxed), proceed)
}

/// Keeps what the dump must say of the crash whatever comes next, and begins with the first
/// stage.
fn keep(cause: &Cause, registers: &X86Registers, from: RegistersFrom) {
    STAGE.store(CLAIMED, Ordering::Relaxed);
    record::keep_cause(cause);
    let me = cpus::current();
    me.registers.save(registers, from);
    stop::found(me, registers.rflags, StoppedBy::CRASH);
}

/// Waits until the winner has begun to handle the crash: false when it has not in time.
fn await_beginning() -> bool {
    let patience = if cpu::is_virtual() { VIRTUAL_BEGIN_NS } else { BEGIN_NS };
    let (start, mut polls) = (cpu::rdtsc(), 0);
    // Should the clock fail, the number of looks is the bound.
    while !CLAIM.has_begun()
        && clock::ns(cpu::rdtsc().wrapping_sub(start)) < patience
        && polls < patience / stop::POLL_NS
    {
        polls += 1;
        cpu::pause();
    }
    CLAIM.has_begun()
}

/// Takes the steps that are left, from the stage on that has been reached.
#[inline(never)] // A name for the proof about crash code.
fn proceed() -> ! {
    let stage = || STAGE.load(Ordering::Relaxed);
    if stage() <= CLAIMED {
        let kind = record::cause().map_or(0, |cause| cause.kind.0);
        trace::record(EventKind::CRASH, u64::from(kind), 0);
        stop::stop_others(|| {
            announce();
            last_run::mark(RunProgress::Crashing);
            hw_watchdog::at_crash();
            arm::look_ahead();
        });
        faults::in_crash_path();
        STAGE.store(STOPPED, Ordering::Relaxed);
    }
    if stage() <= AGAIN {
        stop::stop_others(announce);
        STAGE.store(STOPPED, Ordering::Relaxed);
    }
    if stage() <= STOPPED {
        if let refused @ 1.. = heap::refused_in_crash() {
            note!("crash: {refused} requests to the heap refused: none is served from here on");
        }
        record::write(NESTED.load(Ordering::Relaxed));
        STAGE.store(SEALED, Ordering::Relaxed);
    }
    if stage() <= SEALED {
        ask();
        STAGE.store(ASKED, Ordering::Relaxed);
    }
    if stage() <= ASKED {
        record::name_workloads();
        STAGE.store(NAMED, Ordering::Relaxed);
    }
    if stage() <= NAMED {
        record::survey_locks();
        STAGE.store(SURVEYED, Ordering::Relaxed);
    }
    if stage() <= SURVEYED {
        record::complete(NESTED.load(Ordering::Relaxed));
        STAGE.store(RECORDED, Ordering::Relaxed);
    }
    if stage() <= RECORDED {
        page::show();
        STAGE.store(SHOWN, Ordering::Relaxed);
    }
    let mut reason = "see the console";
    if stage() <= SHOWN {
        hw_watchdog::before_dump();
        STAGE.store(GUARDED, Ordering::Relaxed);
    }
    if stage() <= GUARDED {
        reason = record::jump();
        say!("no-dump: {reason}");
        STAGE.store(LAST_WORDS, Ordering::Relaxed);
    }
    if stage() <= LAST_WORDS {
        last_words::say_them();
        last_run::mark(RunProgress::LastWords);
        page::show_no_dump(reason);
        STAGE.store(FINISHED, Ordering::Relaxed);
    }
    match stage() {
        ..=FINISHED => crate::base::power::after_crash(),
        BY_FACTS => crate::base::power::after_crash_by_facts(),
        _ => cpu::halt_forever(),
    }
}

/// Asks the workload for its last words, with a deadline.
///
/// This is the only code that runs after the stop with interrupts unmasked, and the deadline is
/// the only interrupt that the task priority lets through: a workload that loops, or that waits
/// for a lock whose holder has stopped, is interrupted and given up. Where there is no timer,
/// nothing is asked.
fn ask() {
    let Some(count) = lockup::counts(ASK_MS).filter(|_| workload::report::wanted()) else { return };
    ASKING.store(true, Ordering::Relaxed);
    lock::stay_interruptible(true);
    apic::set_task_priority(ASK_PRIORITY);
    apic::set_deadline(VECTOR_DEADLINE, count);
    cpu::interrupts_on();
    faults::in_last_words();
    workload::report::ask();
    cpu::interrupts_off();
    apic::clear_deadline();
    lock::stay_interruptible(false);
    ASKING.store(false, Ordering::Relaxed);
}

/// The same ladder without a crash: stops every other CPU for an orderly power-off, reset or
/// halt, in the gentlest way that works. Returns on the CPU that is to carry it out.
///
/// A CPU that crashes meanwhile has lost and stops itself; if this one does, only the policy
/// is left.
pub fn stop_for_good() {
    cpu::interrupts_off();
    let index = cpus::current_index() as u32;
    let begun = match CLAIM.claim(index) {
        Outcome::Won => {
            STAGE.store(FINISHED, Ordering::Relaxed);
            arm::mend_park();
            CLAIM.begin(index)
        }
        Outcome::Lost(_) => false,
        Outcome::Nested => return,
    };
    if !begun {
        stop::stop_this_cpu(stop::Entry::Own(&registers::current(), RegistersFrom::SELF));
    }
    hw_watchdog::at_crash();
    stop::stop_others(|| ());
}

/// Prints the cause, once.
fn announce() {
    let Some(cause) = record::cause().filter(|_| !ANNOUNCED.swap(true, Ordering::Relaxed)) else {
        return;
    };
    let kind = cause.kind;
    let message = cause.message();
    match cause.line {
        0 => say!("{kind}: {message}, on CPU {}", cause.cpu),
        line => say!("{kind}: {message} ({}:{line}), on CPU {}", cause.file(), cause.cpu),
    }
    if console::port() == 0 {
        // Nobody reads it now; it is in the log that the dump holds.
        say!("crash: no serial port, the console is in the log only");
    }
}
