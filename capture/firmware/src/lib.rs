#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod clock;
pub mod hardware;
pub mod hw_watchdog;
mod memory;
pub mod rates;

pub use acpi::{Acpi, AcpiError};
pub use memory::{PhysicalMemory, Unreadable};
