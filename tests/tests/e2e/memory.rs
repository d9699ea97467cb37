//! The appliance's memory: the heap, and what happens when there is none left.

use crate::story::Story;

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
