//! The local APIC, in x2APIC mode where the processor has it and in xAPIC mode elsewhere:
//! identity, inter-processor interrupts, end of interrupt.
//!
//! Set-up goes through the `x2apic` crate. Sending does not: an IPI of the stop path must
//! carry its barrier inside (see [`send`]) and must work from any context without a
//! `&mut`.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use handoff::Range;
use x2apic::lapic::{LocalApic, LocalApicBuilder, xapic_base};
use x86_64::registers::model_specific::Msr;

use super::cpu;
use super::paging::PAGE;

/// IA32_APIC_BASE, and its bits for x2APIC mode and "on" (Intel SDM vol. 3, 11.12.1).
const MSR_BASE: u32 = 0x1b;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
/// The spurious-interrupt register with the APIC enabled (SDM vol. 3, figure 11-23).
const SPURIOUS_ENABLED: u32 = 1 << 8 | VECTOR_SPURIOUS as u32;

/// x2APIC registers as MSRs (Intel SDM vol. 3, table 11-6).
const MSR_TASK_PRIORITY: u32 = 0x808;
pub(super) const MSR_EOI: u32 = 0x80b;
const MSR_SPURIOUS: u32 = 0x80f;
const MSR_ICR: u32 = 0x830;
const MSR_LINT0: u32 = 0x835;
const MSR_TIMER: u32 = 0x832;
const MSR_TIMER_COUNT: u32 = 0x838;
const MSR_TIMER_DIVIDE: u32 = 0x83e;

/// Where the registers are in xAPIC mode, and which (Intel SDM vol. 3, 11.4.1).
pub(super) const XAPIC_BASE: u64 = 0xfee0_0000;
const XAPIC_TASK_PRIORITY: u64 = 0x080;
pub(super) const XAPIC_EOI: u64 = 0x0b0;
const XAPIC_SPURIOUS: u64 = 0x0f0;
const XAPIC_ICR_LOW: u64 = 0x300;
const XAPIC_ICR_HIGH: u64 = 0x310;
const XAPIC_LINT0: u64 = 0x350;
const XAPIC_TIMER: u64 = 0x320;
const XAPIC_TIMER_COUNT: u64 = 0x380;
const XAPIC_TIMER_DIVIDE: u64 = 0x3e0;
/// The timer counts at a sixteenth of its input clock (Intel SDM vol. 3, figure 11-10).
const DIVIDE_BY_16: u32 = 3;
/// Local vector table: the entry is masked.
const MASKED: u32 = 1 << 16;
/// Local vector table: the input is active low (SDM vol. 3, figure 11-8).
const ACTIVE_LOW: u64 = 1 << 13;
/// In xAPIC mode an ID has eight bits, and all of them set mean "every CPU".
const XAPIC_EVERYONE: u32 = 0xff;
/// How often the delivery status is read before it is given up: an IPI is delivered within
/// a few reads, each of which takes some 50 ns at least.
const DELIVERY_POLLS: u32 = 20_000;

/// The timer's vector: below the stop's, above all others.
pub const VECTOR_TIMER: u8 = 0xef;
/// Vector of errors the APIC itself reports.
const VECTOR_ERROR: usize = 0xfe;
/// The spurious-interrupt vector: no end of interrupt is due for it.
pub const VECTOR_SPURIOUS: u8 = 0xff;

/// ICR delivery modes, the level bit and the delivery status (Intel SDM vol. 3, figures
/// 11-12 and 11-28).
const MODE_NMI: u64 = 4 << 8;
const MODE_INIT: u64 = 5 << 8;
const MODE_STARTUP: u64 = 6 << 8;
const LEVEL_ASSERT: u64 = 1 << 14;
const DELIVERY_PENDING: u32 = 1 << 12;

static X2APIC: AtomicBool = AtomicBool::new(false);

/// An inter-processor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipi {
    /// A maskable interrupt on a vector.
    Fixed(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// INIT: the target loses its registers and waits for a start-up IPI.
    Init,
    /// Start-up at physical page `0xVV` of real-mode memory.
    Startup(u8),
}

/// The running CPU's APIC as the set-up crate sees it.
pub(super) fn local() -> Result<LocalApic, &'static str> {
    LocalApicBuilder::new()
        .timer_vector(usize::from(VECTOR_TIMER))
        .timer_initial(0)
        .error_vector(VECTOR_ERROR)
        .spurious_vector(usize::from(VECTOR_SPURIOUS))
        .set_xapic_base(XAPIC_BASE)
        .build()
}

