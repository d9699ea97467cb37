//! CPUs that do not answer the first rung.

use e2e::harness::{self, Boot, Options, Verdict};

use crate::locks;
use crate::story::{Crashed, Story, stories};

/// Interrupts off: the interrupt never arrives, the NMI does.
const IRQS_OFF: Story =
    Story { wedges: &["irqs-off,cpu=3"], stopped: &[(3, "nmi", "interrupted")], ..Story::PANIC };

/// Inside an NMI handler: a second NMI is held back, INIT is not. The registers are those
/// of the NMI the CPU never came back from.
const NMI_BLOCKED: Story =
    Story { wedges: &["nmi-blocked,cpu=2"], stopped: &[(2, "init", "last-known")], ..Story::PANIC };

stories! {
    nmi_blocked_from_grub = Story { boot: Boot::Bios, ..NMI_BLOCKED };
}

/// Proves R2.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn irqs_off() {
    let crashed = IRQS_OFF.tell();
    stands_in_its_loop(&crashed);
    // The first rung had its whole window, the second was left as soon as CPU 3 had answered.
    let handoff = crashed.dump.handoff.as_ref().expect("the hand-off");
    let used = |rung: usize| {
        let rung = &handoff.timeline[rung];
        let ticks = rung.closed_tsc - rung.sent_tsc;
        let waited = crashed.dump.nanoseconds(ticks).expect("a clock");
        // Both went through the clock's ticks and back.
        (rung.targets, waited + 1000 >= rung.window_ns)
    };
    assert_eq!(handoff.timeline_count, 2);
    assert_eq!([used(0), used(1)], [(3, true), (1, false)]);
    // It was on its way before anybody was told why.
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    let ticks = handoff.timeline[0].sent_tsc - facts.boot_tsc;
    let sent_us = crashed.dump.nanoseconds(ticks).expect("a clock") / 1000;
    let mut lines = crashed.outcome.console.text().lines();
    let told = lines.find_map(|line| line.strip_prefix('[')?.split_once("] panic: "));
    let told_us = told.map(|(stamp, _)| stamp.trim().replace('.', ""));
    let told_us: u64 = told_us.expect("the cause").parse().expect("microseconds");
    assert!(sent_us <= told_us, "asked to stop after {sent_us} us, told why after {told_us} us");
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn irqs_off_from_grub() {
    stands_in_its_loop(&Story { boot: Boot::Bios, ..IRQS_OFF }.tell());
}

/// INIT at the boot processor would reset the machine: it is left running, the dump says
/// so, and everything else is there.
/// Proves R8, L4, L7.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nmi_blocked_on_the_boot_processor() {
    let story = Story { wedges: &["nmi-blocked,cpu=0"], ..Story::PANIC };
    let crashed = Crashed::from(&story.options());
    let cpu = crashed.dump.cpu(0).expect("CPU 0");
    assert_eq!(cpu.stopped_by.name().unwrap_or_default(), "not-stopped");
    assert_eq!(cpu.registers_from.name().unwrap_or_default(), "last-known");
}

/// Both at once, each stopped by its own rung.
/// Proves R8, R12, L8.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn both_kinds() {
    let story = Story {
        wedges: &["irqs-off,cpu=3", "nmi-blocked,cpu=2"],
        stopped: &[(2, "init", "last-known"), (3, "nmi", "interrupted")],
        ..Story::PANIC
    };
    stands_in_its_loop(&story.tell());
}

/// CPU 3 was interrupted in the function it spins in, and nothing hides that.
fn stands_in_its_loop(crashed: &Crashed) {
    let names = crashed.functions(3);
    assert!(
        names.iter().take(3).any(|name| name.contains("spin_irqs_off")),
        "CPU 3 stands in {names:#?}"
    );
    // Before the NMI was sent, the console said so.
    let console = &crashed.outcome.console;
    let announced = console.all_after("stop: about to send ").any(|text| text.starts_with("nmi"));
    assert!(announced, "{}", console.tail(30));
}

