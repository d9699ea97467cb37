//! A Linux guest that crashes and is dumped by kdump.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Machine};

use super::initramfs::Initramfs;
use super::packages::Packages;
use super::{Machines, Sample};
use crate::bench::host::load;

/// Said by the first kernel once a crash may come.
const READY: &str = "first: ready";
/// Said by the capture kernel before it writes, and once all is flushed.
const BEGINS: &str = "kdump: begins";
const FLUSHED: &str = "kdump: flushed";
/// Where a run leaves its console.
const FOLDER: &str = "bench-kdump-linux";
/// Longer than any boot, fill and dump takes.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The command of the capture kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// makedumpfile as distributions call it: LZO, nothing but the kernel's own pages.
    Default,
    /// A copy of all memory past the page cache: the fastest way there is.
    Full,
}

impl Way {
    const fn command(self) -> &'static str {
        match self {
            Self::Default => {
                "/usr/bin/makedumpfile --message-level 1 -l -d 31 -f /proc/vmcore /dev/vda"
            }
            Self::Full => "$b dd if=/proc/vmcore of=/dev/vda bs=1M oflag=direct 2>/dev/null",
        }
    }

    /// What a dump of this kind begins with.
    const fn magic(self) -> &'static [u8] {
        match self {
            Self::Default => b"KDUMP   ",
            Self::Full => b"\x7fELF",
        }
    }
}

/// The files of such a guest.
pub struct Linux {
    kernel: PathBuf,
    initramfs: PathBuf,
    way: Way,
    /// Bytes of the capture kernel's initramfs.
    pub capture_bytes: u64,
}

impl Linux {
    /// Puts its two systems together in `folder`.
    ///
    /// # Errors
    /// A file of the packages cannot be read.
    pub fn make(packages: &Packages, way: Way, folder: &Path) -> Result<Self> {
        let kernel = packages.kernel()?;
        // The modules are known only once they are in it, the script has to name them.
        let modules = Initramfs::new(packages, "")?.disk_modules(packages)?;
        let mut capture = Initramfs::new(packages, &capture_script(way, &modules))?;
        capture.disk_modules(packages)?;
        if way == Way::Default {
            capture.program(packages, "usr/bin/makedumpfile")?;
        }
        let captured = folder.join(format!("capture-{way:?}.gz"));
        let capture_bytes = capture.write(&captured)?;
        let mut first = Initramfs::new(packages, &first_script())?;
        first.program(packages, "sbin/kexec")?;
        first.file("boot/vmlinuz", &kernel)?;
        first.file("boot/capture", &captured)?;
        let initramfs = folder.join(format!("first-{way:?}.gz"));
        first.write(&initramfs)?;
        Ok(Self { kernel, initramfs, way, capture_bytes })
    }

    /// Boots it with `reserved` bytes for the capture kernel, crashes it, and waits for the
    /// dump on `disk`.
    ///
    /// # Errors
    /// It did not get that far; holds the end of its console.
    pub fn measure(&self, machines: &Machines, reserved: u64, disk: &Path) -> Result<Sample> {
        let load = load();
        let folder = harness::fresh_folder(FOLDER)?;
        let (input, mut console) = harness::console_pipe(&folder)?;
        let words = self.words(machines, reserved, disk, &input)?;
        let mut machine = Machine::start(&words, &folder, TIMEOUT)?;
        machine.wait_for_line(READY)?;
        writeln!(console, "crash").context("type on the console")?;
        machine.wait_for_line("Kernel panic - not syncing")?;
        let crash = Instant::now();
        machine.wait_for_line(BEGINS)?;
        let begins = crash.elapsed();
        machine.wait_for_line(FLUSHED)?;
        let flushed = crash.elapsed();
        let status = machine.wait_for_line("kdump: status ")?;
        machine.kill();
        let mut words = status.split_whitespace().skip(2);
        if words.next() != Some("0") {
            bail!("the dump failed: {status}");
        }
        let bytes = words.next().and_then(|word| word.parse().ok()).context("no size was said")?;
        let stored_bytes = self.stored(disk)?;
        let ns = |time: Duration| time.as_nanos() as u64;
        Ok(Sample {
            begins_ns: ns(begins),
            flushed_ns: ns(flushed),
            bytes,
            stored_bytes,
            guest_ns: None,
            load,
        })
    }

