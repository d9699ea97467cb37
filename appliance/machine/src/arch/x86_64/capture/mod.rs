//! What the capture image needs at its entry and of the processor.
//!
//! # Entry contract
//!
//! The image is entered at `capture_entry`, once, by the CPU that crashed. Known at that
//! moment, whoever jumped:
//!
//! 1. 64-bit mode, maskable interrupts off; four or five levels of paging.
//! 2. RDI is an argument, RSI says of what kind (see [`super::jump`]); in a rehearsal RDX says
//!    where to go back to ([`rehearsal`]).
//! 3. The image lies at some 4 KiB boundary, whole, `.bss` zeroed, not yet relocated.
//! 4. The page tables in CR3 map the image, its argument and all memory one to one, and
//!    let the image be executed and written.
//!
//! Nothing else is relied on: not the stack pointer, not the descriptor tables, which
//! belong to a dead system, not the other CPUs, which may still be running. In a rehearsal there
//! are none, and the system is not dead: the image changes nothing but its own memory.
//!
//! Responsible for: a stack, the relocation, the direction flag; then `capture_main`.

pub mod after;
pub mod cell;
mod entry;
pub mod helpers;
pub mod memory;
pub mod presence;
pub mod rehearsal;
mod tables;

pub use handoff::module::ChecksumNote;

pub use entry::{Layout, fault_address, layout, on_own_stacks, relocated, take_over};

/// Makes `$main`, a `fn(argument: u64, kind: u64) -> !`, the capture image's main program:
/// it is called on the image's own stack with the first two arguments of the entry. The file also
/// gets a place for its checksum.
#[macro_export]
macro_rules! capture_main {
    ($main:path) => {
        #[used]
        #[unsafe(link_section = ".note.epitaph")]
        static CHECKSUM: $crate::capture::ChecksumNote = $crate::capture::ChecksumNote::unsealed();

        #[unsafe(no_mangle)]
        extern "C" fn capture_main(argument: u64, kind: u64, way_back: u64) -> ! {
            $crate::capture::rehearsal::entered(kind, way_back);
            let main: fn(u64, u64) -> ! = $main;
            main(argument, kind)
        }
    };
}
