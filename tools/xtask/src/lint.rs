//! `cargo xtask lint`: rules of the house that no compiler checks.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use e2e::harness;
use serde::Deserialize;

use crate::{build, crashpath};

/// Who may use whom. A crate that is not named on the right of its own line is a "no",
/// and a crate that has no line fails as well.
///
/// Tests may use more (the CLI's tests boot nothing, but read what the synthesiser made),
/// so dev-dependencies are not part of this.
const MAY_USE: &[(&str, &[&str])] = &[
    ("epitaph-record", &[]),
    ("epitaph-handoff", &["epitaph-record"]),
    ("epitaph-stop", &[]),
    ("vmcore-format", &[]),
    ("epitaph-addrspace", &[]),
    ("epitaph-firmware", &["epitaph-handoff"]),
    ("epitaph-monitor", &[]),
    ("monitor-client", &["epitaph-monitor"]),
    ("screen", &[]),
    ("machine", &["epitaph-firmware", "epitaph-handoff", "screen"]),
    ("epitaph-block", &[]),
    // Where a dump goes: both images look, in the same way.
    ("epitaph-storage", &["epitaph-block", "vmcore-format"]),
    ("epitaph-workload", &[]),
    (
        "kernel",
        &[
            "epitaph-firmware",
            "epitaph-workload",
            "machine",
            "memstamp",
            "screen",
            "epitaph-block",
            "epitaph-storage",
            "epitaph-stop",
            "epitaph-handoff",
            "vmcore-format",
        ],
    ),
    // The tree that the appliance computes and the host computes again.
    ("hashtree", &["epitaph-workload"]),
    // The pages that the appliance fills and the host checks.
    ("memstamp", &[]),
    ("workloads", &["epitaph-workload", "hashtree", "kernel", "epitaph-handoff"]),
    ("epitaph-desk", &[]),
    (
        "capture-engine",
        &[
            "epitaph-addrspace",
            "epitaph-desk",
            "epitaph-block",
            "epitaph-storage",
            "epitaph-handoff",
            "vmcore-format",
        ],
    ),
    (
        "capture-image",
        &[
            "capture-engine",
            "epitaph-firmware",
            "epitaph-desk",
            "machine",
            "screen",
            "epitaph-block",
            "epitaph-storage",
            "epitaph-handoff",
            "vmcore-format",
        ],
    ),
    ("vmcore", &["epitaph-handoff", "vmcore-format", "epitaph-addrspace", "hashtree", "memstamp"]),
    ("e2e", &["vmcore", "vmcore-format", "epitaph-handoff", "epitaph-monitor"]),
    // A kernel of its own: what others have to build on, and nothing else.
    ("foreign-kernel", &["epitaph-stop", "epitaph-handoff", "vmcore-format", "epitaph-addrspace"]),
    ("xtask", &["e2e", "vmcore", "vmcore-format", "epitaph-monitor"]),
];

/// Where `unsafe` may be opted into: a crate's folder, or one file.
const UNSAFE_ROOMS: &[&str] = &[
    // Everything a processor family has of its own.
    "appliance/machine/src/",
    // A job that changes hands between CPUs.
    "capture/desk/src/",
    // The owner of physical memory, and one call of a library that takes a raw pointer.
    "appliance/kernel/src/base/memory.rs",
    "appliance/kernel/src/firmware/boot.rs",
    // Device registers, and pages given to devices.
    "appliance/kernel/src/base/devices.rs",
    "appliance/kernel/src/base/devices/visit.rs",
    // What `GlobalAlloc` is made of.
    "appliance/kernel/src/base/heap.rs",
    // The entry's symbol needs a fixed name.
    "appliance/workloads/src/main.rs",
    // The EL3 image: its entry, system registers, device registers and one locked static.
    "appliance/monitor/src/image/",
    // A kernel that the monitor is tested with: the same, at EL1.
    "tests/monitor-client/src/machine.rs",
    // Memory shared with a device.
    "capture/block/src/memory/",
    "capture/block/src/platform.rs",
    "capture/block/src/virtio/",
    // A kernel: memory by address, registers, devices.
    "tests/foreign/src/",
    // The reader of the crashed memory.
    "capture/image/src/physical.rs",
];

/// Lines a source file may have before it has to say why it is still one idea.
const LINES: usize = 500;
/// The words with which it says so.
const LONG_BECAUSE: &str = "Longer than most, because";

