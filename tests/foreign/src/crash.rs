//! The crash: one CPU stops the others, writes down what happened, and leaves for the capture
//! image. Nothing here allocates, waits without an end or takes a lock.
#![expect(unsafe_code, reason = "trap frames, and records that one CPU writes")]

use core::arch::asm;
use core::panic::PanicInfo;
use core::sync::atomic::Ordering::Relaxed;

use handoff::crash::{RungSignal, StoppedBy};
use handoff::{BootFacts, Cause, CpuRecord, Handoff, RungRecord, X86Registers};
use stop::{AckBoard, Action, Claim, CpuMask, Escalation, Outcome, Rung, RungKind, SlotState};

use crate::arm::FACTS;
use crate::machine::{self, CPUS, STOP_VECTOR, memory, ns, say, tsc};

static CLAIM: Claim = Claim::new();
static BOARD: AckBoard<CPUS> = AckBoard::new();
/// Registers and time of the stop: each CPU writes its own, once, before it acknowledges.
static mut SAVED: [Option<(X86Registers, u64)>; CPUS] = [None; CPUS];
/// Written by the crashing CPU.
static mut RECORDS: Option<(Handoff, [CpuRecord; CPUS])> = None;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let cause = Cause::of_panic(info);
    say(&["panic: ", cause.message(), "\n"]);
    // A trap, so that the registers of this CPU come from a frame like those of the others.
    // SAFETY: `trap` does not return from it.
    unsafe { asm!("int3", "ud2", in("rdi") &raw const cause, options(noreturn)) }
}

/// Every trap, with the words that were pushed.
#[unsafe(no_mangle)]
extern "C" fn trap(vector: u32, frame: &[u64; 21]) {
    let cpu = machine::cpu_at(frame.as_ptr() as u64);
    match vector {
        STOP_VECTOR => stop_this_cpu(cpu, frame, StoppedBy::IRQ),
        2 if CLAIM.owner().is_some() => stop_this_cpu(cpu, frame, StoppedBy::NMI),
        // SAFETY: a breakpoint: the panic handler's RDI. It waits on this stack.
        3 => crash(cpu, frame, unsafe { *(frame[14] as *const Cause) }),
        _ => crash(cpu, frame, Cause::of_exception(vector, frame[15], 0)),
    }
}

/// Keeps the registers of this CPU.
fn save(cpu: usize, frame: &[u64; 21]) {
    let mut registers = X86Registers::default();
    let X86Registers { cr0, cr2, cr3, cr4, efer, .. } = &mut registers;
    // SAFETY: the frame has the layout of the first words; the place is this CPU's.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr2", "mov {}, cr3", "mov {}, cr4", "rdmsr",
             out(reg) *cr0, out(reg) *cr2, out(reg) *cr3, out(reg) *cr4,
             in("ecx") 0xc000_0080u32, out("rax") *efer, out("edx") _);
        (&raw mut registers).cast::<[u64; 21]>().write(*frame);
        SAVED[cpu] = Some((registers, tsc()));
    }
}

/// Stops this CPU; returns if it has interrupted the very save.
fn stop_this_cpu(cpu: usize, frame: &[u64; 21], how: StoppedBy) {
    let Some(slot) = BOARD.slot(cpu as u32) else { return };
    if slot.begin_save() {
        save(cpu, frame);
    } else if slot.state() == SlotState::Saving {
        return;
    }
    slot.acknowledge(how.0);
    machine::halt()
}

