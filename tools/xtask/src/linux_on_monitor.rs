//! `cargo xtask linux-on-monitor`: Debian's arm64 kernel, unmodified, on the EL3 monitor.
//!
//! The kernel is a client that was not written for this monitor: it starts its CPUs by PSCI,
//! finds the SDEI firmware, and takes every CPU but the first off and on again, as often as is
//! asked. Debian's kernel has the client side of SDEI and no driver that stops CPUs by it, so
//! no event is signalled here.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cpio::{NewcBuilder, newc::trailer};
use e2e::harness::{self, Event, Machine};
use epitaph_monitor::Mode;

use crate::step::{short, step};
use crate::{build, setup};

/// Depends on the present kernel.
const KERNEL: &str = "linux-image-arm64";
/// What the kernel's own packages are called.
const KERNEL_IMAGE: &str = "linux-image-";
/// The only program of the initramfs.
const BUSYBOX: &str = "busybox-static";
/// There once everything is unpacked; holds what it was.
const LIST: &str = "packages.txt";

/// Kinds of file, as in `st_mode`.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// How the machine is set up.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub struct Arguments {
    /// Times that each CPU but the first is taken offline and online
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Virtual CPUs, from 2 to 123
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=123))]
    cpus: u32,
    /// Give the processor an EL2, where the kernel then starts
    #[arg(long)]
    el2: bool,
    /// QEMU's name of the processor
    #[arg(long, default_value = "max")]
    processor: String,
    /// Seconds until the machine is ended
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// Where packages and the console's log go [default: target/linux-on-monitor]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

const HELP: &str = "\
Needs Debian's apt: a kernel and a busybox for arm64 are downloaded once, some 95 MB, with
package lists of their own, and unpacked below DIR; nothing is installed, and the host's
package lists stay as they are.

The last line counts what the kernel's log says. Examples:
  cargo xtask linux-on-monitor
  cargo xtask linux-on-monitor --el2 --rounds 10";

/// Boots and counts.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure()?;
    let images = step("build the EL3 monitor", build::monitor)?;
    let folder = arguments.out.clone();
    let folder = folder.unwrap_or_else(|| harness::target_dir().join("linux-on-monitor"));
    let packages = step("Linux for arm64", || fetch(&folder))?;
    println!("    {}", packages.join("\n    "));
    let kernel = kernel(&folder.join("root"))?;
    let initramfs = folder.join("initramfs");
    let script = script(arguments);
    std::fs::write(&initramfs, pack(&folder.join("root"), &script)?).context("the initramfs")?;
    let mut command = images.command(Mode::Fixed, &arguments.processor);
    if arguments.el2 {
        command.extend(["-machine", "virtualization=on"].map(str::to_owned));
    }
    let files = ["-kernel", &text(&kernel)?, "-initrd", &text(&initramfs)?].map(str::to_owned);
    command.extend(files);
    let cpus = arguments.cpus.to_string();
    let rest = ["-smp", &cpus, "-m", "512", "-append", "console=ttyAMA0 panic=-1"];
    command.extend(rest.map(str::to_owned));
    let timeout = Duration::from_secs(arguments.timeout);
    let console = step("boot", || watch(&command, &folder, timeout))?;
    println!("    console: {}", short(&folder.join("console.log")));
    let found = Found::read(&console);
    let missing = found.missing(arguments);
    missing.iter().for_each(|line| println!("missing: {line}"));
    println!(
        "PSCI {}, SDEI {}, {} CPUs at {}; {} times off, {} times on again",
        found.psci, found.sdei, found.cpus, found.level, found.off, found.on
    );
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the kernel's log says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    psci: String,
    sdei: String,
    level: String,
    /// CPUs brought up at boot.
    cpus: u32,
    /// CPUs that PSCI reported as off after they were taken offline.
    off: u32,
    /// CPUs that came up after the boot.
    on: u32,
    /// The script's last line.
    finished: bool,
}

