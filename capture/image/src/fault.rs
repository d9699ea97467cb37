//! What the image does about its own mistakes: say so, once, make a dump of what was written
//! of an unfinished stage, leave last words, and follow the policy.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use machine::capture::after;
use machine::capture::cell::TryCell;
use machine::mce::{self, Bank, Report};
use machine::trap::{self, TrapFrame, vector};
use vmcore_format::notes::FAULT_BYTES;

use crate::console::{self, say};
use crate::{finish, rehearsal, rescue};

/// What is being done about something that has gone wrong, one of [`step`]. Each time it is
/// less, so there is no loop.
static STEP: AtomicU32 = AtomicU32::new(step::WELL);

/// Values of [`STEP`].
mod step {
    pub const WELL: u32 = 0;
    pub const CLOSING: u32 = 1;
    pub const LAST_WORDS: u32 = 2;
    pub const POLICY: u32 = 3;
}

/// Machine checks that were survived, how many of them were told, and the worst bank of the
/// last one.
struct Survived {
    count: AtomicU32,
    told: AtomicU32,
    bank: AtomicU32,
    status: AtomicU64,
    address: AtomicU64,
}

static SURVIVED: Survived = Survived {
    count: AtomicU32::new(0),
    told: AtomicU32::new(0),
    bank: AtomicU32::new(0),
    status: AtomicU64::new(0),
    address: AtomicU64::new(0),
};

/// What brought the main flow to an end.
static CAUSE: TryCell<Option<Cause>> = TryCell::new(None);

/// Something that the image cannot go on after.
#[derive(Clone, Copy)]
enum Cause {
    MachineCheck(Report),
    Exception { vector: u64, rip: u64, error_code: u64, address: u64, rsp: u64 },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MachineCheck(report) => write!(f, "machine check: {report}"),
            Self::Exception { vector, rip, error_code, address, rsp } => write!(
                f,
                "exception {vector} ({}) at {rip:#x}, error code {error_code:#x}, address \
                 {address:#x}, stack {rsp:#x}",
                trap::exception_name(vector),
            ),
        }
    }
}

/// The panic of a helping CPU, until it is told.
static HELPER: TryCell<heapless::String<160>> = TryCell::new(heapless::String::new());

/// Takes the processor's exceptions away from the dead system.
pub fn install() {
    machine::capture::take_over(dispatch);
}

fn dispatch(frame: &mut TrapFrame) {
    // An NMI is no fault of ours: one that the crashing system sent late, or one from
    // outside. The dump goes on. Other interrupts are masked; nothing could be done
    // about one.
    if frame.vector == vector::NMI {
        machine::capture::rehearsal::note_nmi();
    }
    if frame.vector == vector::NMI || frame.vector >= vector::FIRST_INTERRUPT {
        return;
    }
    if frame.vector == vector::MACHINE_CHECK {
        let report = mce::read();
        if report.survivable() {
            // It went to every CPU, or concerns what is not in use: the dump goes on. Nothing
            // is said here: acknowledged before that, another one would come in on this very
            // stack, and meanwhile, it would shut the machine down.
            let worst = report.worst.unwrap_or(Bank { number: 0, status: 0, address: 0 });
            SURVIVED.bank.store(worst.number, Ordering::Relaxed);
            SURVIVED.status.store(worst.status, Ordering::Relaxed);
            SURVIVED.address.store(worst.address, Ordering::Relaxed);
            SURVIVED.count.fetch_add(1, Ordering::Relaxed);
            mce::acknowledge();
            return;
        }
        return end(frame, Cause::MachineCheck(report));
    }
    let TrapFrame { vector, rip, error_code, rsp, .. } = *frame;
    let address = machine::capture::fault_address();
    end(frame, Cause::Exception { vector, rip, error_code, address, rsp });
}

