//! `cargo xtask test`: every check there is, counted.
//!
//! The last line is `N passed, N failed, N skipped`. A check that is not a test (format,
//! lints) counts as one; so does a test program that does not build or dies.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use e2e::harness;

use crate::{build, crashpath, lint, requirements, setup};

/// What to leave out when there is no time.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave out the tests that boot QEMU
    #[arg(long)]
    host_only: bool,
    /// Only end-to-end tests whose name holds this
    #[arg(long)]
    only: Option<String>,
}

/// Machines at a time. Each has several virtual CPUs; more of them on two cores would
/// only measure the host's scheduler.
const MACHINES: &str = "2";

/// The crates that other kernels embed, and that promise to build with an older compiler.
const CONTRACTS: &[&str] = &[
    "epitaph-stop",
    "epitaph-handoff",
    "vmcore-format",
    "epitaph-addrspace",
    "epitaph-record",
    "epitaph-desk",
    "epitaph-firmware",
];

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Counts {
    /// Adds a check that either holds or does not.
    fn check(&mut self, holds: bool) {
        if holds { self.passed += 1 } else { self.failed += 1 }
    }

    /// Adds a `test result:` line of libtest; other lines say nothing.
    fn add_line(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(count) = count.parse::<u32>() else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.skipped += count,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs them all; a failure does not stop the ones behind it.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let mut counts = Counts::default();
    if !arguments.host_only {
        setup::ensure()?;
        timed("build the images", || build::quiet().map(|_| true))?;
        timed("build the EL3 monitor", || build::monitor().map(|_| true))?;
    }
    if arguments.only.is_none() {
        checks(&mut counts)?;
        if !arguments.host_only {
            counts.check(timed("crash code cannot panic or wait", crashpath::holds)?);
        }
    }
    let run = tests(arguments, &mut counts)?;
    if arguments.only.is_none() {
        let missing = requirements::not_run(&run)?;
        missing.iter().for_each(|line| println!("{line}"));
        counts.check(missing.is_empty());
    }
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is checked without running anything of ours.
fn checks(counts: &mut Counts) -> Result<()> {
    let lints = ["--quiet", "--", "--deny", "warnings"];
    let host = [&["clippy", "--workspace", "--all-targets"], &lints[..]].concat();
    let images =
        ["--package", "foreign-kernel", "--package", "workloads", "--package", "capture-image"];
    let target = ["--target", "x86_64-unknown-none"];
    let bare = [&["clippy"], &images[..], &target[..], &lints[..]].concat();
    let faults = ["--features", "workloads/faults"];
    let with_faults = [&["clippy"], &images[..], &target[..], &faults[..], &lints[..]].concat();
    let parts = [
        "epitaph-stop",
        "epitaph-record",
        "epitaph-handoff",
        "epitaph-desk",
        "vmcore-format",
        "machine",
    ];
    let next = ["clippy", "--target", setup::NEXT_TARGET];
    let packages = parts.iter().flat_map(|part| ["--package", part]);
    let port = next.into_iter().chain(packages).chain(lints).collect();
    let monitor = ["--package", "epitaph-monitor", "--package", "monitor-client"];
    let target = ["--target", setup::MONITOR_TARGET];
    let el3 = [&["clippy"], &monitor[..], &target[..], &lints[..]].concat();
    for (name, arguments) in [
        ("format", vec!["fmt", "--all", "--check"]),
        ("clippy on the host", host),
        ("clippy for bare metal", bare),
        ("clippy for bare metal, with faults", with_faults),
        ("clippy of the EL3 monitor", el3),
        ("clippy of what a port starts from", port),
    ] {
        counts.check(timed(name, || cargo(&arguments, |_| ()))?);
    }
    let oldest = format!("contract crates with Rust {}", setup::OLDEST_RUST);
    counts.check(timed(&oldest, oldest_rust)?);
    counts.check(timed("rules of the house", lint::hold)?);
    counts.check(timed("every requirement has a test", requirements::hold)?);
    Ok(())
}

/// Checks the contract crates with the oldest compiler that they promise, for the host and for
/// bare metal. A compiler that cannot be installed is a failed check: the message names it.
fn oldest_rust() -> Result<bool> {
    if let Err(error) = setup::require_oldest_rust() {
        println!("{error:#}");
        return Ok(false);
    }
    let folder = target_dir("oldest-rust")?;
    for target in [&[][..], &["--target", setup::TARGET]] {
        // By rustup: the variable CARGO names the cargo that runs this program, which would go on
        // with its own compiler.
        let status = Command::new("rustup")
            .current_dir(harness::root())
            .args(["run", setup::OLDEST_RUST, "cargo", "check", "--quiet", "--locked"])
            .args(CONTRACTS.iter().flat_map(|name| ["--package", name]))
            .args(["--target-dir", &folder])
            .args(target)
            .status()
            .context("start rustup")?;
        if !status.success() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The tests of every crate, and with them the machines; the names of those that there are.
fn tests(arguments: &Arguments, counts: &mut Counts) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut words = vec!["test", "--workspace", "--no-fail-fast", "--"];
    if let Some(only) = &arguments.only {
        words = vec!["test", "--package", "e2e", "--no-fail-fast", "--", only];
    }
    if !arguments.host_only {
        words.push("--include-ignored");
    }
    words.extend(["--test-threads", MACHINES]);
    let loom = target_dir("loom")?;
    let packages = ["test", "--package", "epitaph-stop", "--package", "epitaph-desk"];
    let interleavings =
        [&packages[..], &["--release", "--test", "loom", "--target-dir", &loom]].concat();
    let mut programs = vec![("tests", &words[..], None)];
    if arguments.only.is_none() {
        programs.push(("every interleaving of the atomics", &interleavings, Some("--cfg loom")));
    }
    for (what, words, flags) in programs {
        let failed_before = counts.failed;
        let good = timed(what, || {
            cargo_with(words, flags, |line| {
                counts.add_line(line);
                names.extend(test_name(line).map(str::to_owned));
            })
        })?;
        // A test program that did not build or was killed prints no result of its own.
        if !good && counts.failed == failed_before {
            counts.failed += 1;
        }
    }
    Ok(names)
}

/// The test in a line of libtest, `test a::b ... ok`.
fn test_name(line: &str) -> Option<&str> {
    line.strip_prefix("test ").filter(|rest| rest.contains(" ... "))?.split(' ').next()
}

/// A target folder of its own, for what is built with other flags.
fn target_dir(name: &str) -> Result<String> {
    let path = harness::target_dir().join(name);
    path.to_str().map(str::to_owned).context("a target folder in UTF-8")
}

/// Runs cargo, passing its standard output on line by line.
fn cargo(arguments: &[&str], line: impl FnMut(&str)) -> Result<bool> {
    cargo_with(arguments, None, line)
}

/// The same, with `flags` for rustc.
fn cargo_with(arguments: &[&str], flags: Option<&str>, mut line: impl FnMut(&str)) -> Result<bool> {
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(harness::root())
        .args(arguments)
        .envs(flags.map(|flags| ("RUSTFLAGS", flags)))
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo")?;
    let output = child.stdout.take().context("cargo's output")?;
    for text in BufReader::new(output).lines().map_while(Result::ok) {
        println!("{text}");
        line(&text);
    }
    Ok(child.wait().context("wait for cargo")?.success())
}

fn timed(name: &str, work: impl FnOnce() -> Result<bool>) -> Result<bool> {
    println!("==> {name}");
    let started = Instant::now();
    let good = work()?;
    let word = if good { "ok" } else { "FAILED" };
    println!("    {name}: {word}, {:.1} s", started.elapsed().as_secs_f64());
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed() {
        let mut counts = Counts::default();
        counts.add_line("test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out; finished in 0.01s");
        counts.add_line("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        counts.add_line("test a::b ... ok");
        assert_eq!(test_name("test a::b ... ok"), Some("a::b"));
        assert_eq!(test_name("test a::b ... ignored, boots QEMU"), Some("a::b"));
        assert_eq!(test_name("test result: ok. 12 passed"), None);
        assert_eq!(counts, Counts { passed: 13, failed: 2, skipped: 3 });
        counts.check(false);
        assert_eq!(counts.to_string(), "13 passed, 3 failed, 3 skipped");
    }
}
