//! The kernel command line: `key=value` separated by spaces, lists by `,`.
//!
//! Nothing on it stops the boot. An unknown key, or a value that cannot be read, is a
//! warning that says what was expected, and the default stays.
//!
//! Longer than most, because every key stands here with its words, its meaning and its
//! default, so that they cannot disagree.

use core::fmt;

use handoff::BootFacts;
use handoff::facts::{DumpPages, DumpStoring};
use heapless::{String, Vec};

use vmcore_format::gpt;

pub use self::keywords::{Breadcrumb, CrashPolicy, Load, OnFinish, Pages, Slots, Storing, Switch};

mod keywords;

/// Workloads, wedges and targets at most.
const MAX_LIST: usize = 8;

/// Targets of `dump_to=` that the capture image has a driver for.
const TARGETS: [&str; 3] = ["virtio", "nvme", "ahci"];

/// A name as it stands on the command line.
pub type Name = String<40>;

/// A word of `dump_to=`; the longest are the GUIDs of two partitions that share the work.
pub type Goal = String<80>;

/// `workload=NAME[,key=value…]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadChoice {
    /// Which.
    pub name: Name,
    /// Its parameters.
    pub values: Vec<(Name, Name), MAX_LIST>,
}

impl WorkloadChoice {
    /// The value of parameter `key`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// `crash=NAME[,cpu=K][,at=STAGE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashChoice {
    /// Which fault.
    pub name: Name,
    /// On which CPU; by default CPU 1 if there is one.
    pub cpu: Option<u32>,
    /// At which stage of the boot, instead of under the workloads.
    pub at: Option<Name>,
}

/// `wedge=KIND[,cpu=K]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WedgeChoice {
    /// Which bad state.
    pub kind: Name,
    /// Which CPU; by default the highest that does not crash.
    pub cpu: Option<u32>,
}

/// When the hardware watchdog resets the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareWatchdog {
    /// After a time that suits the machine.
    Auto,
    /// Never.
    Off,
    /// After so many seconds without being fed.
    Seconds(u64),
}

impl HardwareWatchdog {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => word.parse().ok().map(Self::Seconds),
        }
    }
}

impl fmt::Display for HardwareWatchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Seconds(seconds) => write!(f, "{seconds}"),
        }
    }
}

/// Every value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What the cores run, in order; `sieve` and `memstamp` when nothing is said.
    pub workloads: Vec<WorkloadChoice, MAX_LIST>,
    /// What to do when they have ended.
    pub on_finish: OnFinish,
    /// The fault to inject.
    pub crash: Option<CrashChoice>,
    /// The CPUs to put into a bad state before it.
    pub wedges: Vec<WedgeChoice, 16>,
    /// Window of the stop interrupt in ms; by default raised to what the machine needs.
    pub stop_irq_ms: Option<u64>,
    /// Window of the stop NMI in ms; likewise.
    pub stop_nmi_ms: Option<u64>,
    /// Window of the INIT rung in ms; likewise.
    pub stop_init_ms: Option<u64>,
    /// Whether the NMI rung waits for ever.
    pub stop_wait_forever: bool,
    /// What to do after the dump.
    pub crash_policy: CrashPolicy,
    /// Where to dump to, in order; empty for every target there is.
    pub dump_to: Vec<Goal, MAX_LIST>,
    /// How far the dump goes.
    pub pages: Pages,
    /// How its pages are stored.
    pub dump: Storing,
    /// What happens when every slot holds a dump.
    pub slots: Slots,
    /// When to stop extending the dump, in ms.
    pub dump_deadline_ms: Option<u64>,
    /// Crashes, and the minutes they must fall into, beyond which no dump is written.
    pub crash_loop: (u64, u64),
    /// Hard-lockup threshold in ms, 0 for off.
    pub lockup_hard_ms: u64,
    /// Soft-lockup threshold in ms, 0 for off.
    pub lockup_soft_ms: u64,
    /// The hardware watchdog.
    pub watchdog: HardwareWatchdog,
    /// The breadcrumb.
    pub breadcrumb: Breadcrumb,
    /// `load`: for how many seconds the workloads go on, under random load; 0 for one round
    /// without.
    pub load_s: u64,
    /// Whether the flight recorder records.
    pub trace: Switch,
    /// Whether the capture image is rehearsed at boot.
    pub rehearsal: Switch,
    /// Whether the capture image measures the raw write rate after the dump.
    pub capture_bench_raw: bool,
    /// Whether the capture image puts every stopped CPU to work, on however many cores they run.
    pub capture_cpus_all: bool,
    /// How many rehearsed stops to measure before work begins, and under what load.
    pub bench_stop: Option<(u64, Load)>,
    /// How many rounds of each workload to measure with the flight recorder on, and as many
    /// with it off.
    pub bench_trace: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workloads: Vec::new(),
            on_finish: OnFinish::Poweroff,
            crash: None,
            wedges: Vec::new(),
            stop_irq_ms: None,
            stop_nmi_ms: None,
            stop_init_ms: None,
            stop_wait_forever: false,
            crash_policy: CrashPolicy::Reboot,
            dump_to: Vec::new(),
            pages: Pages::Used,
            dump: Storing::Auto,
            slots: Slots::Keep,
            dump_deadline_ms: None,
            crash_loop: (5, 10),
            lockup_hard_ms: 10_000,
            lockup_soft_ms: 20_000,
            trace: Switch::On,
            rehearsal: Switch::On,
            watchdog: HardwareWatchdog::Auto,
            breadcrumb: Breadcrumb::Cmos,
            load_s: 0,
            capture_bench_raw: false,
            capture_cpus_all: false,
            bench_stop: None,
            bench_trace: None,
        }
    }
}

