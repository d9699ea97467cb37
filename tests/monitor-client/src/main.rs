//! A client of the EL3 monitor at EL1: makes the calls, breaks what may be broken, and prints
//! what came of it as lines `NAME=VALUE` on the PL011. It judges nothing; the test does.
//!
//! The boot CPU tells the story (`story.rs`). Every other CPU is started by `CPU_ON` for one
//! job (`jobs.rs`), whose number is its argument, and goes off at its end.
//!
//! Built for `aarch64-unknown-none-softfloat`, so that no vector register changes unless the
//! assembly changes it. The MMU is off: shared words are only ever loaded and stored.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(all(target_os = "none", target_arch = "aarch64"))]
mod calls;
#[cfg(all(target_os = "none", target_arch = "aarch64"))]
mod handler;
#[cfg(all(target_os = "none", target_arch = "aarch64"))]
mod jobs;
#[cfg(all(target_os = "none", target_arch = "aarch64"))]
mod machine;
#[cfg(all(target_os = "none", target_arch = "aarch64"))]
mod story;

#[cfg(not(all(target_os = "none", target_arch = "aarch64")))]
fn main() {
    eprintln!("build this for aarch64-unknown-none-softfloat: cargo xtask build --monitor");
}
