//! What the image does about its own mistakes: say so, once, and follow the policy.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use machine::mce::{self, Bank};
use machine::trap::{self, TrapFrame, vector};

use crate::console::{self, say};
use crate::finish;

/// How often something has gone wrong. Each time less is tried, so there is no loop.
static FAULTS: AtomicU32 = AtomicU32::new(0);

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

/// Takes the processor's exceptions away from the dead system.
pub fn guard() {
    machine::capture::take_over(dispatch);
}

fn dispatch(frame: &mut TrapFrame) {
    // An NMI is no fault of ours: one that the crashing system sent late, or one from
    // outside. The dump goes on. Other interrupts are masked; nothing could be done
    // about one.
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
        mce::acknowledge();
        fail(format_args!("machine check: {report}"));
    }
    fail(format_args!(
        "exception {} ({}) at {:#x}, error code {:#x}, address {:#x}, stack {:#x}",
        frame.vector,
        trap::exception_name(frame.vector),
        frame.rip,
        frame.error_code,
        machine::capture::fault_address(),
        frame.rsp,
    ))
}

/// Says which machine checks were survived since the last time; from the main flow, again and
/// again. One that comes in between may mix its figures into the line of the one before.
pub fn tell() {
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

/// Ends the capture because of a mistake in the image itself.
fn fail(what: fmt::Arguments<'_>) -> ! {
    console::release();
    match FAULTS.fetch_add(1, Ordering::Relaxed) {
        0 => {
            let base = machine::capture::layout().image.start;
            say!("capture: fault in the capture image (loaded at {base:#x})");
            finish::without_dump(what)
        }
        1 => {
            say!("capture: FAILED: again, {what}");
            finish::follow_policy()
        }
        _ => machine::cpu::halt_forever(),
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    machine::cpu::interrupts_off();
    match info.location() {
        Some(at) => fail(format_args!("panic at {}:{}: {}", at.file(), at.line(), info.message())),
        None => fail(format_args!("panic: {}", info.message())),
    }
}
