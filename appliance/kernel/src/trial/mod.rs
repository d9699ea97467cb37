//! Faults and measurements on request: `crash=`, `wedge=`, `bench_stop=`, `bench_trace=`.

#[cfg(target_os = "none")]
pub mod bench;
#[cfg(target_os = "none")]
pub mod inject;