/// Handles the crash, on the one CPU that wins the claim.
fn crash(cpu: usize, frame: &[u64; 21], mut cause: Cause) {
    (cause.cpu, cause.tsc) = (cpu as u32, tsc());
    let won = match CLAIM.claim(cause.cpu) {
        Outcome::Won => CLAIM.begin(cause.cpu),
        Outcome::Lost(owner) => {
            while !CLAIM.has_begun() && ns(cause.tsc, tsc()) < 1_000_000_000 {}
            CLAIM.take_over(cause.cpu, owner)
        }
        Outcome::Nested => machine::halt(),
    };
    if !won {
        return stop_this_cpu(cpu, frame, StoppedBy::SELF);
    }
    save(cpu, frame);
    let mut handoff = Handoff::new();
    handoff.cause = cause;
    stop_others(&mut handoff);
    let cpus = core::array::from_fn(|index| describe(index, &handoff));
    // SAFETY: the records are this CPU's; nothing writes the region once it is armed.
    let (records, facts) = unsafe {
        RECORDS = Some((handoff, cpus));
        let facts = BootFacts::check(memory(FACTS, size_of::<BootFacts>())).ok();
        let image = |facts: &BootFacts| memory(facts.image.start, facts.image.bytes as usize);
        let whole = |facts: &&BootFacts| handoff::crc32(image(facts)) == facts.image_crc32;
        let records = &raw mut RECORDS;
        ((*records).as_mut(), facts.filter(whole))
    };
    if let (Some((handoff, cpus)), Some(facts)) = (records, facts) {
        handoff.facts = FACTS;
        handoff.cpus = machine::physical(cpus);
        handoff.log = machine::log();
        handoff.jump_tsc = tsc();
        handoff.seal(cpus);
        machine::leave(facts.image_entry, machine::physical(handoff));
    }
    say(&["no-dump: not armed, or the capture image is damaged\n"]);
    machine::halt()
}

/// Climbs the ladder: the interrupt first, then the NMI for the CPUs that it does not reach.
fn stop_others(handoff: &mut Handoff) {
    let rungs = [(RungKind::Irq, 1), (RungKind::Nmi, 2)];
    let rungs = rungs.map(|(kind, seconds)| Rung::new(kind, seconds * 1_000_000_000));
    let mut others = CpuMask::first(CPUS as u32);
    others.clear(handoff.cause.cpu);
    let mut ladder = Escalation::new(&rungs, others);
    let start = tsc();
    loop {
        match ladder.step(&BOARD.acked(), ns(start, tsc())) {
            Action::Announce(..) => say(&["stop: about to send an NMI\n"]),
            Action::Send { rung, to } => {
                let command = if rung == RungKind::Irq { 0x4000 | STOP_VECTOR } else { 0x4400 };
                let to = to.iter().map(|cpu| machine::HARDWARE_IDS[cpu as usize].load(Relaxed));
                to.for_each(|id| machine::send(id, command));
            }
            Action::Wait => core::hint::spin_loop(),
            Action::Finished { .. } => break,
        }
    }
    handoff.stopped_tsc = tsc();
    let hz = u128::from(machine::TSC_HZ.load(Relaxed));
    let at = |ns: u64| start + (u128::from(ns) * hz / 1_000_000_000) as u64;
    for (record, send) in handoff.timeline.iter_mut().zip(ladder.timeline()) {
        let (sent_tsc, closed_tsc) = (at(send.sent_ns), at(send.closed_ns));
        let (kind, targets, mask) =
            (RungSignal(send.kind.number()), send.mask.count(), *send.mask.words());
        let window_ns = send.window_ns;
        *record = RungRecord { kind, targets, sent_tsc, closed_tsc, window_ns, mask };
        handoff.timeline_count += 1;
    }
}

/// Returns the record of a CPU.
fn describe(index: usize, handoff: &Handoff) -> CpuRecord {
    let mut record = CpuRecord::new();
    record.index = index as u32;
    record.hardware_id = machine::HARDWARE_IDS[index].load(Relaxed).into();
    record.stack = machine::stack(index);
    record.stopped_by = match BOARD.state(record.index) {
        _ if record.index == handoff.cause.cpu => StoppedBy::CRASH,
        SlotState::Acked(how) => StoppedBy(how),
        _ => StoppedBy::NOT_STOPPED,
    };
    // SAFETY: whole, if that CPU has acknowledged or is this one; not looked at otherwise.
    let saved = unsafe { SAVED[index] }.filter(|_| record.stopped_by != StoppedBy::NOT_STOPPED);
    if let Some((registers, stopped_tsc)) = saved {
        record.set_interrupted(&registers);
        if record.stopped_by != StoppedBy::CRASH {
            record.stopped_tsc = stopped_tsc;
            record.latency_ns = ns(handoff.timeline[0].sent_tsc, stopped_tsc);
        }
    }
    record
}
