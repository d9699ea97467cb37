//! Machines that are not as usual: what is armed takes the dump, and what is not armed says why.

use std::fs::{File, create_dir_all};

use e2e::harness::{self, Boot, Bus, Disk, Options, Outcome, Verdict};

use crate::story::{Crashed, Story, assert_verdict, folder};

/// Boots without a crash, and returns what was said.
fn boot(disks: Vec<Disk>, qemu_args: Vec<String>, command_line: &str) -> Outcome {
    let options = Options {
        cpus: 2,
        memory: 96 << 20,
        disks,
        qemu_args,
        command_line: format!("workload=sieve,n=100000 {command_line}"),
        tidy: true,
        ..Options::new(Boot::Pvh, folder())
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Finished);
    outcome
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// A disk that refuses writes was called armed, and rehearsed, and took no dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_read_only_disk_is_not_armed() {
    let image = folder().join("read-only.img");
    create_dir_all(folder()).expect("a folder");
    File::create(&image).and_then(|file| file.set_len(128 << 20)).expect("an image");
    vmcore::prepare(&image, vmcore::Layout { slots: 1, ..Default::default() })
        .expect("a dump area");
    let drive = format!("-drive if=none,id=ro,format=raw,readonly=on,file={}", image.display());
    let arguments = words(&format!("{drive} -device virtio-blk-pci,drive=ro"));
    let outcome = boot(vec![], arguments, "");
    let why = "] not armed: disk 0, virtio at 00:01.0: read-only; a crash leaves last words only";
    assert!(outcome.console.has(why), "{}", outcome.console.tail(30));
    std::fs::remove_file(image).expect("the image");
}

/// Some hypervisors and small devices have no more than 16 entries in a queue.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_virtio_disk_with_a_short_queue_takes_the_dump() {
    let story = Story::PANIC;
    for entries in [8, 16] {
        let arguments = words(&format!("-global virtio-blk-pci.queue-size={entries}"));
        let crashed = Crashed::from(&Options { qemu_args: arguments, ..story.options() });
        story.check(&crashed);
    }
}

/// The first namespace is somebody else's: it is not written to, and nobody is told to prepare
/// it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_dump_goes_to_the_namespace_that_has_the_area() {
    let story = Story::PANIC;
    let disks = vec![Disk { namespace: 3, ..Disk::new(Bus::Nvme) }];
    let crashed = Crashed::from(&Options { disks, ..story.options() });
    story.check(&crashed);
    let console = &crashed.outcome.console;
    let armed = console.after("] armed: ").expect("armed");
    assert!(armed.starts_with("disk 2, nvme at 00:01.0, namespace 3, area "), "{armed}");
}

/// A machine with two sockets has a root bus for each, which no bridge of the other leads to.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_disk_behind_another_root_bus_takes_the_dump() {
    let story = Story::PANIC;
    let disks = vec![Disk { own_root_bus: Some(64), ..Disk::new(Bus::Virtio) }];
    let crashed = Crashed::from(&Options { disks, ..story.options() });
    story.check(&crashed);
    let armed = crashed.outcome.console.after("] armed: ").expect("armed");
    assert!(armed.starts_with("disk 0, virtio at 41:00.0, area "), "{armed}");
}

/// With `acpi=off` the tables are SeaBIOS's own, which name no further root bus; the disk is
/// behind the second of two. A bus without any function cannot be found by asking, so the first
/// has a root port.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn root_buses_that_no_table_names_are_found_by_asking() {
    let story = Story::PANIC;
    let disks = vec![Disk { own_root_bus: Some(200), ..Disk::new(Bus::Virtio) }];
    let qemu_args = words(
        "-device pxb-pcie,id=further,bus_nr=64,bus=pcie.0 \
         -device pcie-root-port,bus=further,chassis=9,slot=9 -machine acpi=off",
    );
    let crashed = Crashed::from(&Options { disks, qemu_args, ..story.options() });
    story.check(&crashed);
    let console = &crashed.outcome.console;
    assert!(console.has("pci: 2 root buses beside the first, 0 of them named by the firmware"));
    let armed = console.after("] armed: ").expect("armed");
    assert!(armed.starts_with("disk 0, virtio at c9:00.0, area "), "{armed}");
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    assert_eq!(facts.root_buses, [0, 1, 0, 1 << 8]);
}

/// Smaller than the place of the reserved region in the image, which is 64 to 72 MiB.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_reserved_region_lies_elsewhere_where_its_place_is_no_ram() {
    let story = Story::PANIC;
    let crashed = Crashed::from(&Options { memory: 64 << 20, ..story.options() });
    story.check(&crashed);
    let said = crashed.outcome.console.after("the reserved region is at ").expect("where");
    let at = said.split_whitespace().next().and_then(|word| word.strip_prefix("0x"));
    let at = at.and_then(|digits| u64::from_str_radix(digits, 16).ok()).expect("an address");
    // Behind the image, which is linked at 16 MiB.
    assert!((17 << 20..56 << 20).contains(&at) && at.is_multiple_of(2 << 20), "{said}");
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    assert_eq!(facts.region.start, at);
}

/// GRUB has taken a bad page, or the whole place of the reserved region, out of the memory map.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_reserved_region_lies_elsewhere_where_grub_cuts_its_place() {
    const MIB: u64 = 1 << 20;
    let story = Story::PANIC;
    let cuts = [(64 * MIB, 72 * MIB), (66 * MIB, 66 * MIB + 4096)];
    for (boot, cut) in
        [Boot::Bios, Boot::Uefi].into_iter().flat_map(|boot| cuts.map(|cut| (boot, cut)))
    {
        let name = format!("{}-{:x}", boot.name(), cut.0);
        let options = Options { boot, cut_memory: Some(cut), ..story.options() };
        let crashed = Crashed::from(&Options { out: options.out.join(name), ..options });
        story.check(&crashed);
        let facts = crashed.dump.facts.as_ref().expect("boot facts");
        let region = facts.region.start..facts.region.end();
        assert!(region.end <= cut.0 || region.start >= cut.1, "{region:x?}");
        assert!(crashed.outcome.console.has("the reserved region is at "));
    }
}

/// A controller that there is no driver for is named with its class and ids.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_controller_without_a_driver_is_named() {
    let arguments = "-device virtio-scsi-pci -device sdhci-pci";
    let outcome = boot(vec![], words(arguments), "");
    for (what, ids) in [("SCSI controller", "1af4:1004"), ("SD host controller", "1b36:0007")] {
        let named = outcome.console.all_after("target: no driver for ");
        let said = format!("{what} ({ids}, class ");
        assert!(named.into_iter().any(|line| line.contains(&said)), "{what}");
    }
    let why = "] not armed: no disk found that there is a driver for (virtio-blk, NVMe, AHCI)";
    assert!(outcome.console.has(why), "{}", outcome.console.tail(30));
}
