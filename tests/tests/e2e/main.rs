//! The end-to-end tests: real images, a virtual machine, and what was left of it.
//!
//! One file per failure story. They boot QEMU, so plain `cargo test` leaves them out;
//! `cargo xtask test` builds the images and runs them, two machines at a time. One of them
//! alone: `cargo xtask test --only panics::on_the_boot_processor`. What a run left lies
//! in `target/runs/e2e`, under the name of its test; disks and dumps of a test that passed
//! are gone.

mod arming;
mod blocks;
mod boots;
mod capture;
mod capture_faults;
mod collecting;
mod console;
mod crash_loop;
mod dates;
mod debugger;
mod disassembly;
mod disk_faults;
mod disks;
mod faults;
mod foreign;
mod hung;
mod hw_watchdog;
mod keys;
mod live;
mod loaders;
mod locks;
mod lockups;
mod many;
mod memory;
mod microvm;
mod monitor;
mod no_dump;
mod outside;
mod pairwise;
mod panics;
mod parked;
mod partitions;
mod pauses;
mod policies;
mod power;
mod processors;
mod protection;
mod races;
mod readiness;
mod registers;
mod rehearsal;
mod screen;
mod stages;
mod stamps;
mod story;
mod talk;
mod tutorial;
mod two_disks;
mod way_out;
mod wedges;
mod witness;
mod work;
