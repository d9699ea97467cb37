//! Machines that do not crash.

use e2e::harness::{self, Boot, Options, Verdict};

use crate::story::{Crashed, Story, assert_verdict, folder};

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

/// Workloads that finish fast, and the published results of those that have one.
const WORK: [(&str, Option<&str>); 6] = [
    ("queens", Some("365596")),
    ("sieve", Some("664579")),
    ("hashtree", None),
    ("bank", None),
    ("ring", None),
    ("heap", None),
];

/// The digests of a machine with `cpus` CPUs, in the order of [`WORK`].
fn digests(cpus: u32) -> Vec<String> {
    let words = WORK.map(|(name, _)| format!("workload={name}"));
    let out = folder().join(format!("cpus-{cpus}"));
    let command_line = words.join(" ");
    let options = Options { crash: None, cpus, command_line, out, ..Story::PANIC.options() };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Finished);
    let digest = |name| {
        let line = outcome.console.after(&format!("{name}: round 0 right: "));
        let line = line.unwrap_or_else(|| panic!("no result of {name}"));
        line.split(' ').next().unwrap_or_default().to_owned()
    };
    WORK.map(|(name, _)| digest(name)).into()
}

/// Results are the published ones, and do not depend on how many CPUs found them.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn same_results_on_one_and_on_four_cpus() {
    let alone = digests(1);
    for ((name, published), digest) in WORK.iter().zip(&alone) {
        assert_eq!(published.unwrap_or(digest), digest, "{name}");
    }
    assert!(alone.contains(&vmcore::hashtree(1, 4096).root), "the host's root: {alone:?}");
    assert_eq!(alone, digests(4));
}

/// What a workload says in a crash is on the console and in the log of the dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_workload_says_where_it_stood() {
    for name in ["bank", "ring"] {
        let mut options = Story::PANIC.options();
        options.command_line = format!("workload={name}");
        options.out = options.out.join(name);
        let crashed = Crashed::from(&options);
        let said = crashed.outcome.console.after(&format!("crash: {name} says: "));
        let said = said.expect("words").to_owned();
        assert!(
            said.contains(if name == "bank" { "64 accounts" } else { "not answered" }),
            "{said}"
        );
        let log = vmcore::log(&crashed.dump).expect("a log");
        assert!(log.text.contains(&said), "{said}");
    }
}

/// A workload that cannot run is a failed verdict that says why, not a finished run.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn what_cannot_run_says_why() {
    for (number, (workload, why)) in [
        ("alchemy", "there are: sieve memstamp queens"),
        ("queens,n=3", "n=3: give a whole number from 4 to 16"),
        ("ring,size=9", "there are: numbers=1024..1048576 (262144), seed="),
        ("sieve workload=sieve", "chosen twice"),
    ]
    .into_iter()
    .enumerate()
    {
        let command_line = format!("workload={workload}");
        let out = folder().join(number.to_string());
        let options = Options { crash: None, command_line, out, ..Story::PANIC.options() };
        let outcome = harness::run(&options, &mut |_| ()).expect("a run");
        assert_verdict(&outcome, Verdict::Unknown);
        let verdict = outcome.console.after("verdict: FAILED ").expect("a verdict");
        assert!(verdict.contains(why), "{verdict}");
    }
}
