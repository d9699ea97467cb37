//! What Epitaph writes down, byte by byte: the vmcore, the dump area, the last words.
//!
//! * [`core`] builds the header of an ELF core in a buffer that the caller owns.
//! * [`notes`] builds the notes that debuggers read and names the ones only we read.
//! * [`reader`] reads such a header back, from any bytes, without ever panicking.
//! * [`area`] is the layout of a disk that dumps are written to.
//! * [`gpt`] finds such areas in the partitions of a disk.
//! * [`last_words`] is the record on the console for when there is no disk.
//!
//! Promises: `no_std`, no allocation, no `unsafe`, no global state, no dependency on the
//! rest of Epitaph, so that other kernels can embed it. All numbers are little endian.
//! Every struct that reaches a disk is `repr(C)` without padding, with its size asserted.
#![no_std]
#![forbid(unsafe_code)]

pub mod area;
pub mod core;
mod elf;
pub mod gpt;
pub mod last_words;
pub mod notes;
pub mod reader;

/// Bytes of a page of the machine, of a block of the dump area, and the alignment of
/// everything in a vmcore.
pub const PAGE_BYTES: u64 = 4096;

const _: () = assert!(cfg!(target_endian = "little"), "the format is written as it lies in memory");
