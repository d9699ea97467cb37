//! What the image does about its own mistakes: say so, once, and follow the policy.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use machine::mce;
use machine::trap::{self, TrapFrame, vector};

use crate::console::say;
use crate::finish;

/// How often something has gone wrong. Each time less is tried, so there is no loop.
static FAULTS: AtomicU32 = AtomicU32::new(0);

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
        mce::acknowledge();
        if report.survivable() {
            // It went to every CPU, or concerns what is not in use: the dump goes on.
            say!("capture: machine check survived: {report}");
            return;
        }
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

/// Ends the capture because of a mistake in the image itself.
fn fail(what: fmt::Arguments<'_>) -> ! {
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
