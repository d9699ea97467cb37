//! A rehearsal of the stop: every other CPU is stopped, acknowledges, and is released.
//!
//! It goes the way a crash goes: the same rung of the same ladder, the same vector, and the
//! same save of registers at the same entry. What it leaves out is the move into the park
//! area, from which nobody returns; a CPU that is rehearsing halts where it is instead, open
//! to interrupts: a crash that comes in between stops it there for good.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ::stop::CpuMask;
use handoff::MAX_CPUS;
use handoff::crash::RegistersFrom;
use machine::apic::{self, Ipi};
use machine::trap::TrapFrame;
use machine::{cpu, registers};

use super::stop::{self, Acks, Climb};
use super::stopper;
use crate::base::{clock, cpus};
use crate::work::workload::VECTOR_WAKE;

/// One rehearsal at a time.
static UNDER_WAY: AtomicBool = AtomicBool::new(false);
/// Number of the rehearsal under way, from 1; 0 while there is none.
static CALLED: AtomicU32 = AtomicU32::new(0);
/// Number of the last rehearsal whose CPUs may go on.
static RELEASED: AtomicU32 = AtomicU32::new(0);
static LAST: AtomicU32 = AtomicU32::new(0);
/// By CPU: the rehearsal it acknowledged last, and the one it has come back from.
static ACKNOWLEDGED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static RESUMED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// How a rehearsal went.
#[derive(Clone, Copy, Debug)]
pub struct Rehearsal {
    /// CPUs that stopped.
    pub stopped: CpuMask,
    /// CPUs that the interrupt did not reach in its window: a crash would send them an NMI.
    pub missing: CpuMask,
    /// From the first interrupt sent to the last acknowledgement, or the end of the window.
    pub stop_ns: u64,
    /// From there until all that had stopped were under way again.
    pub release_ns: u64,
}

/// Takes part in a rehearsal: called at the stop interrupt when nobody is stopping. An
/// interrupt that comes late finds the rehearsal over, and means nothing.
pub fn take_part(frame: &TrapFrame) {
    let index = cpus::current_index();
    let number = CALLED.load(Ordering::Acquire);
    let (Some(acknowledged), Some(resumed)) = (ACKNOWLEDGED.get(index), RESUMED.get(index)) else {
        return;
    };
    if number == 0 || acknowledged.load(Ordering::Relaxed) == number {
        return;
    }
    cpus::current().registers.save(&registers::interrupted(frame), RegistersFrom::LAST_KNOWN);
    acknowledged.store(number, Ordering::Release);
    let patience = patience_ns();
    let start = cpu::rdtsc();
    // Halted, as a stopped CPU is, but for interrupts: the release is one, a crash's stop
    // another, and each tick is a look at the clock.
    while RELEASED.load(Ordering::Acquire) != number
        && clock::ns(cpu::rdtsc().wrapping_sub(start)) < patience
    {
        cpu::interrupts_on_and_halt();
        cpu::interrupts_off();
    }
    resumed.store(number, Ordering::Release);
}

/// Nobody is waited for longer than the interrupt's window; whoever waits to be released
/// waits for twice that, should the one who releases be gone.
fn patience_ns() -> u64 {
    stop::windows_ns()[0].saturating_mul(2)
}

/// Who has acknowledged the rehearsal `number`.
pub(super) fn acknowledged(number: u32) -> CpuMask {
    having(&ACKNOWLEDGED, number)
}

fn having(states: &[AtomicU32; MAX_CPUS], number: u32) -> CpuMask {
    let mut mask = CpuMask::new();
    for (index, state) in states.iter().enumerate().take(cpus::count()) {
        if state.load(Ordering::Acquire) == number {
            mask.set(index as u32);
        }
    }
    mask
}

/// Stops every other CPU and releases them. `None` when another rehearsal or a crash is
/// under way.
pub fn rehearse() -> Option<Rehearsal> {
    if stopper().is_some() || UNDER_WAY.swap(true, Ordering::Acquire) {
        return None;
    }
    // 0 means that there is none.
    let number = LAST.load(Ordering::Relaxed).wrapping_add(1).max(1);
    LAST.store(number, Ordering::Relaxed);
    CALLED.store(number, Ordering::Release);
    let result = stop_and_release(number);
    CALLED.store(0, Ordering::Release);
    UNDER_WAY.store(false, Ordering::Release);
    result
}

fn stop_and_release(number: u32) -> Option<Rehearsal> {
    let targets = stop::targets();
    let ladder = stop::ladder();
    let mut climb = Climb::new(&ladder[..1], targets);
    climb.begin();
    let Some((stopped, missing)) = climb.climb_all(Acks::Drill(number)) else {
        // They are the crash's now; released, they find that out at once.
        RELEASED.store(number, Ordering::Release);
        return None;
    };
    let now = || climb.ns();
    let stop_ns = now();
    RELEASED.store(number, Ordering::Release);
    for index in stopped.iter() {
        apic::send(cpus::apic_id(index as usize), Ipi::Fixed(VECTOR_WAKE));
    }
    let patience = patience_ns();
    let mut polls = 0;
    while !stopped.minus(&having(&RESUMED, number)).is_empty()
        && now().saturating_sub(stop_ns) < patience
        && polls < patience / stop::POLL_NS
    {
        polls += 1;
        cpu::pause();
    }
    Some(Rehearsal { stopped, missing, stop_ns, release_ns: now().saturating_sub(stop_ns) })
}
