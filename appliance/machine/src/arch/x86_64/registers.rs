//! The running CPU's registers, as the hand-off holds them.

use core::arch::naked_asm;
use core::mem::offset_of;

use handoff::X86Registers;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4, Efer};
use x86_64::registers::model_specific::Msr;

use super::trap::TrapFrame;

/// IA32_APIC_BASE (Intel SDM vol. 4, table 2-2).
const APIC_BASE: u32 = 0x1b;
/// IA32_FS_BASE and IA32_GS_BASE (the same table).
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;

/// The registers as they are in the caller, at the instruction after the call.
///
/// Only what a call preserves is the caller's own value; the rest is what happened to be
/// there. Unwinders need nothing more.
#[must_use]
#[inline(always)]
pub fn current() -> X86Registers {
    let mut registers = X86Registers::default();
    snapshot(&mut registers);
    add_system_registers(&mut registers);
    registers
}

/// The registers that an interrupt, exception or NMI interrupted.
#[must_use]
pub fn interrupted(frame: &TrapFrame) -> X86Registers {
    let mut registers = X86Registers {
        r15: frame.r15,
        r14: frame.r14,
        r13: frame.r13,
        r12: frame.r12,
        rbp: frame.rbp,
        rbx: frame.rbx,
        r11: frame.r11,
        r10: frame.r10,
        r9: frame.r9,
        r8: frame.r8,
        rax: frame.rax,
        rcx: frame.rcx,
        rdx: frame.rdx,
        rsi: frame.rsi,
        rdi: frame.rdi,
        orig_rax: frame.error_code,
        rip: frame.rip,
        cs: frame.cs,
        rflags: frame.rflags,
        rsp: frame.rsp,
        ss: frame.ss,
        ..X86Registers::default()
    };
    add_system_registers(&mut registers);
    registers
}

fn add_system_registers(registers: &mut X86Registers) {
    // As they are: whatever is in them is what is to be saved.
    // SAFETY: both exist on every CPU that has 64-bit mode.
    (registers.fs_base, registers.gs_base) =
        unsafe { (Msr::new(FS_BASE).read(), Msr::new(GS_BASE).read()) };
    registers.cr0 = Cr0::read_raw();
    registers.cr2 = Cr2::read_raw();
    registers.cr3 = Cr3::read_raw().0.start_address().as_u64();
    registers.cr4 = Cr4::read_raw();
    registers.efer = Efer::read_raw();
    let (gdt, idt) = (sgdt(), sidt());
    registers.gdt_base = gdt.base.as_u64();
    registers.gdt_limit = u64::from(gdt.limit);
    registers.idt_base = idt.base.as_u64();
    registers.idt_limit = u64::from(idt.limit);
    // SAFETY: IA32_APIC_BASE exists on every CPU with a local APIC, which start-up required.
    registers.apic_base = unsafe { Msr::new(APIC_BASE).read() };
}

/// Stores the general registers of its caller: RIP is the return address, RSP what the
/// caller has after the return.
#[unsafe(naked)]
extern "C" fn snapshot(_registers: &mut X86Registers) {
    naked_asm!(
        "mov [rdi + {r15}], r15",
        "mov [rdi + {r14}], r14",
        "mov [rdi + {r13}], r13",
        "mov [rdi + {r12}], r12",
        "mov [rdi + {rbp}], rbp",
        "mov [rdi + {rbx}], rbx",
        "mov [rdi + {r11}], r11",
        "mov [rdi + {r10}], r10",
        "mov [rdi + {r9}], r9",
        "mov [rdi + {r8}], r8",
        "mov [rdi + {rax}], rax",
        "mov [rdi + {rcx}], rcx",
        "mov [rdi + {rdx}], rdx",
        "mov [rdi + {rsi}], rsi",
        "mov [rdi + {rdi}], rdi",
        "mov rax, [rsp]",
        "mov [rdi + {rip}], rax",
        "lea rax, [rsp + 8]",
        "mov [rdi + {rsp}], rax",
        "pushfq",
        "pop rax",
        "mov [rdi + {rflags}], rax",
        "mov eax, cs",
        "mov [rdi + {cs}], rax",
        "mov eax, ss",
        "mov [rdi + {ss}], rax",
        "ret",
        r15 = const offset_of!(X86Registers, r15),
        r14 = const offset_of!(X86Registers, r14),
        r13 = const offset_of!(X86Registers, r13),
        r12 = const offset_of!(X86Registers, r12),
        rbp = const offset_of!(X86Registers, rbp),
        rbx = const offset_of!(X86Registers, rbx),
        r11 = const offset_of!(X86Registers, r11),
        r10 = const offset_of!(X86Registers, r10),
        r9 = const offset_of!(X86Registers, r9),
        r8 = const offset_of!(X86Registers, r8),
        rax = const offset_of!(X86Registers, rax),
        rcx = const offset_of!(X86Registers, rcx),
        rdx = const offset_of!(X86Registers, rdx),
        rsi = const offset_of!(X86Registers, rsi),
        rdi = const offset_of!(X86Registers, rdi),
        rip = const offset_of!(X86Registers, rip),
        rsp = const offset_of!(X86Registers, rsp),
        rflags = const offset_of!(X86Registers, rflags),
        cs = const offset_of!(X86Registers, cs),
        ss = const offset_of!(X86Registers, ss),
    )
}
