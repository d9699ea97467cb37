//! Everything around the images: `cargo xtask COMMAND`.
//!
//! | command | what it does |
//! |---|---|
//! | `setup` | installs, or names, what the others need on this host |
//! | `build` | all images, into `target/images`; with `--monitor` the EL3 monitor |
//! | `iso` | the boot medium, BIOS and UEFI |
//! | `run` | one machine, one verdict |
//! | `demo` | a crash from the outside: boot, wedge, panic, dump, read it |
//! | `foreign` | a kernel that is not ours, captured and read |
//! | `test` | every check there is |
//! | `soak` | what takes longer than a test may: the whole matrix, random machines |
//! | `bench` | how long a capture takes, beside a raw write of as many bytes |
//! | `linux-on-monitor` | Debian's arm64 kernel on the EL3 monitor |
//! | `lint` | the rules of the house that no compiler checks |
//! | `requirements`, `saved-core` | make anew the table of stopping's tests, and the saved dump |

mod apt;
mod bench;
mod build;
mod crashpath;
mod demo;
mod foreign;
mod iso;
mod lint;
mod linux_on_monitor;
mod requirements;
mod run;
mod saved_core;
mod setup;
mod soak;
mod step;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use e2e::harness::Refusal;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, boot, crash and check the appliance")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this host, or name it
    Setup,
    /// Build all images, or the EL3 monitor, into target/images
    Build(build::Arguments),
    /// Make the boot medium for BIOS and UEFI
    Iso(iso::Arguments),
    /// Boot one machine and judge how it ended
    Run(run::Arguments),
    /// Crash a machine under load and read its dump
    Demo(demo::Arguments),
    /// Crash a kernel that is not ours and read its dump with vmcore, gdb and drgn
    Foreign,
    /// Run every check; the last line counts them
    Test(test::Arguments),
    /// Run for hours: the whole matrix, random machines, every instruction
    Soak(soak::Arguments),
    /// Measure the capture
    Bench(bench::Arguments),
    /// Boot Debian's arm64 kernel on the EL3 monitor and switch its CPUs off and on
    LinuxOnMonitor(linux_on_monitor::Arguments),
    /// Write the table of requirements and the tests that show them
    Requirements(requirements::Arguments),
    /// Check the rules that no compiler checks
    Lint,
    /// Make the dump in the repository anew
    SavedCore,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::main(),
        Command::Build(arguments) => build::main(&arguments),
        Command::Iso(arguments) => iso::main(&arguments),
        Command::Run(arguments) => run::main(&arguments),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Foreign => foreign::main(),
        Command::Test(arguments) => test::main(&arguments),
        Command::Soak(arguments) => soak::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::LinuxOnMonitor(arguments) => linux_on_monitor::main(&arguments),
        Command::Requirements(arguments) => requirements::main(&arguments),
        Command::Lint => lint::main(),
        Command::SavedCore => saved_core::main(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        // 2: what was asked for cannot be run, which is not a run that went wrong.
        ExitCode::from(if error.is::<Refusal>() { 2 } else { 1 })
    })
}
