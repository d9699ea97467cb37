//! CPU exceptions.

use e2e::harness::Boot;

use crate::story::{Story, stories};

/// Vectors (Intel SDM vol. 3, table 6-1).
const DIVIDE: u32 = 0;
const UNDEFINED: u32 = 6;
const DOUBLE_FAULT: u32 = 8;
const GENERAL_PROTECTION: u32 = 13;
const PAGE_FAULT: u32 = 14;

const FAULT: Story = Story { kind: "exception", ..Story::PANIC };

stories! {
    page_fault_from_grub =
        Story { boot: Boot::Bios, crash: "page-fault", vector: Some(PAGE_FAULT), ..FAULT };
    general_protection = Story { crash: "gp", vector: Some(GENERAL_PROTECTION), ..FAULT };
    undefined_instruction = Story { crash: "ud", vector: Some(UNDEFINED), ..FAULT };
    division_by_zero = Story { crash: "divide", vector: Some(DIVIDE), ..FAULT };
}

/// The address that was touched is part of the cause.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn page_fault() {
    let story = Story { crash: "page-fault", vector: Some(PAGE_FAULT), ..FAULT };
    let crashed = story.tell();
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!(cause.kind.name().unwrap_or_default(), "exception");
    assert_eq!(cause.address, 0x7f00_dead_b000);
}

/// A call through a null pointer leaves nothing at the program counter; the caller is
/// found all the same.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn call_of_address_zero() {
    let story = Story { crash: "null-call", vector: Some(PAGE_FAULT), ..FAULT };
    let crashed = story.tell();
    assert_eq!(crashed.dump.cpu(1).expect("CPU 1").x86().map(|set| set.rip), Some(0));
    // Bit 0 of the error code: the page is there, and only may not be executed.
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!(cause.error_code & 1, 0, "page 0 is mapped: {}", cause.message());
}

/// The stack grows into its guard page. The fault cannot be pushed on that stack, so it
/// becomes a double fault, which has one of its own.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn stack_overflow() {
    let story = Story {
        crash: "stack-overflow",
        vector: Some(DOUBLE_FAULT),
        through: &["overflow_the_stack", "overflow_the_stack", "overflow_the_stack"],
        ..FAULT
    };
    let crashed = story.tell();
    let cpu = crashed.dump.cpu(1).expect("CPU 1");
    let below = cpu.stack.start.saturating_sub(4096)..cpu.stack.start + 4096;
    let rsp = cpu.x86().expect("registers").rsp;
    assert!(below.contains(&rsp), "{rsp:#x} {:#x?}", cpu.stack);
}
