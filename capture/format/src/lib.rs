#![doc = include_str!("../README.md")]
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
