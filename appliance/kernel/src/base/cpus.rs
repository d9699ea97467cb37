//! The CPUs: who is who, bringing them up, and what each leaves for a dump.
//!
//! A CPU's index is 0 for the boot processor, then MADT order. A CPU finds its index by
//! asking its APIC for the ID and the [`roster`] for the index, never in memory that belongs
//! to it, so the answer is right even after a crash has written over everything per-CPU.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use handoff::crash::RegistersFrom;
use handoff::{MAX_CPUS, Range, X86Registers};
use machine::apic::{self, Ipi};
use machine::boot::Stacks;
use machine::{identity, mce, smp, tables};

use crate::base::windows::{MAX_ROUNDS, usual_round_trip};
use crate::base::{clock, roster};
use crate::firmware::acpi::{Acpi, NmiPin};
use crate::log;
use crate::watch::lockup;

/// Vector of the round-trip measurement: nothing else uses it, least of all the stop.
pub const VECTOR_PING: u8 = 0xe0;
/// How long the measurement goes on, and how long one round trip is waited for, in
/// nanoseconds.
const MEASURE_NS: u64 = 2_000_000_000;
/// How long started CPUs may take to report, in microseconds.
const ONLINE_WAIT_US: u64 = 2_000_000;

const REGISTER_WORDS: usize = size_of::<X86Registers>() / 8;

/// A CPU's registers, written by that CPU and read by the one that crashed.
///
/// Words are atomics, so that reading a CPU that was stopped while it was writing gives
/// mixed values, never undefined behaviour.
#[derive(Debug)]
pub struct SavedRegisters {
    from: AtomicU32,
    words: [AtomicU64; REGISTER_WORDS],
}

impl SavedRegisters {
    const fn new() -> Self {
        Self {
            from: AtomicU32::new(RegistersFrom::NONE.0),
            words: [const { AtomicU64::new(0) }; REGISTER_WORDS],
        }
    }

    /// Keeps `registers`; `from` says where they are from.
    #[inline(never)] // The same code in a rehearsal as in a stop, by whoever is stopped and by whom.
    pub fn save(&self, registers: &X86Registers, from: RegistersFrom) {
        let words: [u64; REGISTER_WORDS] = zerocopy::transmute!(*registers);
        for (slot, word) in self.words.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        self.from.store(from.0, Ordering::Release);
    }

    /// Keeps nothing any more.
    pub fn forget(&self) {
        self.from.store(RegistersFrom::NONE.0, Ordering::Release);
    }

    /// Where this lies, for faults that spoil it.
    #[must_use]
    pub fn place(&self) -> Range {
        Range { start: core::ptr::from_ref(self) as u64, bytes: size_of::<Self>() as u64 }
    }

    /// What was kept, and where it is from.
    #[must_use]
    pub fn load(&self) -> (X86Registers, RegistersFrom) {
        let from = RegistersFrom(self.from.load(Ordering::Acquire));
        let mut words = [0; REGISTER_WORDS];
        for (word, slot) in words.iter_mut().zip(&self.words) {
            *word = slot.load(Ordering::Relaxed);
        }
        (zerocopy::transmute!(words), from)
    }
}

/// What is known of one CPU.
#[derive(Debug)]
pub struct Cpu {
    /// Whether it has reported for work. Who asks because of a crash asks [`running`].
    pub started: AtomicBool,
    /// Where NMIs from outside reach it: see [`open_nmi_pin`].
    nmi_pin: AtomicU8,
    /// NMIs that asked where it stands: see [`backtrace`](crate::watch::backtrace).
    pub questions: AtomicU32,
    /// All other NMIs seen.
    pub nmis: AtomicU32,
    /// Interrupts of its timer.
    pub ticks: AtomicU64,
    /// Whether the watchdog takes no notice of it.
    pub left_alone: AtomicBool,
    /// Signs of life from its workload.
    pub beats: AtomicU64,
    /// The workload it is in, as its index plus one; 0 when idle.
    pub workload: AtomicU32,
    /// The unit it is working on; `u64::MAX` when idle.
    pub unit: AtomicU64,
    /// Of `nmis`, those that came once a stop was under way.
    pub stop_nmis: AtomicU32,
    /// Machine checks.
    pub machine_checks: AtomicU32,
    /// Its state when the stop, or its own crash, reached it: bits of
    /// [`cpu_flags`](handoff::crash::cpu_flags).
    pub found: AtomicU32,
    /// When it was told to stop and did: the counter at its acknowledgement.
    pub stopped_tsc: AtomicU64,
    /// Its registers.
    pub registers: SavedRegisters,
    stacks: AtomicU64,
}

