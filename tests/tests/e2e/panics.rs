//! `panic!` on one CPU while the others work.

use e2e::harness::Boot;

use crate::story::{Story, stories};

stories! {
    on_the_boot_processor = Story { on: 0, ..Story::PANIC };
    on_another_processor = Story::PANIC;
    on_the_last_processor = Story { on: 3, ..Story::PANIC };
    from_grub_on_bios = Story { boot: Boot::Bios, ..Story::PANIC };
    on_the_boot_processor_from_grub = Story { boot: Boot::Bios, on: 0, ..Story::PANIC };
    from_grub_on_uefi = Story { boot: Boot::Uefi, ..Story::PANIC };
    alone = Story { cpus: 1, on: 0, ..Story::PANIC };
    with_one_other = Story { cpus: 2, ..Story::PANIC };
    with_seven_others = Story { cpus: 8, on: 5, ..Story::PANIC };
    /// An assertion ends in the same path.
    by_assertion = Story { crash: "assert", ..Story::PANIC };
}
