//! The running CPU: interrupts, halting, time-stamp counter, features.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use core::sync::atomic::AtomicU64;

use x86_64::instructions::{hlt, interrupts};
use x86_64::registers::control::{Cr3, Cr4, Cr4Flags};

/// The time-stamp counter.
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC only writes registers; CR4.TSD concerns user mode only.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A hint that this is a spin loop.
pub fn pause() {
    core::hint::spin_loop();
}

/// Waits for the next interrupt.
pub fn halt() {
    hlt();
}

/// Masks interrupts.
pub fn interrupts_off() {
    interrupts::disable();
}

/// Unmasks interrupts.
pub fn interrupts_on() {
    interrupts::enable();
}

/// Unmasks interrupts and halts, with no gap between: an interrupt that arrived while they
/// were masked ends the halt.
pub fn interrupts_on_and_halt() {
    interrupts::enable_and_hlt();
}

/// Whether interrupts are unmasked.
#[must_use]
pub fn interrupts_enabled() -> bool {
    interrupts::are_enabled()
}

/// Halts for good, interrupts masked; an NMI only makes it halt again.
pub fn halt_forever() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

/// Physical address of the page-table root in use.
#[must_use]
pub fn cr3() -> u64 {
    Cr3::read_raw().0.start_address().as_u64()
}

/// Whether this CPU translates with five levels (CR4.LA57).
#[must_use]
pub fn la57() -> bool {
    Cr4::read().contains(Cr4Flags::L5_PAGING)
}

/// One CPUID leaf.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Whether CPUID reaches `leaf` (basic, hypervisor or extended).
#[must_use]
pub fn has_cpuid(leaf: u32) -> bool {
    __cpuid(leaf & 0xffff_0000).eax >= leaf
}

/// Whether 1 GiB pages exist (CPUID 8000_0001h EDX bit 26).
#[must_use]
pub fn has_1g_pages() -> bool {
    has_cpuid(0x8000_0001) && cpuid(0x8000_0001, 0).edx & (1 << 26) != 0
}

/// Whether a hypervisor says that it is there (CPUID 1 ECX bit 31, which no processor sets).
#[must_use]
pub fn is_virtual() -> bool {
    cpuid(1, 0).ecx & (1 << 31) != 0
}

/// Returns true if pages can be kept from being executed (CPUID 8000_0001h EDX bit 20).
#[must_use]
pub fn has_nx() -> bool {
    has_cpuid(0x8000_0001) && cpuid(0x8000_0001, 0).edx & (1 << 20) != 0
}

/// Returns true if the local APIC can be in x2APIC mode (CPUID 1 ECX bit 21).
#[must_use]
pub fn has_x2apic() -> bool {
    cpuid(1, 0).ecx & (1 << 21) != 0
}

/// Adds one to a counter that only this CPU writes; returns what it was. An interrupt cannot
/// come in between, and the bus is not locked.
#[inline]
pub fn count_up(counter: &AtomicU64) -> u64 {
    let mut one = 1u64;
    // SAFETY: the counter is a word of memory that may be written while it is shared; XADD
    // is one instruction, so nothing else on this CPU sees half of it.
    unsafe {
        asm!("xadd qword ptr [{counter}], {one}", counter = in(reg) counter.as_ptr(),
             one = inout(reg) one, options(nostack));
    }
    one
}

/// Raises a breakpoint exception.
pub fn breakpoint() {
    interrupts::int3();
}

/// Raises an invalid-opcode exception.
pub fn undefined_instruction() -> ! {
    // SAFETY: UD2 raises #UD; the handler never returns to it.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Divides by zero.
pub fn divide_by_zero() {
    // SAFETY: raises #DE, whose handler never returns here; were it to, only the two
    // registers named are changed.
    unsafe {
        asm!("div {zero:e}", zero = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _,
             options(nostack));
    }
}

/// Calls whatever is at `address`: the way to a fault on an instruction fetch.
pub fn call(address: u64) {
    // SAFETY: callers pass an address that is not mapped; the fetch faults, and the handler
    // never returns here.
    unsafe { asm!("call {address}", address = in(reg) address, clobber_abi("C")) };
}

/// Moves the stack to where nothing is and pushes: a page fault that cannot be delivered,
/// hence a double fault.
pub fn lose_the_stack() -> ! {
    // SAFETY: the double-fault handler runs on a stack of its own and never returns here.
    unsafe {
        asm!("mov rsp, {nowhere}", "push rax", "ud2", nowhere = in(reg) 0x7f00_dead_b000u64,
                  options(noreturn))
    }
}

/// Writes one byte at `address`, whatever is there: the way to a fault on a protected page.
///
/// Where the page is not protected after all, the byte is written: it is what a wild write
/// would do, and the caller says so.
pub fn poke(address: u64) {
    // SAFETY: none that the language could know of; that is the point. Called only to show
    // that the page tables stop it.
    unsafe {
        asm!("not byte ptr [{address}]", address = in(reg) address, options(nostack));
    }
}

/// Fills `bytes` bytes from `address` on with `value`, whatever is there: what a wild write
/// does where no protection stops it.
pub fn smear(address: u64, bytes: u64, value: u8) {
    // SAFETY: none that the language could know of; that is the point. Called only to show
    // that a crash is captured all the same.
    unsafe {
        asm!("rep stosb", inout("rdi") address => _, inout("rcx") bytes => _, in("al") value,
             options(nostack, preserves_flags));
    }
}

/// Sets the GS base, which nothing in this program uses.
pub fn set_gs_base(address: u64) {
    x86_64::registers::model_specific::GsBase::write(x86_64::VirtAddr::new_truncate(address));
}

/// Runs `work` with supervisor write protection (CR0.WP) off on this CPU, interrupts masked.
pub(super) fn without_write_protection<R>(work: impl FnOnce() -> R) -> R {
    use x86_64::registers::control::{Cr0, Cr0Flags};
    interrupts::without_interrupts(|| {
        let before = Cr0::read();
        // SAFETY: paging and protection stay on; only read-only pages become writable, for
        // the closure that asked for it.
        unsafe { Cr0::write(before - Cr0Flags::WRITE_PROTECT) };
        let result = work();
        // SAFETY: restores what was there.
        unsafe { Cr0::write(before) };
        result
    })
}

/// Reads one byte at `address`, whatever is there: the way to a page fault on purpose.
pub fn touch(address: u64) -> u8 {
    let value: u8;
    // SAFETY: a load through inline assembly is no access of the language's memory model;
    // where the address is not mapped it faults, which is what callers want of it.
    unsafe {
        asm!("mov {value}, byte ptr [{address}]", value = out(reg_byte) value,
             address = in(reg) address, options(nostack, readonly));
    }
    value
}
