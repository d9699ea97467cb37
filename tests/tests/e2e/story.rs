//! What every captured crash has in common, and the checks all of them go through.

use std::path::PathBuf;

use e2e::harness::{self, Boot, Options, Outcome, Verdict};
use handoff::{CpuRecord, X86Registers};
use vmcore::{CpuBacktrace, Dump};

/// Enough for the reserved region at 64 MiB, firmware, and pages to stamp.
pub const MEMORY: u64 = 192 << 20;

/// A machine that crashes, and what its dump has to say.
pub struct Story {
    /// The loader.
    pub boot: Boot,
    /// CPUs.
    pub cpus: u32,
    /// The fault, as on the command line.
    pub crash: &'static str,
    /// CPUs in a bad state beforehand.
    pub wedges: &'static [&'static str],
    /// The CPU that crashes.
    pub on: u32,
    /// The contract's word for the cause.
    pub kind: &'static str,
    /// The exception's vector.
    pub vector: Option<u32>,
    /// Functions the crashing CPU's backtrace leads through, innermost first.
    pub through: &'static [&'static str],
    /// Who was stopped by another rung than the first, and where the registers are from.
    pub stopped: &'static [(u32, &'static str, &'static str)],
}

impl Story {
    /// A panic on CPU 1 of four, by PVH, everyone else healthy.
    pub const PANIC: Self = Self {
        boot: Boot::Pvh,
        cpus: 4,
        crash: "panic",
        wedges: &[],
        on: 1,
        kind: "panic",
        vector: None,
        through: &["inject::strike", "Workload>::run", "workload::take_part"],
        stopped: &[],
    };

    /// Boots, crashes, and checks everything every dump has to fulfil.
    pub fn tell(&self) -> Crashed {
        let crashed = Crashed::from(&self.options());
        self.check(&crashed);
        crashed
    }

    /// The run's options.
    pub fn options(&self) -> Options {
        Options {
            cpus: self.cpus,
            memory: MEMORY,
            crash: Some(format!("{},cpu={}", self.crash, self.on)),
            wedges: self.wedges.iter().map(|&wedge| wedge.to_owned()).collect(),
            command_line: "workload=sieve workload=memstamp".into(),
            tidy: true,
            ..Options::new(self.boot, folder())
        }
    }

    /// The checks.
    pub fn check(&self, crashed: &Crashed) {
        let dump = &crashed.dump;
        assert!(dump.is_complete(), "a sealed dump is complete");
        assert_eq!(dump.warnings, Vec::<String>::new());
        let cause = &dump.handoff.as_ref().expect("the hand-off").cause;
        assert_eq!(cause.kind.name().unwrap_or_default(), self.kind);
        assert_eq!(cause.cpu, self.on);
        assert_eq!((cause.vector != u32::MAX).then_some(cause.vector), self.vector);
        assert!(!cause.message().is_empty(), "a cause has words");

        let indexes: Vec<_> = dump.cpus.iter().map(|cpu| cpu.index).collect();
        assert_eq!(indexes, (0..self.cpus).collect::<Vec<_>>());
        for cpu in &dump.cpus {
            self.check_cpu(cpu);
        }
        assert_eq!(crashed.backtraces.len(), self.cpus as usize);
        for backtrace in &crashed.backtraces {
            let names = crashed.functions(backtrace.index);
            assert!(names.len() >= 2, "CPU {}: {names:?}", backtrace.index);
        }
        let names = crashed.functions(self.on);
        let mut rest = names.iter();
        for wanted in self.through {
            let found = rest.any(|name| name.contains(wanted));
            assert!(found, "{wanted} is not in its place in {names:#?}");
        }
    }

    fn check_cpu(&self, cpu: &CpuRecord) {
        let exception = self.stopped.iter().find(|(index, ..)| *index == cpu.index);
        let (by, from) = match exception {
            Some((_, by, from)) => (*by, *from),
            None if cpu.index == self.on && self.vector.is_some() => ("crash", "interrupted"),
            None if cpu.index == self.on => ("crash", "self"),
            None => ("irq", "interrupted"),
        };
        assert_eq!(cpu.stopped_by.name().unwrap_or_default(), by, "CPU {}", cpu.index);
        assert_eq!(cpu.registers_from.name().unwrap_or_default(), from, "CPU {}", cpu.index);
        let asked = ["irq", "nmi", "init"].contains(&by);
        assert_eq!(cpu.latency_ns != u64::MAX, asked, "latency of CPU {}", cpu.index);
        // The program counter may be anything where a wild call is the cause.
        let X86Registers { rsp, cr3, .. } = *cpu.x86().expect("registers of an x86_64");
        assert!(rsp != 0 && cr3 != 0, "CPU {}: {:x?}", cpu.index, cpu.x86());
    }
}

/// A machine that has crashed and was captured.
pub struct Crashed {
    /// The run.
    pub outcome: Outcome,
    /// Its vmcore.
    pub vmcore: PathBuf,
    /// The vmcore, opened.
    pub dump: Dump,
    /// Every CPU's stack.
    pub backtraces: Vec<CpuBacktrace>,
}

impl Crashed {
    /// Runs `options` and reads what it left.
    pub fn from(options: &Options) -> Self {
        let outcome = harness::run(options, &mut |_| ()).expect("a run");
        Self::read(outcome)
    }

    /// Reads what a run left.
    pub fn read(outcome: Outcome) -> Self {
        assert_verdict(&outcome, Verdict::Captured);
        let vmcore = outcome.vmcore.clone().expect("a vmcore");
        let dump = Dump::open(&vmcore).expect("a readable vmcore");
        let image = vmcore::find_image(&dump, Some(&outcome.report.image)).expect("the image");
        let backtraces = vmcore::backtraces(&dump, &image);
        Self { outcome, vmcore, dump, backtraces }
    }

    /// The functions on a CPU's stack, innermost first, inlined ones included.
    pub fn functions(&self, cpu: u32) -> Vec<String> {
        let backtrace = self.backtraces.iter().find(|backtrace| backtrace.index == cpu);
        let frames = &backtrace.expect("a backtrace for every CPU").frames;
        frames.iter().map(|frame| frame.function.clone().unwrap_or_default()).collect()
    }
}

/// Fails with the end of the console, which is what one wants to see first.
pub fn assert_verdict(outcome: &Outcome, wanted: Verdict) {
    assert!(
        outcome.report.verdict == wanted,
        "{outcome}; wanted {wanted}; in {}\nthe console ends:\n{}",
        outcome.out.display(),
        outcome.console.tail(30)
    );
}

/// The folder of the test that runs on this thread.
pub fn folder() -> PathBuf {
    let thread = std::thread::current();
    let name = thread.name().expect("libtest names its threads").replace("::", "-");
    harness::target_dir().join("runs/e2e").join(name)
}

/// One test per story.
macro_rules! stories {
    ($($(#[$doc:meta])* $name:ident = $story:expr;)*) => {$(
        $(#[$doc])*
        #[test]
        #[ignore = "boots QEMU: run cargo xtask test"]
        fn $name() {
            $story.tell();
        }
    )*};
}
pub(crate) use stories;
