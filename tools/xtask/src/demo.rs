//! `cargo xtask demo`: a crash, seen from the outside.
//!
//! GRUB boots the appliance on four CPUs; every one of them works. One is made to spin
//! with interrupts off, another panics. What is left is read with the CLI a user would
//! use, on the files a user would have.

use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Boot, Options, Outcome};

use crate::step::{short, step};
use crate::{build, setup};

/// What of the demo can be chosen.
#[derive(clap::Args)]
pub struct Arguments {
    /// How the medium is booted: bios or uefi
    #[arg(long, default_value = "bios")]
    boot: Boot,
    /// Show the whole console, firmware included
    #[arg(long)]
    console: bool,
}

/// The console lines that tell the story; the rest is in `console.log`.
const STORY: &[&str] = &[
    "armed:",
    "wedge:",
    "crash:",
    "panic:",
    "exception:",
    "stop:",
    "capture:",
    "verdict:",
    "no-dump:",
];

/// Runs the demo.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    step("look for what a demo needs on this host", setup::ensure)?;
    step("build the appliance, with faults too, and its capture image", build::quiet)?;
    step("build the CLI", || cli(&["--version"]).map(|_| ()))?;
    let outcome = step("boot, work, wedge CPU 3, panic on CPU 1, capture", || crash(arguments))?;
    println!("==> verdict: {outcome}");
    let Some(vmcore) = outcome.vmcore.as_deref().filter(|_| outcome.as_expected()) else {
        println!("the console ends:\n{}", outcome.console.tail(30));
        println!("everything of the run is in {}", short(&outcome.out));
        return Ok(ExitCode::FAILURE);
    };
    for command in ["info", "bt"] {
        step(&format!("vmcore {command}"), || {
            let output = cli(&[command, vmcore.to_str().context("a path in UTF-8")?])?;
            print!("{}", String::from_utf8_lossy(&output.stdout));
            Ok(())
        })?;
    }
    farewell(&outcome, vmcore);
    Ok(ExitCode::SUCCESS)
}

fn crash(arguments: &Arguments) -> Result<Outcome> {
    let options = Options {
        crash: Some("panic,cpu=1".into()),
        wedges: vec!["irqs-off,cpu=3".into()],
        command_line: "workload=sieve workload=memstamp".into(),
        ..Options::new(arguments.boot, harness::target_dir().join("demo"))
    };
    harness::run(&options, &mut |line| {
        if arguments.console || STORY.iter().any(|marker| line.contains(marker)) {
            println!("    {line}");
        }
    })
}

/// Runs the CLI as a user would; building it is part of that.
fn cli(arguments: &[&str]) -> Result<Output> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(harness::root())
        .args(["run", "--quiet", "--release", "--package", "vmcore", "--"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("`vmcore {}` failed", arguments.join(" "));
    }
    Ok(output)
}

fn farewell(outcome: &Outcome, vmcore: &Path) {
    let vmcore = short(vmcore);
    let out = short(&outcome.out);
    println!("\nThe dump is {vmcore}; console and disk are beside it in {out}.");
    println!("To go on:");
    println!("  cargo run --release -p vmcore -- stamps {vmcore}");
    println!("  cargo run --release -p vmcore -- regs --cpu 3 {vmcore}");
    println!("  gdb {} {vmcore}", short(&outcome.report.image));
    println!("  cargo xtask run --crash stack-overflow,cpu=2 --wedge nmi-blocked");
    println!("  cargo xtask test");
}
