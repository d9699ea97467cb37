//! `cargo xtask foreign`: a kernel that is not ours, captured by what the contract crates promise.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use e2e::{foreign, harness};
use vmcore::Dump;

use crate::step::{short, step};
use crate::{build, setup};

/// Boots, crashes and captures the kernel in `tests/foreign`, and reads its dump in every way.
pub fn main() -> Result<ExitCode> {
    step("look for what it needs on this host", setup::ensure)?;
    step("build the kernel and the capture image", build::quiet)?;
    let lines = foreign::count_lines()?;
    println!("    {lines} lines of code, Rust and assembly");
    let out = harness::fresh_folder("foreign")?;
    let captured = step("boot it on 4 CPUs, one of which panics; capture", || {
        foreign::capture(&out, false, &mut |line| println!("    {line}"))
    })?;
    println!("{}", vmcore::info(&Dump::open(&captured.vmcore)?).render());
    println!("{}", step("vmcore: cause, CPUs, stacks", || captured.check_records())?);
    println!("{}", step("gdb: every stack by virtual address", || captured.check_gdb())?);
    let pages = step("compare with QEMU's own dump", || captured.check_memory())?;
    println!("    0 of {pages} pages differ");
    match step("install drgn, if it is not there", install_drgn) {
        Ok(()) => match foreign::find_drgn() {
            Some(drgn) => println!("{}", step("drgn", || captured.check_drgn(&drgn))?),
            None => println!("drgn: skipped, pip installed no program of that name"),
        },
        Err(why) => println!("drgn: skipped: {why:#}"),
    }
    println!("everything of the run is in {}", short(&captured.outcome.out));
    Ok(ExitCode::SUCCESS)
}

/// Installs drgn into a Python environment of its own, from the package index of pip.
fn install_drgn() -> Result<()> {
    if foreign::find_drgn().is_some() {
        return Ok(());
    }
    let folder = foreign::drgn_folder();
    let pip = folder.join("bin/pip");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&folder);
    let mut install = Command::new(pip);
    install.args(["install", "--quiet", "drgn"]);
    for mut command in [venv, install] {
        if !command.status().is_ok_and(|status| status.success()) {
            bail!("{command:?} failed");
        }
    }
    Ok(())
}
