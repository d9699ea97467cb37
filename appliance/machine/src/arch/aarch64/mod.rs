//! arm64, as far as the stop needs it: identity, signals through a GICv3, masking.
//!
//! Compiled and checked against the [list of names](super::names), and no more than that:
//! there is no arm64 image yet. Names of registers are those of the Arm Architecture
//! Reference Manual (DDI 0487) and of the GIC architecture specification (IHI 0069).

#![expect(unsafe_code, reason = "this is the fence: assembly and system registers")]

use core::arch::asm;

use super::names::{Processor, Signal};

/// An arm64 processor with a GICv3.
#[derive(Debug)]
pub struct Arm64;

/// The software-generated interrupt of the stop, and the one that is given the non-maskable
/// property where the processor has it (FEAT_NMI).
const SGI_STOP: u64 = 1;
const SGI_STOP_NMI: u64 = 2;

/// MPIDR_EL1: affinity levels 0 to 2 in bits 0-23, level 3 in bits 32-39.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// PSTATE.I: interrupts are masked.
const DAIF_INTERRUPT: u64 = 1 << 7;

/// The value of ICC_SGI1R_EL1 that sends interrupt `number` to the CPU with `affinity` (IHI
/// 0069, 12.2.20): target list in bits 0-15, affinity 1 from bit 16, the number from 24,
/// affinity 2 from 32, the range of the target list from 44, affinity 3 from 48.
const fn sgi(affinity: u64, number: u64) -> u64 {
    let [aff0, aff1, aff2] = [affinity & 0xff, affinity >> 8 & 0xff, affinity >> 16 & 0xff];
    let aff3 = affinity >> 32 & 0xff;
    1 << (aff0 % 16) | aff1 << 16 | number << 24 | aff2 << 32 | (aff0 / 16) << 44 | aff3 << 48
}

/// Whether the processor has non-maskable interrupts (ID_AA64PFR1_EL1.NMI, bits 36-39).
fn has_nmi() -> bool {
    let features: u64;
    // SAFETY: reading an identification register has no effect.
    unsafe { asm!("mrs {}, ID_AA64PFR1_EL1", out(reg) features, options(nomem, nostack)) };
    features >> 36 & 0xf != 0
}

impl Processor for Arm64 {
    /// EM_AARCH64.
    const ELF_MACHINE: u32 = 183;

    fn id() -> u64 {
        let id: u64;
        // SAFETY: as above.
        unsafe { asm!("mrs {}, MPIDR_EL1", out(reg) id, options(nomem, nostack)) };
        id & AFFINITY
    }

    fn signal(id: u64, signal: Signal) -> bool {
        let number = match signal {
            Signal::Interrupt => SGI_STOP,
            Signal::NonMaskable if has_nmi() => SGI_STOP_NMI,
            // SDEI is firmware's, and a CPU is reset by nothing that another may send.
            _ => return false,
        };
        // SAFETY: sends an interrupt. The barrier keeps earlier stores before it: writes to
        // the GIC's system registers are not ordered against them otherwise.
        unsafe {
            asm!("dsb ishst", "msr S3_0_C12_C11_5, {}", "isb", in(reg) sgi(id, number),
                 options(nostack));
        }
        true
    }

    fn end_of_interrupt(token: u64) {
        // SAFETY: ICC_EOIR1_EL1, with the number that ICC_IAR1_EL1 gave.
        unsafe { asm!("msr S3_0_C12_C12_1, {}", in(reg) token, options(nostack)) };
    }

    fn mask() {
        // SAFETY: only masks.
        unsafe { asm!("msr DAIFSet, #0xf", options(nostack)) };
    }

    fn masked() -> bool {
        let flags: u64;
        // SAFETY: reading flags has no effect.
        unsafe { asm!("mrs {}, DAIF", out(reg) flags, options(nomem, nostack)) };
        flags & DAIF_INTERRUPT != 0
    }

    fn relax() {
        core::hint::spin_loop();
    }

    fn counter() -> u64 {
        let count: u64;
        // SAFETY: reads the virtual counter; the barrier keeps it from being read early.
        unsafe { asm!("isb", "mrs {}, CNTVCT_EL0", out(reg) count, options(nostack)) };
        count
    }

    fn halt_forever() -> ! {
        Self::mask();
        loop {
            // SAFETY: waits; whatever wakes it finds it waiting again.
            unsafe { asm!("wfi", options(nomem, nostack)) };
        }
    }
}