/// Prints what breaks a rule; fails when something does.
pub fn main() -> Result<ExitCode> {
    build::quiet()?;
    let good = [hold()?, crashpath::holds()?];
    Ok(if good == [true; 2] { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether every rule holds; prints what does not.
pub fn hold() -> Result<bool> {
    let mut broken = dependencies(&packages()?);
    for path in tracked_files()? {
        // What is not text has no words.
        let Ok(text) = std::fs::read_to_string(harness::root().join(&path)) else { continue };
        let words = forbidden_words();
        broken.extend(file_rules(&path, &text, &words));
    }
    for line in &broken {
        println!("{line}");
    }
    Ok(broken.is_empty())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<PathBuf>,
}

fn packages() -> Result<Vec<Package>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(harness::root())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(metadata.packages)
}

fn dependencies(packages: &[Package]) -> Vec<String> {
    let mut broken = Vec::new();
    for package in packages {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
            broken.push(format!(
                "{}: no line in MAY_USE, the table of who may use whom",
                package.name
            ));
            continue;
        };
        let ours = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        for dependency in ours.filter(|dependency| dependency.kind.as_deref() != Some("dev")) {
            if !allowed.contains(&dependency.name.as_str()) {
                broken.push(format!("{} must not use {}", package.name, dependency.name));
            }
        }
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
        if !manifest.contains("[lints]\nworkspace = true") {
            broken.push(format!("{}: does not take the workspace's lints", package.name));
        }
    }
    broken
}

/// Files git knows or would know; what is ignored is nobody's rule.
fn tracked_files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .current_dir(harness::root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("start git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

/// Words no file may hold, and why. Put together from halves, so that this file does not
/// hold them itself.
fn forbidden_words() -> Vec<(String, &'static str)> {
    let mut words = vec![
        (["TO", "DO"].concat(), "unfinished work has no place in the tree"),
        (["FIX", "ME"].concat(), "unfinished work has no place in the tree"),
        (["todo", "!("].concat(), "unfinished work has no place in the tree"),
        (["unimplemented", "!("].concat(), "unfinished work has no place in the tree"),
        (["#[", "allow("].concat(), "use expect with a reason"),
        (["#![", "allow("].concat(), "use expect with a reason"),
    ];
    // A path of the machine it was written on means nothing on any other.
    for place in [harness::root().canonicalize().ok(), std::env::var_os("HOME").map(PathBuf::from)]
    {
        if let Some(place) = place.filter(|place| place.components().count() > 1) {
            words.push((format!("{}/", place.display()), "a path of this very machine"));
        }
    }
    words
}

fn file_rules(path: &str, text: &str, words: &[(String, &str)]) -> Vec<String> {
    let mut broken = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, why) in words {
            if line.contains(word.as_str()) {
                broken.push(format!("{path}:{}: '{word}': {why}", number + 1));
            }
        }
    }
    if path.ends_with(".md") {
        broken.extend(dead_references(path, text));
    }
    if !path.ends_with(".rs") {
        return broken;
    }
    let opts_in = ["expect(", "unsafe_code"].concat();
    // rustfmt may have put the reason on a line of its own.
    let dense: String = text.split_whitespace().collect();
    if dense.contains(&opts_in) && !UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) {
        broken.push(format!("{path}: opts into unsafe code outside the rooms for it"));
    }
    let lines = text.lines().count();
    if lines > LINES && !text.contains(LONG_BECAUSE) {
        broken.push(format!("{path}: {lines} lines, and no word on why it is one file"));
    }
    let is_main = Path::new(path).file_name().is_some_and(|name| name == "main.rs");
    if is_main && !path.starts_with("tests/") && lines > 100 {
        broken.push(format!("{path}: {lines} lines where a table of contents is wanted"));
    }
    broken
}

/// Files a document names between backticks that are not there (any more).
fn dead_references(path: &str, text: &str) -> Vec<String> {
    let names = text.split('`').skip(1).step_by(2);
    let ours = ["appliance/", "capture/", "tools/", "tests/", "images/", "docs/"];
    names
        .filter(|name| ours.iter().any(|folder| name.starts_with(folder)))
        .filter(|name| !name.contains(char::is_whitespace))
        .filter(|name| !harness::root().join(name).exists())
        .map(|name| format!("{path}: names {name}, which is not there"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        let dependency =
            |name: &&str| Dependency { name: (*name).into(), kind: None, path: Some("x".into()) };
        Package {
            name: name.into(),
            manifest_path: harness::root().join("tools/xtask/Cargo.toml"),
            dependencies: uses.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn a_dependency_the_wrong_way_is_found() {
        assert!(dependencies(&[package("machine", &["epitaph-handoff"])]).is_empty());
        assert_eq!(dependencies(&[package("machine", &["kernel"])]).len(), 1);
        assert_eq!(dependencies(&[package("epitaph-stop", &["epitaph-handoff"])]).len(), 1);
        assert_eq!(dependencies(&[package("newcomer", &[])]).len(), 1);
        let mut dev = package("vmcore", &["e2e"]);
        dev.dependencies[0].kind = Some("dev".into());
        assert!(dependencies(&[dev]).is_empty());
    }

    #[test]
    fn words_rooms_and_lengths_are_checked() {
        let words = forbidden_words();
        let rules = |path: &str, text: &str| file_rules(path, text, &words).len();
        assert_eq!(rules("a.md", "calm, see `tools/xtask/src/lint.rs`\n"), 0);
        assert_eq!(rules("a.md", "see `tools/xtask/src/gone.rs`\n"), 1);
        assert_eq!(rules("a.md", &["TO", "DO: later"].concat()), 1);
        let unsafe_room = ["#![expect(", "unsafe_code, reason = \"x\")]"].concat();
        assert_eq!(rules("appliance/machine/src/lib.rs", &unsafe_room), 0);
        assert_eq!(rules("appliance/kernel/src/firmware/acpi.rs", &unsafe_room), 1);
        let long = "\n".repeat(LINES + 1);
        assert_eq!(rules("a/src/b.rs", &long), 1);
        assert_eq!(rules("a/src/b.rs", &format!("//! {LONG_BECAUSE} it is.\n{long}")), 0);
        assert_eq!(rules("a/src/main.rs", &"\n".repeat(101)), 1);
    }
}
