//! A machine that crashes at every boot comes back as often as it may, and then stays down.

use e2e::harness::{self, Console, Module, Options, Policy, Verdict};
use vmcore_format::last_words;

use crate::story::{MEMORY, Story};

/// Two crashes are allowed within ten minutes, with whatever `change` makes of the machine.
/// Returns the console of all boots.
fn crashes(change: impl FnOnce(&mut Options)) -> Console {
    let mut options = Options {
        cpus: 2,
        policy: Policy::Reboot,
        comes_back: true,
        command_line: "workload=sieve,n=100000 crash_loop=2/10".into(),
        // Several boots end as several things; the test looks at each.
        expect: Some(Verdict::Unknown),
        ..Story::PANIC.options()
    };
    options.disks[0].slots = 4;
    options.memory = MEMORY / 2;
    change(&mut options);
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_eq!(outcome.console.all_after("epitaph: booted by ").count(), 3, "{outcome}");
    let end = outcome.console.tail(3);
    assert!(end.contains("halt"), "it is to stay down: {end}");
    let record = last_words::find(outcome.console.text()).expect("last words");
    assert_eq!(record.state, last_words::State::Complete);
    outcome.console.clone()
}

/// The disk counts: two dumps, then last words.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn is_noticed_on_the_disk() {
    let console = crashes(|_| ());
    assert_eq!(console.all_after("capture: sealed stage `used`").count(), 2);
    assert!(console.has("; 2 crashes within 10 minutes: the next is a crash loop"), "said at boot");
    let reason = console.after("capture: FAILED: ").expect("a reason");
    assert!(reason.contains("crash loop: 3 crashes within 10 minutes, no dump"), "{reason}");
    assert!(console.has("capture: policy: halt"));
}

/// Without a disk the breadcrumb counts, for the capture image and for an appliance that has
/// none.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn is_noticed_without_a_disk() {
    let console = crashes(|options| options.disks.clear());
    assert!(console.has("capture: crash loop: 3 crashes within 10 minutes, staying down"));
    assert!(console.has("capture: policy: halt"));
    let console = crashes(|options| {
        options.disks.clear();
        options.module = Module::Absent;
    });
    assert!(console.has("crash: crash loop: 3 crashes within 10 minutes, staying down"));
    assert!(console.has("crash: halted"));
}
