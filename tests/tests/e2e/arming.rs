//! What the appliance says of its dump disk before anything has happened, and that looking
//! changes nothing.
//!
//! That it is right about a disk is part of the crashes in `disks.rs`, `disk_faults.rs` and
//! `partitions.rs`: the capture image has to come to the same.

use e2e::harness::{self, Boot, Bus, DataDisk, Disk, Options, Outcome, Running, Verdict};

use crate::story::{assert_verdict, folder};

fn options(boot: Boot, disks: &[Disk], words: &str) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        disks: disks.to_vec(),
        command_line: format!("workload=sieve,n=100000 {words}"),
        tidy: true,
        ..Options::new(boot, folder())
    }
}

fn run(boot: Boot, disks: &[Disk], words: &str) -> Outcome {
    let outcome = harness::run(&options(boot, disks, words), &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Finished);
    outcome
}

/// Every kind of disk is found behind every loader's firmware, and the list decides.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_kind_of_disk_behind_every_firmware() {
    let all =
        [Disk::new(Bus::Virtio), Disk { slots: 3, ..Disk::new(Bus::Nvme) }, Disk::new(Bus::Ahci)];
    for (boot, words, armed) in [
        (Boot::Pvh, "", "disk 0, virtio at 00:01.0, area v4, slot 0 of 1, free: room for `used` ("),
        (Boot::Pvh, "dump_to=ahci", "disk 0, ahci at 00:1f.2, area v4, slot 0 of 1, free: room "),
        (Boot::Bios, "dump_to=nvme", "disk 0, nvme at 00:02.0, area v4, slot 0 of 3, free: room "),
        (Boot::Uefi, "dump_to=nvme,virtio pages=all", "disk 0, nvme at 00:02.0, area v4, slot 0 "),
    ] {
        let outcome = run(boot, &all, words);
        let said = outcome.console.after("] armed: ");
        assert!(said.is_some_and(|said| said.starts_with(armed)), "{said:?}, not {armed}");
    }
    let outcome = run(Boot::Microvm, &all[..2], "dump_to=nvme");
    let said = outcome.console.after("] armed: ").expect("armed");
    assert!(said.starts_with("disk 0, nvme at 00:02.0, area v4, slot 0 of 3, free: "), "{said}");
}

/// Disks on which there is nothing for a dump are named, each with what is wrong.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn without_a_disk_for_it_that_is_said() {
    let outcome = run(Boot::Pvh, &[], "");
    let none = "] not armed: no disk found that there is a driver for (virtio-blk, NVMe, AHCI); a \
                crash leaves last words only";
    assert!(outcome.console.has(none), "{}", outcome.console.tail(30));
    let blank = [Disk::blank(Bus::Virtio), Disk::blank(Bus::Nvme)];
    let outcome = run(Boot::Pvh, &blank, "");
    assert!(outcome.console.has("target: disk 0, virtio at 00:01.0: no dump area"));
    let why = "not armed: no disk takes a dump; disk 1, nvme at 00:02.0: no dump area \
               (run: vmcore prepare)";
    assert!(outcome.console.has(why), "{}", outcome.console.tail(30));
    let outcome = run(Boot::Pvh, &[Disk::new(Bus::Virtio)], "dump_to=nvme");
    assert!(outcome.console.has("] not armed: no disk found"), "the list counts");
}

/// Whether the function at `device` of bus 0 may reach memory, as QEMU has it.
fn reaches_memory(running: &mut Running, device: &str) -> bool {
    let shown = running.machine.qmp().human("info mtree -f").expect("QEMU's own view");
    let mut lines = shown.lines();
    lines.find(|line| line.contains("AS \"") && line.contains(device)).expect("the device");
    let view = lines.find(|line| line.contains("Root memory region")).expect("its view");
    !view.contains("(none)")
}

/// After a look no device can reach memory any more, whatever kind it is; and a look from the
/// console changes nothing of that.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_look_leaves_every_disk_quiet() {
    let disks = [Disk::blank(Bus::Virtio), Disk::blank(Bus::Nvme), Disk::blank(Bus::Ahci)];
    let options = Options { talk: true, ..options(Boot::Pvh, &disks, "on_finish=idle") };
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("finish: idle").expect("all work done");
    for _ in 0..2 {
        for device in ["virtio-blk", "nvme", "ahci"] {
            assert!(!reaches_memory(&mut running, device), "{device}");
        }
        running.say("ready").expect("typed");
        running.machine.wait_for_line("ready: no: ").expect("an answer");
    }
    running.machine.kill();
}

/// A disk that a workload writes to and reads from is not looked at meanwhile, and loses
/// nothing.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_disk_in_use_is_left_alone() {
    let disks = [Disk::new(Bus::Virtio)];
    let words = "workload=blkverify,blocks=256 load=6";
    let options = Options {
        talk: true,
        data_disk: Some(DataDisk::blank(8 << 20)),
        ..options(Boot::Pvh, &disks, words)
    };
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("] disk: virtio at ").expect("in use");
    for _ in 0..3 {
        running.say("ready").expect("typed");
        running.machine.wait_for_line("ready: yes: ").expect("an answer");
    }
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Finished);
}
