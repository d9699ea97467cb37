//! A clock and a crash for the tests of this crate.

use std::cell::{Cell, RefCell};
use std::fmt;

use block::RunningTime;
use handoff::{BootFacts, CpuRecords, Handoff};
use zerocopy::IntoBytes;

use crate::crash::{Cause, Cpu, Cpus, Crash, Time};
use crate::dump_options::DumpOptions;
use crate::host::Host;
use crate::input::{Appliance, ApplianceLists, InputError};
use crate::stream::Moving;

/// A machine without CPUs.
struct NoCpus;

impl Cpus for NoCpus {
    fn count(&self) -> usize {
        0
    }

    fn get(&self, _: usize) -> Option<Cpu> {
        None
    }
}

/// A crash of which nothing is known, to be filled in.
pub fn crash() -> Crash<'static> {
    Crash {
        machine: 62,
        cause: Cause { kind: 0, cpu: 0, signal: 6, address: 0, line: "a crash" },
        image: None,
        cpus: &NoCpus,
        memory: &[],
        withheld: &[],
        virtual_segments: &[],
        identity: true,
        mini: &[],
        used: None,
        notes: &[],
        moving: Moving::default(),
        options: DumpOptions::read(""),
        time: Time::default(),
    }
}

/// Describes the crash of an appliance.
pub fn described(appliance: &Appliance) -> Crash<'static> {
    appliance.describe(Box::leak(Box::new(ApplianceLists::new())))
}

/// A crash of which no more is known than these records.
pub fn appliance(
    handoff: Handoff,
    facts: BootFacts,
    cpus: Result<CpuRecords<'static>, InputError>,
) -> Appliance {
    let (handoff, facts) = (Box::leak(Box::new(handoff)), Box::leak(Box::new(facts)));
    Appliance {
        handoff,
        handoff_bytes: handoff.as_bytes(),
        facts,
        facts_bytes: facts.as_bytes(),
        cpus,
        workload_table: None,
        locks: None,
        words: None,
    }
}

/// A clock that goes on by 10 ms each time it is looked at.
#[derive(Default)]
pub struct FakeHost {
    /// What it shows.
    pub tsc: Cell<u64>,
    /// What was said.
    pub said: RefCell<Vec<String>>,
    /// Whoever looks at it for this time, from 1, is interrupted for good.
    pub interrupt_at: Option<u64>,
    /// The machine is paused for so many nanoseconds as the clock is looked at for such a
    /// time, from 1.
    pub pause: Option<(u64, u64)>,
    /// What of it the machine ran.
    pub running: RunningTime,
}

impl Host for FakeHost {
    fn tsc(&self) -> u64 {
        self.tsc.set(self.tsc.get() + 10_000_000);
        if self.interrupt_at == Some(self.tsc.get() / 10_000_000) {
            std::panic::resume_unwind(Box::new("interrupted"));
        }
        if let Some((look, ns)) = self.pause
            && look == self.tsc.get() / 10_000_000
        {
            self.tsc.set(self.tsc.get() + ns);
        }
        self.tsc.get()
    }

    fn running_ns(&self) -> u64 {
        self.running.at(self.now_ns())
    }

    fn ns(&self, ticks: u64) -> u64 {
        ticks
    }

    fn say(&self, line: fmt::Arguments<'_>) {
        self.said.borrow_mut().push(line.to_string());
    }

    fn helpers(&self) -> (u32, u32) {
        (0, 0)
    }

    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }
}
