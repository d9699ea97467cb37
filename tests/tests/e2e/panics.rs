//! `panic!` on one CPU while the others work. Other numbers of CPUs are among the pairs
//! (`pairwise.rs`).

use e2e::harness::Boot;

use crate::story::{Story, stories};

stories! {
    on_the_boot_processor = Story { on: 0, ..Story::PANIC };
    on_another_processor = Story::PANIC;
    from_grub_on_bios = Story { boot: Boot::Bios, ..Story::PANIC };
    on_the_boot_processor_from_grub = Story { boot: Boot::Bios, on: 0, ..Story::PANIC };
    from_grub_on_uefi = Story { boot: Boot::Uefi, ..Story::PANIC };
    alone = Story { cpus: 1, on: 0, ..Story::PANIC };
}
