//! From an interrupt, NMI or exception to one dispatcher.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Bytes between two entry stubs (`.balign 16` in `trap.S`).
const STUB_BYTES: u64 = 16;

/// What the entry code leaves on the stack: the general registers, then what the stub and
/// the processor pushed.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are the registers they are named after")]
pub struct TrapFrame {
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
    /// Interrupt vector, 0 to 255.
    pub vector: u64,
    /// Error code; zero for vectors that have none.
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What is called for every interrupt, NMI and exception, interrupts masked.
pub type Dispatcher = fn(&mut TrapFrame);

static DISPATCHER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the dispatcher, before the descriptor tables that lead here are loaded.
pub fn set_dispatcher(dispatcher: Dispatcher) {
    DISPATCHER.store(dispatcher as *mut (), Ordering::Release);
}

extern "C" fn machine_trap(frame: &mut TrapFrame) {
    // No check for null: there is one dispatcher in an image, so the optimiser makes this a
    // plain call, and no word in memory that a crash may have damaged decides whether an
    // exception is handled.
    let dispatcher = DISPATCHER.load(Ordering::Acquire);
    // SAFETY: the pointer was made from a `Dispatcher` by `set_dispatcher`, which comes before
    // the first gate that leads here.
    let dispatcher = unsafe { core::mem::transmute::<*mut (), Dispatcher>(dispatcher) };
    dispatcher(frame);
}

/// Address of the entry stub of `vector`.
pub(super) fn stub(vector: u8) -> u64 {
    unsafe extern "C" {
        static trap_stubs: u8;
    }
    let first = (&raw const trap_stubs) as u64;
    first + u64::from(vector) * STUB_BYTES
}

global_asm!(
    include_str!("trap.S"),
    dispatch = sym machine_trap,
    frame_bytes = const size_of::<TrapFrame>(),
    above_gprs = const size_of::<TrapFrame>() - offset_of!(TrapFrame, vector),
    r15 = const offset_of!(TrapFrame, r15),
    r14 = const offset_of!(TrapFrame, r14),
    r13 = const offset_of!(TrapFrame, r13),
    r12 = const offset_of!(TrapFrame, r12),
    rbp = const offset_of!(TrapFrame, rbp),
    rbx = const offset_of!(TrapFrame, rbx),
    r11 = const offset_of!(TrapFrame, r11),
    r10 = const offset_of!(TrapFrame, r10),
    r9 = const offset_of!(TrapFrame, r9),
    r8 = const offset_of!(TrapFrame, r8),
    rax = const offset_of!(TrapFrame, rax),
    rcx = const offset_of!(TrapFrame, rcx),
    rdx = const offset_of!(TrapFrame, rdx),
    rsi = const offset_of!(TrapFrame, rsi),
    rdi = const offset_of!(TrapFrame, rdi),
);

/// The vectors that matter here (Intel SDM vol. 3, table 6-1).
pub mod vector {
    /// Non-maskable interrupt.
    pub const NMI: u64 = 2;
    /// Double fault.
    pub const DOUBLE_FAULT: u64 = 8;
    /// Page fault.
    pub const PAGE_FAULT: u64 = 14;
    /// Machine check.
    pub const MACHINE_CHECK: u64 = 18;
    /// Vectors below this one are exceptions.
    pub const FIRST_INTERRUPT: u64 = 32;
}

/// The name of an exception vector.
#[must_use]
pub const fn exception_name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "NMI",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        20 => "virtualization",
        21 => "control protection",
        _ => "reserved exception",
    }
}
