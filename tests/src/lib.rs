//! The QEMU harness that `cargo xtask` and the end-to-end tests share, the catalogue of faults
//! with what each must leave behind, and an independent synthesiser of dumps; power cuts,
//! replayed.

pub mod catalogue;
pub mod code;
pub mod foreign;
pub mod harness;
pub mod intlog;
pub mod power;
pub mod synth;
pub mod witness;
