//! What a run leaves for scripts.

use e2e::harness::{self, Module, Options, Report, Verdict};

use crate::story::{Story, assert_verdict};

/// `run.json` names everything a script needs, and the exit rule follows from it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn run_json_says_what_was_run() {
    let mut options = Story { wedges: &["irqs-off"], ..Story::PANIC }.options();
    options.expect = Some(Verdict::Finished);
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Captured);
    assert!(!outcome.as_expected());
    let text = std::fs::read_to_string(outcome.out.join("run.json")).expect("run.json");
    let report: Report = serde_json::from_str(&text).expect("valid JSON");
    assert_eq!((report.verdict, report.expected), (Verdict::Captured, Verdict::Finished));
    assert_eq!((report.boot.as_str(), report.cpus, report.memory), ("pvh", 4, options.memory));
    assert_eq!(report.crash.as_deref(), Some("panic,cpu=1"));
    assert_eq!(report.wedges, ["irqs-off"]);
    assert_eq!(report.qemu_exit, Some(0));
    assert!(report.image.is_file());
    assert!(report.command[0].contains("qemu"));
    for name in ["console.log", "disk.img", "vmcore"] {
        assert!(outcome.out.join(name).is_file(), "{name}");
    }
}

/// A machine that does not come to an end is ended, and that is its verdict.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_time_out_is_hung() {
    let mut options = Story::PANIC.options();
    options.timeout = std::time::Duration::from_secs(3);
    // Stopped from the start, and nobody to let it go.
    options.qemu_args = vec!["-S".into()];
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Hung);
    assert!(outcome.out.join("machine.txt").is_file(), "where the CPUs stood");
}

/// What would hold up the dump is shown behind its first seal, or before the word that there
/// is none; once, whoever shows it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_crash_says_what_can_wait_when_it_can() {
    let in_order = |module: Module, expected: Verdict, lines: &[&str]| {
        let options = Options { module, expect: Some(expected), ..Story::PANIC.options() };
        let outcome = harness::run(&options, &mut |_| ()).expect("a run");
        assert_verdict(&outcome, expected);
        let mut rest = outcome.console.text();
        for line in lines {
            let (_, behind) = rest.split_once(line).unwrap_or_else(|| panic!("{line}: {rest}"));
            rest = behind;
        }
        let stopped = outcome.console.all_after("stop: 3 of 3 CPUs acknowledged");
        assert_eq!(stopped.count(), 1, "{}", outcome.console.text());
    };
    in_order(
        Module::Built,
        Verdict::Captured,
        &[
            "panic: ",
            "capture: leaving\n",
            "capture: entered\n",
            "stop: 3 of 3 CPUs acknowledged\n",
            "crash: sieve says: ",
            "capture: image at ",
            "sealed stage `mini`",
        ],
    );
    in_order(
        Module::Absent,
        Verdict::LastWords,
        &["panic: ", "stop: 3 of 3 CPUs acknowledged\n", "crash: sieve says: ", "no-dump: "],
    );
}
