//! The only crate with processor-specific code.
#![cfg_attr(target_os = "none", no_std)]
