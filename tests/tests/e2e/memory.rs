//! The appliance's memory: the heap, and what happens when there is none left.

use handoff::facts::memory_kind;

use crate::story::{Crashed, Story};

/// Memory used up to the last page, in the middle of work: the cause says so, and who asked
/// for how much. The capture needs nothing of it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn out_of_memory() {
    let story = Story {
        crash: "oom",
        kind: "oom",
        through: &["handle_alloc_error", "use_up_the_heap", "inject::strike", "Workload>::run"],
        ..Story::PANIC
    };
    let crashed = story.tell();
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    let message = cause.message();
    assert!(
        message.contains("no memory for 4000 bytes (aligned to 1), asked for by "),
        "{message}"
    );
    assert!(message.ends_with(" 0 pages are free"), "{message}");
}

/// A stopped CPU holds the heap, and the crash path asks it for memory all the same: refused
/// at once, and counted.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_heap_is_out_of_bounds_in_a_crash() {
    let story =
        Story { crash: "heap-in-crash", stopped: &[(3, "nmi", "interrupted")], ..Story::PANIC };
    let crashed = story.tell();
    assert!(crashed.outcome.console.has("crash: 1 requests to the heap refused"));
    assert!(crashed.functions(3).iter().any(|name| name.contains("hold_the_heap")));
}

/// Memory above 4 GiB, with the hole below it, is known and in use; and without pages of
/// 1 GiB, which not every processor has.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn five_gigabytes_with_a_hole() {
    const GIB: u64 = 1 << 30;
    let mut options = Story::PANIC.options();
    options.memory = 5 * GIB;
    options.command_line = "workload=sieve trace=off".into();
    options.qemu_args = vec!["-cpu".into(), "max,-pdpe1gb".into()];
    let crashed = Crashed::from(&options);
    Story::PANIC.check(&crashed);
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    let ram = || facts.memory().iter().filter(|entry| entry.kind == memory_kind::RAM);
    let above = ram().filter(|entry| entry.range.start >= 4 * GIB);
    // The machine keeps 2 GiB of it below the hole.
    assert_eq!(above.map(|entry| entry.range.bytes).sum::<u64>(), 3 * GIB);
    assert!(ram().all(|entry| !(2 * GIB..4 * GIB).contains(&entry.range.start)));
    // Nearly all of it is there to be used.
    let free = crashed.outcome.console.after("memory: ").expect("how much is free");
    let free: u64 = free.split(' ').next().and_then(|mib| mib.parse().ok()).expect("a number");
    assert!(free > 5000, "{free} MiB");
    // This one was told to record nothing, and says so when it is asked what it recorded.
    let trace = vmcore::trace(&crashed.dump, None, Default::default());
    let lacks = trace.expect_err("no trace").to_string();
    assert!(lacks.contains("nothing was recorded (trace=off"), "{lacks}");
}

/// The smallest machine that is promised to work: 96 MiB for up to eight CPUs.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn eight_cpus_in_96_mib() {
    let story = Story { cpus: 8, ..Story::PANIC };
    let mut options = story.options();
    options.memory = 96 << 20;
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    assert!(crashed.outcome.console.has("cpus: 8 of 8 started"));
}
