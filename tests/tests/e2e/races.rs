//! Crashes that meet: in handlers, in each other, in the crash path itself.

use crate::story::{Crashed, Story, stories};

stories! {
    /// The backtrace leads through the interrupt into the work it interrupted.
    panic_in_an_interrupt_handler = Story {
        crash: "panic-in-irq",
        through: &["crashes::on_interrupt", "trap_common", "inject::strike", "Workload>::run"],
        ..Story::PANIC
    };
    panic_in_an_nmi_handler = Story {
        crash: "panic-in-nmi",
        through: &["crash::on_nmi", "trap_common", "inject::strike", "Workload>::run"],
        ..Story::PANIC
    };
}

/// CPU 3, interrupts off, panics while CPU 1 is stopping the others: it stops itself, with the
/// registers it crashed with, and gets no NMI. Proves R14, R17.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn panic_while_being_stopped() {
    let story =
        Story { crash: "panic-during-stop", stopped: &[(3, "self", "self")], ..Story::PANIC };
    assert_eq!(story.tell().dump.cpu(3).expect("CPU 3").nmi_count, 0);
}

/// The crash path panics on the crashing CPU: the step under way is given up, the next one
/// is taken, and the dump says so.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn panic_in_the_crash_path() {
    let crashed = Story { crash: "panic-in-panic", ..Story::PANIC }.tell();
    let handoff = crashed.dump.handoff.as_ref().expect("the hand-off");
    assert_eq!(handoff.nested, 1);
    assert_eq!(handoff.cause.message(), "asked for by crash=panic-in-panic");
}

/// An NMI at the CPU that is stopping the others means nothing to it.
/// Proves R5.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nmi_at_the_stopper() {
    let crashed = Story { crash: "nmi-at-stopper", ..Story::PANIC }.tell();
    assert_eq!(crashed.dump.handoff.as_ref().expect("the hand-off").nested, 0);
    assert_eq!(crashed.dump.cpu(1).expect("CPU 1").nmi_count, 1);
}

/// All CPUs panic at once, several times over: one dump each time, from one crashing CPU,
/// with the registers of everybody; the losers have stopped themselves.
/// Proves R4.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn everyone_panics_at_once() {
    for _ in 0..3 {
        let crashed = Crashed::from(&Story { crash: "parallel-panic", ..Story::PANIC }.options());
        let by: Vec<_> =
            crashed.dump.cpus.iter().map(|cpu| cpu.stopped_by.name().unwrap_or_default()).collect();
        assert_eq!(by.iter().filter(|by| **by == "crash").count(), 1, "{by:?}");
        assert!(by.iter().all(|by| ["crash", "self", "nmi"].contains(by)), "{by:?}");
        assert!(crashed.dump.cpus.iter().all(|cpu| cpu.x86().is_some_and(|set| set.rip != 0)));
        assert_eq!(crashed.backtraces.len(), 4);
    }
}
