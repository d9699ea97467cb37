//! What a run boots, and the words of the command line for it.
//!
//! Longer than most, because every option stands here with its words and its default.

use std::path::PathBuf;
use std::time::Duration;

use super::{Accelerator, Boot, Verdict};

/// Why a word was not accepted. The two differ in the message, never in the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A name the contract has, for something that is not built yet.
    NotYet(String),
    /// No such thing.
    Wrong(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotYet(what) => write!(f, "not yet: {what}"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refusal {}

/// What a disk is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk on PCI.
    Virtio,
    /// An NVMe controller of its own.
    Nvme,
    /// The SATA controller that the machine has anyway.
    Ahci,
}

/// The medium failed.
pub const EIO: i32 = 5;
/// No space is left where the disk's image lies.
pub const ENOSPC: i32 = 28;

/// A disk the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What it is attached to.
    pub bus: Bus,
    /// It holds a dump area; otherwise it is all zero, and nobody prepared it for dumps.
    pub prepared: bool,
    /// Dumps it has room for, each of all memory.
    pub slots: u32,
    /// Its size in bytes; `None` makes it as large as its dumps can be.
    pub bytes: Option<u64>,
    /// No more bytes than this pass in a second.
    pub bytes_per_second: Option<u64>,
    /// Its block size in bytes.
    pub block_bytes: u32,
    /// Every write over this byte fails.
    pub fails_at: Option<u64>,
    /// The error number such a write fails with.
    pub fails_with: i32,
    /// Every write and flush is recorded, in their order, in a file beside the image.
    pub recorded: bool,
    /// A flush of the machine is one of the host: for measurements.
    pub flushed: bool,
    /// The machine gets at its image through an NBD server at this port of the loopback
    /// address, which the caller runs.
    pub served_at: Option<u16>,
    /// The number of a root bus of its own that it is on, behind a port; PCI disks only.
    pub own_root_bus: Option<u8>,
    /// The number of the NVMe namespace that the disk is, behind others that are blank; 0 for
    /// a controller with one namespace.
    pub namespace: u32,
    /// The machine may not write to it.
    pub read_only: bool,
    /// Only so many bytes at the front are kept; what is written behind them is swallowed,
    /// and reads as zeros: a disk that costs nothing, for measurements.
    pub kept_bytes: Option<u64>,
}

impl Disk {
    /// A prepared disk with blocks of 512 bytes.
    #[must_use]
    pub const fn new(bus: Bus) -> Self {
        Self {
            bus,
            prepared: true,
            slots: 1,
            bytes: None,
            bytes_per_second: None,
            block_bytes: 512,
            fails_at: None,
            fails_with: EIO,
            recorded: false,
            flushed: false,
            served_at: None,
            own_root_bus: None,
            namespace: 0,
            read_only: false,
            kept_bytes: None,
        }
    }

    /// The same, not prepared.
    #[must_use]
    pub const fn blank(bus: Bus) -> Self {
        Self { prepared: false, ..Self::new(bus) }
    }

    /// The disks named on a command line; `none` stands alone.
    ///
    /// # Errors
    /// No such name.
    pub fn parse_list(words: &[String]) -> Result<Vec<Self>, Refusal> {
        let mut disks = Vec::new();
        for word in words {
            match word.as_str() {
                "virtio" => disks.push(Self::new(Bus::Virtio)),
                "nvme" => disks.push(Self::new(Bus::Nvme)),
                "none" if words.len() == 1 => {}
                "none" => return Err(Refusal::Wrong("--disk none stands alone".into())),
                "ahci" => disks.push(Self::new(Bus::Ahci)),
                _ => {
                    let known = "virtio, nvme, ahci or none";
                    return Err(Refusal::Wrong(format!("unknown disk '{word}': {known}")));
                }
            }
        }
        Ok(disks)
    }
}

/// A virtio disk that the appliance itself uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataDisk {
    /// Its size.
    pub bytes: u64,
    /// It answers so many reads in a second at most, so that many stay in flight.
    pub reads_per_second: Option<u32>,
    /// What its first sector holds; all zero where nothing is said, as is the rest.
    pub first_sector: Option<[u8; 512]>,
}

impl DataDisk {
    /// A blank one.
    #[must_use]
    pub const fn blank(bytes: u64) -> Self {
        Self { bytes, reads_per_second: None, first_sector: None }
    }

    /// A blank one of 8 MiB, so slow that reads pile up in the driver.
    #[must_use]
    pub const fn slow() -> Self {
        Self { reads_per_second: Some(24), ..Self::blank(8 << 20) }
    }
}

