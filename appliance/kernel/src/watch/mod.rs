//! Supervision of a running appliance: lockups, the hardware watchdog, the console's commands.

#[cfg(target_os = "none")]
pub mod backtrace;
#[cfg(target_os = "none")]
pub mod guard;
pub mod heartbeat;
#[cfg(target_os = "none")]
pub mod shell;
#[cfg(target_os = "none")]
pub mod watchdog;