impl Found {
    fn read(console: &str) -> Self {
        let mut found = Self::default();
        for line in console.lines() {
            let between = |before: &str, after: &str| {
                let (_, rest) = line.split_once(before)?;
                rest.split_once(after).map(|(value, _)| value.to_owned())
            };
            let psci = between("psci: PSCI", " detected in firmware");
            let sdei = between("sdei: SDEI", " detected in firmware");
            let level = line.split_once("CPU: All CPU(s) started at ");
            let cpus = between("smp: Brought up 1 node, ", " CPUs");
            found.psci = psci.unwrap_or(found.psci);
            found.sdei = sdei.unwrap_or(found.sdei);
            found.level = level.map_or(found.level, |(_, level)| level.to_owned());
            found.cpus = cpus.and_then(|cpus| cpus.parse().ok()).unwrap_or(found.cpus);
            found.off += u32::from(line.contains("psci: CPU") && line.contains(" killed"));
            let booted = line.contains(": Booted secondary processor");
            found.on += u32::from(booted && found.cpus > 0);
            found.finished |= line.starts_with("linux-on-monitor: every CPU is online");
        }
        found
    }

    /// Returns what should be there and is not.
    fn missing(&self, arguments: &Arguments) -> Vec<String> {
        let times = arguments.rounds * (arguments.cpus - 1);
        let level = if arguments.el2 { "EL2" } else { "EL1" };
        [
            (self.psci == "v1.1", "PSCI v1.1".to_owned()),
            (self.sdei.starts_with("v1.0 "), "SDEI v1.0".to_owned()),
            (self.level.trim() == level, format!("start at {level}")),
            (self.cpus == arguments.cpus, format!("{} CPUs at boot", arguments.cpus)),
            (self.off == times, format!("{times} times a CPU off")),
            (self.on == times, format!("{times} times a CPU on again")),
            (self.finished, "the end of the script".to_owned()),
        ]
        .into_iter()
        .filter_map(|(holds, what)| (!holds).then_some(what))
        .collect()
    }
}

/// Boots, and returns the console once the machine has switched itself off.
fn watch(command: &[String], folder: &Path, timeout: Duration) -> Result<String> {
    let mut machine = Machine::start(command, folder, timeout)?;
    loop {
        match machine.next_event() {
            Some(Event::Exited(status)) if status.success() => break,
            Some(Event::Exited(status)) => bail!("QEMU ended with {status}"),
            Some(_) => {}
            None => bail!("no end in time; the console ends:\n{}", machine.console().tail(20)),
        }
    }
    let said = std::fs::read_to_string(folder.join("qemu.log")).context("read QEMU's log")?;
    if !said.is_empty() {
        bail!("{said}");
    }
    Ok(machine.console().text().to_owned())
}

/// What the initramfs runs.
fn script(arguments: &Arguments) -> String {
    let last = arguments.cpus - 1;
    format!(
        "#!/bin/busybox sh\n\
         B=/bin/busybox\n\
         $B mount -t sysfs sysfs /sys\n\
         round=0\n\
         while [ $round -lt {} ]; do\n\
         for state in 0 1; do for cpu in $($B seq 1 {last}); do\n\
         echo $state > /sys/devices/system/cpu/cpu$cpu/online || echo \"CPU $cpu: not $state\"\n\
         done; done\n\
         round=$((round + 1))\n\
         done\n\
         [ $($B cat /sys/devices/system/cpu/online) = 0-{last} ] &&\n\
         echo linux-on-monitor: every CPU is online\n\
         $B sleep 1\n\
         $B poweroff -f\n",
        arguments.rounds
    )
}

/// Packs the initramfs.
fn pack(root: &Path, script: &str) -> Result<Vec<u8>> {
    let busybox = std::fs::read(root.join("bin/busybox")).context("read busybox")?;
    let mut archive = Vec::new();
    let entries: [(&str, u32, &[u8]); 5] = [
        ("bin", FOLDER, &[]),
        ("dev", FOLDER, &[]),
        ("sys", FOLDER, &[]),
        ("bin/busybox", PROGRAM, &busybox),
        ("init", PROGRAM, script.as_bytes()),
    ];
    for (inode, (name, mode, bytes)) in (1..).zip(entries) {
        let length = u32::try_from(bytes.len()).context("a file of 4 GiB or more")?;
        let entry = NewcBuilder::new(name).ino(inode).nlink(1).mode(mode);
        let mut writer = entry.write(&mut archive, length);
        writer.write_all(bytes).and_then(|()| writer.finish()).context("pack a file")?;
    }
    trailer(archive).context("finish the initramfs")
}