/// What the machine does after a crash was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Switch off: QEMU ends by itself.
    Poweroff,
    /// Reset: QEMU, started with `-no-reboot`, ends by itself.
    Reboot,
    /// Stay halted: the runner ends QEMU when the machine says so.
    Halt,
}

impl Policy {
    /// The contract's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Halt => "halt",
        }
    }
}

impl std::str::FromStr for Policy {
    type Err = Refusal;

    fn from_str(word: &str) -> Result<Self, Refusal> {
        match word {
            "poweroff" => Ok(Self::Poweroff),
            "reboot" => Ok(Self::Reboot),
            "halt" => Ok(Self::Halt),
            _ => Err(Refusal::Wrong(format!("unknown policy '{word}': poweroff, reboot, halt"))),
        }
    }
}

/// What the machine shows its console on, beside the serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// Nothing.
    None,
    /// A VGA, in the framebuffer mode that GRUB sets. Pictures of it are kept.
    Pixels,
    /// The same in text mode: that of a BIOS.
    Text,
}

/// The appliance that is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appliance {
    /// The one with faults on request where `crash=` or `wedge=` is on the command line, the
    /// shipped one otherwise.
    ByNeed,
    /// The one that is shipped, without faults on request.
    Shipped,
    /// The one with faults on request.
    Faults,
    /// This file instead, with its symbols.
    File(PathBuf),
}

/// The capture module handed to the loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Module {
    /// The one that was built.
    Built,
    /// None at all.
    Absent,
    /// This file instead.
    File(PathBuf),
}

/// One run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The loader.
    pub boot: Boot,
    /// What the processors run on.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Disks in the order the machine finds them; `disk.img` is the first.
    pub disks: Vec<Disk>,
    /// What the first disk holds: a copy of this image instead of a fresh one.
    pub disk_image: Option<PathBuf>,
    /// One more disk, blank, for the work and not for dumps; `data.img`.
    pub data_disk: Option<DataDisk>,
    /// Memory from here to there is taken out of the map by GRUB, as bad memory is.
    pub cut_memory: Option<(u64, u64)>,
    /// Writes every block of the disks beforehand, so that a first write costs the host no
    /// more than a second one: for measurements.
    pub dense_disks: bool,
    /// `NAME[,cpu=K][,at=STAGE]`.
    pub crash: Option<String>,
    /// `KIND[,cpu=K]`, each.
    pub wedges: Vec<String>,
    /// More of the kernel command line, behind what the options above make of it.
    pub command_line: String,
    /// What to do after a crash.
    pub policy: Policy,
    /// The verdict that means success; `None` takes the contract's default.
    pub expect: Option<Verdict>,
    /// The appliance.
    pub appliance: Appliance,
    /// The capture module.
    pub module: Module,
    /// The screen.
    pub screen: Screen,
    /// The machine has a serial port, which the console is read from.
    pub serial: bool,
    /// The machine comes back after a reset, instead of ending.
    pub comes_back: bool,
    /// Hard limit of the whole run.
    pub timeout: Duration,
    /// The console takes input: see [`Running::say`](super::Running::say).
    pub talk: bool,
    /// Further QEMU arguments.
    pub qemu_args: Vec<String>,
    /// Where everything of this run goes.
    pub out: PathBuf,
    /// Takes disks, dump and boot medium away with the outcome, unless a test fails.
    pub tidy: bool,
}

impl Options {
    /// Four CPUs, 512 MiB and one prepared disk, into `out`.
    #[must_use]
    pub fn new(boot: Boot, out: PathBuf) -> Self {
        Self {
            boot,
            accelerator: Accelerator::Tcg,
            cpus: 4,
            memory: 512 << 20,
            disks: vec![Disk::new(Bus::Virtio)],
            disk_image: None,
            data_disk: None,
            cut_memory: None,
            dense_disks: false,
            crash: None,
            wedges: Vec::new(),
            command_line: String::new(),
            policy: Policy::Poweroff,
            expect: None,
            appliance: Appliance::ByNeed,
            module: Module::Built,
            screen: Screen::None,
            serial: true,
            comes_back: false,
            timeout: Duration::from_secs(120),
            talk: false,
            qemu_args: Vec::new(),
            out,
            tidy: false,
        }
    }

