//! Where a dump goes: which disk, which partition of it, which slot.
//!
//! Both images ask. The appliance looks when it arms, so that a disk nobody prepared is told
//! of while somebody can still do something about it; the capture image looks again when the
//! dump is due, by the same code, and then writes. Nothing here allocates, and nothing is
//! remembered.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![forbid(unsafe_code)]

pub mod amount;
pub mod area;
pub mod disks;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod partition;
pub mod slot;
pub mod target;
