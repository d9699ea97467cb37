//! Work: the workloads, the data disk that they use, load beside them.

pub mod blocks;
#[cfg(target_os = "none")]
pub mod disk;
#[cfg(target_os = "none")]
pub mod load;
#[cfg(target_os = "none")]
pub mod workload;