    /// Refuses what cannot be run, before anything is started.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.cpus == 0 || self.cpus > 512 {
            return Err(Refusal::Wrong(format!("--cpus {}: 1 to 512", self.cpus)));
        }
        if self.memory < 32 << 20 {
            return Err(Refusal::Wrong("--mem: at least 32M".into()));
        }
        if self.boot == Boot::Microvm && self.disks.iter().any(|disk| disk.bus == Bus::Ahci) {
            return Err(Refusal::Wrong("--disk ahci: a microvm has no SATA controller".into()));
        }
        if let Some(crash) = &self.crash {
            check_name("crash", crash, CRASHES, &[])?;
        }
        for wedge in &self.wedges {
            check_name("wedge", wedge, WEDGES, &[])?;
        }
        if self.screen != Screen::None && !self.boot.by_grub() {
            let wrong = "a screen: --boot pvh and microvm tell the appliance of none";
            return Err(Refusal::Wrong(wrong.into()));
        }
        // A line break would end the line of grub.cfg, a quote the word it stands in.
        if self.command_line.contains(['\n', '\r', '\'']) {
            return Err(Refusal::Wrong("--cmdline: no quotes and no line breaks".into()));
        }
        self.accelerator.check()
    }

    /// The kernel command line. Keys given explicitly come last and are not doubled.
    #[must_use]
    pub fn kernel_command_line(&self) -> String {
        let mut words = Vec::new();
        let given = |key: &str| self.command_line.split_whitespace().any(|w| w.starts_with(key));
        if !given("on_finish=") {
            words.push("on_finish=poweroff".to_owned());
        }
        if !given("crash_policy=") {
            words.push(format!("crash_policy={}", self.policy.name()));
        }
        words.extend(self.crash.iter().map(|crash| format!("crash={crash}")));
        words.extend(self.wedges.iter().map(|wedge| format!("wedge={wedge}")));
        words.extend(self.command_line.split_whitespace().map(str::to_owned));
        if self.holds_io() && !given("workload=blkverify") {
            words.push("workload=blkverify,blocks=256".to_owned());
        }
        words.join(" ")
    }

    /// Returns true if a fault is on the command line, which only an image with faults brings
    /// about.
    #[must_use]
    pub fn wants_faults(&self) -> bool {
        let words = self.kernel_command_line();
        words
            .split_whitespace()
            .any(|word| ["crash=", "wedge="].iter().any(|key| word.starts_with(key)))
    }

    /// The disk for data: what was asked for, or what an I/O holder needs to get stuck in.
    #[must_use]
    pub fn data_disk(&self) -> Option<DataDisk> {
        self.data_disk.or_else(|| self.holds_io().then(|| DataDisk::blank(8 << 20)))
    }

    fn holds_io(&self) -> bool {
        self.wedges.iter().any(|wedge| wedge.starts_with("io-holder"))
    }

    /// Whether the machine ends by itself once its workloads are done.
    #[must_use]
    pub fn finish_ends(&self) -> bool {
        self.kernel_command_line().split_whitespace().any(|word| word == "on_finish=poweroff")
    }

    /// The verdict that counts as success.
    #[must_use]
    pub fn expected(&self) -> Verdict {
        self.expect.unwrap_or(match (&self.crash, self.disks.is_empty()) {
            (None, _) => Verdict::Finished,
            (Some(_), false) => Verdict::Captured,
            (Some(_), true) => Verdict::LastWords,
        })
    }
}

/// Faults the appliance knows how to inject.
const CRASHES: &[&str] = &[
    "panic",
    "assert",
    "damaged-image",
    "hard-lockup",
    "soft-lockup",
    "deadlock",
    "live-backtrace",
    "page-fault",
    "null-call",
    "gp",
    "ud",
    "divide",
    "stack-overflow",
    "double-fault",
    "oom",
    "heap-in-crash",
    "panic-in-irq",
    "panic-in-nmi",
    "panic-in-panic",
    "loop-in-last-words",
    "lock-in-last-words",
    "panic-during-stop",
    "nmi-at-stopper",
    "parallel-panic",
    "no-nmi-handler",
    "wild-gs-base",
    "wild-per-cpu",
    "wild-registers",
    "mce",
    "mce-broadcast",
    "external-nmi",
    "write-roster",
    "write-park",
    "write-rodata",
    "write-text",
    "exec-nx",
    "write-region",
    "write-facts",
    "write-idt",
    "write-gdt",
    "write-page-tables",
    "write-stack-guard",
];
/// Bad states the appliance knows how to put a CPU into.
const WEDGES: &[&str] = &[
    "irqs-off",
    "nmi-blocked",
    "bsp-nmi-blocked",
    "lock-holder",
    "lock-holder-brief",
    "xcall-holder",
    "slow-acker",
    "io-holder",
    "io-holder-brief",
];