/// Enables the running CPU's local APIC, in x2APIC mode where it has one; timer and LINT
/// pins masked.
///
/// # Errors
/// When firmware has moved the registers of xAPIC mode, or the set-up refuses.
pub fn enable() -> Result<(), &'static str> {
    // SAFETY: every processor this runs on has the register IA32_APIC_BASE.
    if !cpu::has_x2apic() && unsafe { xapic_base() } != XAPIC_BASE {
        return Err("no x2APIC mode, and the local APIC is not at 0xfee00000");
    }
    let mut apic = local()?;
    // SAFETY: runs on the CPU it configures, before interrupts are unmasked; every vector
    // named has a gate, and the registers are mapped.
    unsafe {
        apic.enable();
        apic.disable_timer();
    }
    X2APIC.store(cpu::has_x2apic(), Ordering::Release);
    Ok(())
}

/// Learns which mode the APIC is in, for a program that finds it enabled (IA32_APIC_BASE bit
/// 10, Intel SDM vol. 3, 11.12.1).
pub fn adopt() {
    // SAFETY: every processor with a local APIC has the register.
    let base = unsafe { Msr::new(MSR_BASE).read() };
    X2APIC.store(base & BASE_X2APIC != 0, Ordering::Release);
}

/// Turns the running CPU's APIC on again, in the mode that [`enable`] chose, where something has
/// turned it off. Returns true if it had to. For crash code, before the first signal: a signal
/// sent through an APIC that is off faults, or goes nowhere.
pub fn revive() -> bool {
    // SAFETY: every processor this runs on has the register.
    let base = unsafe { Msr::new(MSR_BASE).read() };
    if base & BASE_X2APIC != 0 {
        // Should the word that says so be the one that was damaged.
        X2APIC.store(true, Ordering::Release);
        return false;
    }
    let x2apic = X2APIC.load(Ordering::Acquire);
    if base & BASE_ENABLED != 0 && !x2apic {
        return false;
    }
    // SAFETY: the APIC had this mode before; from off it is reached by way of xAPIC mode (Intel
    // SDM vol. 3, 11.12.5). The registers of xAPIC mode are mapped where that is the mode.
    unsafe {
        Msr::new(MSR_BASE).write(base | BASE_ENABLED);
        if x2apic {
            Msr::new(MSR_BASE).write(base | BASE_ENABLED | BASE_X2APIC);
            Msr::new(MSR_SPURIOUS).write(SPURIOUS_ENABLED.into());
        } else {
            xapic(XAPIC_SPURIOUS).write_volatile(SPURIOUS_ENABLED);
        }
    }
    true
}

/// Interrupts the running CPU once on `vector`, `count` counts of its timer from now, as
/// [`timer::count_during`](super::timer::count_during) counts them. The tick ends by that. For
/// crash code: a few register writes that cannot fail.
pub fn set_deadline(vector: u8, count: u32) {
    write_timer(u32::from(vector), count);
}

/// Takes back a deadline that has not come.
pub fn clear_deadline() {
    write_timer(MASKED, 0);
}

fn write_timer(entry: u32, count: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: registers of this CPU's own APIC; the vector has a gate.
        unsafe {
            Msr::new(MSR_TIMER).write(entry.into());
            Msr::new(MSR_TIMER_DIVIDE).write(DIVIDE_BY_16.into());
            Msr::new(MSR_TIMER_COUNT).write(count.into());
        }
    } else {
        // SAFETY: the same registers, mapped as a device.
        unsafe {
            xapic(XAPIC_TIMER).write_volatile(entry);
            xapic(XAPIC_TIMER_DIVIDE).write_volatile(DIVIDE_BY_16);
            xapic(XAPIC_TIMER_COUNT).write_volatile(count);
        }
    }
}

/// Keeps interrupts pending whose vector is below `priority` + 16.
pub fn set_task_priority(priority: u8) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: a register of this CPU's own APIC.
        unsafe { Msr::new(MSR_TASK_PRIORITY).write(u64::from(priority)) };
    } else {
        // SAFETY: the same register, mapped as a device.
        unsafe { xapic(XAPIC_TASK_PRIORITY).write_volatile(u32::from(priority)) };
    }
}

/// The registers as memory, which the page tables must map as a device; none in x2APIC
/// mode.
#[must_use]
pub fn registers() -> Option<Range> {
    (!X2APIC.load(Ordering::Acquire)).then_some(Range { start: XAPIC_BASE, bytes: PAGE })
}