/// Fetches and unpacks kernel and busybox below `folder`, unless that was done before. Returns
/// the packages' file names, with their versions.
fn fetch(folder: &Path) -> Result<Vec<String>> {
    let (root, list) = (folder.join("root"), folder.join(LIST));
    if let Ok(text) = std::fs::read_to_string(&list) {
        return Ok(text.lines().map(str::to_owned).collect());
    }
    let packed = folder.join("packed");
    let apt = Apt::make(&folder.join("apt"))?;
    for folder in [&root, &packed] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    apt.run("apt-get", &["-qq", "update"], &packed)?;
    let known = apt.run("apt-cache", &["show", KERNEL], &packed)?;
    let kernel = newest(&known).with_context(|| format!("{KERNEL} depends on no kernel"))?;
    apt.run("apt-get", &["-qq", "download", &kernel, BUSYBOX], &packed)?;
    let mut names = Vec::new();
    for entry in packed.read_dir().context("read the packages")? {
        let path = entry.context("read the packages")?.path();
        run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&root))?;
        names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    std::fs::write(&list, names.join("\n")).with_context(|| format!("write {}", list.display()))?;
    Ok(names)
}

/// The kernel that the newest version of its metapackage depends on; apt lists that first.
fn newest(show: &str) -> Option<String> {
    let depends = show.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let mut names = depends.split(", ").filter_map(|package| package.split(' ').next());
    names.find(|name| name.starts_with(KERNEL_IMAGE)).map(str::to_owned)
}

/// apt with package lists of its own, for arm64, from the host's sources.
struct Apt {
    configuration: PathBuf,
}

impl Apt {
    fn make(folder: &Path) -> Result<Self> {
        for name in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(name);
            std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        // apt resolves names below the current folder itself.
        let folder = folder.canonicalize().context("the folder of apt's state")?;
        let place = folder.display();
        let text = format!(
            "APT::Architecture \"arm64\";\nAPT::Architectures {{ \"arm64\"; }};\n\
             Dir::State \"{place}\";\nDir::State::status \"{place}/status\";\n\
             Dir::State::lists \"{place}/lists\";\nDir::Cache \"{place}/cache\";\n\
             Acquire::Languages \"none\";\n"
        );
        let configuration = folder.join("apt.conf");
        std::fs::write(&configuration, text).context("write apt.conf")?;
        std::fs::write(folder.join("status"), "").context("write an empty package status")?;
        Ok(Self { configuration })
    }

    fn run(&self, program: &str, words: &[&str], folder: &Path) -> Result<String> {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration).env("LC_ALL", "C");
        run(command.args(words).current_dir(folder))
    }
}

/// Runs `command` and returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The kernel among the unpacked packages.
fn kernel(root: &Path) -> Result<PathBuf> {
    let mut entries = root.join("boot").read_dir().context("read the kernel's folder")?.flatten();
    let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"));
    Ok(found.context("no kernel in the packages")?.path())
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).context("a path in UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[    0.00] psci: PSCIv1.1 detected in firmware.
[    0.80] CPU1: Booted secondary processor 0x0000000001 [0x000f0510]
[    0.91] smp: Brought up 1 node, 2 CPUs
[    0.92] CPU: All CPU(s) started at EL1
[    3.32] sdei: SDEIv1.0 (0x1) detected in firmware.
[    9.00] psci: CPU1 killed (polled 0 ms)
[    9.10] CPU1: Booted secondary processor 0x0000000001 [0x000f0510]
linux-on-monitor: every CPU is online
";

    fn arguments() -> Arguments {
        let (processor, out) = ("max".to_owned(), None);
        Arguments { rounds: 1, cpus: 2, el2: false, processor, timeout: 1, out }
    }

    #[test]
    fn what_the_kernel_says_is_counted() {
        let found = Found::read(LOG);
        assert_eq!((found.cpus, found.off, found.on), (2, 1, 1));
        assert!(found.missing(&arguments()).is_empty(), "{:?}", found.missing(&arguments()));
        for line in LOG.lines() {
            let without = LOG.replace(line, "");
            let missing = Found::read(&without).missing(&arguments());
            // The line that is there twice is the one of which the first is not counted.
            assert!(!missing.is_empty() || line.starts_with("[    0.80]"), "{line}");
        }
    }

    #[test]
    fn the_newest_kernel_is_the_first_one_that_apt_shows() {
        let show = "Package: linux-image-arm64\nVersion: 6.12\n\
                    Depends: linux-base, linux-image-6.12-arm64 (= 6.12)\n\n\
                    Version: 6.1\nDepends: linux-image-6.1-arm64 (= 6.1)\n";
        assert_eq!(newest(show).as_deref(), Some("linux-image-6.12-arm64"));
        assert_eq!(newest("Depends: linux-base\n"), None);
    }
}