/// The faults that can be asked for.
#[must_use]
pub const fn crash_names() -> &'static [&'static str] {
    CRASHES
}

/// The bad states that can be asked for.
#[must_use]
pub const fn wedge_names() -> &'static [&'static str] {
    WEDGES
}

fn check_name(key: &str, value: &str, known: &[&str], later: &[&str]) -> Result<(), Refusal> {
    let name = value.split(',').next().unwrap_or_default();
    if known.contains(&name) {
        Ok(())
    } else if later.contains(&name) {
        Err(Refusal::NotYet(format!("--{key} {name} (built: {})", known.join(", "))))
    } else {
        Err(Refusal::Wrong(format!("unknown {key} '{name}': {}", known.join(", "))))
    }
}

/// Bytes from `512M`, `2G`, `65536K` or a plain number of MiB, as QEMU reads `-m`.
///
/// # Errors
/// Anything else.
pub fn parse_size(word: &str) -> Result<u64, Refusal> {
    let wrong = || Refusal::Wrong(format!("'{word}' is no size: 512M, 2G, 65536K"));
    let (digits, shift) = match word.char_indices().last() {
        Some((at, 'K' | 'k')) => (&word[..at], 10),
        Some((at, 'M' | 'm')) => (&word[..at], 20),
        Some((at, 'G' | 'g')) => (&word[..at], 30),
        _ => (word, 20),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_names_are_told_from_wrong_ones() {
        assert_eq!("uefi".parse(), Ok(Boot::Uefi));
        assert_eq!("microvm".parse(), Ok(Boot::Microvm));
        assert!(matches!("floppy".parse::<Boot>(), Err(Refusal::Wrong(_))));
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(Disk::parse_list(&words(&["none"])), Ok(vec![]));
        let both = vec![Disk::new(Bus::Nvme), Disk::new(Bus::Virtio)];
        assert_eq!(Disk::parse_list(&words(&["nvme", "virtio"])), Ok(both));
        assert!(matches!(Disk::parse_list(&words(&["floppy"])), Err(Refusal::Wrong(_))));
        assert!(matches!(Disk::parse_list(&words(&["virtio", "none"])), Err(Refusal::Wrong(_))));
        let mut options = Options::new(Boot::Pvh, PathBuf::new());
        options.crash = Some("meteor".into());
        assert!(matches!(options.check(), Err(Refusal::Wrong(_))));
        options.crash = Some("panic,cpu=1".into());
        assert_eq!(options.check(), Ok(()));
        options.screen = Screen::Pixels;
        assert!(matches!(options.check(), Err(Refusal::Wrong(_))));
        options.boot = Boot::Usb;
        assert_eq!(options.check(), Ok(()));
    }

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(parse_size("512"), Ok(512 << 20));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        for wrong in ["", "M", "-1M", "1T", "99999999999999999G"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_keeps_what_was_given_explicitly() {
        let mut options = Options::new(Boot::Pvh, PathBuf::new());
        options.command_line = "crash_policy=halt".into();
        assert!(!options.wants_faults());
        options.command_line = "wedge=irqs-off".into();
        assert!(options.wants_faults());
        options.command_line = String::new();
        options.crash = Some("panic,cpu=0".into());
        assert!(options.wants_faults());
        options.wedges = vec!["irqs-off".into()];
        assert_eq!(
            options.kernel_command_line(),
            "on_finish=poweroff crash_policy=poweroff crash=panic,cpu=0 wedge=irqs-off"
        );
        options.command_line = "crash_policy=halt on_finish=idle".into();
        assert_eq!(
            options.kernel_command_line(),
            "crash=panic,cpu=0 wedge=irqs-off crash_policy=halt on_finish=idle"
        );
    }

    #[test]
    fn the_default_expectation_follows_crash_and_disk() {
        let mut options = Options::new(Boot::Pvh, PathBuf::new());
        assert_eq!(options.expected(), Verdict::Finished);
        options.crash = Some("panic".into());
        assert_eq!(options.expected(), Verdict::Captured);
        options.disks.clear();
        assert_eq!(options.expected(), Verdict::LastWords);
        options.expect = Some(Verdict::NoDump);
        assert_eq!(options.expected(), Verdict::NoDump);
    }
}
