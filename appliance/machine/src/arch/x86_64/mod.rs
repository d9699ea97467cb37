//! x86_64.

#![expect(
    unsafe_code,
    reason = "this is the fence: assembly, port I/O, model-specific registers and page tables"
)]

use super::names::{self, Signal};
use apic::Ipi;

pub mod apic;
pub mod boot;
pub mod capture;
pub mod clock;
pub mod cpu;
pub mod hw_watchdog;
pub mod identity;
pub mod jump;
pub mod mce;
pub mod mmio;
pub mod paging;
pub mod park;
pub mod pci;
pub mod port;
pub mod power;
pub mod registers;
pub mod rtc;
pub mod serial;
pub mod smp;
pub mod tables;
pub mod timer;
pub mod trap;

/// An x86_64 processor, as a stop sees it.
#[derive(Debug)]
pub struct X86;

/// Vector of the stop interrupt: above everything else that is maskable, but for the call to
/// a parked CPU.
pub const VECTOR_STOP: u8 = 0xf0;

impl names::Processor for X86 {
    const ELF_MACHINE: u32 = ELF_MACHINE;

    fn id() -> u64 {
        u64::from(apic::id())
    }

    fn signal(id: u64, signal: Signal) -> bool {
        let ipi = match signal {
            Signal::Interrupt => Ipi::Fixed(VECTOR_STOP),
            Signal::NonMaskable => Ipi::Nmi,
            Signal::Reset => Ipi::Init,
            Signal::Firmware => return false,
        };
        let Ok(id) = u32::try_from(id) else { return false };
        apic::send(id, ipi);
        true
    }

    /// The local APIC knows which one it is.
    fn end_of_interrupt(_token: u64) {
        apic::end_of_interrupt();
    }

    fn mask() {
        cpu::interrupts_off();
    }

    fn masked() -> bool {
        !cpu::interrupts_enabled()
    }

    fn relax() {
        cpu::pause();
    }

    fn counter() -> u64 {
        cpu::rdtsc()
    }

    fn halt_forever() -> ! {
        cpu::halt_forever()
    }
}

/// ELF `e_machine` of this processor family.
pub const ELF_MACHINE: u32 = 62;
