//! Machine checks: the processor reports an error of the hardware.
//!
//! Many processors report one to every CPU at once. Each has a look at its own banks; the
//! CPU that lost something is the one to crash, so the others give it a moment to be first.
//! During a stop a machine check that its CPU survives is noted and changes nothing else.

use core::fmt::Write;
use core::sync::atomic::Ordering;

use handoff::crash::{CauseKind, RegistersFrom};
use machine::trap::{TrapFrame, vector};
use machine::{cpu, mce, registers};

use super::field::Field;
use super::{cause, crash, say, stop, stopper};
use crate::base::{clock, cpus};

/// How long a CPU that could go on waits for one that could not, in nanoseconds at least,
/// and how far above the measured round trip.
const COURTESY_NS: u64 = 10_000_000;
const ROUND_TRIPS: u64 = 20;

/// Where every machine check enters. Returns only during a stop, to what it interrupted.
pub fn on_machine_check(frame: &TrapFrame) {
    let report = mce::read();
    // Another one must find its way here, and not shut the machine down.
    mce::acknowledge();
    let index = cpus::current_index();
    let me = cpus::current();
    me.machine_checks.fetch_add(1, Ordering::Relaxed);
    say!("mce: CPU {index}: {report}");
    // A machine check on top of another has taken its stack: there is nothing to return to.
    let nested = me.stacks().is_some_and(|stacks| {
        (stacks.double_fault_top()..stacks.machine_check_top()).contains(&frame.rsp)
    });
    let registers = registers::interrupted(frame);
    if let Some(stopper) = stopper() {
        let survived = report.survivable() && !nested;
        if survived && (stopper == index || stop::saving(index)) {
            return;
        }
        if stopper != index {
            stop::stop_this_cpu(stop::Entry::Own(&registers, RegistersFrom::INTERRUPTED));
        }
    } else if report.survivable() {
        wait_for_another();
    }
    let mut cause = cause(CauseKind::MCE);
    cause.vector = vector::MACHINE_CHECK as u32;
    if let Some(bank) = report.worst {
        cause.error_code = bank.status;
        cause.address = bank.address;
    }
    let mut message = Field { bytes: &mut cause.message, used: 0 };
    // A field takes what fits and never fails.
    let _ = write!(message, "machine check, {report}");
    crash(&cause, &registers, RegistersFrom::INTERRUPTED)
}

/// Lets a CPU that cannot go on crash first, if there is one.
fn wait_for_another() {
    let patience = COURTESY_NS.max(cpus::round_trip_ns() * ROUND_TRIPS);
    let patience = patience.min(super::stop::windows_ns()[0]);
    let (start, mut polls) = (cpu::rdtsc(), 0);
    // Should the clock fail, the number of looks is the bound.
    while stopper().is_none()
        && clock::ns(cpu::rdtsc().wrapping_sub(start)) < patience
        && polls < patience / stop::POLL_NS
    {
        polls += 1;
        cpu::pause();
    }
}
