//! `cargo xtask build`: the capture image and the appliance with and without faults, or the
//! EL3 monitor.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use e2e::harness::{self, Images, MonitorImages};

use crate::setup;
use crate::step::short;

/// What to build.
#[derive(clap::Args)]
pub struct Arguments {
    /// Build the EL3 monitor for QEMU's Arm machine, and the kernel that its tests boot,
    /// instead of the appliance
    #[arg(long)]
    monitor: bool,
}

/// Builds and says where things are and how large.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.monitor {
        let images = monitor()?;
        show(&[
            ("EL3 monitor, for -bios", &images.monitor),
            ("EL3 monitor, with debug information", &images.monitor_debug),
            ("client of its tests, for -kernel", &images.client),
        ])?;
        return Ok(ExitCode::SUCCESS);
    }
    setup::require_target()?;
    let images = harness::build()?;
    let faults = Images::find_with_faults()?;
    show(&[
        ("appliance, with debug information", &images.appliance),
        ("appliance, as booted", &images.bootable),
        ("appliance with faults, with debug information", &faults.appliance),
        ("appliance with faults, as booted", &faults.bootable),
        ("capture image, with debug information", &images.capture_debug),
        ("capture image, as loaded", &images.capture),
    ])?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the size and the place of each file.
fn show(files: &[(&str, &PathBuf)]) -> Result<()> {
    for (what, path) in files {
        let bytes = std::fs::metadata(path).context("a built image")?.len();
        println!("{:>9} KiB  {what}: {}", bytes.div_ceil(1024), short(path));
    }
    Ok(())
}

/// Builds the EL3 monitor and its test's client without a word.
pub fn monitor() -> Result<MonitorImages> {
    setup::require_monitor_target()?;
    harness::build_monitor()
}

/// Builds without a word, for the commands that boot.
pub fn quiet() -> Result<Images> {
    setup::require_target()?;
    harness::build()
}