impl Cpu {
    const fn new() -> Self {
        Self {
            started: AtomicBool::new(false),
            nmi_pin: AtomicU8::new(NO_PIN),
            questions: AtomicU32::new(0),
            nmis: AtomicU32::new(0),
            machine_checks: AtomicU32::new(0),
            ticks: AtomicU64::new(0),
            left_alone: AtomicBool::new(false),
            beats: AtomicU64::new(0),
            workload: AtomicU32::new(0),
            unit: AtomicU64::new(u64::MAX),
            stop_nmis: AtomicU32::new(0),
            found: AtomicU32::new(0),
            stopped_tsc: AtomicU64::new(0),
            registers: SavedRegisters::new(),
            stacks: AtomicU64::new(0),
        }
    }

    /// Its stacks, once it has any.
    #[must_use]
    pub fn stacks(&self) -> Option<Stacks> {
        match self.stacks.load(Ordering::Relaxed) {
            0 => None,
            base => Some(Stacks::at(base)),
        }
    }
}

static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];
static WORK: AtomicBool = AtomicBool::new(false);
/// What CPUs do while they wait for work: one of [`Waiting`].
static WAITING: AtomicU32 = AtomicU32::new(Waiting::Halted as u32);
static PONGS: AtomicU32 = AtomicU32::new(0);
static ROUND_TRIP_NS: AtomicU64 = AtomicU64::new(0);

/// The CPUs found, started or not.
#[must_use]
pub fn all() -> &'static [Cpu] {
    // Never longer than the table: `count` sees to that.
    CPUS.get(..count()).unwrap_or(&CPUS)
}

/// How many CPUs were found.
#[must_use]
pub fn count() -> usize {
    roster::count()
}

/// APIC ID of CPU `index`.
#[must_use]
pub fn apic_id(index: usize) -> u32 {
    roster::apic_id(index)
}

/// Whether CPU `index` runs, and a stop has to reach it.
#[must_use]
pub fn running(index: usize) -> bool {
    roster::running(index)
        .unwrap_or_else(|| CPUS.get(index).is_some_and(|cpu| cpu.started.load(Ordering::Acquire)))
}

/// Index of the running CPU, below [`MAX_CPUS`].
#[must_use]
#[inline(never)] // As `SavedRegisters::save`.
pub fn current_index() -> usize {
    // A table that a wild write has reached must not take the crash path along.
    roster::index_of(apic::id()).unwrap_or(0).min(MAX_CPUS - 1)
}

/// The running CPU.
#[must_use]
pub fn current() -> &'static Cpu {
    // `current_index` stays below the table's length.
    &CPUS[current_index() % MAX_CPUS]
}

/// Where the records of all CPUs lie, for faults that spoil them.
#[must_use]
pub fn place() -> Range {
    Range { start: CPUS.as_ptr() as u64, bytes: size_of_val(&CPUS) as u64 }
}

/// Enters the boot processor: index 0, on the stacks it was started on.
pub fn enter_boot_processor(stacks: Stacks) {
    roster::enter(0, apic::id());
    identity::set_index(0);
    CPUS[0].stacks.store(stacks.block().start, Ordering::Relaxed);
    CPUS[0].started.store(true, Ordering::Release);
}

