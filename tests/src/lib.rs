//! The QEMU harness that `cargo xtask` and the end-to-end tests share, and an independent
//! synthesiser of dumps.

pub mod harness;
pub mod synth;
