//! The unikernel as a library: from the loader's jump to a verdict, and the way out when
//! something goes wrong.
//!
//! The parsers and the frame allocator know no hardware and are tested on the host; the
//! rest exists on bare metal only.
#![cfg_attr(target_os = "none", no_std)]

pub mod arming;
pub mod base;
#[cfg(target_os = "none")]
pub mod crash;
pub mod firmware;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
pub mod trial;
pub mod watch;
pub mod work;

#[cfg(target_os = "none")]
pub use start::{options, start};
