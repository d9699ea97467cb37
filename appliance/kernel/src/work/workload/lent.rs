//! What the kernel lends to workloads, behind `epitaph_workload`'s handles.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_workload::{Context, Kernel, LOCKS};
use machine::apic::{self, Ipi};
use machine::identity;
use machine::lock::Lock;

use super::{ROUND, running};
use crate::arming::keys;
use crate::base::{clock, console, cpus};
use crate::trial;
use crate::work::load;

/// Vector of a workload's calls: nothing else uses it, least of all the stop.
pub const VECTOR_CALL: u8 = 0xe2;

static LOCK: [Lock<()>; LOCKS] = Lock::numbered("workload");

/// The kernel, as a workload sees it.
#[derive(Debug)]
pub struct Lent;

impl Kernel for Lent {
    fn cpus(&self) -> usize {
        cpus::count()
    }

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn beat(&self) {
        trial::beat();
        load::beat();
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        console::print(line);
    }

    #[inline(never)]
    fn locked(&self, lock: usize, work: &mut dyn FnMut()) {
        // The workload's own code called this, by way of its handle, which is inlined.
        let _held = LOCK[lock].lock_at(identity::return_address());
        work();
    }

    fn never_dumped(&self, words: usize) -> Option<&'static [AtomicU64]> {
        keys::take(words)
    }

    fn call(&self, cpu: usize) -> bool {
        let runs = cpu < cpus::count() && cpus::running(cpu);
        if runs {
            apic::send(cpus::apic_id(cpu), Ipi::Fixed(VECTOR_CALL));
        }
        runs
    }
}

/// The running CPU's context.
pub fn context() -> Context<'static> {
    Context::new(cpus::current_index(), ROUND.load(Ordering::Relaxed), &Lent)
}

/// Handles a call. One that arrives after its round has ended finds nobody to answer it.
pub fn on_call() {
    if let Some(workload) = running() {
        workload.on_call(&context());
    }
    apic::end_of_interrupt();
}
