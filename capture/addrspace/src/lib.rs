#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

pub mod aarch64;
mod memory;
mod read;
mod rights;
mod runs;
mod space;
mod unsupported;
mod walk;
pub mod x86;

pub use aarch64::AArch64;
pub use memory::PhysicalMemory;
pub use read::{ReadError, ReadReason};
pub use rights::{Access, Attributes, Rights};
pub use runs::{Extent, Run, Runs};
pub use space::AddressSpace;
pub use unsupported::Unsupported;
pub use walk::{Level, MAX_LEVELS, Step, Steps, Walk, WalkError};
pub use x86::X86;
