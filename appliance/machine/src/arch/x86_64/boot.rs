//! Where the appliance begins, and the stacks it begins on.

use core::arch::global_asm;
use core::mem::offset_of;

use handoff::Range;

use super::paging::PAGE;

/// CR4: physical address extension, global pages off. Machine checks are enabled where the
/// processor has them.
pub(super) const CR4_SET: u32 = 1 << 5;
/// CR0: paging, write protection in supervisor mode, native FPU errors, protected mode.
pub(super) const CR0_SET: u32 = (1 << 31) | (1 << 16) | (1 << 5) | 1;
/// CR0 bits that must not stay set: cache disable, not write-through.
pub(super) const CR0_KEEP: u32 = !((1 << 30) | (1 << 29));
/// EFER: long mode. No-execute is enabled where the processor has it.
pub(super) const EFER_SET: u32 = 1 << 8;
/// Features that nothing here works without, as bits of EDX of CPUID 1 (Intel SDM vol. 2, CPUID):
/// the time-stamp counter, model-specific registers, physical address extension, the local
/// APIC; conditional moves and the fences of SSE2, which the compiler uses.
const REQUIRED: u32 = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 15 | 1 << 26;
/// Number of the long mode in the list of names of features.
const LONG_MODE_NAME: u32 = 27;

/// Bytes of the main stack. The capture image needs the most: its main flow, and below that what
/// closes a stage after a fault (`capture::after::ROOM`).
const MAIN: usize = 192 * 1024;
const SIDE: usize = 16 * 1024;
const GUARD: usize = PAGE as usize;

/// All stacks of one CPU, each with a guard page under it.
///
/// Stacks grow down, so the page below each is the one an overflow meets first.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct StackBlock {
    main_guard: [u8; GUARD],
    main: [u8; MAIN],
    nmi_guard: [u8; GUARD],
    nmi: [u8; SIDE],
    double_fault_guard: [u8; GUARD],
    double_fault: [u8; SIDE],
    machine_check_guard: [u8; GUARD],
    machine_check: [u8; SIDE],
}

/// Bytes of [`StackBlock`]: what one CPU costs.
pub const STACK_BLOCK_BYTES: u64 = size_of::<StackBlock>() as u64;

const MAIN_TOP: u64 = offset_of!(StackBlock, nmi_guard) as u64;
const NMI_TOP: u64 = offset_of!(StackBlock, double_fault_guard) as u64;
const DOUBLE_FAULT_TOP: u64 = offset_of!(StackBlock, machine_check_guard) as u64;

/// The addresses inside a [`StackBlock`] that lies at `base`.
#[derive(Clone, Copy, Debug)]
pub struct Stacks {
    base: u64,
}

impl Stacks {
    /// Stacks in the block at physical address `base`, a page boundary.
    #[must_use]
    pub const fn at(base: u64) -> Self {
        Self { base }
    }

    /// The whole block.
    #[must_use]
    pub const fn block(&self) -> Range {
        Range { start: self.base, bytes: STACK_BLOCK_BYTES }
    }

    /// The stack that workloads and the kernel run on.
    #[must_use]
    pub const fn main(&self) -> Range {
        Range { start: self.base + GUARD as u64, bytes: MAIN as u64 }
    }

    /// First address above the main stack.
    #[must_use]
    pub const fn main_top(&self) -> u64 {
        self.base + MAIN_TOP
    }

    /// First address above the NMI stack.
    #[must_use]
    pub const fn nmi_top(&self) -> u64 {
        self.base + NMI_TOP
    }

    /// First address above the double-fault stack.
    #[must_use]
    pub const fn double_fault_top(&self) -> u64 {
        self.base + DOUBLE_FAULT_TOP
    }

    /// First address above the machine-check stack.
    #[must_use]
    pub const fn machine_check_top(&self) -> u64 {
        self.base + STACK_BLOCK_BYTES
    }

    /// The guard pages, to be unmapped.
    #[must_use]
    pub fn guards(&self) -> [Range; 4] {
        let page = |offset: usize| Range { start: self.base + offset as u64, bytes: PAGE };
        [
            page(offset_of!(StackBlock, main_guard)),
            page(offset_of!(StackBlock, nmi_guard)),
            page(offset_of!(StackBlock, double_fault_guard)),
            page(offset_of!(StackBlock, machine_check_guard)),
        ]
    }
}

