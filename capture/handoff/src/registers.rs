//! The register set of one x86_64 CPU, and the room for that of any architecture.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// General and control registers of an x86_64 CPU.
///
/// The first 27 words are Linux's `struct user_regs_struct`, which is also the order in
/// which the trap entry pushes them, so a frame is copied without translation and
/// NT_PRSTATUS takes them as they are.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are the registers they are named after")]
pub struct X86Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Error code of the exception, or the vector where there is none.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
    // From here on: what no standard note holds.
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt_base: u64,
    pub gdt_limit: u64,
    pub idt_base: u64,
    pub idt_limit: u64,
    pub apic_base: u64,
    pub reserved: [u64; 3],
}

/// Words of the registers in a [CPU record](crate::CpuRecord), for the largest architecture.
pub const REGISTER_WORDS: usize = 64;

/// Words of [`X86Registers`] that go into NT_PRSTATUS.
pub const PRSTATUS_WORDS: usize = 27;

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<X86Registers>() == 40 * 8);
    assert!(offset_of!(X86Registers, orig_rax) == 15 * 8);
    assert!(offset_of!(X86Registers, rip) == 16 * 8);
    assert!(offset_of!(X86Registers, gs) == 26 * 8);
    assert!(offset_of!(X86Registers, cr0) == PRSTATUS_WORDS * 8);
};
