//! What each fault promises: one line for every name the command line takes.

/// The ways a crash can begin. Faults of one class take the same path into the crash code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// `panic!` in ordinary code.
    Panic,
    /// An exception, on the stack that was in use or on one of its own.
    Exception,
    /// Memory that must not be touched was.
    Protection,
    /// Inside a handler, or from outside through one.
    Handler,
    /// Several CPUs or several crashes at a time.
    Race,
    /// Noticed by another CPU.
    Noticed,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Panic, Self::Exception, Self::Protection, Self::Handler, Self::Race, Self::Noticed];
}

/// Who turns out to be the crashing CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strikes {
    /// The CPU that was told to.
    Itself,
    /// Any that is not wedged; the others lose the race.
    Everyone,
    /// Another than the one that was told to get stuck: that one is stopped by `rung` and
    /// stands in `function`.
    Stuck {
        /// What stops it.
        rung: &'static str,
        /// Where it stands.
        function: &'static str,
    },
}

/// A `crash=`.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    /// Its name.
    pub name: &'static str,
    /// Its class.
    pub class: Class,
    /// The contract's word for the cause.
    pub kind: &'static str,
    /// The exception's vector (Intel SDM vol. 3, table 6-1).
    pub vector: Option<u32>,
    /// Who crashes.
    pub strikes: Strikes,
    /// One more CPU takes part, and is stopped in one of these ways.
    pub helper: Option<&'static [&'static str]>,
    /// NMIs are part of it: what CPUs count is not the ladder's alone.
    pub sends_nmis: bool,
    /// The ladder has only its first rung.
    pub irq_only: bool,
    /// There is no image to jump to: last words.
    pub no_image: bool,
    /// Every CPU is struck, wedged or not, and may stop by itself; the cause is the CPU that
    /// was told to, or for an NMI whoever is first.
    pub reaches_all: bool,
    /// What an earlier NMI left of a CPU is overwritten: it says nothing.
    pub smears: bool,
}

const fn panic(name: &'static str) -> Crash {
    Crash {
        name,
        class: Class::Panic,
        kind: "panic",
        vector: None,
        strikes: Strikes::Itself,
        helper: None,
        sends_nmis: false,
        irq_only: false,
        no_image: false,
        reaches_all: false,
        smears: false,
    }
}

const fn exception(name: &'static str, vector: u32) -> Crash {
    Crash { class: Class::Exception, kind: "exception", vector: Some(vector), ..panic(name) }
}

/// A page fault on memory that is protected.
const fn protection(name: &'static str) -> Crash {
    Crash { class: Class::Protection, ..exception(name, 14) }
}

/// Every `crash=`.
pub const CRASHES: &[Crash] = &[
    panic("panic"),
    panic("assert"),
    Crash { no_image: true, ..panic("damaged-image") },
    Crash { sends_nmis: true, ..panic("live-backtrace") },
    Crash { irq_only: true, ..panic("no-nmi-handler") },
    panic("wild-gs-base"),
    Crash { smears: true, sends_nmis: true, ..panic("wild-per-cpu") },
    Crash { smears: true, ..panic("wild-registers") },
    Crash { kind: "oom", ..panic("oom") },
    exception("page-fault", 14),
    exception("null-call", 14),
    exception("gp", 13),
    exception("ud", 6),
    exception("divide", 0),
    exception("stack-overflow", 8),
    exception("double-fault", 8),
    protection("write-rodata"),
    protection("write-text"),
    protection("exec-nx"),
    protection("write-region"),
    protection("write-facts"),
    protection("write-idt"),
    protection("write-gdt"),
    protection("write-page-tables"),
    protection("write-stack-guard"),
    protection("write-roster"),
    protection("write-park"),
    Crash { class: Class::Handler, ..panic("panic-in-irq") },
    Crash { class: Class::Handler, sends_nmis: true, ..panic("panic-in-nmi") },
    Crash { class: Class::Handler, kind: "mce", vector: Some(18), ..panic("mce") },
    Crash {
        class: Class::Handler,
        kind: "mce",
        vector: Some(18),
        reaches_all: true,
        ..panic("mce-broadcast")
    },
    Crash {
        class: Class::Handler,
        kind: "nmi",
        strikes: Strikes::Everyone,
        sends_nmis: true,
        reaches_all: true,
        ..panic("external-nmi")
    },
    Crash { class: Class::Race, ..panic("panic-in-panic") },
    Crash { class: Class::Race, ..panic("loop-in-last-words") },
    Crash { class: Class::Race, ..panic("lock-in-last-words") },
    Crash { class: Class::Race, helper: Some(&["nmi"]), ..panic("heap-in-crash") },
    Crash { class: Class::Race, helper: Some(&["self"]), ..panic("panic-during-stop") },
    Crash {
        class: Class::Race,
        helper: Some(&["irq"]),
        sends_nmis: true,
        ..panic("nmi-at-stopper")
    },
    Crash { class: Class::Race, strikes: Strikes::Everyone, ..panic("parallel-panic") },
    Crash {
        class: Class::Noticed,
        kind: "hard-lockup",
        strikes: Strikes::Stuck { rung: "nmi", function: "spin_hard_lockup" },
        ..panic("hard-lockup")
    },
    Crash {
        class: Class::Noticed,
        kind: "soft-lockup",
        strikes: Strikes::Stuck { rung: "irq", function: "spin_soft_lockup" },
        ..panic("soft-lockup")
    },
    // Two CPUs wait for each other, interrupts on.
    Crash {
        class: Class::Noticed,
        kind: "soft-lockup",
        strikes: Strikes::Stuck { rung: "irq", function: "deadlock::take_both" },
        helper: Some(&["irq"]),
        ..panic("deadlock")
    },
];

