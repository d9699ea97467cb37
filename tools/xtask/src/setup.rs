//! `cargo xtask setup`: what the other commands need on this host.
//!
//! Every need is probed by what it is for (a program that answers, a file that is there),
//! not by a package database, so any distribution will do. Only installing is apt's.

use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, bail};
use e2e::harness;

use crate::apt;

/// One thing that has to be there.
struct Need {
    /// What it is called in a message.
    what: &'static str,
    /// The Debian and Ubuntu package that holds it.
    package: &'static str,
    /// Whether it is there.
    there: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need { what: "QEMU with x2APIC emulation", package: apt::QEMU, there: qemu_will_do },
    Need {
        what: "QEMU for Arm (the EL3 monitor)",
        package: apt::QEMU_ARM,
        there: || answers(harness::QEMU_ARM),
    },
    Need { what: "grub-mkrescue", package: "grub-common", there: || answers("grub-mkrescue") },
    Need { what: "GRUB for BIOS", package: "grub-pc-bin", there: || grub("i386-pc") },
    Need { what: "GRUB for UEFI", package: "grub-efi-amd64-bin", there: || grub("x86_64-efi") },
    Need { what: "xorriso", package: "xorriso", there: || answers("xorriso") },
    Need { what: "mformat", package: "mtools", there: || answers("mformat") },
    Need { what: "OVMF", package: "ovmf", there: harness::has_firmware },
    Need { what: "gdb", package: "gdb", there: || answers("gdb") },
];

/// The target of both images.
pub const TARGET: &str = "x86_64-unknown-none";
/// The target that the parts a port would start from are checked for.
pub const NEXT_TARGET: &str = "aarch64-unknown-none";

/// The target of the EL3 monitor: its code may touch no vector register.
pub const MONITOR_TARGET: &str = "aarch64-unknown-none-softfloat";
/// The oldest compiler that the contract crates build with: `rust-version` in Cargo.toml.
pub const OLDEST_RUST: &str = "1.88";

/// Says that all is there, once it is.
pub fn main() -> Result<ExitCode> {
    ensure()?;
    require_oldest_rust()?;
    println!("everything is there");
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing, or names it and fails. Quiet when nothing is.
pub fn ensure() -> Result<()> {
    require_target()?;
    require(NEXT_TARGET)?;
    require_monitor_target()?;
    let missing: Vec<_> = NEEDS.iter().filter(|need| !(need.there)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|need| need.what).collect();
    println!("==> missing on this host: {}", names.join(", "));
    let packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    apt::install(&packages)?;
    let still: Vec<_> =
        missing.iter().filter(|need| !(need.there)()).map(|need| need.what).collect();
    if !still.is_empty() {
        bail!("installed, but still not usable: {}", still.join(", "));
    }
    Ok(())
}

/// The standard library of the images' target.
pub fn require_target() -> Result<()> {
    require(TARGET)
}

/// The standard library of the EL3 monitor's target.
pub fn require_monitor_target() -> Result<()> {
    require(MONITOR_TARGET)
}

/// The standard library of a bare-metal target.
fn require(target: &str) -> Result<()> {
    let output = Command::new("rustc")
        .current_dir(harness::root())
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("start rustc")?;
    if Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir() {
        return Ok(());
    }
    println!("==> installing the Rust target {target}");
    let status = Command::new("rustup")
        .current_dir(harness::root())
        .args(["target", "add", target])
        .status()
        .with_context(|| format!("no standard library for {target}, and no rustup to add it"))?;
    if !status.success() {
        bail!("`rustup target add {target}` failed");
    }
    Ok(())
}

/// Installs [`OLDEST_RUST`] with the standard library of the images' target, where it is missing.
pub fn require_oldest_rust() -> Result<()> {
    let probe = Command::new("rustup")
        .args(["run", OLDEST_RUST, "rustc", "--print", "target-libdir", "--target", TARGET])
        .stderr(Stdio::null())
        .output();
    let there = |output: &Output| {
        output.status.success()
            && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
    };
    if probe.is_ok_and(|output| there(&output)) {
        return Ok(());
    }
    println!("==> installing Rust {OLDEST_RUST}, the oldest that the contract crates build with");
    let install = ["toolchain", "install", OLDEST_RUST, "--profile", "minimal", "--target", TARGET];
    let command = install.join(" ");
    let status = Command::new("rustup").args(install).status().with_context(|| {
        format!("no Rust {OLDEST_RUST}, and no rustup to install it: get rustup, then `rustup {command}`")
    })?;
    if !status.success() {
        bail!("Rust {OLDEST_RUST} is missing: `rustup {command}` failed");
    }
    Ok(())
}

/// QEMU 9 learnt to emulate x2APIC; distributions backport, so QEMU itself is asked.
fn qemu_will_do() -> bool {
    harness::probe_x2apic().unwrap_or(false)
}

fn answers(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

fn grub(platform: &str) -> bool {
    ["/usr/lib/grub", "/usr/lib/grub2", "/usr/share/grub2"]
        .iter()
        .any(|folder| Path::new(folder).join(platform).join("multiboot2.mod").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_rust_is_the_one_that_the_manifest_promises() {
        let manifest = std::fs::read_to_string(harness::root().join("Cargo.toml")).unwrap();
        let promise = format!("rust-version = \"{OLDEST_RUST}\"");
        assert!(manifest.lines().any(|line| line == promise), "no line {promise}");
    }
}
