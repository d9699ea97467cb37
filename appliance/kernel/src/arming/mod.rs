//! Preparations for a crash: the capture image, the disk for the dump, the rehearsal, `ready`.

#[cfg(target_os = "none")]
pub mod arm;
pub mod elf;
pub mod estimate;
#[cfg(target_os = "none")]
pub mod keys;
#[cfg(target_os = "none")]
pub mod last_run;
#[cfg(target_os = "none")]
pub mod late_disks;
#[cfg(target_os = "none")]
pub mod reach;
#[cfg(target_os = "none")]
pub mod ready;
pub mod region;
#[cfg(target_os = "none")]
pub(crate) mod rehearsal;
#[cfg(target_os = "none")]
pub mod target;