/// APIC ID of the running CPU, asked of the processor itself by CPUID: that needs nothing in
/// memory that a crash may have spoilt, no mapping, and no APIC that is set up already (reading
/// the ID register of one that is not in x2APIC mode yet is a #GP).
#[must_use]
pub fn id() -> u32 {
    // Leaf 0bh is reserved, all zero, on processors that have higher leaves without it.
    let leaf = cpu::has_cpuid(0xb).then(|| cpu::cpuid(0xb, 0));
    match leaf {
        Some(leaf) if leaf.ebx & 0xffff != 0 => leaf.edx,
        _ => cpu::cpuid(1, 0).ebx >> 24,
    }
}

/// Sends an IPI to the CPU with `apic_id`.
///
/// Everything the caller wrote before is visible to the target when the IPI arrives: a
/// WRMSR to an x2APIC register does not order earlier stores (Intel SDM vol. 3, 11.12.3),
/// so the fence stands here, inside the primitive, and not beside each call.
///
/// An ID that xAPIC mode cannot express is not sent to: cut to eight bits, it would reach
/// another CPU, or all of them.
#[inline(never)]
pub fn send(apic_id: u32, ipi: Ipi) {
    let command = match ipi {
        Ipi::Fixed(vector) => u64::from(vector),
        Ipi::Nmi => MODE_NMI,
        Ipi::Init => MODE_INIT,
        Ipi::Startup(page) => MODE_STARTUP | u64::from(page),
    } | LEVEL_ASSERT;
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: the APIC is in x2APIC mode on every CPU that gets here; an IPI changes no
        // memory by itself.
        unsafe {
            asm!("mfence", "lfence", "wrmsr", in("ecx") MSR_ICR, in("eax") command as u32,
                 in("edx") apic_id, options(nostack, preserves_flags));
        }
    } else if apic_id < XAPIC_EVERYONE {
        send_xapic(apic_id, command as u32);
    }
}

/// The same in xAPIC mode, where a command is two registers. Nobody comes between the two:
/// interrupts are masked meanwhile, and of what cannot be masked, only the crash path sends,
/// which never returns here.
fn send_xapic(apic_id: u32, command: u32) {
    let enabled = cpu::interrupts_enabled();
    cpu::interrupts_off();
    // A command given while the one before is on its way would be lost.
    await_delivery();
    // SAFETY: the register page is mapped as a device wherever this runs; the fence keeps
    // earlier stores before the command.
    unsafe {
        asm!("mfence", "lfence", options(nostack, preserves_flags));
        xapic(XAPIC_ICR_HIGH).write_volatile(apic_id << 24);
        xapic(XAPIC_ICR_LOW).write_volatile(command);
    }
    await_delivery();
    if enabled {
        cpu::interrupts_on();
    }
}

fn xapic(register: u64) -> *mut u32 {
    (XAPIC_BASE + register) as *mut u32
}

/// Waits until the last command has left, or for as long as any takes.
fn await_delivery() {
    for _ in 0..DELIVERY_POLLS {
        // SAFETY: as in `send_xapic`; reading the command register changes nothing.
        if unsafe { xapic(XAPIC_ICR_LOW).read_volatile() } & DELIVERY_PENDING == 0 {
            return;
        }
        cpu::pause();
    }
}

/// Signals the end of the interrupt being handled.
pub fn end_of_interrupt() {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: a write of 0 to the EOI register, the only value allowed.
        unsafe { Msr::new(MSR_EOI).write(0) };
    } else {
        // SAFETY: the same register, mapped as a device.
        unsafe { xapic(XAPIC_EOI).write_volatile(0) };
    }
}

/// Lets the running CPU's pin LINT`pin` (0 or 1) deliver an NMI, as the firmware's tables
/// say it is wired; another number is none.
pub fn open_nmi_pin(pin: u8, active_low: bool) {
    if pin > 1 {
        return;
    }
    let entry = MODE_NMI | if active_low { ACTIVE_LOW } else { 0 };
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: a register of this CPU's own APIC; an NMI has its handler.
        unsafe { Msr::new(MSR_LINT0 + u32::from(pin)).write(entry) };
    } else {
        // SAFETY: the same register, mapped as a device; the two are 16 bytes apart.
        unsafe { xapic(XAPIC_LINT0 + 0x10 * u64::from(pin)).write_volatile(entry as u32) };
    }
}

/// Masks both legacy interrupt controllers: firmware leaves them open, with a timer
/// running into vector 8.
pub fn mask_8259() {
    super::port::write8(0x21, 0xff);
    super::port::write8(0xa1, 0xff);
}
