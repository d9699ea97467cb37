//! The way into the capture image.

use core::arch::asm;

/// What the capture image is told about its first argument.
pub const KIND_HANDOFF: u64 = 1;

/// Leaves the appliance: interrupts masked, page-table root `root` (all memory one to one,
/// executable), then the image's `entry` with the address of the hand-off.
pub fn leave(root: u64, entry: u64, handoff: u64) -> ! {
    // SAFETY: the caller checked the image's checksum and built the tables at boot; nothing
    // of this program runs afterwards.
    unsafe {
        asm!("cli", "cld", "mov cr3, {root}", "jmp {entry}", root = in(reg) root,
             entry = in(reg) entry, in("rdi") handoff, in("rsi") KIND_HANDOFF,
             options(noreturn));
    }
}
