#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

pub mod claim;
pub mod escalate;
pub mod mask;
pub mod slots;

pub use claim::{Claim, Outcome};
pub use escalate::{Action, Escalation, MAX_SENDS, Rung, RungKind, SendRecord};
pub use mask::{CpuMask, MAX_CPUS};
pub use slots::{AckBoard, Slot, SlotState};

/// The atomics of this crate: the real ones, or loom's in a model check.
mod atomic {
    #[cfg(not(loom))]
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}
