//! What the machine does once everything is said: after a dump, without one, and after
//! work that went well. A machine that ends otherwise than told is `unknown`.

use e2e::harness::{self, Module, Options, Policy, Verdict};

use crate::story::{Story, assert_verdict};

fn ends(options: &Options, wanted: Verdict) {
    let outcome = harness::run(options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, wanted);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn reboot_after_a_dump() {
    ends(&Options { policy: Policy::Reboot, ..Story::PANIC.options() }, Verdict::Captured);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn halt_after_a_dump() {
    ends(&Options { policy: Policy::Halt, ..Story::PANIC.options() }, Verdict::Captured);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn reboot_after_last_words() {
    let options = Options { policy: Policy::Reboot, ..Story::PANIC.options() };
    ends(&Options { module: Module::Absent, ..options }, Verdict::LastWords);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn halt_after_last_words() {
    let options = Options { policy: Policy::Halt, ..Story::PANIC.options() };
    ends(&Options { module: Module::Absent, ..options }, Verdict::LastWords);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn halt_after_work() {
    let command_line = "workload=sieve on_finish=halt".into();
    let options = Options { crash: None, command_line, ..Story::PANIC.options() };
    ends(&options, Verdict::Finished);
}
