//! The QEMU harness that `cargo xtask` and the end-to-end tests share, and an independent
//! synthesiser of dumps; power cuts, replayed.

pub mod harness;
pub mod power;
pub mod synth;
