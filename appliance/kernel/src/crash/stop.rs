//! Stopping every other CPU, in the gentlest way that works.
//!
//! The ladder's logic is in the `stop` crate; this is its hardware. An interrupt first, as
//! a point of synchronisation: a CPU inside a critical section finishes it, drops its
//! locks, unmasks interrupts and only then stops. (Linux's kdump skips this rung; its
//! reboot path has it, and the reason holds for a dump as well.) NMI next, for CPUs whose
//! interrupts stay masked. INIT last, for started CPUs other than the boot processor that
//! no NMI reaches: it costs their registers, and sent to the boot processor it would reset
//! the machine.

use core::sync::atomic::{AtomicU64, Ordering};

use ::stop::CpuMask;
use ::stop::escalate::{Action, Escalation, Rung, RungKind};
use ::stop::slots::{AckBoard, SlotState};
use handoff::crash::{RegistersFrom, RungSignal, StoppedBy, cpu_flags};
use handoff::devices::MailboxState;
use handoff::trace::EventKind;
use handoff::{MAX_CPUS, RungRecord, X86Registers};
use heapless::Vec;
use machine::X86;
use machine::arch::names::{Processor, Signal};
use machine::park::{self, How};
use machine::trap::TrapFrame;
use machine::{apic, cpu, registers, smp, tables, trace};

use super::{NESTED, drill, note, say, stopper};
use crate::arming::arm;
use crate::arming::arm::Interference;
use crate::base::windows::{CAPS_NS, window_ns};
use crate::base::{clock, cpus};
use crate::firmware::cmdline::Options;
use crate::options;
use crate::trial::faults;

pub use machine::VECTOR_STOP;

/// Default windows in nanoseconds.
const IRQ_WINDOW_NS: u64 = 1_000_000_000;
const NMI_WINDOW_NS: u64 = 10_000_000;
/// The same under a hypervisor, which may not run a CPU for a while: INIT would take the
/// registers of a CPU that waits for the host. With the interrupt's window, three seconds.
const VIRTUAL_NMI_WINDOW_NS: u64 = 2_000_000_000;
const INIT_WINDOW_NS: u64 = 10_000_000;
/// Nanoseconds that one poll takes at least; bounds a window when the clock fails.
pub const POLL_NS: u64 = 50;

static BOARD: AckBoard<MAX_CPUS> = AckBoard::new();
/// The counter when the ladder had been climbed; 0 before.
static FINISHED_TSC: AtomicU64 = AtomicU64::new(0);
/// The timeline, kept for the record: written by the stopper only.
static TIMELINE: machine::cell::SetOnce<Vec<RungRecord, { handoff::crash::MAX_RUNGS }>> =
    machine::cell::SetOnce::new();

