//! The escalation that stops every other CPU.
#![no_std]
#![forbid(unsafe_code)]