/// How a wedged CPU can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// By the interrupt: it lets go in time.
    ByIrq,
    /// By the NMI.
    ByNmi,
    /// By INIT; the boot processor by nothing.
    ByInit,
    /// It is inside the funnel when the NMI comes: the interrupt that brought it there
    /// counts.
    InFunnel,
}

/// A `wedge=`.
#[derive(Debug, Clone, Copy)]
pub struct Wedge {
    /// Its name.
    pub name: &'static str,
    /// It is for the boot processor only.
    pub on_boot_processor: bool,
    /// How the CPU is reached.
    pub reached: Reached,
    /// The function it stays in for ever, if it does.
    pub function: Option<&'static str>,
    /// A lock it holds: two of them would wait for each other.
    pub holds: Option<&'static str>,
    /// It strikes in the block driver: it takes a disk to work on, a slow one.
    pub on_disk: bool,
}

const fn wedged(name: &'static str, reached: Reached, function: &'static str) -> Wedge {
    let (on_boot_processor, on_disk) = (false, false);
    Wedge { name, on_boot_processor, reached, function: Some(function), holds: None, on_disk }
}

/// Every `wedge=`.
pub const WEDGES: &[Wedge] = &[
    wedged("irqs-off", Reached::ByNmi, "spin_irqs_off"),
    // What is known of it is where the NMI came that it never left, which is where it was sent.
    wedged("nmi-blocked", Reached::ByInit, "inject::strike_if_due"),
    Wedge {
        on_boot_processor: true,
        ..wedged("bsp-nmi-blocked", Reached::ByInit, "inject::strike_if_due")
    },
    Wedge {
        holds: Some("console"),
        ..wedged("lock-holder", Reached::ByNmi, "spin_holding_the_console")
    },
    Wedge {
        function: None,
        holds: Some("console"),
        ..wedged("lock-holder-brief", Reached::ByIrq, "")
    },
    Wedge {
        holds: Some("cross-calls"),
        ..wedged("xcall-holder", Reached::ByNmi, "spin_holding_the_calls")
    },
    Wedge { function: None, ..wedged("slow-acker", Reached::InFunnel, "") },
    Wedge {
        holds: Some("disk"),
        on_disk: true,
        ..wedged("io-holder", Reached::ByNmi, "spin_in_the_block_driver")
    },
    Wedge {
        function: None,
        holds: Some("disk"),
        on_disk: true,
        ..wedged("io-holder-brief", Reached::ByIrq, "")
    },
];

/// The line of `name`.
#[must_use]
pub fn crash(name: &str) -> Option<&'static Crash> {
    CRASHES.iter().find(|crash| crash.name == name)
}

/// The line of `name`.
#[must_use]
pub fn wedge(name: &str) -> Option<&'static Wedge> {
    WEDGES.iter().find(|wedge| wedge.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness;

    /// A fault that has no line here would be in no matrix.
    #[test]
    fn every_name_of_the_command_line_has_a_line() {
        let names: Vec<_> = CRASHES.iter().map(|crash| crash.name).collect();
        for name in harness::crash_names() {
            assert!(names.contains(name), "crash={name} has no line in the catalogue");
        }
        assert_eq!(names.len(), harness::crash_names().len(), "a line too many");
        let names: Vec<_> = WEDGES.iter().map(|wedge| wedge.name).collect();
        for name in harness::wedge_names() {
            assert!(names.contains(name), "wedge={name} has no line in the catalogue");
        }
        assert_eq!(names.len(), harness::wedge_names().len(), "a line too many");
    }
}
