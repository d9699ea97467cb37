//! Supervision of a running appliance: lockups, the hardware watchdog, the console's commands.

#[cfg(target_os = "none")]
pub mod backtrace;
pub mod heartbeat;
#[cfg(target_os = "none")]
pub mod hw_watchdog;
#[cfg(target_os = "none")]
pub mod lockup;
pub mod progress;
#[cfg(target_os = "none")]
pub mod shell;
