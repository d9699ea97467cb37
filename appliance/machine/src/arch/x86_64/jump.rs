//! The way into the capture image, and, from a rehearsal, back.

use core::arch::{asm, naked_asm};

use handoff::entry::{KIND_HANDOFF, KIND_REHEARSAL};

pub use super::capture::rehearsal::{Outcome, Report};
use super::{cpu, paging, tables};

/// Leaves the appliance: interrupts masked, page-table root `root` (all memory one to one,
/// executable), then the image's `entry` with the address of the hand-off.
#[inline(never)] // The proof about crash code finds it by name.
pub fn leave(root: u64, entry: u64, handoff: u64) -> ! {
    // SAFETY: the caller checked the image's checksum and built the tables at boot; nothing
    // of this program runs afterwards.
    unsafe {
        asm!("cli", "cld", "mov cr3, {root}", "jmp {entry}", root = in(reg) root,
             entry = in(reg) entry, in("rdi") handoff, in("rsi") KIND_HANDOFF,
             options(noreturn));
    }
}

/// Enters the image as [`leave`] does, for a rehearsal, on the CPU of index `index`, before its
/// descriptor tables are made read only. Comes back with everything as it was but for the image's
/// own memory, and calls `tidy` while all memory can be written.
///
/// No other CPU may be running, and no interrupt is served meanwhile.
pub fn rehearse<R>(
    (root, entry, handoff): (u64, u64, u64),
    index: usize,
    tidy: impl FnOnce(&Report) -> R,
) -> R {
    let interrupts = cpu::interrupts_enabled();
    cpu::interrupts_off();
    let own = cpu::cr3();
    let mut report = Report::default();
    // SAFETY: the caller checked the image's checksum; `root` maps everything this program
    // runs on, and the image comes back by what it finds on this stack.
    unsafe { enter(entry, handoff, root, &raw mut report) };
    tables::load(index);
    let result = tidy(&report);
    paging::activate(own);
    if interrupts {
        cpu::interrupts_on();
    }
    result
}

/// Registers: RDI the image's entry, RSI its argument, RDX the page-table root to enter with and
/// to come back on, RCX where the report goes. The image finds, at the address in RDX, that root
/// and where to go back to; it comes back above the two of them, with the report in RDI, RSI, RDX
/// and R8. Everything that a called function keeps is kept here.
#[unsafe(naked)]
unsafe extern "C" fn enter(entry: u64, handoff: u64, root: u64, report: *mut Report) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rcx",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov esi, {kind}",
        "lea rcx, [rip + 2f]",
        "push rcx",
        "push rdx",
        "mov cr3, rdx",
        "mov rdx, rsp",
        "jmp rax",
        "2:",
        "pop rcx",
        "mov [rcx + {outcome}], rdi",
        "mov [rcx + {text}], rsi",
        "mov [rcx + {text_bytes}], rdx",
        "mov [rcx + {nmis}], r8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        kind = const KIND_REHEARSAL,
        outcome = const core::mem::offset_of!(Report, outcome),
        text = const core::mem::offset_of!(Report, text),
        text_bytes = const core::mem::offset_of!(Report, text_bytes),
        nmis = const core::mem::offset_of!(Report, nmis),
    )
}
