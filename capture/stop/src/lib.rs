//! The escalation that stops every other CPU of a machine, and the two small atomics
//! around it. It knows no hardware: signals are sent by the caller.
//!
//! * [`escalate`] — the ladder. Rungs are data; [`Escalation::step`] is a pure function
//!   of its state, the acknowledgements seen and a clock reading, and says what to do.
//! * [`claim`] — which CPU stops the others, when several want to at once.
//! * [`slots`] — how each CPU says that its registers are saved and that it has stopped.
//! * [`mask`] — a set of CPUs.
//!
//! Promises: `no_std`, no allocation, no `unsafe`, no global state, no lock, no panic on
//! any input, and no loop that waits. CPUs are numbered from 0, below [`MAX_CPUS`].
//!
//! # How the parts meet
//! ```
//! use epitaph_stop::{Action, AckBoard, Claim, CpuMask, Escalation, Outcome, Rung, RungKind};
//!
//! static CLAIM: Claim = Claim::new();
//! static BOARD: AckBoard<4> = AckBoard::new();
//!
//! // The crashing CPU, number 2 of 4:
//! assert_eq!(CLAIM.claim(2), Outcome::Won);
//! assert!(CLAIM.begin(2));
//! let rungs = [
//!     Rung { kind: RungKind::Irq, window_ns: 1_000_000_000, polls: 1 << 30, resend: 0, spare: CpuMask::new() },
//!     Rung { kind: RungKind::Nmi, window_ns: 10_000_000, polls: 1 << 24, resend: 1, spare: CpuMask::new() },
//!     Rung { kind: RungKind::Init, window_ns: 10_000_000, polls: 1 << 24, resend: 0, spare: CpuMask::new().with(0) },
//! ];
//! let mut others = CpuMask::first(4);
//! others.clear(2);
//! let mut ladder = Escalation::new(&rungs, others);
//! # let mut clock = 0;
//! # let mut read_clock = || { clock += 1_000_000; clock };
//! # let say = |_kind, _cpus| {};
//! # let send = |kind, cpus: CpuMask| if kind == RungKind::Irq {
//! #     for cpu in &cpus {
//! #         let slot = BOARD.slot(cpu).unwrap();
//! #         assert!(slot.begin_save());
//! #         slot.acknowledge(2);
//! #     }
//! # };
//! let not_stopped = loop {
//!     match ladder.step(&BOARD.acked(), read_clock()) {
//!         Action::Announce(kind, cpus) => say(kind, cpus),
//!         Action::Send { rung, to } => send(rung, to),
//!         Action::Wait => core::hint::spin_loop(),
//!         Action::Finished { not_stopped, .. } => break not_stopped,
//!     }
//! };
//! assert!(not_stopped.is_empty());
//! ```
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
