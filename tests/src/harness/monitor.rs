//! The EL3 monitor and its test's client on QEMU's Arm machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use epitaph_monitor::Mode;

use super::images::{compile, flatten, folder, replace};
use super::{Event, Machine, fresh_folder};

/// QEMU for Arm machines.
pub const QEMU_ARM: &str = "qemu-system-aarch64";
/// Its code may touch no vector register, and so may not that of a client that checks it.
const TARGET: &str = "aarch64-unknown-none-softfloat";
/// CPUs of the client's machine; its experiments know each by its number.
const CPUS: &str = "5";
/// Longest time of a run: a wedged CPU is found by its interrupts within this time or never.
const TIMEOUT: Duration = Duration::from_secs(240);

/// What a machine with the monitor is booted with.
#[derive(Debug, Clone)]
pub struct MonitorImages {
    /// For `-bios`.
    pub monitor: PathBuf,
    /// The monitor with its debug information.
    pub monitor_debug: PathBuf,
    /// The client of the tests, for `-kernel`.
    pub client: PathBuf,
}

impl MonitorImages {
    fn at() -> Result<Self> {
        let folder = folder()?;
        Ok(Self {
            monitor: folder.join("monitor.bin"),
            monitor_debug: folder.join("monitor.debug"),
            client: folder.join("monitor-client.bin"),
        })
    }

    /// The images as they were last built.
    ///
    /// # Errors
    /// They were never built; says how to.
    pub fn find() -> Result<Self> {
        let images = Self::at()?;
        for path in [&images.monitor, &images.client] {
            if !path.is_file() {
                bail!("{} is missing: run `cargo xtask build --monitor` first", path.display());
            }
        }
        Ok(images)
    }

    /// The words that start QEMU with the monitor, in `mode` and on `processor`.
    #[must_use]
    pub fn command(&self, mode: Mode, processor: &str) -> Vec<String> {
        let mode = format!("name=opt/epitaph/monitor,string={}", mode.name());
        let words = [
            QEMU_ARM,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            "virt,secure=on,gic-version=3",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            processor,
            "-fw_cfg",
            &mode,
            "-chardev",
            "socket,id=qmp,fd=0",
            "-mon",
            "chardev=qmp,mode=control",
            "-serial",
            "file:/dev/stdout",
            // What the monitor says; it does so only when it cannot go on.
            "-serial",
            "file:/dev/stderr",
            "-bios",
        ];
        let monitor = self.monitor.display().to_string();
        words.iter().map(|word| (*word).to_owned()).chain([monitor]).collect()
    }
}

/// Builds the monitor and the client, into `target/images`.
///
/// # Errors
/// The compiler's, after it has printed its own messages.
pub fn build_monitor() -> Result<MonitorImages> {
    let built = compile(TARGET, &["epitaph-monitor", "monitor-client"], &[])?;
    let images = MonitorImages::at()?;
    replace(&images.monitor, |path| flatten(&built.join("monitor"), path))?;
    replace(&images.monitor_debug, |path| {
        std::fs::copy(built.join("monitor"), path).map(|_| ()).context("copy the monitor")
    })?;
    replace(&images.client, |path| flatten(&built.join("monitor-client"), path))?;
    Ok(images)
}

/// What the client reported: its lines `NAME=VALUE`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<String, String>);

impl Facts {
    fn read(console: &str) -> Self {
        let pairs = console.lines().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// Returns the value of `name`; "(nothing)" if the client did not report it.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("(nothing)", String::as_str)
    }

    /// Returns how many names begin with `prefix`.
    #[must_use]
    pub fn count(&self, prefix: &str) -> usize {
        self.0.keys().filter(|name| name.starts_with(prefix)).count()
    }
}

/// Boots the client on the monitor in `mode` and returns what it reported.
///
/// # Errors
/// The machine did not switch itself off in time, after the last line of the client; or the
/// monitor said something.
pub fn run_client(mode: Mode, processor: &str) -> Result<Facts> {
    let images = MonitorImages::find()?;
    let folder = fresh_folder(&format!("monitor/{}-{processor}", mode.name()))?;
    let mut command = images.command(mode, processor);
    let client = images.client.display().to_string();
    command.extend(["-smp", CPUS, "-m", "128", "-kernel", &client].map(str::to_owned));
    let mut machine = Machine::start(&command, &folder, TIMEOUT)?;
    let status = loop {
        match machine.next_event() {
            Some(Event::Exited(status)) => break status,
            Some(_) => {}
            None => bail!(
                "no end within {} s; the console ends:\n{}",
                TIMEOUT.as_secs(),
                machine.console().tail(12)
            ),
        }
    };
    let said = std::fs::read_to_string(folder.join("qemu.log")).context("read QEMU's log")?;
    let facts = Facts::read(machine.console().text());
    if !status.success() || !said.is_empty() || facts.get("story") != "told" {
        bail!("{status}; {said}; the console ends:\n{}", machine.console().tail(12));
    }
    if facts.get("unexpected") != "(nothing)" {
        bail!("the client met what it did not expect: {}", facts.get("unexpected"));
    }
    Ok(facts)
}
