//! The unikernel as a library: from the loader's jump to a verdict, and the way out when
//! something goes wrong.
//!
//! The parsers and the frame allocator know no hardware and are tested on the host; the
//! rest exists on bare metal only.
#![cfg_attr(target_os = "none", no_std)]

pub mod acpi;
pub mod blocks;
pub mod boot;
pub mod calendar;
pub mod chain;
pub mod cmdline;
pub mod elf;
pub mod frames;
pub mod fw_cfg;
pub mod heartbeat;
pub mod physical;
pub mod room;

#[cfg(target_os = "none")]
pub mod arm;
#[cfg(target_os = "none")]
pub mod backtrace;
#[cfg(target_os = "none")]
pub mod bench;
#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpus;
#[cfg(target_os = "none")]
pub mod crash;
#[cfg(target_os = "none")]
pub mod devices;
#[cfg(target_os = "none")]
pub mod disk;
#[cfg(target_os = "none")]
pub mod guard;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod inject;
#[cfg(target_os = "none")]
pub mod keys;
#[cfg(target_os = "none")]
pub mod last_run;
#[cfg(target_os = "none")]
pub mod load;
#[cfg(target_os = "none")]
pub mod memory;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub mod ready;
#[cfg(target_os = "none")]
mod recorder;
#[cfg(target_os = "none")]
mod rehearsal;
#[cfg(target_os = "none")]
pub mod roster;
#[cfg(target_os = "none")]
pub mod screen;
#[cfg(target_os = "none")]
pub mod shell;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
pub mod target;
#[cfg(target_os = "none")]
pub mod watchdog;
#[cfg(target_os = "none")]
pub mod workload;
#[cfg(target_os = "none")]
pub mod xcall;

#[cfg(target_os = "none")]
pub use start::{options, start};
