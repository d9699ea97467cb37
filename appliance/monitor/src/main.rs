//! The EL3 monitor as an image for `qemu-system-aarch64 -M virt,secure=on,gic-version=3`.
//!
//! QEMU starts all CPUs at address 0 in EL3. The boot CPU tells this story; each step is one
//! call in `image::boot`:
//!
//! 1. **processor**: what lower exception levels may use.
//! 2. **interrupts**: all of them belong to the client but for the two SGIs of the monitor.
//! 3. **files**: QEMU's `-kernel` and `-initrd` into memory, and the mode.
//! 4. **device tree**: what QEMU leaves out with `secure=on`.
//! 5. **client**: entered at the highest non-secure exception level, device tree in x0.
//!
//! All other CPUs wait for `CPU_ON`. From then on EL3 runs for calls and for the event
//! interrupt only, with all exceptions masked and the MMU off, and touches no vector register:
//! it is built for `aarch64-unknown-none-softfloat`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(all(target_os = "none", target_arch = "aarch64"))]
mod image;

#[cfg(not(all(target_os = "none", target_arch = "aarch64")))]
fn main() {
    eprintln!("build this for aarch64-unknown-none-softfloat: cargo xtask build --monitor");
}
