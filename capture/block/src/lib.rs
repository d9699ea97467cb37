//! Polled block drivers and PCI configuration space for both images.
//!
//! Written for the moment after a crash: no interrupt, no allocation, no lock, and no
//! wait without a deadline. What a driver needs from the machine comes through one trait,
//! [`Platform`]; what it offers is [`BlockDevice`], so that the code which writes a dump
//! does not know what kind of disk it writes to.
//!
//! Data goes out straight from where it lies: a write names a physical range, and the
//! device fetches it by DMA. Nothing is copied on the way.
//!
//! A device that missed a deadline is left exactly as it is. It is not reset, because a
//! reset of a device whose backend hangs may never return, and not asked again.
#![cfg_attr(not(test), no_std)]

pub mod ahci;
mod device;
mod device_slice;
mod memory;
pub mod nvme;
pub mod pci;
mod platform;
mod polled;
mod running_time;
pub mod virtio;

pub use device::{Accepted, BlockDevice, Error, Identity, MAX_REQUEST_BYTES, Source, drain};
pub use device_slice::DeviceSlice;
pub use platform::{Deadline, Platform};
pub use polled::SLOWEST_REQUEST_MS;
pub use running_time::{MAX_GAP_NS, RunningTime};
