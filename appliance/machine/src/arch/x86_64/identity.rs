//! Which CPU is this, and when? One instruction answers both.
//!
//! RDTSCP reads the counter together with a register that every CPU has to itself, and the
//! kernel has written the CPU's index there. It is for bookkeeping — who holds a lock, who
//! recorded an event — where asking the APIC each time would cost more than what is being
//! noted. The crash path asks the APIC all the same.

use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use handoff::MAX_CPUS;
use x86_64::registers::model_specific::Msr;

use super::{apic, cpu};

/// IA32_TSC_AUX (Intel SDM vol. 4, table 2-2).
const TSC_AUX: u32 = 0xc000_0103;
/// Upper half of an index that was written here: firmware may have left anything.
const TAG: u32 = 0xe917_0000;

static RDTSCP: AtomicBool = AtomicBool::new(false);
/// Index by APIC ID, plus one, for processors without RDTSCP.
static BY_APIC_ID: [AtomicU16; 4096] = [const { AtomicU16::new(0) }; 4096];

/// A moment on a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time-stamp counter.
    pub tsc: u64,
    /// Index of the CPU; none before it was told.
    pub cpu: Option<usize>,
}

/// Tells the running CPU its index.
pub fn set_index(index: usize) {
    if index >= MAX_CPUS {
        return;
    }
    // CPUID 8000_0001h EDX bit 27: RDTSCP and its register.
    if cpu::has_cpuid(0x8000_0001) && cpu::cpuid(0x8000_0001, 0).edx & (1 << 27) != 0 {
        // SAFETY: the register exists; nothing else uses it.
        unsafe { Msr::new(TSC_AUX).write(u64::from(TAG | index as u32)) };
        RDTSCP.store(true, Ordering::Relaxed);
    } else if let Some(slot) = BY_APIC_ID.get(apic::id() as usize) {
        slot.store(index as u16 + 1, Ordering::Relaxed);
    }
}

/// Now, here.
#[inline]
#[must_use]
pub fn moment() -> Moment {
    if !RDTSCP.load(Ordering::Relaxed) {
        let slot = BY_APIC_ID.get(apic::id() as usize);
        let index = slot.and_then(|slot| slot.load(Ordering::Relaxed).checked_sub(1));
        return Moment { tsc: cpu::rdtsc(), cpu: index.map(usize::from) };
    }
    let mut word = 0;
    // SAFETY: the instruction exists (checked above) and only writes registers and `word`;
    // CR4.TSD concerns user mode only.
    let tsc = unsafe { core::arch::x86_64::__rdtscp(&raw mut word) };
    Moment { tsc, cpu: (word & 0xffff_0000 == TAG).then_some((word & 0xffff) as usize) }
}

/// The address of the instruction that follows in the calling function.
#[inline(always)]
#[must_use]
pub fn here() -> u64 {
    let address: u64;
    // SAFETY: LEA computes an address and touches nothing.
    unsafe {
        core::arch::asm!("lea {address}, [rip]", address = out(reg) address,
                         options(nomem, nostack, preserves_flags));
    }
    address
}

/// Where the function that this is written in returns to; 0 in one that nobody called.
///
/// Frame pointers are kept everywhere (they are what unwinding falls back on), so the word
/// above the one that RBP points at is the return address.
#[inline(always)]
#[must_use]
pub fn return_address() -> u64 {
    let address: u64;
    // SAFETY: RBP points into the running stack, at the frame of this function: the target
    // is built with frame pointers, and no register of the allocator is RBP then.
    unsafe {
        core::arch::asm!("mov {address}, [rbp + 8]", address = out(reg) address,
                         options(readonly, nostack, preserves_flags));
    }
    address
}
