//! The built-in workloads: pure code on `epitaph_workload`'s handles, tested on the host.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

pub mod bank;
pub mod hashtree;
pub mod heap;
mod primes;
pub mod queens;
mod queue;
pub mod ring;
pub mod sieve;
