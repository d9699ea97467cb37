//! A machine with little on it: PCI by memory and without addresses, no gate at the PIT, no
//! power-management timer, power registers in memory.

use e2e::harness::{self, Boot, Bus, Disk, Options, Policy, Verdict};

use crate::story::{Crashed, Story, assert_verdict};

const MICROVM: Story = Story { boot: Boot::Microvm, ..Story::PANIC };

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn four_cpus_are_captured_by_way_of_memory() {
    let crashed = MICROVM.tell();
    let spaces = crashed.dump.facts.as_ref().expect("boot facts").config_spaces();
    let found: Vec<_> =
        spaces.iter().map(|space| (space.segment, space.address, space.last_bus)).collect();
    assert_eq!(found, [(0, 0xe000_0000, 255)]);
    // On a busy host no two measurements by the PIT agree; the calendar clock has to do then.
    let measured = ["MHz (pit-tick)", "MHz (rtc)"];
    assert!(measured.iter().any(|source| crashed.outcome.console.has(source)));
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn one_cpu_is_captured_to_nvme_and_resets_the_machine() {
    let story = Story { cpus: 1, on: 0, ..MICROVM };
    let options =
        Options { disks: vec![Disk::new(Bus::Nvme)], policy: Policy::Reboot, ..story.options() };
    story.check(&Crashed::from(&options));
}

/// The work ends in a power-off, by a register in memory. Without a PIT the seconds of the
/// calendar clock have to do, and without that a guess, which is said.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn work_ends_whatever_there_is_to_measure_the_clock_by() {
    for (without, source) in [("pit=off", "(rtc)"), ("pit=off,rtc=off", "(assumed)")] {
        let options = MICROVM.options();
        let out = options.out.join(without.replace(',', "-"));
        let qemu_args = vec!["-machine".into(), without.into()];
        let options = Options { crash: None, cpus: 4, qemu_args, out, ..options };
        let outcome = harness::run(&options, &mut |_| ()).expect("a run");
        assert_verdict(&outcome, Verdict::Finished);
        assert_eq!(outcome.report.qemu_exit, Some(0));
        assert!(outcome.console.has(source), "{}", outcome.console.tail(30));
    }
}
