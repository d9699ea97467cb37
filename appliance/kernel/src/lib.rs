//! The unikernel as a library.
#![cfg_attr(target_os = "none", no_std)]
