//! The vmcore file format, the dump area and the last-words record.
#![no_std]
#![forbid(unsafe_code)]