/// Enters the CPUs of the firmware's tables, the boot processor first, and where NMIs from
/// outside reach them. Where the tables name no pin at all, one on the boot processor is
/// taken: it is how PCs are wired.
pub fn enter_all(acpi: &Acpi) {
    let entries = acpi.cpus_from(apic::id());
    for (index, entry) in entries.iter().enumerate().take(MAX_CPUS) {
        roster::enter(index, entry.apic_id);
        let usual = NmiPin { acpi_id: None, pin: 1, active_low: false };
        let fallback = (index == 0 && acpi.nmi_pins.is_empty()).then_some(usual);
        if let Some(NmiPin { pin, active_low, .. }) = acpi.nmi_pin(entry).or(fallback) {
            let value = pin | if active_low { PIN_ACTIVE_LOW } else { 0 };
            CPUS[index].nmi_pin.store(value, Ordering::Relaxed);
        }
    }
    roster::set_count(entries.len().max(1));
}

/// The value of a CPU without a pin for NMIs, and the bit for one that is active low.
const NO_PIN: u8 = 0x7f;
const PIN_ACTIVE_LOW: u8 = 0x80;

/// Lets NMIs from outside reach the running CPU, if the tables say where they arrive.
pub fn open_nmi_pin() {
    let pin = current().nmi_pin.load(Ordering::Relaxed);
    apic::open_nmi_pin(pin & !PIN_ACTIVE_LOW, pin & PIN_ACTIVE_LOW != 0);
}

/// Has the running CPU report every error of its own, and says what firmware left.
pub fn report_errors() {
    if let Some(left) = mce::enable() {
        log!("warning: cpus: CPU {}: a machine check from before: {left}", current_index());
    }
}

/// Gives CPU `index` the stacks at `stacks`.
pub fn assign_stacks(index: usize, stacks: Stacks) {
    CPUS[index].stacks.store(stacks.block().start, Ordering::Relaxed);
    smp::expect(index as u32, apic_id(index), &stacks);
}

/// Starts every CPU that has stacks, with the start-up code at `page`; returns how many of
/// all CPUs then run.
pub fn start_others(page: u64) -> usize {
    let waiting = || {
        all()
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, cpu)| cpu.stacks().is_some() && !cpu.started.load(Ordering::Acquire))
            .map(|(index, _)| apic_id(index))
    };
    // INIT, 10 ms, start-up, 200 µs, start-up again (Intel SDM vol. 3, 9.4.4.1): to all of
    // them at each step, so that the waits are spent once and not once a CPU.
    waiting().for_each(smp::init);
    clock::wait_us(10_000);
    for _ in 0..2 {
        waiting().for_each(|apic_id| smp::start_up(apic_id, page));
        clock::wait_us(200);
    }
    let mut waited = 0;
    while waiting().next().is_some() && waited < ONLINE_WAIT_US {
        clock::wait_us(100);
        waited += 100;
    }
    for (index, cpu) in all().iter().enumerate() {
        if !cpu.started.load(Ordering::Acquire) {
            let apic_id = apic_id(index);
            log!("cpus: CPU {index} (APIC ID {apic_id}) did not start; going on without it");
        }
    }
    all().iter().filter(|cpu| cpu.started.load(Ordering::Acquire)).count()
}

/// Closes the roster: who has started by now takes part.
pub fn seal() {
    let started = |(index, cpu): (usize, &Cpu)| cpu.started.load(Ordering::SeqCst).then_some(index);
    roster::seal(all().iter().enumerate().filter_map(started));
}

/// Where a started CPU begins. It reports, waits busily for the start of work — the round
/// trips are measured meanwhile — and then works.
pub fn secondary_main(index: u32) -> ! {
    let cpu = &CPUS[index as usize];
    identity::set_index(index as usize);
    if let Some(stacks) = cpu.stacks() {
        tables::install(index as usize, &stacks);
    }
    machine::paging::allow_write_combining();
    if let Err(reason) = apic::enable() {
        log!("cpus: CPU {index}: {reason}");
        machine::cpu::halt_forever();
    }
    open_nmi_pin();
    report_errors();
    lockup::start();
    cpu.started.store(true, Ordering::SeqCst);
    if roster::running(index as usize) == Some(false) {
        // Too late: the others do without it, and no stop would look for it.
        cpu.started.store(false, Ordering::SeqCst);
        machine::cpu::halt_forever();
    }
    machine::cpu::interrupts_on();
    wait_for_work();
    crate::work::workload::work()
}

