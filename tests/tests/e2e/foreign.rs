//! A kernel that is not ours and shares nothing with the appliance but the contract crates.

use e2e::foreign::{capture, count_lines, find_drgn};

use crate::story::folder;

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn its_crash_is_captured_and_every_stack_is_read_by_virtual_address() {
    count_lines().expect("a small kernel");
    let captured = capture(&folder(), true, &mut |_| ()).expect("a capture");
    captured.check_records().expect("cause, CPUs and stacks by vmcore");
    captured.check_gdb().expect("stacks by gdb");
    captured.check_memory().expect("the memory that QEMU saw");
    // Not in every distribution; `cargo xtask foreign` installs it.
    if let Some(drgn) = find_drgn() {
        captured.check_drgn(&drgn).expect("stacks by drgn");
    }
}
