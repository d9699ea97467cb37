//! From the jump to Rust, and the image's own stacks and descriptor tables.

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::size_of;

use handoff::Range;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr2, Efer, EferFlags};

use crate::boot::{StackBlock, Stacks};
use crate::{cpu, trap};

/// R_X86_64_RELATIVE (x86-64 psABI 1.0, table 4.9): the load address plus the addend.
const RELATIVE: u64 = 8;

/// An `Elf64_Rela`: offset, type (no relocation here has a symbol), addend.
#[repr(C)]
struct Relocation {
    offset: u64,
    kind: u64,
    addend: u64,
}

struct OwnStacks(UnsafeCell<core::mem::MaybeUninit<StackBlock>>);

// SAFETY: only its address is taken; the memory is used as stacks by the image's one CPU.
unsafe impl Sync for OwnStacks {}

static STACKS: OwnStacks = OwnStacks(UnsafeCell::new(core::mem::MaybeUninit::zeroed()));

/// Where the image begins. Registers: RDI, RSI and RDX are handed through in R12 to R14,
/// everything else is free. No instruction before the loop's end may use an address
/// that the relocation has yet to make right; RIP-relative ones need none.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn capture_entry() -> ! {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "cli",
        "cld",
        "lea rsp, [rip + {stacks} + {main_top}]",
        "xor ebp, ebp",
        "mov r12, rdi",
        "mov r13, rsi",
        "mov r14, rdx",
        "lea rbx, [rip + __ehdr_start]",
        "lea rdi, [rip + __relocations_start]",
        "lea rsi, [rip + __relocations_end]",
        "2:",
        "cmp rdi, rsi",
        "jae 3f",
        // Another kind is left alone here; `relocated` finds it once there is a console.
        "cmp qword ptr [rdi + {kind}], {relative}",
        "jne 4f",
        "mov rax, [rdi + {addend}]",
        "add rax, rbx",
        "mov rcx, [rdi + {offset}]",
        "mov [rbx + rcx], rax",
        "4:",
        "add rdi, {relocation_bytes}",
        "jmp 2b",
        "3:",
        "mov rdi, r12",
        "mov rsi, r13",
        "mov rdx, r14",
        "push 0",
        "jmp capture_main",
        ".cfi_endproc",
        stacks = sym STACKS,
        main_top = const Stacks::at(0).main_top(),
        relative = const RELATIVE,
        kind = const core::mem::offset_of!(Relocation, kind),
        addend = const core::mem::offset_of!(Relocation, addend),
        offset = const core::mem::offset_of!(Relocation, offset),
        relocation_bytes = const size_of::<Relocation>(),
    )
}

unsafe extern "C" {
    static __ehdr_start: u8;
    static __relocations_start: Relocation;
    static __relocations_end: Relocation;
    static __text_start: u8;
    static __text_end: u8;
    static __data_start: u8;
    static __image_end: u8;
}

/// Whether every relocation was of the one kind the entry code knows.
#[must_use]
pub fn relocated() -> bool {
    let start = &raw const __relocations_start;
    let bytes = (&raw const __relocations_end) as usize - start as usize;
    (0..bytes / size_of::<Relocation>()).all(|index| {
        // SAFETY: the linker script puts the two symbols around the relocation table.
        let kind = unsafe { (*start.add(index)).kind };
        kind == RELATIVE
    })
}

/// The image's parts in memory, whole pages.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// All of it, `.bss` included.
    pub image: Range,
    /// Code.
    pub text: Range,
    /// Data and `.bss`.
    pub data: Range,
}

/// Where the image lies.
#[must_use]
pub fn layout() -> Layout {
    let at = |symbol: *const u8| symbol as u64;
    Layout {
        image: Range::between(at(&raw const __ehdr_start), at(&raw const __image_end)),
        text: Range::between(at(&raw const __text_start), at(&raw const __text_end)),
        data: Range::between(at(&raw const __data_start), at(&raw const __image_end)),
    }
}

/// The image's own stacks, with the guard pages under them.
pub(super) fn stacks() -> Stacks {
    Stacks::at(STACKS.0.get() as u64)
}

/// Whether the caller runs on the image's own stacks: then it is the CPU that crashed, and no
/// helper, which has a stack of its own.
#[must_use]
pub fn on_own_stacks() -> bool {
    let here = 0u8;
    stacks().block().holds(&raw const here as u64, 1)
}

/// Leaves the dead system's descriptor tables for the image's own, and calls `dispatcher`
/// for every exception and NMI from now on. Also turns on what the image's page tables
/// rely on: pages that cannot be executed, and pages that the image itself cannot write.
pub fn take_over(dispatcher: trap::Dispatcher) {
    trap::set_dispatcher(dispatcher);
    super::tables::install(&stacks());
    // SAFETY: write protection is off for no page the image writes: the old tables map
    // everything writable, its own ones map its data so. NXE gives a meaning to a bit the
    // tables in use have clear or set on purpose.
    unsafe {
        Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT));
        if cpu::has_nx() {
            Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE));
        }
    }
}

/// The address of the last page fault (CR2).
#[must_use]
pub fn fault_address() -> u64 {
    Cr2::read_raw()
}
