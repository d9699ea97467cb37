//! CPUs that no longer do their work, noticed by another.
//!
//! CPU 1 gets stuck; CPU 2 watches it and crashes on its behalf. Thresholds are far below
//! the defaults, so that a test takes seconds.

use e2e::harness::{self, Verdict};

use crate::story::{Crashed, Story, assert_verdict};

/// What CPU 2 makes of CPU 1: the crash, and what its dump has to say.
const NOTICED: Story = Story { on: 2, through: &["lockup::on_tick"], ..Story::PANIC };

const THRESHOLDS: &str = "workload=sieve workload=memstamp lockup_hard_ms=1000 lockup_soft_ms=1500";

/// Gets a CPU stuck by `crash` and checks that the story's says so in `words`, and that it
/// stands in `function`.
fn noticed(crash: &str, story: &Story, stuck: u32, words: &str, function: &str) -> Crashed {
    let mut options = story.options();
    options.crash = Some(format!("{crash},cpu={stuck}"));
    options.command_line = THRESHOLDS.into();
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert!(cause.message().starts_with(words), "{}", cause.message());
    let names = crashed.functions(stuck);
    let stands = names.iter().any(|name| name.contains(function));
    assert!(stands, "CPU {stuck} stands in {names:#?}");
    crashed
}

/// Its interrupts are off: only the NMI reaches it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn interrupts_off_too_long() {
    let story = Story { kind: "hard-lockup", stopped: &[(1, "nmi", "interrupted")], ..NOTICED };
    noticed("hard-lockup", &story, 1, "CPU 1 has not ticked for ", "spin_hard_lockup");
}

/// The boot processor is watched like any other, by the next one.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn interrupts_off_on_the_boot_processor() {
    let stopped = &[(0, "nmi", "interrupted")];
    let story = Story { on: 1, kind: "hard-lockup", stopped, ..NOTICED };
    noticed("hard-lockup", &story, 0, "CPU 0 has not ticked for ", "spin_hard_lockup");
}

/// It takes interrupts, and with them the stop.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_workload_that_stops_beating() {
    let story = Story { kind: "soft-lockup", ..NOTICED };
    let words = "CPU 1 has not beaten for ";
    let crashed = noticed("soft-lockup", &story, 1, words, "spin_soft_lockup");
    let cpu = crashed.dump.cpu(1).expect("CPU 1");
    assert_ne!(cpu.unit, u64::MAX, "the unit it is stuck in");
    assert!(["sieve", "memstamp"].contains(&cpu.workload()), "{}", cpu.workload());
}

/// Alone, a CPU notices its own stuck work, since it still ticks.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn stuck_work_alone() {
    let story = Story {
        cpus: 1,
        on: 0,
        kind: "soft-lockup",
        through: &["lockup::on_tick", "spin_soft_lockup", "Workload>::run"],
        ..NOTICED
    };
    noticed("soft-lockup", &story, 0, "CPU 0 has not beaten for ", "spin_soft_lockup");
}

/// Alone, nobody would ever notice masked interrupts: the appliance says so and works on.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn interrupts_off_alone_is_refused() {
    let mut options = Story { cpus: 1, on: 0, ..NOTICED }.options();
    options.crash = Some("hard-lockup,cpu=0".into());
    options.expect = Some(Verdict::Finished);
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    let said = "warning: crash=hard-lockup: nobody would notice it";
    assert!(outcome.console.has(said), "{}", outcome.console.tail(30));
}

/// A CPU that was wedged on request is no lockup, however long the crash is in coming.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_wedge_is_not_taken_for_a_lockup() {
    let mut options = Story::PANIC.options();
    // No crash: the wedge stays, and the workloads go on around it until the time is up.
    options.crash = None;
    options.wedges = vec!["irqs-off,cpu=3".into()];
    options.command_line = THRESHOLDS.into();
    options.timeout = std::time::Duration::from_secs(12);
    options.expect = Some(Verdict::Hung);
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Hung);
    let console = &outcome.console;
    assert!(console.has("wedge: irqs-off on cpu 3 in place"), "{}", console.tail(40));
    assert!(!console.has("lockup: "), "{}", console.tail(40));
}
