//! The built-in workloads.
#![cfg_attr(target_os = "none", no_std)]

pub mod primes;
#[cfg(target_os = "none")]
pub mod sieve;
