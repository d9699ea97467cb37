//! x86_64.

#![expect(
    unsafe_code,
    reason = "this is the fence: assembly, port I/O, model-specific registers and page tables"
)]

pub mod apic;
pub mod boot;
pub mod capture;
pub mod clock;
pub mod cpu;
pub mod guard;
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

/// ELF `e_machine` of this processor family.
pub const ELF_MACHINE: u32 = 62;
