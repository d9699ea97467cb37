//! The local APIC in x2APIC mode: identity, inter-processor interrupts, end of interrupt.
//!
//! Set-up goes through the `x2apic` crate. Sending does not: an IPI of the stop path must
//! carry its barrier inside (see [`send`]) and must work from any context without a
//! `&mut`.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use x2apic::lapic::LocalApicBuilder;
use x86_64::registers::model_specific::Msr;

use super::cpu;

/// x2APIC registers as MSRs (Intel SDM vol. 3, table 11-6).
const MSR_ID: u32 = 0x802;
const MSR_EOI: u32 = 0x80b;
const MSR_ICR: u32 = 0x830;

/// Vectors the APIC itself is given.
const VECTOR_TIMER: usize = 0xef;
const VECTOR_ERROR: usize = 0xfe;
/// The spurious-interrupt vector: no end of interrupt is due for it.
pub const VECTOR_SPURIOUS: u8 = 0xff;

/// ICR delivery modes and the level bit (Intel SDM vol. 3, figure 11-28).
const MODE_NMI: u64 = 4 << 8;
const MODE_INIT: u64 = 5 << 8;
const MODE_STARTUP: u64 = 6 << 8;
const LEVEL_ASSERT: u64 = 1 << 14;

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

/// Puts the running CPU's local APIC into x2APIC mode, timer and LINT pins masked.
///
/// # Errors
/// When the CPU has no x2APIC, or the set-up refuses.
pub fn enable() -> Result<(), &'static str> {
    if !cpu::has_x2apic() {
        return Err("this processor has no x2APIC mode");
    }
    let mut apic = LocalApicBuilder::new()
        .timer_vector(VECTOR_TIMER)
        .error_vector(VECTOR_ERROR)
        .spurious_vector(usize::from(VECTOR_SPURIOUS))
        .build()?;
    // SAFETY: runs on the CPU it configures, before interrupts are unmasked; every vector
    // named has a gate.
    unsafe {
        apic.enable();
        apic.disable_timer();
    }
    X2APIC.store(true, Ordering::Release);
    Ok(())
}

/// APIC ID of the running CPU, asked of the processor itself and of nothing in memory
/// that a crash may have spoilt.
#[must_use]
pub fn id() -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: reading the ID register of an APIC in x2APIC mode.
        return unsafe { Msr::new(MSR_ID).read() as u32 };
    }
    if cpu::has_cpuid(0xb) { cpu::cpuid(0xb, 0).edx } else { cpu::cpuid(1, 0).ebx >> 24 }
}

/// Sends an IPI to the CPU with `apic_id`.
///
/// Everything the caller wrote before is visible to the target when the IPI arrives: a
/// WRMSR to an x2APIC register does not order earlier stores (Intel SDM vol. 3, 11.12.3),
/// so the fence stands here, inside the primitive, and not beside each call.
#[inline(never)]
pub fn send(apic_id: u32, ipi: Ipi) {
    let command = match ipi {
        Ipi::Fixed(vector) => u64::from(vector),
        Ipi::Nmi => MODE_NMI,
        Ipi::Init => MODE_INIT,
        Ipi::Startup(page) => MODE_STARTUP | u64::from(page),
    } | LEVEL_ASSERT;
    // SAFETY: the APIC is in x2APIC mode on every CPU that gets here; an IPI changes no
    // memory by itself.
    unsafe {
        asm!("mfence", "lfence", "wrmsr", in("ecx") MSR_ICR, in("eax") command as u32,
             in("edx") apic_id, options(nostack, preserves_flags));
    }
}

/// Signals the end of the interrupt being handled.
pub fn end_of_interrupt() {
    // SAFETY: a write of 0 to the EOI register, the only value allowed.
    unsafe { Msr::new(MSR_EOI).write(0) };
}

/// Masks both legacy interrupt controllers: firmware leaves them open, with a timer
/// running into vector 8.
pub fn mask_8259() {
    super::port::write8(0x21, 0xff);
    super::port::write8(0xa1, 0xff);
}