/// A CPU that holds the console's lock with interrupts off, for ever: the stop goes on
/// without the lock, and says so on that very console before it sends the NMI.
/// Proves R7, R10.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn holder_of_the_console() {
    let story = Story {
        wedges: &["lock-holder,cpu=3"],
        stopped: &[(3, "nmi", "interrupted")],
        ..Story::PANIC
    };
    let crashed = story.tell();
    assert!(crashed.outcome.console.has("stop: about to send nmi to CPU 3"));
    let names = crashed.functions(3);
    assert!(names.iter().any(|name| name.contains("spin_holding_the_console")), "{names:?}");
    // The dump names the holder, where it took the lock, and what became of it.
    let locks = locks::locks(&crashed);
    let console = locks::lock(&locks, "console");
    assert_eq!(console.owner, Some(3), "{console:#?}");
    let site = console.acquired.as_ref().and_then(|site| site.function.as_deref());
    assert!(site.is_some_and(|site| site.ends_with("wedges::lock_holder")), "{console:#?}");
    let said =
        "`console` is held by CPU 3 (acquired at kernel::trial::inject::wedges::lock_holder ";
    let sentence = locks.sentences.iter().find(|sentence| sentence.contains(said));
    let sentence = sentence.unwrap_or_else(|| panic!("{:#?}", locks.sentences));
    assert!(sentence.contains("stopped by NMI after "), "{sentence}");
    let cpu = crashed.dump.cpu(3).expect("CPU 3");
    assert_eq!((cpu.locks_held, cpu.stop_nmi_count), (1, 1));
    assert_eq!(vmcore::info(&crashed.dump).cpus[3].interrupts, Some(false));
    // What happened when: the NMI after the interrupt's window, the answer after the NMI.
    let timeline = vmcore::timeline(&crashed.dump).expect("the timeline");
    let of_cpu_3 = timeline.events.iter().filter(|event| event.cpus.contains(&3));
    let of_cpu_3: Vec<_> = of_cpu_3
        .map(|event| (event.event.as_str(), event.rung.as_deref().unwrap_or_default()))
        .collect();
    let wanted = [("sent", "irq"), ("closed", "irq"), ("sent", "nmi"), ("acknowledged", "nmi")];
    assert_eq!(of_cpu_3, wanted);
}

/// A CPU that is stuck inside the machinery of cross-calls: the stop uses nothing of it.
/// Proves R9.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn holder_of_the_cross_calls() {
    let story = Story {
        wedges: &["xcall-holder,cpu=3"],
        stopped: &[(3, "nmi", "interrupted")],
        ..Story::PANIC
    };
    let names = story.tell().functions(3);
    assert!(names.iter().any(|name| name.contains("spin_holding_the_calls")), "{names:?}");
}

/// A CPU in a critical section that it leaves inside the window: the interrupt waits for it,
/// and no CPU ever sees an NMI.
/// Proves R1, R3, L5.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn holder_that_lets_go() {
    let crashed = Story { wedges: &["lock-holder-brief,cpu=3"], ..Story::PANIC }.tell();
    assert!(crashed.dump.cpus.iter().all(|cpu| cpu.nmi_count == 0 && cpu.stop_nmi_count == 0));
    let locks = locks::locks(&crashed);
    let console = locks::lock(&locks, "console");
    assert!(!console.held && console.waiters.is_empty(), "{console:#?}");
    assert!(crashed.dump.cpus.iter().all(|cpu| cpu.locks_held == 0));
    assert!(!crashed.outcome.console.has("stop: about to send nmi"));
}

/// The ladder is also the way to an orderly end: a CPU with interrupts off is stopped by NMI
/// before the machine is switched off or reset, and there is no dump.
/// Proves R20.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn orderly_end_with_a_cpu_wedged() {
    for (way, last) in [("poweroff", "power: switching off"), ("reset", "power: resetting")] {
        let options = Options {
            crash: None,
            wedges: Vec::new(),
            command_line: format!(
                "workload=sieve,n=1000000 crash=orderly-{way},cpu=1 wedge=irqs-off,cpu=3"
            ),
            expect: Some(Verdict::Unknown),
            ..Story::PANIC.options()
        };
        let outcome = harness::run(&options, &mut |_| ()).expect("a run");
        assert!(outcome.console.has("stop: about to send nmi to CPU 3"), "{way}");
        assert!(outcome.console.has("stop: 3 of 3 CPUs acknowledged"), "{way}");
        assert!(!outcome.console.has("capture:") && outcome.vmcore.is_none(), "{way}");
        assert!(outcome.console.has(last), "{way}");
        assert_eq!(outcome.report.qemu_exit, Some(0), "{way}");
    }
}

/// The next rung fires while a CPU is between the save and the acknowledgement: the first
/// registers and the first rung stay.
/// Proves R15, L1.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn slow_to_acknowledge() {
    let crashed = Story { wedges: &["slow-acker,cpu=3"], ..Story::PANIC }.tell();
    assert!(crashed.outcome.console.has("stop: about to send nmi to CPU 3"));
    assert!(crashed.dump.cpu(3).expect("CPU 3").nmi_count >= 1);
}
