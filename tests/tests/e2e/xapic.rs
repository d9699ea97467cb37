//! Processors without x2APIC.

use e2e::harness::Options;

use crate::story::{Crashed, Story};

/// Runs the story on such a processor, and checks all that is checked elsewhere.
fn tell(story: &Story) {
    let options = Options {
        // The last processor named is the one QEMU takes.
        qemu_args: vec!["-cpu".into(), "max,-x2apic".into()],
        ..story.options()
    };
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    let console = &crashed.outcome.console;
    assert!(console.has("the local APIC is in xAPIC mode"), "{}", console.tail(40));
}

/// One CPU by each rung of the ladder.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_rung() {
    tell(&Story {
        wedges: &["irqs-off,cpu=3", "nmi-blocked,cpu=2"],
        stopped: &[(2, "init", "last-known"), (3, "nmi", "interrupted")],
        ..Story::PANIC
    });
}

/// The boot processor crashes, everyone else is healthy.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_panic_on_the_boot_processor() {
    tell(&Story { on: 0, ..Story::PANIC });
}
