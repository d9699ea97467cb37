//! `cargo xtask saved-core`: the dump that lies in the repository.
//!
//! A visitor without QEMU reads it, and the CLI's tests read it. It is as small as a real
//! one can be: two CPUs, one workload that needs next to no memory, the least memory the
//! appliance boots with, zero pages left out, debug information compressed.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Boot, Options};

use crate::step::{short, step};
use crate::{build, setup};

/// Memory of the machine in bytes: the reserved region ends at 72 MiB.
const MEMORY: u64 = 96 << 20;

/// Makes it anew.
pub fn main() -> Result<ExitCode> {
    setup::ensure()?;
    step("build the images", build::quiet)?;
    let options = Options {
        cpus: 2,
        memory: MEMORY,
        crash: Some("panic,cpu=1".into()),
        command_line: "workload=sieve".into(),
        ..Options::new(Boot::Pvh, harness::fresh_folder("saved-core")?)
    };
    let outcome = step("boot, panic, capture", || harness::run(&options, &mut |_| ()))?;
    println!("==> verdict: {outcome}");
    if !outcome.as_expected() {
        return Ok(ExitCode::FAILURE);
    }
    let folder = harness::root().join("tests/cores/panic");
    let bytes = step("keep it", || harness::save_core(&outcome, &folder))?;
    println!("    {}: {} KiB", short(&folder), bytes.div_ceil(1024));
    step("accept what the CLI says about it", bless)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the CLI's golden output anew: it is about this very dump.
fn bless() -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(harness::root())
        .env("EPITAPH_BLESS", "1")
        .args(["test", "--quiet", "--package", "vmcore", "--test", "cli", "golden"])
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("the CLI's tests fail on the new dump");
    }
    Ok(())
}
