//! The entry of the capture image: the state of the CPU that jumps there.
//!
//! The crashing CPU enters the image once, at [`image_entry`](crate::BootFacts::image_entry):
//!
//! | | |
//! |---|---|
//! | mode | 64-bit mode, four or five levels of paging; CPL 0 |
//! | interrupts | maskable ones off |
//! | RDI | physical address of the sealed [`Handoff`](crate::Handoff) |
//! | RSI | [`KIND_HANDOFF`] |
//! | CR3 | tables that map, one to one and writable: the image (executable as well), the facts, and the memory of every record that the hand-off names |
//! | image | as [`image::load`](crate::image::load) left it: whole, `.bss` zeroed, not relocated, at a 4 KiB boundary |
//!
//! The image relies on nothing else: not on a stack (it brings its own), not on the descriptor
//! tables, the other registers, the direction flag, or on the state of the other CPUs, which may
//! be running. Its first act is to relocate itself; then it loads its own descriptor tables, checks
//! hand-off and facts, and builds its own page tables in the scratch memory.
//!
//! A kernel in the higher half needs page tables for this jump that it does not run on otherwise.
//! They map the code that loads CR3 at its own address as well:
//!
//! ```text
//! cli
//! mov cr3, ROOT        // the next instruction is still mapped
//! mov rdi, HANDOFF     // physical
//! mov esi, 1
//! jmp ENTRY            // physical, which these tables map one to one
//! ```

/// Argument RSI: RDI is the address of a hand-off.
pub const KIND_HANDOFF: u64 = 1;
/// Argument RSI: the hand-off is of a crash that has not been. The image does all that changes
/// nothing, and comes back to the address that RDX leads to. A kernel need not use it.
pub const KIND_REHEARSAL: u64 = 2;
