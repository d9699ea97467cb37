//! A live backtrace: where does every CPU stand right now?
//!
//! The question goes by NMI, so that CPUs with interrupts off answer as well. Unlike the
//! stop's NMI this one returns: a CPU that was asked notes its chain of frames and goes on.
//! The addresses are printed as they are; names are for the host, which has the image.
//!
//! Questions are counted apart from all other NMIs, and the stop comes first: once a crash
//! is claimed, an NMI is the stop's whatever it was sent for.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use handoff::MAX_CPUS;
use machine::apic::{self, Ipi};
use machine::trap::TrapFrame;
use machine::{cpu, registers, tables};

use crate::base::chain::{self, DEPTH};
use crate::base::memory::Memory;
use crate::base::physical::Physical;
use crate::base::{clock, cpus};
use crate::crash::say;

/// How long answers are waited for at least, in microseconds, and how far above the measured
/// round trip.
const WAIT_US: u64 = 100_000;
const ROUND_TRIPS: u64 = 20;
/// Microseconds between two looks.
const LOOK_US: u64 = 100;

/// What one CPU answers.
struct Answer {
    /// Set by who asks, cleared by who answers. It stays set when no answer comes: the NMI
    /// is still under way then, and must be known for a question when it arrives.
    wanted: AtomicBool,
    /// Addresses of `chain` in use; 0 while there is no answer.
    length: AtomicU32,
    chain: [AtomicU64; DEPTH],
    /// Whether interrupts were on where it stood.
    open: AtomicBool,
}

static ANSWERS: [Answer; MAX_CPUS] = [const {
    Answer {
        wanted: AtomicBool::new(false),
        length: AtomicU32::new(0),
        chain: [const { AtomicU64::new(0) }; DEPTH],
        open: AtomicBool::new(false),
    }
}; MAX_CPUS];
/// One question at a time.
static ASKING: AtomicBool = AtomicBool::new(false);

fn word(address: u64) -> Option<u64> {
    let bytes = Memory.bytes(address, 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Notes the running CPU's chain from `rip` and `rbp` on.
fn note(index: usize, rip: u64, rbp: u64) {
    let (Some(cpu), Some(answer)) = (cpus::all().get(index), ANSWERS.get(index)) else { return };
    let stack = cpu.stacks().map(|stacks| stacks.main()).unwrap_or_default();
    let chain = chain::walk(rip, rbp, stack, word);
    for (slot, address) in answer.chain.iter().zip(&chain) {
        slot.store(*address, Ordering::Relaxed);
    }
    answer.length.store(chain.len() as u32, Ordering::Release);
}

/// Called first thing in the NMI handler: whether this NMI was the question, which is then
/// answered.
pub fn answer(index: usize, frame: &TrapFrame) -> bool {
    let wanted =
        ANSWERS.get(index).is_some_and(|answer| answer.wanted.swap(false, Ordering::AcqRel));
    if !wanted {
        return false;
    }
    /// RFLAGS.IF (Intel SDM vol. 1, 3.4.3.3).
    const INTERRUPT_FLAG: u64 = 1 << 9;
    if let Some(answer) = ANSWERS.get(index) {
        answer.open.store(frame.rflags & INTERRUPT_FLAG != 0, Ordering::Relaxed);
    }
    note(index, frame.rip, frame.rbp);
    cpus::current().questions.fetch_add(1, Ordering::Release);
    true
}

/// Asks CPU `index` where it stands, unless a question to it is under way, and does not wait:
/// the answer shows in its count of questions and in [`interrupts_were_on`].
pub fn ask(index: usize) {
    let Some(answer) = ANSWERS.get(index).filter(|_| tables::nmi_gate_intact()) else { return };
    if !answer.wanted.swap(true, Ordering::AcqRel) {
        apic::send(cpus::apic_id(index), Ipi::Nmi);
    }
}

/// Returns true if interrupts were on where CPU `index` stood at its last answer.
pub fn interrupts_were_on(index: usize) -> bool {
    ANSWERS.get(index).is_some_and(|answer| answer.open.load(Ordering::Relaxed))
}

/// Asks every CPU that runs where it stands, and prints what they answer, a line each. Takes
/// no lock, and waits for no one for ever.
pub fn show_all() {
    if !tables::nmi_gate_intact() {
        say!("live: the NMI gate is damaged: nobody is asked");
        return;
    }
    if ASKING.swap(true, Ordering::Acquire) {
        say!("live: another backtrace is under way");
        return;
    }
    let me = cpus::current_index();
    for (index, answer) in ANSWERS.iter().enumerate().take(cpus::count()) {
        answer.length.store(0, Ordering::Relaxed);
        if index != me && cpus::running(index) {
            answer.wanted.store(true, Ordering::Release);
            apic::send(cpus::apic_id(index), Ipi::Nmi);
        }
    }
    let own = registers::current();
    note(me, own.rip, own.rbp);
    let patience = WAIT_US.max(cpus::round_trip_ns() * ROUND_TRIPS / 1000);
    // By the clock and by the count: a look can take far longer than it should on a busy
    // host, and a clock can fail.
    let start = clock::now_ns();
    let patient = || clock::now_ns().saturating_sub(start) / 1000 < patience;
    let mut waited = 0;
    let waits =
        |index: usize| cpus::running(index) && ANSWERS[index].length.load(Ordering::Acquire) == 0;
    while (0..cpus::count()).any(waits) && waited < patience && patient() {
        clock::wait_us(LOOK_US);
        waited += LOOK_US;
        cpu::pause();
    }
    for (index, answer) in ANSWERS.iter().enumerate().take(cpus::count()) {
        if cpus::running(index) {
            say!("live: CPU {index}:{}", Line(answer));
        }
    }
    ASKING.store(false, Ordering::Release);
}

/// One CPU's answer.
struct Line<'a>(&'a Answer);

impl core::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let length = self.0.length.load(Ordering::Acquire) as usize;
        if length == 0 {
            return f.write_str(" no answer");
        }
        let chain = self.0.chain.iter().take(length);
        chain.map(|slot| slot.load(Ordering::Relaxed)).try_for_each(|at| write!(f, " {at:#x}"))
    }
}
