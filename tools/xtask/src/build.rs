//! `cargo xtask build`: the capture image, and the appliance with and without faults.

use std::process::ExitCode;

use anyhow::{Context, Result};
use e2e::harness::{self, Images};

use crate::setup;
use crate::step::short;

/// Builds and says where things are and how large.
pub fn main() -> Result<ExitCode> {
    setup::require_target()?;
    let images = harness::build()?;
    let faults = Images::find_with_faults()?;
    for (what, path) in [
        ("appliance, with debug information", &images.appliance),
        ("appliance, as booted", &images.bootable),
        ("appliance with faults, with debug information", &faults.appliance),
        ("appliance with faults, as booted", &faults.bootable),
        ("capture image, with debug information", &images.capture_debug),
        ("capture image, as loaded", &images.capture),
    ] {
        let bytes = std::fs::metadata(path).context("a built image")?.len();
        println!("{:>9} KiB  {what}: {}", bytes.div_ceil(1024), short(path));
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds without a word, for the commands that boot.
pub fn quiet() -> Result<Images> {
    setup::require_target()?;
    harness::build()
}
