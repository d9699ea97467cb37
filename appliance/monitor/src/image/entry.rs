//! Where EL3 begins, its exception vectors, and the way down again.

#![expect(unsafe_code, reason = "assembly and the stacks that it works on")]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;

use epitaph_monitor::Frame;

use super::state::CPUS;
use super::{boot, call, gic, interrupt, unexpected, wait};

/// Bytes of a CPU's stack in EL3, the frame at its top included. The deepest use is a message
/// of a failed monitor, below 2 KiB.
const STACK: usize = 8 << 10;
/// Bytes of the stack that the boot CPU starts on: the state of all CPUs is built there.
const BOOT_STACK: usize = 256 << 10;

/// Memory that only assembly knows.
#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK]; CPUS]>, UnsafeCell<[u8; BOOT_STACK]>);

// SAFETY: each CPU uses its own element; the boot stack has one user.
unsafe impl Sync for Stacks {}

static STACKS: Stacks =
    Stacks(UnsafeCell::new([[0; STACK]; CPUS]), UnsafeCell::new([0; BOOT_STACK]));

global_asm!(
    include_str!("entry.S"),
    STACKS = sym STACKS,
    STACK = const STACK,
    STACKS_SIZE = const STACK * CPUS,
    BOOT_STACK = const BOOT_STACK,
    FRAME = const size_of::<Frame>(),
    PAIR = const 16,
    X0 = const offset_of!(Frame, x),
    X2 = const offset_of!(Frame, x) + 2 * 8,
    X4 = const offset_of!(Frame, x) + 4 * 8,
    X6 = const offset_of!(Frame, x) + 6 * 8,
    X8 = const offset_of!(Frame, x) + 8 * 8,
    X10 = const offset_of!(Frame, x) + 10 * 8,
    X12 = const offset_of!(Frame, x) + 12 * 8,
    X14 = const offset_of!(Frame, x) + 14 * 8,
    X16 = const offset_of!(Frame, x) + 16 * 8,
    X18 = const offset_of!(Frame, x) + 18 * 8,
    X20 = const offset_of!(Frame, x) + 20 * 8,
    X22 = const offset_of!(Frame, x) + 22 * 8,
    X24 = const offset_of!(Frame, x) + 24 * 8,
    X26 = const offset_of!(Frame, x) + 26 * 8,
    X28 = const offset_of!(Frame, x) + 28 * 8,
    X30 = const offset_of!(Frame, x) + 30 * 8,
    PC = const offset_of!(Frame, pc),
    PSTATE = const offset_of!(Frame, pstate),
    DISTRIBUTOR = const gic::DISTRIBUTOR,
    OPEN = const gic::OPEN_BIT,
    REDISTRIBUTORS = const gic::REDISTRIBUTORS,
    REDISTRIBUTOR_SIZE = const gic::REDISTRIBUTOR_SIZE,
    TYPER = const gic::REDISTRIBUTOR_TYPER,
    TYPER_LAST = const gic::TYPER_LAST_BIT,
    TYPER_AFFINITY = const gic::TYPER_AFFINITY_SHIFT,
    AFF3 = const gic::AFF3_SHIFT,
    AFF3_PACKED = const gic::AFF3_PACKED_SHIFT,
    AFF_BITS = const gic::AFF_BITS,
    VECTOR_ALIGN = const 7,
    TABLE_ALIGN = const 11,
    boot = sym boot,
    wait = sym wait,
    call = sym call,
    interrupt = sym interrupt,
    unexpected = sym unexpected,
);

/// Returns the address of the frame at the top of a CPU's stack.
fn frame_of(cpu: usize) -> usize {
    (&raw const STACKS) as usize + (cpu + 1) * STACK - size_of::<Frame>()
}

/// Returns the number of the CPU that runs this.
pub fn current_cpu() -> usize {
    let frame: usize;
    // SAFETY: reads a register that the entry set and nothing changes.
    unsafe { asm!("mrs {}, tpidr_el3", out(reg) frame, options(nomem, nostack)) };
    (frame - (&raw const STACKS) as usize) / STACK
}

/// Leaves EL3 for the lower exception level with `frame`.
pub fn enter(cpu: usize, frame: &Frame) -> ! {
    let place = frame_of(cpu) as *mut Frame;
    // SAFETY: the top of this CPU's own stack is where a frame belongs; what called this is
    // further down that stack or on the boot stack, and is not returned to.
    unsafe {
        place.write(*frame);
        asm!("b monitor_leave", in("x0") place, options(noreturn))
    }
}