    /// Bytes of the dump on `disk`, which held nothing but zeros before.
    fn stored(&self, disk: &Path) -> Result<u64> {
        const PART: usize = 1 << 20;
        let mut file = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
        let mut part = vec![0; PART];
        let (mut at, mut end) = (0, 0);
        loop {
            let count = file.read(&mut part).context("read the dump")?;
            let bytes = &part[..count];
            if at == 0 && !bytes.starts_with(self.way.magic()) {
                bail!("no dump on the disk: it begins with {:x?}", &bytes[..count.min(8)]);
            }
            if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
                end = at + last as u64 + 1;
            }
            if count == 0 {
                return Ok(end);
            }
            at += count as u64;
        }
    }

    fn words(
        &self,
        machines: &Machines,
        reserved: u64,
        disk: &Path,
        input: &Path,
    ) -> Result<Vec<String>> {
        let path =
            |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
        let disk = path(disk)?.replace(',', ",,");
        let input = path(input)?.replace(',', ",,");
        let (kernel, initramfs) = (path(&self.kernel)?, path(&self.initramfs)?);
        let cpus = machines.cpus.to_string();
        let memory = format!("{}K", machines.memory >> 10);
        let chardev = format!("file,id=console,path=/dev/stdout,input-path={input}");
        let drive = format!("if=none,id=disk0,cache=writeback,format=raw,file={disk}");
        let append = format!("console=ttyS0 quiet panic=1 crashkernel={}K", reserved >> 10);
        let words = [
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            &cpus,
            "-m",
            &memory,
            "-chardev",
            &chardev,
            "-serial",
            "chardev:console",
            "-chardev",
            "socket,id=qmp,fd=0",
            "-mon",
            "chardev=qmp,mode=control",
            "-drive",
            &drive,
            "-device",
            "virtio-blk-pci,drive=disk0",
            "-kernel",
            &kernel,
            "-initrd",
            &initramfs,
            "-append",
            &append,
        ];
        Ok(words.map(str::to_owned).to_vec())
    }
}

/// Why the capture kernel of the last run panicked; none when it never ran, and whatever went
/// wrong is no matter of its memory.
///
/// # Errors
/// Its console cannot be read.
pub fn why_no_dump() -> Result<Option<String>> {
    let path = harness::fresh_folder(FOLDER)?.join("console.log");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    let mut reasons = text.lines().filter_map(|line| line.split_once("not syncing: "));
    // The first is the crash that was asked for.
    let crashed = reasons.next().is_some();
    let reason = reasons.next_back().map_or("it said no more", |(_, reason)| reason.trim());
    Ok(crashed.then(|| reason.to_owned()))
}

/// Fills 60 % of memory, loads the capture kernel, and crashes when it is told to.
fn first_script() -> String {
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t proc proc /proc\n\
         $b mount -t sysfs sysfs /sys\n\
         $b mount -t devtmpfs dev /dev\n\
         $b mount -t tmpfs -o size=60% fill /fill\n\
         $b dd if=/dev/urandom of=/tmp/seed bs=1M count=8 2>/dev/null\n\
         $b cat /bin/busybox >> /tmp/seed\n\
         while $b cat /tmp/seed >> /fill/all 2>/dev/null; do :; done\n\
         /sbin/kexec -p -s /boot/vmlinuz --initrd=/boot/capture \
         --command-line='console=ttyS0 quiet panic=1 nr_cpus=1 irqpoll reset_devices'\n\
         echo \"first: kexec status $?\"\n\
         echo '{READY}'\n\
         read line\n\
         echo c > /proc/sysrq-trigger\n"
    )
}

/// Loads the disk's driver, dumps, flushes, and says how it went.
fn capture_script(way: Way, modules: &[String]) -> String {
    let load: String = modules.iter().map(|path| format!("$b insmod {path}\n")).collect();
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t proc proc /proc\n\
         $b mount -t sysfs sysfs /sys\n\
         $b mount -t devtmpfs dev /dev\n\
         {load}\
         echo '{BEGINS}'\n\
         {command}\n\
         status=$?\n\
         $b dd if=/dev/null of=/dev/vda count=0 conv=notrunc,fsync 2>/dev/null || status=fsync\n\
         echo '{FLUSHED}'\n\
         echo \"kdump: status $status $($b stat -c %s /proc/vmcore) bytes of memory\"\n\
         while :; do $b sleep 1000; done\n",
        command = way.command(),
    )
}