/// Where warnings go, one line each.
pub type Warn<'a> = &'a mut dyn FnMut(fmt::Arguments<'_>);

fn name<const N: usize>(text: &str, warn: Warn<'_>) -> String<N> {
    let mut name = String::new();
    for character in text.chars() {
        if name.push(character).is_err() {
            warn(format_args!("`{text}` is cut to {} bytes", name.len()));
            break;
        }
    }
    name
}

fn number(key: &str, text: &str, warn: Warn<'_>) -> Option<u64> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        warn(format_args!("{key}={text}: expected a whole number; the default stays"));
    }
    parsed
}

fn push<T, const N: usize>(list: &mut Vec<T, N>, item: T, key: &str, warn: Warn<'_>) {
    if list.push(item).is_err() {
        warn(format_args!("{key}=: at most {N}; the rest is ignored"));
    }
}

impl Options {
    /// Reads `line`; what cannot be read is reported through `warn`.
    pub fn parse(line: &str, warn: Warn<'_>) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => options.set(key, value, warn),
                // Loaders may pass the image's own name first.
                None if word.starts_with('/') || word == "appliance" => {}
                None => warn(format_args!("`{word}` is not key=value: ignored")),
            }
        }
        if options.workloads.is_empty() {
            for built_in in ["sieve", "memstamp"] {
                let choice = WorkloadChoice { name: name(built_in, warn), values: Vec::new() };
                push(&mut options.workloads, choice, "workload", warn);
            }
        }
        options
    }

    fn set(&mut self, key: &str, value: &str, warn: Warn<'_>) {
        macro_rules! word {
            ($kind:ident, $field:ident) => {
                match $kind::parse(value) {
                    Some(word) => self.$field = word,
                    None => warn(format_args!(
                        "{key}={value}: expected one of {}; the default stays",
                        $kind::WORDS.trim_end()
                    )),
                }
            };
        }
        match key {
            "workload" => self.set_workload(value, warn),
            "on_finish" => word!(OnFinish, on_finish),
            "crash" => self.set_crash(value, warn),
            "wedge" => self.set_wedge(value, warn),
            "stop_irq_ms" => self.stop_irq_ms = number(key, value, warn),
            "stop_nmi_ms" => self.stop_nmi_ms = number(key, value, warn),
            "stop_init_ms" => self.stop_init_ms = number(key, value, warn),
            "stop_wait" => match value {
                "bounded" => self.stop_wait_forever = false,
                "forever" => self.stop_wait_forever = true,
                _ => warn(format_args!("stop_wait={value}: expected bounded or forever")),
            },
            "crash_policy" => word!(CrashPolicy, crash_policy),
            "dump_to" => {
                for target in value.split(',') {
                    let target = name(target, warn);
                    push(&mut self.dump_to, target, key, warn);
                }
            }
            "pages" => word!(Pages, pages),
            "slots" => word!(Slots, slots),
            "dump" => word!(Storing, dump),
            "dump_deadline_ms" => self.dump_deadline_ms = number(key, value, warn),
            "trace" => word!(Switch, trace),
            "rehearsal" => word!(Switch, rehearsal),
            "crash_loop" => self.set_crash_loop(value, warn),
            "lockup_hard_ms" => {
                self.lockup_hard_ms = number(key, value, warn).unwrap_or(self.lockup_hard_ms);
            }
            "lockup_soft_ms" => {
                self.lockup_soft_ms = number(key, value, warn).unwrap_or(self.lockup_soft_ms);
            }
            "watchdog" => match HardwareWatchdog::parse(value) {
                Some(watchdog) => self.watchdog = watchdog,
                None => warn(format_args!("watchdog={value}: expected auto, off or seconds")),
            },
            "breadcrumb" => word!(Breadcrumb, breadcrumb),
            "load" => match value.parse() {
                Ok(seconds) => self.load_s = seconds,
                Err(_) => warn(format_args!("load={value}: expected a number of seconds")),
            },
            "bench_stop" => self.set_bench_stop(value, warn),
            "bench_trace" => self.bench_trace = number(key, value, warn),
            "capture_bench" => match value {
                "raw" => self.capture_bench_raw = true,
                _ => warn(format_args!("capture_bench={value}: expected raw")),
            },
            "capture_cpus" => match value {
                "all" | "auto" => self.capture_cpus_all = value == "all",
                _ => warn(format_args!("capture_cpus={value}: expected auto or all")),
            },
            _ => warn(format_args!("unknown key `{key}`: ignored")),
        }
    }

    fn set_workload(&mut self, value: &str, warn: Warn<'_>) {
        let mut parts = value.split(',');
        let mut choice = WorkloadChoice {
            name: name(parts.next().unwrap_or_default(), warn),
            values: Vec::new(),
        };
        for part in parts {
            match part.split_once('=') {
                Some((key, value)) => {
                    let pair = (name(key, warn), name(value, warn));
                    push(&mut choice.values, pair, "workload", warn);
                }
                None => warn(format_args!("workload={value}: `{part}` is not key=value")),
            }
        }
        push(&mut self.workloads, choice, "workload", warn);
    }

    fn set_crash(&mut self, value: &str, warn: Warn<'_>) {
        let mut parts = value.split(',');
        let mut choice =
            CrashChoice { name: name(parts.next().unwrap_or_default(), warn), cpu: None, at: None };
        for part in parts {
            match part.split_once('=') {
                Some(("cpu", cpu)) => {
                    choice.cpu = number("cpu", cpu, warn).and_then(|cpu| cpu.try_into().ok());
                }
                Some(("at", stage)) => choice.at = Some(name(stage, warn)),
                _ => warn(format_args!("crash={value}: expected cpu=K or at=STAGE, not `{part}`")),
            }
        }
        self.crash = Some(choice);
    }

    fn set_wedge(&mut self, value: &str, warn: Warn<'_>) {
        let mut parts = value.split(',');
        let mut choice =
            WedgeChoice { kind: name(parts.next().unwrap_or_default(), warn), cpu: None };
        for part in parts {
            match part.split_once('=') {
                Some(("cpu", cpu)) => {
                    choice.cpu = number("cpu", cpu, warn).and_then(|cpu| cpu.try_into().ok());
                }
                _ => warn(format_args!("wedge={value}: expected cpu=K, not `{part}`")),
            }
        }
        push(&mut self.wedges, choice, "wedge", warn);
    }

    fn set_bench_stop(&mut self, value: &str, warn: Warn<'_>) {
        let (pairs, load) = value.split_once(',').unwrap_or((value, Load::Both.word()));
        match (pairs.parse(), Load::parse(load)) {
            (Ok(pairs), Some(load)) => self.bench_stop = Some((pairs, load)),
            _ => warn(format_args!(
                "bench_stop={value}: expected PAIRS or PAIRS,LOAD, one of {}",
                Load::WORDS.trim_end()
            )),
        }
    }

    fn set_crash_loop(&mut self, value: &str, warn: Warn<'_>) {
        let parsed = value
            .split_once('/')
            .and_then(|(count, minutes)| Some((count.parse().ok()?, minutes.parse().ok()?)));
        match parsed {
            Some(limit) => self.crash_loop = limit,
            None => warn(format_args!("crash_loop={value}: expected N/MINUTES, such as 5/10")),
        }
    }

    /// Says in the boot facts what was asked for.
    pub fn describe(&self, facts: &mut BootFacts) {
        facts.pages = match self.pages {
            Pages::Mini => DumpPages::MINI,
            Pages::Used => DumpPages::USED,
            Pages::All => DumpPages::ALL,
        };
        facts.storing = match self.dump {
            Storing::Raw => DumpStoring::RAW,
            Storing::Lz4 => DumpStoring::LZ4,
            Storing::Auto => DumpStoring::AUTO,
        };
        facts.dump_deadline_ms = self.dump_deadline_ms.unwrap_or(0);
        let (crashes, minutes) = self.crash_loop;
        facts.crash_loop = u32::try_from(crashes).unwrap_or(u32::MAX);
        facts.crash_loop_minutes = u32::try_from(minutes).unwrap_or(u32::MAX);
    }

    /// Keys that were given but whose function is not there yet.
    pub fn not_yet(&self) -> impl Iterator<Item = &'static str> {
        let known = |target: &str| TARGETS.contains(&target) || gpt::parse_guid(target).is_some();
        let mut targets = self.dump_to.iter().flat_map(|word| word.split('+'));
        let other_target = targets.any(|target| !known(target));
        other_target.then_some("dump_to other than virtio, nvme, ahci or a partition").into_iter()
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for workload in &self.workloads {
            write!(f, "workload={}", workload.name)?;
            for (key, value) in &workload.values {
                write!(f, ",{key}={value}")?;
            }
            f.write_str(" ")?;
        }
        if let Some(crash) = &self.crash {
            write!(f, "crash={}", crash.name)?;
            if let Some(cpu) = crash.cpu {
                write!(f, ",cpu={cpu}")?;
            }
            if let Some(stage) = &crash.at {
                write!(f, ",at={stage}")?;
            }
            f.write_str(" ")?;
        }
        for wedge in &self.wedges {
            write!(f, "wedge={}", wedge.kind)?;
            if let Some(cpu) = wedge.cpu {
                write!(f, ",cpu={cpu}")?;
            }
            f.write_str(" ")?;
        }
        let windows = [
            ("stop_irq_ms", self.stop_irq_ms),
            ("stop_nmi_ms", self.stop_nmi_ms),
            ("stop_init_ms", self.stop_init_ms),
        ];
        for (key, ms) in windows {
            match ms {
                Some(ms) => write!(f, "{key}={ms} ")?,
                None => write!(f, "{key}=auto ")?,
            }
        }
        write!(f, "lockup_hard_ms={} ", self.lockup_hard_ms)?;
        write!(f, "lockup_soft_ms={} trace={} ", self.lockup_soft_ms, self.trace.word())?;
        write!(f, "rehearsal={} ", self.rehearsal.word())?;
        write!(f, "watchdog={} breadcrumb={} ", self.watchdog, self.breadcrumb.word())?;
        let wait = if self.stop_wait_forever { "forever" } else { "bounded" };
        write!(f, "stop_wait={wait} on_finish={} ", self.on_finish.word())?;
        write!(f, "crash_policy={} pages={} ", self.crash_policy.word(), self.pages.word())?;
        if let Some(ms) = self.dump_deadline_ms {
            write!(f, "dump_deadline_ms={ms} ")?;
        }
        write!(f, "dump={} slots={}", self.dump.word(), self.slots.word())
    }
}

#[cfg(test)]
mod tests;
