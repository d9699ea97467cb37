//! What the event handler does, on its own stack.

use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_monitor::abi::{psci, sdei};

use crate::calls;
use crate::jobs::{JOBS, Job};
use crate::machine::{
    self, BLOCKS, Block, CPUS, PATTERN, PATTERN_FPCR, PATTERN_FPSR, count, cpu, smc,
};

/// How a handler ends.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Action {
    /// Back to what was interrupted.
    Complete = 0,
    /// On to [`resumed`].
    Resume = 1,
    /// Never: waits, as a stop does.
    Park = 2,
    /// By `CPU_OFF`, with the event not completed.
    Off = 3,
    /// Back, after the calls that are to be made inside of a handler.
    Calls = 4,
}

/// What the handler of each CPU is to do.
pub static ACTIONS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// Events that each CPU has handled.
pub static EVENTS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// Registers that a wedged CPU was found with and that are not of the pattern, summed up.
pub static DAMAGED: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// Processor state that the event interrupted last.
pub static INTERRUPTED: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// The stack pointer of a wedged CPU.
pub static WEDGED_SP: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// Whether COMPLETE_AND_RESUME left the exception return registers as an exception would.
pub static RESUMED: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// Registers that a wedged CPU is checked for: x0–x30, SP, PC, v0–v31 in halves, FPSR, FPCR.
pub const CHECKED: u64 = 31 + 2 + 64 + 2;

/// Handles an event. Returns how to leave.
pub extern "C" fn handle(block: &Block) -> u64 {
    let cpu = cpu();
    let value = |register: usize| block.x[register].load(Ordering::Relaxed);
    INTERRUPTED[cpu].store(value(3), Ordering::Relaxed);
    if JOBS[cpu].load(Ordering::Relaxed) == Job::Wedge as u64 {
        if value(2) != machine::wedge_pc() {
            // Too early: the CPU is still on its way into the loop.
            return Action::Complete as u64;
        }
        let damaged = DAMAGED[cpu].load(Ordering::Relaxed);
        DAMAGED[cpu].store(damaged + damage(block, &PATTERN.x), Ordering::Relaxed);
    }
    let action = ACTIONS[cpu].load(Ordering::Relaxed);
    if action == Action::Calls as u64 {
        calls::inside_of_a_handler();
    }
    count(&EVENTS[cpu]);
    if action == Action::Off as u64 {
        smc(psci::CPU_OFF, [0; 5]);
        machine::say(format_args!("unexpected=CPU_OFF returned\n"));
    }
    if action == Action::Calls as u64 { Action::Complete as u64 } else { action }
}

/// Counts the registers of a wedged CPU that are not `expected` or not of the pattern.
///
/// x0–x17 come from EL3, and x4–x17 a second time from the handler's entry.
pub fn damage(block: &Block, expected: &[u64; 31]) -> u64 {
    let same = |kept: &AtomicU64, wanted: u64| kept.load(Ordering::Relaxed) == wanted;
    let mut damaged = 0;
    for (register, wanted) in expected.iter().enumerate() {
        let by_el3 = register < sdei::CONTEXT_REGISTERS;
        let context = || smc(sdei::EVENT_CONTEXT, [register as u64, 0, 0, 0, 0]) as u64;
        let good = (!by_el3 || context() == *wanted)
            && (register < 4 || same(&block.x[register], *wanted));
        damaged += u64::from(!good);
    }
    for (kept, wanted) in block.v.iter().zip(PATTERN.v) {
        damaged += u64::from(!same(kept, wanted));
    }
    damaged += u64::from(!same(&block.status[0], PATTERN_FPSR));
    damaged += u64::from(!same(&block.status[1], PATTERN_FPCR));
    damaged += u64::from(!same(&block.sp, WEDGED_SP[cpu()].load(Ordering::Relaxed)));
    damaged + u64::from(!same(&block.x[2], machine::wedge_pc()))
}

/// Goes on after COMPLETE_AND_RESUME, as the last thing this CPU does.
pub extern "C" fn resumed() -> ! {
    let cpu = cpu();
    let interrupted = [machine::wedge_pc(), INTERRUPTED[cpu].load(Ordering::Relaxed)];
    let good = machine::exception_return() == interrupted;
    RESUMED[cpu].store(u64::from(good), Ordering::Relaxed);
    smc(psci::CPU_OFF, [0; 5]);
    machine::park()
}

/// Registers the handler on this CPU and enables it; with `unmask` events arrive from then on.
pub fn register(unmask: bool) {
    let block = &raw const BLOCKS[cpu()] as u64;
    smc(sdei::EVENT_REGISTER, [0, machine::handler(), block, sdei::ROUTE_ANY, 0]);
    smc(sdei::EVENT_ENABLE, [0; 5]);
    if unmask {
        smc(sdei::PE_UNMASK, [0; 5]);
    }
}
