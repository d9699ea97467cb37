//! What every other layer stands on: CPUs, memory, time, console, devices.

pub mod chain;
#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpus;
#[cfg(target_os = "none")]
pub mod devices;
pub mod frames;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod memory;
pub mod physical;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub(crate) mod recorder;
#[cfg(target_os = "none")]
pub mod roster;
#[cfg(target_os = "none")]
pub mod screen;
pub mod windows;
#[cfg(target_os = "none")]
pub mod xcall;
