//! A small kernel that has nothing in common with the appliance but the contract crates: mapped
//! in the higher half, each CPU on a stack of scattered pages, memory in a linear map. Four CPUs
//! start, one of them panics, and the capture image takes over. `docs/own-kernel.md` goes
//! through it step by step.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod arm;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod machine;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a kernel: `cargo xtask foreign` builds it, boots it and crashes it");
    std::process::exit(2);
}
