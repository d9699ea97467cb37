//! Memory that nobody may write or execute: for every claim a crash that trips it.

use crate::story::{Story, stories};

const PAGE_FAULT: u32 = 14;
/// Error code bits (Intel SDM vol. 3, 4.7): the page is present, the access was a write, or
/// an instruction fetch.
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const FETCH: u64 = 16;

fn trips(crash: &'static str, error_code: u64) {
    let story = Story { kind: "exception", crash, vector: Some(PAGE_FAULT), ..Story::PANIC };
    let crashed = story.tell();
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!(cause.error_code & (PRESENT | WRITE | FETCH), error_code, "{}", cause.message());
}

macro_rules! trips {
    ($($(#[$doc:meta])* $name:ident = $crash:literal, $code:expr;)*) => {$(
        $(#[$doc])*
        #[test]
        #[ignore = "boots QEMU: run cargo xtask test"]
        fn $name() {
            trips($crash, $code);
        }
    )*};
}

trips! {
    constants_cannot_be_written = "write-rodata", PRESENT | WRITE;
    code_cannot_be_written = "write-text", PRESENT | WRITE;
    data_cannot_be_executed = "exec-nx", PRESENT | FETCH;
    the_capture_image_cannot_be_written = "write-region", PRESENT | WRITE;
    the_boot_facts_cannot_be_written = "write-facts", PRESENT | WRITE;
    the_idt_cannot_be_written = "write-idt", PRESENT | WRITE;
    the_gdt_cannot_be_written = "write-gdt", PRESENT | WRITE;
    page_tables_cannot_be_written = "write-page-tables", PRESENT | WRITE;
    who_is_who_cannot_be_written = "write-roster", PRESENT | WRITE;
    /// Proves L2.
    the_park_area_cannot_be_written = "write-park", PRESENT | WRITE;
    stack_guards_are_not_there = "write-stack-guard", 0;
}

/// The IDT is gone where the NMI gate was: an NMI would take the machine down, so none is
/// sent, and the console says so. The interrupt has to do, and does. Proves R6.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn without_the_nmi_gate() {
    let crashed = Story { crash: "no-nmi-handler", ..Story::PANIC }.tell();
    let console = &crashed.outcome.console;
    assert!(console.has("stop: the NMI handler is not in place"), "{}", console.tail(20));
    assert!(!console.has("stop: about to send"), "{}", console.tail(20));
}

stories! {
    /// Nobody is looked up through GS.
    /// Proves R19.
    with_a_wild_gs_base = Story { crash: "wild-gs-base", ..Story::PANIC };
    /// All that is kept per CPU is nonsense: everybody is reached, and under the right name.
    /// Proves R19.
    with_wild_per_cpu_records = Story { crash: "wild-per-cpu", ..Story::PANIC };
    /// So are all register slots: the stop fills them anew.
    with_wild_register_slots = Story { crash: "wild-registers", ..Story::PANIC };
}
