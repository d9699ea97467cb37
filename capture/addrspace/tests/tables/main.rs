//! Translation and listing by page tables that the tests make.

mod aarch64;
mod garbage;
mod memory;
mod model;
mod x86;
