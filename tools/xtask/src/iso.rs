//! `cargo xtask iso`: the boot medium.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use e2e::harness;

use crate::{build, setup};

/// Where it goes and what it boots with.
#[derive(clap::Args)]
pub struct Arguments {
    /// The file to write
    #[arg(long, default_value = "target/epitaph.iso")]
    out: PathBuf,
    /// The kernel command line
    #[arg(long, default_value = "workload=sieve workload=memstamp")]
    cmdline: String,
}

/// Makes the medium.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure()?;
    let images = build::quiet()?;
    if let Some(folder) = arguments.out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let capture = Some(images.capture.as_path());
    harness::make_iso(&images.bootable, capture, &arguments.cmdline, false, None, &arguments.out)?;
    let bytes = std::fs::metadata(&arguments.out).context("the new image")?.len();
    println!("{} ({} MiB)", arguments.out.display(), bytes.div_ceil(1 << 20));
    Ok(ExitCode::SUCCESS)
}
