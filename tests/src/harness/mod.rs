//! Boots the appliance under QEMU, watches it, and says how it ended.
//!
//! One run is one directory: [`Options`] say what to boot, [`run()`] starts QEMU there,
//! waits for events (a console line, a QMP event, the end of the process) up to one hard
//! time-out, and always kills and reaps what it started. What came of it is judged from
//! the outside only: the disk first, then the console, then how QEMU ended. A run that
//! left nothing is [`Verdict::Unknown`], never a success.
//!
//! The same library serves `cargo xtask run` and the end-to-end tests, so a failing test
//! can be repeated by hand with the command line it prints.

mod accelerator;
mod boot;
mod console;
mod disk;
mod gdb;
mod images;
mod iso;
mod machine;
mod monitor;
mod options;
mod outside;
mod qemu;
mod qmp;
mod report;
mod run;
mod screen;
mod verdict;

pub use accelerator::Accelerator;
pub use boot::Boot;
pub use console::Console;
pub use disk::save_core;
pub use gdb::{Gdb, Stop};
pub use images::{Images, build, fault_symbols, foreign_kernel, root, target_dir};
pub use iso::make_iso;
pub use machine::{Event, Machine};
pub use monitor::{Facts, MonitorImages, QEMU_ARM, build_monitor, run_client};
pub use options::{
    Appliance, Bus, DataDisk, Disk, EIO, ENOSPC, Module, Options, Policy, Refusal, Screen,
    crash_names, parse_size, wedge_names,
};
pub use qemu::has_firmware;
pub use qmp::probe_x2apic;
pub use report::Report;
pub use run::{Outcome, Running, console_pipe, fresh_folder, run, start};
pub use screen::Picture;
pub use verdict::{DumpFound, Evidence, Verdict, judge};
