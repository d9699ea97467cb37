//! Common ground of the records that one program leaves in memory or on a disk for another.
//!
//! [`open_enum!`] makes a type of a field that holds one of several numbers, of which a later
//! version may have more.
//!
//! Promises: `no_std`, no allocation, no `unsafe`, no global state.
#![no_std]
#![forbid(unsafe_code)]

mod open_enum;
