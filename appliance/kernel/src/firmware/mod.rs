//! The loader's and the firmware's words: memory map, command line, ACPI tables, calendar clock.
//!
//! Parsers only: they know no hardware and are tested on the host.

pub mod acpi;
pub mod boot;
pub mod calendar;
pub mod cmdline;
pub mod fw_cfg;