/// What CPUs do while they wait for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Waiting {
    /// They halt.
    Halted,
    /// They look for it all the time.
    Spinning,
    /// They compute, as at work.
    Computing,
}

/// Tells the waiting CPUs how to wait.
pub fn set_waiting(how: Waiting) {
    WAITING.store(how as u32, Ordering::Release);
    // Those that halt have to wake to see it; all have once they have answered. One that
    // does not answer in time sees it later.
    let _ = round_trip();
}

/// Some arithmetic that nobody needs.
fn compute() {
    let mut value = machine::cpu::rdtsc();
    for _ in 0..1000 {
        value = core::hint::black_box(value.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(17));
    }
}

/// Halts until work begins, so that hundreds of emulated CPUs do not starve the one that
/// boots; spins only while the round trip is measured.
fn wait_for_work() {
    let waiting = |how: Waiting| WAITING.load(Ordering::Acquire) == how as u32;
    loop {
        while waiting(Waiting::Spinning) {
            machine::cpu::pause();
        }
        while waiting(Waiting::Computing) {
            compute();
        }
        machine::cpu::interrupts_off();
        if WORK.load(Ordering::Acquire) {
            machine::cpu::interrupts_on();
            return;
        }
        if waiting(Waiting::Halted) {
            machine::cpu::interrupts_on_and_halt();
        } else {
            machine::cpu::interrupts_on();
        }
    }
}

/// Lets the started CPUs go to work.
pub fn release() {
    WORK.store(true, Ordering::Release);
    ping_others();
}

/// Handles the measurement's interrupt.
pub fn on_ping() {
    PONGS.fetch_add(1, Ordering::Release);
    apic::end_of_interrupt();
}

/// Sends the measurement's interrupt to every other CPU that runs; returns how many.
fn ping_others() -> u32 {
    let me = current_index();
    let mut sent = 0;
    for index in (0..count()).filter(|&index| index != me && running(index)) {
        apic::send(apic_id(index), Ipi::Fixed(VECTOR_PING));
        sent += 1;
    }
    sent
}

/// Sends an interrupt to every other CPU and waits until all have answered: nanoseconds, or
/// `None` when one has not in time.
pub fn round_trip() -> Option<u64> {
    PONGS.store(0, Ordering::Relaxed);
    let start = machine::cpu::rdtsc();
    let expected = ping_others();
    let elapsed = || clock::ns(machine::cpu::rdtsc().wrapping_sub(start));
    while PONGS.load(Ordering::Acquire) < expected {
        if elapsed() >= MEASURE_NS {
            return None;
        }
        machine::cpu::pause();
    }
    Some(elapsed())
}

/// Measures an IPI to every other CPU and back, all of them busy, and keeps the usual one: the
/// stop's windows must be far above it. Returns it and the worst, in nanoseconds.
pub fn measure_round_trip() -> (u64, u64) {
    set_waiting(Waiting::Spinning);
    let begun = clock::now_ns();
    let mut rounds = heapless::Vec::<u64, MAX_ROUNDS>::new();
    while rounds.push(round_trip().unwrap_or(MEASURE_NS)).is_ok() {
        if rounds.is_full() || clock::now_ns() - begun > MEASURE_NS {
            break;
        }
    }
    set_waiting(Waiting::Halted);
    let usual = usual_round_trip(&mut rounds);
    ROUND_TRIP_NS.store(usual, Ordering::Relaxed);
    (usual, rounds.iter().copied().max().unwrap_or(0))
}

/// The usual round trip measured at boot, in nanoseconds: what nine of ten did not exceed. 0
/// before it was measured.
#[must_use]
pub fn round_trip_ns() -> u64 {
    ROUND_TRIP_NS.load(Ordering::Relaxed)
}