/// Ends the main flow: what comes instead takes its place, on its stack, where there is more
/// room than in a handler. A second time, and where there is no such stack, nothing but last
/// words is tried.
fn end(frame: &mut TrapFrame, cause: Cause) {
    let first = STEP.load(Ordering::Relaxed) == step::WELL;
    if first && CAUSE.with(|kept| *kept = Some(cause)).is_some() && after::divert(frame, instead) {
        return;
    }
    if matches!(cause, Cause::MachineCheck(_)) {
        mce::acknowledge();
    }
    fail(format_args!("{cause}"))
}

/// What comes instead of the main flow.
extern "C" fn instead() -> ! {
    let cause = CAUSE.with(|cause| *cause).flatten();
    // Not before: acknowledged, another one would come in on the stack of the first handler,
    // which that one had to come back from.
    if matches!(cause, Some(Cause::MachineCheck(_))) {
        mce::acknowledge();
    }
    match cause {
        Some(cause) => close(format_args!("{cause}")),
        None => close(format_args!("an unknown fault")),
    }
}

/// Says which machine checks were survived since the last time; from the main flow, again and
/// again. One that comes in between may mix its figures into the line of the one before.
pub fn tell() {
    HELPER.with(|panic| {
        if !panic.is_empty() {
            say!("capture: a helping CPU gave up: {panic}");
            panic.clear();
        }
    });
    let count = SURVIVED.count.load(Ordering::Relaxed);
    if SURVIVED.told.swap(count, Ordering::Relaxed) == count {
        return;
    }
    let worst = Bank {
        number: SURVIVED.bank.load(Ordering::Relaxed),
        status: SURVIVED.status.load(Ordering::Relaxed),
        address: SURVIVED.address.load(Ordering::Relaxed),
    };
    say!("capture: machine check survived: {worst}, {count} so far");
}

/// Makes a dump of what was written of an unfinished stage, then ends the capture: whatever it
/// was at never goes on.
fn close(what: fmt::Arguments<'_>) -> ! {
    rehearsal::failed(what);
    after::for_good(what, |over, what| {
        STEP.store(step::CLOSING, Ordering::Relaxed);
        console::release();
        let base = machine::capture::layout().image.start;
        say!("capture: fault in the capture image (loaded at {base:#x}): {what}");
        let mut line = heapless::String::<FAULT_BYTES>::new();
        // A line that is full is cut, which is what is wanted.
        let _ = write!(line, "{what}, image at {base:#x}");
        rescue::close(over, &line);
        STEP.store(step::LAST_WORDS, Ordering::Relaxed);
        finish::without_dump(what)
    })
}

/// Ends the capture without touching the disk any more.
fn fail(what: fmt::Arguments<'_>) -> ! {
    rehearsal::failed(what);
    console::release();
    match STEP.load(Ordering::Relaxed) {
        well_or_closing @ (step::WELL | step::CLOSING) => {
            STEP.store(step::LAST_WORDS, Ordering::Relaxed);
            let base = machine::capture::layout().image.start;
            say!("capture: fault in the capture image (loaded at {base:#x})");
            if well_or_closing == step::CLOSING {
                say!("capture: the stage cannot be closed");
            }
            finish::without_dump(what)
        }
        step::LAST_WORDS => {
            STEP.store(step::POLICY, Ordering::Relaxed);
            say!("capture: FAILED: again, {what}");
            finish::follow_policy()
        }
        _ => machine::cpu::halt_forever(),
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    machine::cpu::interrupts_off();
    if !machine::capture::on_own_stacks() {
        // A helper. Its job is never done, and that is noticed; the dump goes on without it.
        HELPER.with(|text| {
            let _ = match info.location() {
                Some(at) => {
                    write!(text, "panic at {}:{}: {}", at.file(), at.line(), info.message())
                }
                None => write!(text, "panic: {}", info.message()),
            };
        });
        machine::cpu::halt_forever();
    }
    // In a handler there is too little room for more than last words.
    let first = STEP.load(Ordering::Relaxed) == step::WELL && after::has_room();
    let end = if first { close } else { fail };
    match info.location() {
        Some(at) => end(format_args!("panic at {}:{}: {}", at.file(), at.line(), info.message())),
        None => end(format_args!("panic: {}", info.message())),
    }
}
