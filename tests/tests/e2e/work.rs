//! Machines that do not crash.

use e2e::harness::{self, Boot, Options, Verdict};

use crate::story::{Story, assert_verdict};

fn finishes(boot: Boot, cpus: u32) {
    let options = Options { crash: None, cpus, boot, ..Story::PANIC.options() };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Finished);
    assert!(outcome.vmcore.is_none());
    assert!(outcome.console.has("armed: "));
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn on_one_cpu() {
    finishes(Boot::Pvh, 1);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn on_four_cpus_from_grub() {
    finishes(Boot::Bios, 4);
}

/// A workload nobody has is a failed verdict, not a finished run.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn unknown_workload() {
    let command_line = "workload=alchemy".into();
    let options = Options { crash: None, command_line, ..Story::PANIC.options() };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Unknown);
    assert!(outcome.console.has("verdict: FAILED"));
}
