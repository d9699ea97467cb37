//! Which disk takes the dump, and what happens when one does not.

use e2e::harness::{Boot, Bus, Disk, Options};
use vmcore::{Error, OpenOptions, Source};

use crate::story::{Crashed, Story};

/// A panic with these disks in the machine; every check of a dump is made.
fn panic_with(boot: Boot, disks: &[Disk], dump_to: &str) -> Crashed {
    let story = Story { boot, ..Story::PANIC };
    let mut options: Options = story.options();
    options.disks = disks.to_vec();
    options.command_line.push_str(dump_to);
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    came_to_the_same(&crashed);
    crashed
}

/// Before the crash the appliance has said which disk and slot the capture image would choose.
fn came_to_the_same(crashed: &Crashed) {
    let console = &crashed.outcome.console;
    let armed = console.after("] armed: disk ").expect("armed");
    let (number, rest) = armed.split_once(", ").expect("its number");
    let slot = rest.split_once(", slot ").expect("a slot").1.split(' ').next().expect("its number");
    let chosen = format!("capture: disk {number}: slot {slot}, ");
    let first = console.text().lines().find(|line| line.contains(": slot "));
    assert!(first.is_some_and(|line| line.contains(&chosen)), "{armed}, then {first:?}");
}

/// The dump is on disk `index` and on no other.
fn is_on(crashed: &Crashed, index: usize, disks: usize) {
    for number in 0..disks {
        let name = if number == 0 { "disk.img".into() } else { format!("disk{number}.img") };
        let opened = Source::open(crashed.outcome.out.join(name))
            .and_then(|source| source.dump(OpenOptions::default()));
        match opened {
            Ok(dump) if dump.is_complete() => assert_eq!(number, index, "there is a dump on it"),
            // The first stage was sealed before the disk failed.
            Ok(_) => assert_ne!(number, index, "the dump on it is not whole"),
            Err(Error::Foreign { .. } | Error::NoDump { .. }) => assert_ne!(number, index),
            // Opened and not sealed: the disk that failed.
            Err(error) => assert_ne!(number, index, "{error}"),
        }
    }
}

/// The driver of each disk that was opened, in order.
fn opened(crashed: &Crashed) -> Vec<&str> {
    let lines = crashed.outcome.console.all_after("capture: disk ");
    lines
        .filter_map(|line| line.split_once(" at 00:")?.0.split_once(": "))
        .map(|(_, d)| d)
        .collect()
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nvme() {
    let crashed = panic_with(Boot::Pvh, &[Disk::new(Bus::Nvme)], "");
    assert_eq!(opened(&crashed), ["nvme"]);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nvme_from_grub() {
    let crashed = panic_with(Boot::Bios, &[Disk::new(Bus::Nvme)], "");
    assert_eq!(opened(&crashed), ["nvme"]);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nvme_with_blocks_of_4_kib() {
    let disk = Disk { block_bytes: 4096, ..Disk::new(Bus::Nvme) };
    panic_with(Boot::Pvh, &[disk], "");
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn ahci() {
    let crashed = panic_with(Boot::Pvh, &[Disk::new(Bus::Ahci)], "");
    assert_eq!(opened(&crashed), ["ahci"]);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn ahci_from_grub() {
    let crashed = panic_with(Boot::Bios, &[Disk::new(Bus::Ahci)], " dump_to=ahci");
    assert_eq!(opened(&crashed), ["ahci"]);
}

/// UEFI firmware puts registers far above 4 GiB where it can.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn each_kind_from_uefi() {
    for (bus, name) in [(Bus::Nvme, "nvme"), (Bus::Ahci, "ahci")] {
        let crashed = panic_with(Boot::Uefi, &[Disk::new(bus)], "");
        assert_eq!(opened(&crashed), [name]);
    }
}

/// The CD it was booted from is at the same controller, and not counted.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_cd_drive_is_no_disk() {
    let disks = [Disk::blank(Bus::Ahci), Disk::new(Bus::Virtio)];
    let crashed = panic_with(Boot::Bios, &disks, " dump_to=ahci,virtio");
    assert_eq!(opened(&crashed), ["ahci", "virtio"]);
    assert!(crashed.outcome.console.has("capture: disk 1: virtio"));
}

/// Two disks at one controller: the second port is driven after the first.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_second_port_of_a_controller() {
    let disks = [Disk::blank(Bus::Ahci), Disk::new(Bus::Ahci)];
    let crashed = panic_with(Boot::Pvh, &disks, "");
    assert_eq!(opened(&crashed), ["ahci", "ahci"]);
    is_on(&crashed, 1, 2);
}

/// The command line decides, not the order on the bus.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_first_of_the_list_is_tried_first() {
    let disks = [Disk::new(Bus::Virtio), Disk::new(Bus::Nvme)];
    let crashed = panic_with(Boot::Pvh, &disks, " dump_to=nvme,virtio");
    assert_eq!(opened(&crashed), ["nvme"]);
    is_on(&crashed, 1, 2);
}

/// Without a list it is virtio, and a word nobody knows is passed over.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_word_nobody_knows_is_said_and_skipped() {
    let disks = [Disk::new(Bus::Nvme), Disk::new(Bus::Virtio)];
    let crashed = panic_with(Boot::Pvh, &disks, " dump_to=floppy,virtio");
    assert!(crashed.outcome.console.has("capture: dump_to=floppy: no such target, skipped"));
    assert_eq!(opened(&crashed), ["virtio"]);
    is_on(&crashed, 1, 2);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn an_unprepared_disk_is_left_for_the_next() {
    let disks = [Disk::blank(Bus::Nvme), Disk::new(Bus::Virtio)];
    let crashed = panic_with(Boot::Pvh, &disks, " dump_to=nvme,virtio");
    assert_eq!(opened(&crashed), ["nvme", "virtio"]);
    assert!(crashed.outcome.console.has("no dump area (run: vmcore prepare)"));
    let disk = std::fs::read(crashed.outcome.out.join("disk.img")).expect("the disk");
    assert!(disk.iter().all(|&byte| byte == 0), "it was written all the same");
    is_on(&crashed, 1, 2);
}

/// In the middle of the dump the medium fails: the next disk gets the whole of it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_disk_that_fails_is_left_for_the_next() {
    let ways = [
        (Bus::Virtio, Bus::Nvme, ""),
        (Bus::Nvme, Bus::Ahci, ""),
        (Bus::Ahci, Bus::Virtio, " dump_to=ahci,virtio"),
    ];
    for (first, second, list) in ways {
        let failing = Disk { fails_at: Some(40 << 20), ..Disk::new(first) };
        let crashed = panic_with(Boot::Pvh, &[failing, Disk::new(second)], list);
        assert!(crashed.outcome.console.has(": input/output error at byte "));
        assert_eq!(opened(&crashed).len(), 2);
        is_on(&crashed, 1, 2);
    }
}
