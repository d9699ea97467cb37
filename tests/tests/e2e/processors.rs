//! Processors that lack something: x2APIC, RDTSCP, the topology leaf of CPUID.

use e2e::harness::Options;

use crate::story::{Crashed, Story};

/// The same story everywhere: one CPU by each rung of the ladder.
const EVERY_RUNG: Story = Story {
    wedges: &["irqs-off,cpu=3", "nmi-blocked,cpu=2"],
    stopped: &[(2, "init", "last-known"), (3, "nmi", "interrupted")],
    ..Story::PANIC
};

/// Runs the story on such a processor, and checks all that is checked elsewhere.
fn tell(story: &Story, processor: &str) -> Crashed {
    let options = Options {
        // The last processor named is the one QEMU takes.
        qemu_args: vec!["-cpu".into(), processor.into()],
        ..story.options()
    };
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    crashed
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_rung_without_x2apic() {
    let crashed = tell(&EVERY_RUNG, "max,-x2apic");
    let console = &crashed.outcome.console;
    assert!(console.has("the local APIC is in xAPIC mode"), "{}", console.tail(40));
}

/// The boot processor crashes, everyone else is healthy.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_panic_on_the_boot_processor_without_x2apic() {
    tell(&Story { on: 0, ..Story::PANIC }, "max,-x2apic");
}

/// A CPU has to learn who it is before its APIC is set up: nothing of the APIC can be asked.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_rung_without_rdtscp() {
    tell(&EVERY_RUNG, "max,-rdtscp");
}

/// Leaf 0bh of CPUID is all zero, and leaf 0dh is there: processors of 2011 are like that.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_rung_without_the_topology_leaf() {
    tell(&EVERY_RUNG, "max,-x2apic,cpuid-0xb=off");
}
