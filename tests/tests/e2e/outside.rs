//! Faults that come from outside the program: the hardware's own errors, and an NMI.

use crate::story::{Crashed, Story};

/// What the harness has QEMU put into the bank.
const STATUS: u64 = 0xbe00_0000_0000_0134;
const MACHINE_CHECK: u32 = 18;

fn by(crashed: &Crashed, cpu: u32) -> &'static str {
    crashed.dump.cpu(cpu).expect("a record for every CPU").stopped_by.name().unwrap_or_default()
}

/// One CPU reports an error; the others learn of it by the stop.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn machine_check() {
    let story = Story {
        crash: "mce",
        kind: "mce",
        vector: Some(MACHINE_CHECK),
        through: &["await_from_outside", "inject::strike", "Workload>::run"],
        ..Story::PANIC
    };
    let crashed = story.tell();
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!((cause.error_code, cause.address), (STATUS, 0x123_4000));
    assert!(cause.message().contains("bank 5 status 0xbe00000000000134"), "{}", cause.message());
}

/// Every CPU gets one at the same time. The one that lost something is the cause, whoever
/// was first; the others stop, by whatever reaches them first, and nobody is lost.
/// Proves L6.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn machine_check_at_everybody() {
    let crashed = Crashed::from(&Story { crash: "mce-broadcast", ..Story::PANIC }.options());
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!((cause.kind.name().unwrap_or_default(), cause.cpu), ("mce", 1));
    assert_eq!(cause.error_code, STATUS);
    assert_eq!(by(&crashed, 1), "crash");
    for cpu in [0, 2, 3] {
        assert!(["self", "irq"].contains(&by(&crashed, cpu)), "CPU {cpu}: {}", by(&crashed, cpu));
        let names = crashed.functions(cpu);
        assert!(names.len() >= 2, "CPU {cpu}: {names:?}");
    }
}

/// Somebody presses the button. The firmware's tables wire it to every CPU here, so it is a
/// race that one of them wins; that it was no NMI of the ladder's shows in the record.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nmi_button() {
    let crashed = Crashed::from(&Story { crash: "external-nmi", ..Story::PANIC }.options());
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!(cause.kind.name().unwrap_or_default(), "nmi");
    let ways: Vec<_> = (0..4).map(|cpu| by(&crashed, cpu)).collect();
    assert_eq!(ways.iter().filter(|way| **way == "crash").count(), 1, "{ways:?}");
    assert!(ways.iter().all(|way| ["crash", "self", "irq"].contains(way)), "{ways:?}");
    assert!(
        crashed
            .dump
            .cpus
            .iter()
            .all(|cpu| cpu.x86().is_some_and(|set| set.rip != 0) && cpu.nmi_count <= 1)
    );
    // CPU 1 stood where it asked for it.
    let names = crashed.functions(1);
    assert!(names.iter().any(|name| name.contains("await_from_outside")), "{names:#?}");
}
