//! Processors that lack something: what is done without, and what is said where nothing can be.

use e2e::harness::{self, Options};

use crate::story::{Crashed, Story, folder};

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
        out: folder().join(processor),
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

/// What is used where it is there, and done without where it is not.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn features_that_are_done_without() {
    let without_nx = ["qemu64,-nx", "max,-nx"];
    for processor in without_nx {
        let crashed = tell(&Story::PANIC, processor);
        assert!(crashed.outcome.console.has("warning: cpu: no NX"), "{processor}");
    }
    for lack in ["mce", "mca", "pat", "pge", "pse", "fxsr", "cx16", "syscall", "pdpe1gb"] {
        tell(&Story::PANIC, &format!("max,-{lack}"));
    }
}

/// What nothing works without: one line that names it, whatever else the processor has.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn features_without_which_nothing_runs_are_named() {
    let lacks = [
        ("max,-tsc", "TSC"),
        ("max,-msr", "MSRs"),
        ("max,-pae", "PAE"),
        ("max,-apic", "local APIC"),
        ("max,-cmov", "CMOV"),
        ("max,-sse2", "SSE2"),
        ("max,-lm", "64-bit mode"),
        ("qemu32", "64-bit mode"),
    ];
    for (processor, name) in lacks {
        let options = Options {
            qemu_args: vec!["-cpu".into(), processor.into()],
            out: folder().join(processor),
            ..Story::PANIC.options()
        };
        let mut running = harness::start(&options).expect("a machine");
        let line = running.machine.wait_for_line("epitaph: ").expect("a line");
        let wanted = format!("epitaph: this processor has no {name}, nothing can run here");
        assert_eq!(line.trim(), wanted, "{processor}");
        running.machine.kill();
    }
}
