//! What the other CPUs do, each from its `CPU_ON` to its `CPU_OFF`.

use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_monitor::abi::{psci, sdei};

use crate::handler::{WEDGED_SP, register};
use crate::machine::{self, CPUS, SGI, count, cpu, smc, within};

/// The argument of `CPU_ON`. The boot CPU has none of these, but 0.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Job {
    /// Takes events, then masks everything and spins in one instruction.
    Wedge = 1,
    /// Registers and stays masked for events until told; then takes them.
    Masked = 2,
    /// Takes interrupts and events until told to go off.
    Probe = 3,
    /// Takes interrupts, and clears what an earlier life left active.
    ProbeCleared = 4,
    /// Goes off in its interrupt handler, with the interrupt not ended.
    OffInInterrupt = 5,
    /// Goes off in its interrupt handler, after the end of the interrupt.
    OffAfterInterrupt = 6,
}

/// Set by a CPU that has set up what its job needs.
pub static READY: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// Set by the boot CPU: go on.
pub static GO: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// The client's interrupts that each CPU took.
pub static INTERRUPTS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// The job of each CPU, for its interrupt handler.
pub static JOBS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// Longest time, in milliseconds, that a CPU waits for the boot CPU.
const PATIENCE: u64 = 30_000;

/// Does one job on this CPU.
pub extern "C" fn run(job: u64) -> ! {
    let cpu = cpu();
    JOBS[cpu].store(job, Ordering::Relaxed);
    let is = |wanted: Job| job == wanted as u64;
    machine::set_up_interrupts(is(Job::ProbeCleared));
    register(!is(Job::Masked));
    if is(Job::Wedge) {
        READY[cpu].store(1, Ordering::Release);
        machine::wedge(&WEDGED_SP[cpu]);
    }
    if !is(Job::Masked) {
        machine::open_interrupts();
    }
    READY[cpu].store(1, Ordering::Release);
    let go = || GO[cpu].load(Ordering::Acquire) == 1;
    within(PATIENCE, go);
    if is(Job::Masked) {
        GO[cpu].store(0, Ordering::Relaxed);
        smc(sdei::PE_UNMASK, [0; 5]);
        READY[cpu].store(2, Ordering::Release);
        within(PATIENCE, go);
    }
    smc(psci::CPU_OFF, [0; 5]);
    machine::say(format_args!("unexpected=CPU_OFF returned\n"));
    machine::park()
}

/// Takes an interrupt.
pub fn interrupt() {
    let cpu = cpu();
    let job = JOBS[cpu].load(Ordering::Relaxed);
    let interrupt = machine::acknowledge();
    if interrupt != SGI {
        return;
    }
    count(&INTERRUPTS[cpu]);
    if job != Job::OffInInterrupt as u64 {
        machine::end_interrupt(interrupt);
    }
    if job == Job::OffInInterrupt as u64 || job == Job::OffAfterInterrupt as u64 {
        smc(psci::CPU_OFF, [0; 5]);
    }
}
