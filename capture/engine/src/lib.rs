//! The engine of a dump: what to believe, what to write and where, and what to say when that
//! fails. The part of the capture image that needs no hardware.
//!
//! The image itself is `capture/image`; its `main.rs` tells the story in order. What is here
//! is plain code over byte slices and the block device trait, so it is tested on the host.
//! No allocation, no global state.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod auto;
pub mod chunk_sizes;
pub mod close;
pub mod codec;
pub mod crash;
pub mod dump_options;
pub mod extents;
#[cfg(test)]
mod fake;
pub mod host;
pub mod input;
pub mod lanes;
pub mod last_words;
pub mod ledger;
pub mod mini;
pub mod notes;
pub mod plan;
pub mod rate;
pub mod scan;
pub mod stage;
pub mod stream;
pub mod timeout_budget;
pub mod used;
pub mod worker_pool;
