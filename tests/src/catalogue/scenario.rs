//! One crash, some wedges, a number of CPUs.

use std::path::PathBuf;
use std::time::Duration;

use super::faults::{Crash, Strikes, Wedge};
use crate::harness::{Boot, DataDisk, Options, Verdict};

/// Where the crash strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// On the boot processor.
    Bsp,
    /// On the first of the others.
    Ap,
}

impl Side {
    /// The word for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bsp => "BSP",
            Self::Ap => "AP",
        }
    }

    /// The CPU it stands for.
    #[must_use]
    pub const fn cpu(self) -> u32 {
        match self {
            Self::Bsp => 0,
            Self::Ap => 1,
        }
    }
}

/// The least memory that a machine with eight CPUs runs in, in bytes: the reserved region
/// ends at 72 MiB.
const MEMORY: u64 = 96 << 20;

/// CPUs that a small host serves within the windows that a scenario sets.
const CROWD: u32 = 16;

/// A machine that is to crash.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What strikes.
    pub crash: &'static Crash,
    /// The CPU that is told to.
    pub on: u32,
    /// CPUs in a bad state beforehand.
    pub wedges: Vec<(&'static Wedge, u32)>,
    /// CPUs.
    pub cpus: u32,
}

impl Scenario {
    /// A crash and at most one wedge, on the CPU that it takes by default.
    #[must_use]
    pub fn new(
        crash: &'static Crash,
        wedge: Option<&'static Wedge>,
        cpus: u32,
        side: Side,
    ) -> Self {
        let on = side.cpu();
        let highest = (0..cpus).rev().find(|&cpu| cpu != on);
        let place = |wedge: &'static Wedge| {
            // With no CPU left it names one that is not there, and has no meaning.
            (wedge, if wedge.on_boot_processor { 0 } else { highest.unwrap_or(cpus) })
        };
        Self { crash, on, wedges: wedge.into_iter().map(place).collect(), cpus }
    }

    /// Says why it means nothing, if it does.
    #[must_use]
    pub fn senseless(&self) -> Option<&'static str> {
        if self.on >= self.cpus {
            return Some("no CPU but the boot processor");
        }
        for (index, &(wedge, cpu)) in self.wedges.iter().enumerate() {
            let before = &self.wedges[..index];
            let taken = before.iter().any(|&(_, other)| other == cpu);
            if wedge.holds.is_some() && before.iter().any(|(other, _)| other.holds == wedge.holds) {
                return Some("two CPUs that hold one lock");
            }
            if cpu == self.on || taken {
                return Some("the CPU to wedge is taken");
            }
            if cpu >= self.cpus {
                return Some("no CPU left to wedge");
            }
        }
        if self.on_disk() && self.wedges.len() > 1 {
            return Some("the other may end the work on the disk before it strikes there");
        }
        let free = self.cpus as usize - 1 - self.wedges.len();
        match self.crash.strikes {
            Strikes::Stuck { .. } if self.on_disk() => {
                Some("who waits for the disk's lock is stuck as well")
            }
            Strikes::Everyone if free == 0 => Some("nobody to race with"),
            Strikes::Stuck { rung: "nmi", .. } if free == 0 => Some("nobody left who would notice"),
            _ if self.crash.helper.is_some() && free == 0 => Some("no CPU left to take part"),
            _ => None,
        }
    }

    /// The CPU that takes part, when one has to: the highest that is free.
    #[must_use]
    pub fn helper(&self) -> Option<u32> {
        self.crash.helper?;
        (0..self.cpus).rev().find(|&cpu| cpu != self.on && self.wedge_of(cpu).is_none())
    }

    /// The wedge of a CPU.
    #[must_use]
    pub fn wedge_of(&self, cpu: u32) -> Option<&'static Wedge> {
        self.wedges.iter().find(|(_, wedged)| *wedged == cpu).map(|(wedge, _)| *wedge)
    }

    /// Whether there are more CPUs than a host runs at a time: the last of them comes to its
    /// interrupt when the NMI is already on its way.
    #[must_use]
    pub const fn crowded(&self) -> bool {
        self.cpus > CROWD
    }

    /// Whether a CPU is to be stopped in the block driver.
    #[must_use]
    pub fn on_disk(&self) -> bool {
        self.wedges.iter().any(|(wedge, _)| wedge.on_disk)
    }

    /// How it is booted: as small and as fast as the fault allows. Windows are explicit, since
    /// those that a machine measures under load can be seconds long.
    #[must_use]
    pub fn options(&self, out: PathBuf) -> Options {
        let mut command_line = "stop_irq_ms=700 stop_nmi_ms=250 stop_init_ms=50 ".to_owned();
        command_line.push_str(match self.crash.strikes {
            _ if self.on_disk() => "workload=blkverify,blocks=256",
            // It takes a unit to get stuck in, and a wedged CPU keeps one for ever: enough of
            // them that there is another.
            Strikes::Stuck { .. } => {
                "workload=sieve,n=10000000 lockup_hard_ms=1000 lockup_soft_ms=1500"
            }
            _ => "workload=sieve,n=1000000",
        });
        let wedges = self.wedges.iter().map(|(wedge, cpu)| format!("{},cpu={cpu}", wedge.name));
        Options {
            cpus: self.cpus,
            memory: MEMORY,
            data_disk: self.on_disk().then(DataDisk::slow),
            crash: Some(format!("{},cpu={}", self.crash.name, self.on)),
            wedges: wedges.collect(),
            command_line,
            expect: Some(self.verdict()),
            // Generous, for a host that has more to do than this.
            timeout: Duration::from_secs(180),
            tidy: true,
            ..Options::new(Boot::Pvh, out)
        }
    }

    /// What it has to come to, with a disk to dump to.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        if self.crash.no_image { Verdict::LastWords } else { Verdict::Captured }
    }
}

impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},cpu={}", self.crash.name, self.on)?;
        for (wedge, cpu) in &self.wedges {
            write!(f, " + {},cpu={cpu}", wedge.name)?;
        }
        write!(f, " on {} CPUs", self.cpus)
    }
}
