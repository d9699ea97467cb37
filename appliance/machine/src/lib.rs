//! The only crate with processor-specific code; both images use it.
//!
//! [`arch`] lists the names every processor family supplies. The modules are built for
//! bare metal only; on the host the crate is empty but for [`breadcrumb`], [`cell`] and
//! [`framebuffer`], so that plain `cargo test` and `cargo clippy` work on the whole workspace.
#![cfg_attr(target_os = "none", no_std)]

pub mod arch;
pub mod breadcrumb;
pub mod cell;
pub mod framebuffer;
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub mod lock;
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub mod trace;

#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub use arch::x86_64::*;