/// The boot processor's stacks.
#[repr(transparent)]
struct BootStacks(core::cell::UnsafeCell<StackBlock>);

// SAFETY: the memory is only ever used as stacks, by the one CPU it belongs to.
unsafe impl Sync for BootStacks {}

#[unsafe(link_section = ".bss.boot_stacks")]
static BOOT_STACKS: BootStacks = BootStacks(core::cell::UnsafeCell::new(StackBlock {
    main_guard: [0; GUARD],
    main: [0; MAIN],
    nmi_guard: [0; GUARD],
    nmi: [0; SIDE],
    double_fault_guard: [0; GUARD],
    double_fault: [0; SIDE],
    machine_check_guard: [0; GUARD],
    machine_check: [0; SIDE],
}));

/// The stacks the boot processor was entered on and stays on.
#[must_use]
pub fn boot_stacks() -> Stacks {
    Stacks::at(BOOT_STACKS.0.get() as u64)
}

/// Where the parts of the appliance's image lie in memory (symbols of the linker script).
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// ELF header, program headers and notes, read only.
    pub headers: Range,
    /// The notes inside `headers`.
    pub notes: Range,
    /// Code.
    pub text: Range,
    /// Constants.
    pub rodata: Range,
    /// Variables, `.bss` included.
    pub data: Range,
    /// The reserved region.
    pub region: Range,
}

/// The stacks that a crash is handled on, apart from those it may have happened on: of the
/// one CPU that has won the claim.
#[unsafe(link_section = ".bss.crash_stacks")]
static CRASH_STACKS: BootStacks = BootStacks(core::cell::UnsafeCell::new(StackBlock {
    main_guard: [0; GUARD],
    main: [0; MAIN],
    nmi_guard: [0; GUARD],
    nmi: [0; SIDE],
    double_fault_guard: [0; GUARD],
    double_fault: [0; SIDE],
    machine_check_guard: [0; GUARD],
    machine_check: [0; SIDE],
}));

/// The stacks that a crash is handled on.
#[must_use]
pub fn crash_stacks() -> Stacks {
    Stacks::at(CRASH_STACKS.0.get() as u64)
}

/// Leaves the running stack for a crash stack and runs `next` there. The interrupt stacks are
/// free from then on: an NMI or a machine check that returns cannot overwrite what `next`
/// needs. Each call in a row takes the other one of two, since what is on the one before may
/// have crashed in the middle of being used.
pub fn continue_on_crash_stack(turn: u32, next: fn() -> !) -> ! {
    let stacks = crash_stacks();
    let top = if turn.is_multiple_of(2) { stacks.nmi_top() } else { stacks.double_fault_top() };
    // SAFETY: the stack belongs to the one CPU that handles the crash, and nothing on it is
    // used any more; `next` never returns, so nothing on the old one is either.
    unsafe {
        core::arch::asm!("mov rsp, {top}", "xor ebp, ebp", "call {next}", "ud2", top = in(reg) top,
             next = in(reg) next, options(noreturn));
    }
}

/// The image's layout.
#[must_use]
pub fn layout() -> Layout {
    unsafe extern "C" {
        static image_start: u8;
        static note_start: u8;
        static note_end: u8;
        static text_start: u8;
        static text_end: u8;
        static rodata_start: u8;
        static rodata_end: u8;
        static data_start: u8;
        static data_end: u8;
        static region_start: u8;
        static region_end: u8;
    }
    let between = |start: *const u8, end: *const u8| Range::between(start as u64, end as u64);
    Layout {
        headers: between(&raw const image_start, &raw const text_start),
        notes: between(&raw const note_start, &raw const note_end),
        text: between(&raw const text_start, &raw const text_end),
        rodata: between(&raw const rodata_start, &raw const rodata_end),
        data: between(&raw const data_start, &raw const data_end),
        region: between(&raw const region_start, &raw const region_end),
    }
}

global_asm!(
    include_str!("long_mode.S"),
    include_str!("boot.S"),
    stacks = sym BOOT_STACKS,
    stack_top = const MAIN_TOP,
    required = const REQUIRED,
    long_mode_name = const LONG_MODE_NAME,
    cr4_set = const CR4_SET,
    efer_set = const EFER_SET,
    cr0_set = const CR0_SET,
    cr0_keep = const CR0_KEEP,
);
