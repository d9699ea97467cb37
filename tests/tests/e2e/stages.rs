//! Armed early: a crash at every stage of the boot is captured, or leaves last words.

use e2e::harness::{self, Boot, Options, Verdict};
use vmcore_format::last_words;

use crate::story::{assert_verdict, folder};

/// The stages before there is a capture image to jump to: options read, region taken, park
/// area built, image loaded but not sealed.
const UNARMED: [&str; 4] = ["options", "region", "park-area", "image-loaded"];
/// Every stage from there on, in the order of the boot.
const ARMED: [&str; 20] = [
    "armed",
    "clock",
    "facts-complete",
    "apic",
    "interrupts",
    "frames",
    "stacks",
    "sealed",
    "start-up-code",
    "protected",
    "target",
    "rehearsed",
    "cpus-started",
    "round-trip",
    "cpus-released",
    "plan",
    "workload-chosen",
    "workload-prepared",
    "round-done",
    "verdict",
];
fn options(stage: &str, expect: Verdict) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        crash: Some(format!("panic,at={stage}")),
        command_line: "workload=sieve,n=100000".into(),
        expect: Some(expect),
        tidy: true,
        ..Options::new(Boot::Pvh, folder().join(stage))
    }
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn before_it_is_armed_there_are_last_words() {
    for stage in UNARMED {
        let outcome =
            harness::run(&options(stage, Verdict::LastWords), &mut |_| ()).expect("a run");
        assert_verdict(&outcome, Verdict::LastWords);
        assert!(outcome.console.has(&format!("stage: {stage}")), "{stage}");
        let record = last_words::find(outcome.console.text()).expect("a record");
        assert!(record.lines().any(|line| line.contains("kind=panic")), "{stage}");
    }
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn from_then_on_there_is_a_dump() {
    for stage in ARMED {
        let outcome = harness::run(&options(stage, Verdict::Captured), &mut |_| ()).expect("a run");
        assert_verdict(&outcome, Verdict::Captured);
        assert!(outcome.console.has(&format!("stage: {stage}")), "{stage}");
    }
}

/// The lists above are complete: a stage that does not exist makes the appliance name
/// those that do.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_stage_is_tried() {
    let options = Options {
        crash: None,
        command_line: "workload=sieve,n=100000 crash=panic,at=nowhere".into(),
        ..options("nowhere", Verdict::Finished)
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Finished);
    let named = outcome.console.after("is no stage of the boot; those are ").expect("the list");
    let named: Vec<_> = named.split_whitespace().collect();
    let tried: Vec<_> = UNARMED.into_iter().chain(ARMED).collect();
    assert_eq!(named, tried);
}