/// How a CPU came to stop.
#[derive(Debug)]
pub enum Entry<'a> {
    /// By the stop interrupt.
    Irq(&'a TrapFrame),
    /// By the NMI.
    Nmi(&'a TrapFrame),
    /// By itself, having lost a race of crashes, with the registers it crashed with and
    /// where they are from.
    Own(&'a X86Registers, RegistersFrom),
}

/// The funnel: every CPU that stops, stops here, whatever brought it.
///
/// In this order: mask interrupts, save the registers (the first save wins), leave for the
/// park area, acknowledge as the very last act. Who sees the acknowledgement knows that
/// this CPU touches no memory of the crashed system any more.
pub fn stop_this_cpu(entry: Entry<'_>) -> ! {
    cpu::interrupts_off();
    let index = cpus::current_index();
    let me = cpus::current();
    let how = match entry {
        Entry::Irq(_) => StoppedBy::IRQ,
        Entry::Nmi(_) => StoppedBy::NMI,
        Entry::Own(..) => StoppedBy::SELF,
    };
    let Some(slot) = BOARD.slot(index as u32) else { cpu::halt_forever() };
    if slot.begin_save() {
        let at = match entry {
            Entry::Irq(frame) | Entry::Nmi(frame) => frame.rip,
            Entry::Own(registers, _) => registers.rip,
        };
        trace::record(EventKind::STOPPED, u64::from(how.0), at);
        match entry {
            Entry::Irq(frame) | Entry::Nmi(frame) => {
                me.registers.save(&registers::interrupted(frame), RegistersFrom::INTERRUPTED);
                found(me, frame.rflags, how);
            }
            Entry::Own(registers, from) => {
                me.registers.save(registers, from);
                found(me, registers.rflags, how);
            }
        }
        faults::in_funnel(index);
        me.stopped_tsc.store(cpu::rdtsc(), Ordering::Relaxed);
    }
    match arm::park() {
        Some(park) => {
            let (word, value) = slot.acknowledgement(how.0);
            // Only a CPU that the interrupt found in good order is called back to work.
            let way = if how == StoppedBy::IRQ { How::Waiting } else { How::ForGood };
            park.enter(index, way, word, value)
        }
        None => {
            slot.acknowledge(how.0);
            cpu::halt_forever()
        }
    }
}

/// Notes in what state a CPU with these `rflags` was found, and how it came to stop.
pub(super) fn found(cpu: &cpus::Cpu, rflags: u64, how: StoppedBy) {
    /// RFLAGS.IF (Intel SDM vol. 1, 3.4.3.3).
    const INTERRUPT_FLAG: u64 = 1 << 9;
    let mut flags = cpu_flags::INTERRUPTS_KNOWN;
    if rflags & INTERRUPT_FLAG != 0 {
        flags |= cpu_flags::INTERRUPTS_ON;
    }
    if how == StoppedBy::IRQ {
        flags |= cpu_flags::RECLAIMABLE;
    }
    cpu.found.store(flags, Ordering::Relaxed);
}

/// The counter when the ladder had been climbed; 0 when it was not.
pub fn finished_tsc() -> u64 {
    FINISHED_TSC.load(Ordering::Relaxed)
}

/// What has been going on since the first signal: nothing that could have done harm, when every
/// CPU it went to came to its stop by it, and the crash path itself did not crash.
pub fn since_the_signal() -> Interference {
    let in_order = |index: u32| BOARD.state(index) == SlotState::Acked(StoppedBy::IRQ.0);
    match NESTED.load(Ordering::Relaxed) {
        0 if targets().iter().all(in_order) => Interference::Quiet,
        _ => Interference::Unknown,
    }
}

/// Whether CPU `index` is in the middle of saving its registers: an NMI that arrives then
/// must let it finish.
pub fn saving(index: usize) -> bool {
    BOARD.state(index as u32) == SlotState::Saving
}

/// The windows in force: what was asked for, or the default raised to the machine, with a cap.
pub fn windows_ns() -> [u64; 3] {
    let [irq_cap, nmi_cap, init_cap] = CAPS_NS;
    let window = |asked, default, cap| window_ns(asked, default, cpus::round_trip_ns(), cap);
    let options = options();
    let asked = |pick: fn(&Options) -> Option<u64>| options.and_then(pick);
    let nmi_default = if cpu::is_virtual() { VIRTUAL_NMI_WINDOW_NS } else { NMI_WINDOW_NS };
    let mut windows = [
        window(asked(|options| options.stop_irq_ms), IRQ_WINDOW_NS, irq_cap),
        window(asked(|options| options.stop_nmi_ms), nmi_default, nmi_cap),
        window(asked(|options| options.stop_init_ms), INIT_WINDOW_NS, init_cap),
    ];
    if options.is_some_and(|options| options.stop_wait_forever) {
        windows[1] = u64::MAX;
    }
    windows
}

/// The rungs, with the windows in force.
#[inline(never)] // As in `Climb::climb_all`.
pub(super) fn ladder() -> [Rung; 3] {
    let [irq, nmi, init] = windows_ns();
    let rung = |kind, window_ns, resend, spare| Rung {
        kind,
        window_ns,
        polls: window_ns / POLL_NS,
        resend,
        spare,
    };
    let boot_processor = CpuMask::new().with(0);
    [
        rung(RungKind::Irq, irq, 0, CpuMask::new()),
        rung(RungKind::Nmi, nmi, 1, CpuMask::new()),
        rung(RungKind::Init, init, 0, boot_processor),
    ]
}

const fn rung_signal(kind: RungKind) -> RungSignal {
    match kind {
        RungKind::Irq => RungSignal::IRQ,
        RungKind::Nmi => RungSignal::NMI,
        RungKind::Init => RungSignal::INIT,
        _ => RungSignal(0),
    }
}

/// Sends the signal of a rung.
pub(super) fn send(kind: RungKind, to: &CpuMask) {
    let signal = match kind {
        RungKind::Irq => Signal::Interrupt,
        RungKind::Nmi => Signal::NonMaskable,
        RungKind::Init => Signal::Reset,
        _ => return,
    };
    trace::record(EventKind::STOP_SENT, u64::from(rung_signal(kind).0), u64::from(to.count()));
    for index in to.iter() {
        X86::signal(u64::from(cpus::apic_id(index as usize)), signal);
    }
}

/// Every running CPU but this one.
pub(super) fn targets() -> CpuMask {
    let mut targets = CpuMask::new();
    for index in (0..cpus::count()).filter(|&index| cpus::running(index)) {
        targets.set(index as u32);
    }
    targets.clear(cpus::current_index() as u32);
    targets
}

/// Where acknowledgements are looked up.
#[derive(Clone, Copy)]
pub(super) enum Acks {
    /// Of a stop.
    Stop,
    /// Of the rehearsal with this number, which a crash ends.
    Drill(u32),
}

/// A climb up the ladder.
pub(super) struct Climb<'a> {
    ladder: Escalation<'a>,
    /// The counter when it began.
    start: u64,
}

impl<'a> Climb<'a> {
    /// Up `rungs`, to stop `targets`.
    pub(super) fn new(rungs: &'a [Rung], targets: CpuMask) -> Self {
        Self { ladder: Escalation::new(rungs, targets), start: cpu::rdtsc() }
    }

    /// Nanoseconds since it began.
    pub(super) fn ns(&self) -> u64 {
        clock::ns(cpu::rdtsc().wrapping_sub(self.start))
    }

    /// Sends the first signal. Those it goes to are on their way while the caller does
    /// something else.
    pub(super) fn begin(&mut self) {
        // Should there be nobody to stop, the next step says that again.
        let _ = self.step(&CpuMask::new());
    }

    /// Climbs until all have acknowledged, as `acks` says, or nothing more can be done: returns who has
    /// stopped and who has not. `None` when it was a rehearsal, and there is a crash now.
    #[inline(never)] // The same code in a rehearsal as in a stop.
    pub(super) fn climb_all(&mut self, acks: Acks) -> Option<(CpuMask, CpuMask)> {
        loop {
            let acked = match acks {
                Acks::Stop if !super::claim_is_ours() => {
                    // Damage gave the claim to another CPU, which stops this one as well.
                    stop_this_cpu(Entry::Own(&registers::current(), RegistersFrom::SELF))
                }
                Acks::Stop => BOARD.acked(),
                Acks::Drill(_) if stopper().is_some() => return None,
                Acks::Drill(number) => drill::acknowledged(number),
            };
            if let end @ Some(_) = self.step(&acked) {
                return end;
            }
        }
    }

    /// Does what is to be done now, given who has `acked`; says at the end who has stopped and
    /// who has not.
    #[inline(never)] // As above.
    fn step(&mut self, acked: &CpuMask) -> Option<(CpuMask, CpuMask)> {
        match self.ladder.step(acked, self.ns()) {
            Action::Announce(kind, to) => {
                let signal = rung_signal(kind);
                say!("stop: about to send {signal} to CPU {}", to);
            }
            Action::Send { rung, to } => send(rung, &to),
            Action::Wait => cpu::pause(),
            Action::Finished { stopped, not_stopped } => return Some((stopped, not_stopped)),
        }
        None
    }
}

/// Climbs the ladder for every started CPU but this one, and does `meanwhile` as soon as the
/// first signal is sent: who is on the way to a stop needs nobody to wait for it. Returns when all
/// have stopped or nothing more can be done; never later than the sum of the windows.
pub fn stop_others(meanwhile: impl FnOnce()) {
    if apic::revive() {
        note!("stop: the local APIC was off and has been turned on again");
    }
    // In a second climb, those that have stopped already get no further signal.
    let targets = targets().minus(&BOARD.acked());
    if targets.is_empty() {
        meanwhile();
        return;
    }
    let ladder = ladder();
    // Without a handler an NMI would take the machine down, and what the interrupt achieved
    // with it. INIT needs no handler, but it is the rung for CPUs that an NMI did not stop.
    let nmi = tables::nmi_gate_intact();
    let rungs = if nmi { &ladder[..] } else { &ladder[..1] };
    let mut climb = Climb::new(rungs, targets);
    climb.begin();
    meanwhile();
    if !nmi {
        say!("stop: the NMI handler is not in place; only the interrupt is used");
    }
    // A stop is given up by nobody.
    let Some((stopped, not_stopped)) = climb.climb_all(Acks::Stop) else { return };
    let init = not_stopped.and(&climb.ladder.sent_to(RungKind::Init));
    let running = not_stopped.minus(&init);
    note!("stop: {} of {} CPUs acknowledged", stopped.count(), targets.count());
    if !init.is_empty() {
        note!("stop: stopped by INIT, registers lost: CPU {}", init);
        park_after_init(&init);
    }
    if !running.is_empty() {
        note!("stop: could not be stopped: CPU {}", running);
    }
    FINISHED_TSC.store(cpu::rdtsc(), Ordering::Relaxed);
    let hz = clock::hz();
    let tsc = |ns: u64| climb.start + (u128::from(ns) * u128::from(hz) / 1_000_000_000) as u64;
    let mut timeline = Vec::new();
    for send in climb.ladder.timeline() {
        let record = RungRecord {
            kind: rung_signal(send.kind),
            targets: send.mask.count(),
            sent_tsc: tsc(send.sent_ns),
            closed_tsc: tsc(send.closed_ns),
            window_ns: send.window_ns,
            mask: *send.mask.words(),
        };
        // The climb sends no more signals than there is room for.
        if timeline.push(record).is_err() {
            break;
        }
    }
    TIMELINE.set(timeline);
}

/// Page of the start-up code for CPUs that INIT stopped; 0 for none.
static PARK_PAGE: AtomicU64 = AtomicU64::new(0);
/// Its checksum: a CPU that started on damaged code would take the machine down.
static PARK_PAGE_SUM: AtomicU64 = AtomicU64::new(0);
/// How long such a CPU may take to park, in microseconds: as long as a CPU may take between
/// two start-up IPIs, many times over.
const PARK_US: u64 = 10_000;

/// Sets the page of the start-up code for CPUs that INIT stopped.
pub fn park_by(page: u64) {
    PARK_PAGE_SUM.store(park::start_sum(page), Ordering::Relaxed);
    PARK_PAGE.store(page, Ordering::Relaxed);
}

/// Returns true if `page` holds the start-up code as it was written.
fn park_page_intact(page: u64) -> bool {
    // Pages below 640 KiB only: another address is damage, and may not be mapped.
    (1..0xa_0000).contains(&page)
        && page.is_multiple_of(4096)
        && park::start_sum(page) == PARK_PAGE_SUM.load(Ordering::Relaxed)
}

/// Leads CPUs that INIT has stopped into the park area. Left where they are, they would be
/// deaf to a machine check, and one that goes to every CPU resets a machine in which any
/// is. The window of the rung was the wait between INIT and start-up.
fn park_after_init(cpus: &CpuMask) {
    let page = PARK_PAGE.load(Ordering::Relaxed);
    let Some(park) = arm::park().filter(|_| park_page_intact(page)) else { return };
    let parked = |index: u32| park.state(index as usize) == MailboxState::AFTER_INIT;
    // Twice, as at the start of any CPU; one that has begun takes no notice.
    for _ in 0..2 {
        for index in cpus.iter().filter(|&index| !parked(index)) {
            smp::start_up(cpus::apic_id(index as usize), page);
        }
        let mut waited = 0;
        while !cpus.iter().all(parked) && waited < PARK_US {
            clock::wait_us(100);
            waited += 100;
        }
    }
    for index in cpus.iter() {
        let how = if parked(index) { "parked" } else { "not seen to park" };
        note!("stop: CPU {index}: {how} after INIT");
    }
}

/// The rungs that were used.
pub fn timeline() -> &'static [RungRecord] {
    TIMELINE.get().map_or(&[], |timeline| timeline.as_slice())
}

/// How CPU `index`, which is not the crashing one, came to stop.
pub fn how_stopped(index: usize) -> StoppedBy {
    let sent = |kind: RungSignal| {
        let to = |send: &RungRecord| {
            send.mask.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
        };
        timeline().iter().any(|send| send.kind == kind && to(send))
    };
    match BOARD.state(index as u32) {
        // It came from outside, to this CPU as well as to the one that crashed.
        SlotState::Acked(how) if how == StoppedBy::NMI.0 && !sent(RungSignal::NMI) => {
            StoppedBy::SELF
        }
        SlotState::Acked(how) => StoppedBy(how),
        _ if sent(RungSignal::INIT) => StoppedBy::INIT,
        _ => StoppedBy::NOT_STOPPED,
    }
}
