//! Disks that fail, are too small, are full, or are not what they were: what could be kept is
//! kept, the next disk is tried, and nobody else's bytes are written.
//!
//! A disk that stops answering is in `hung.rs`.

use std::path::{Path, PathBuf};

use e2e::harness::{self, Boot, Bus, Disk, ENOSPC, Options, Outcome, Policy, Verdict};
use e2e::power::{Before, Images, Scene};
use vmcore::{Dump, OpenOptions, Source};
use vmcore_format::area::stage_kind;

use crate::story::{assert_verdict, folder};

/// A small machine whose dump has every stage.
fn options(disks: &[Disk], expect: Verdict) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        disks: disks.to_vec(),
        crash: Some("panic,cpu=1".into()),
        command_line: "workload=memstamp pages=all dump=raw".into(),
        expect: Some(expect),
        tidy: true,
        ..Options::new(Boot::Pvh, folder())
    }
}

fn run(options: &Options) -> Outcome {
    let outcome = harness::run(options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, options.expected());
    outcome
}

/// What the last sealed stage on disk `index` holds.
fn sealed_on(outcome: &Outcome, index: usize) -> Option<u32> {
    let name = if index == 0 { "disk.img".into() } else { format!("disk{index}.img") };
    let dump = Source::open(outcome.out.join(name)).ok()?.dump(OpenOptions::default()).ok()?;
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    assert!(verified.is_good(), "{verified:?}");
    dump.stored.as_ref()?.seal().map(|seal| seal.kind)
}

fn bytes_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a disk")
}

/// No space is left on the host, in the middle of the memory: the stage is closed with what was
/// written, and the next disk gets the whole dump. Without one, what was written is it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_space_left() {
    let full = Disk { fails_at: Some(40 << 20), fails_with: ENOSPC, ..Disk::new(Bus::Virtio) };
    let outcome = run(&options(&[full, Disk::new(Bus::Nvme)], Verdict::Captured));
    assert!(outcome.console.has(": input/output error at byte "));
    assert!(sealed_on(&outcome, 0) > Some(stage_kind::MINI));
    assert_eq!(sealed_on(&outcome, 1), Some(stage_kind::ALL));

    let outcome = run(&options(&[full], Verdict::Incomplete));
    assert!(sealed_on(&outcome, 0) > Some(stage_kind::MINI));
    assert!(outcome.console.has(": closed stage `") && !outcome.console.has("FAILED"));
}

/// Somebody takes the medium away while the dump is written.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_medium_is_taken_away() {
    let slow = Disk { bytes_per_second: Some(20 << 20), ..Disk::new(Bus::Virtio) };
    let options = options(&[slow, Disk::new(Bus::Nvme)], Verdict::Captured);
    let mut running = harness::start(&options).expect("a machine");
    // The first line of progress.
    running.machine.wait_for_line(" % (").expect("a dump under way");
    running.machine.qmp().human("drive_del disk0").expect("gone");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    assert!(outcome.console.has(": input/output error at byte "), "{}", outcome.console.tail(20));
    assert_eq!(sealed_on(&outcome, 1), Some(stage_kind::ALL));
}

/// The slot takes the first stage and not all memory: what fits is sealed, and said.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn too_small() {
    let small = Disk { bytes: Some(24 << 20), ..Disk::new(Bus::Virtio) };
    let outcome = run(&options(&[small], Verdict::Incomplete));
    assert!(outcome.console.has("too small for `"), "{}", outcome.console.tail(20));
    assert!(sealed_on(&outcome, 0).is_some());
    let armed = outcome.console.after("] armed: disk 0, virtio at ").expect("said at boot already");
    assert!(
        armed.contains(": too small for `all` (") && armed.contains(", will keep `"),
        "{armed}"
    );
    // And one that has no room for the first stage: the next disk.
    let tiny = Disk { bytes: Some(3 << 20), ..Disk::new(Bus::Virtio) };
    let outcome = run(&options(&[tiny, Disk::new(Bus::Nvme)], Verdict::Captured));
    assert!(outcome.console.has("too little for any stage"), "{}", outcome.console.tail(20));
    assert!(
        outcome.console.has("target: disk 0, virtio at 00:01.0: a slot takes 1.0 MiB, too little")
    );
    assert!(outcome.console.has("] armed: disk 1, nvme at "));
    assert_eq!(sealed_on(&outcome, 1), Some(stage_kind::ALL));
}

/// A prepared disk whose header is damaged in one bit, in both places, is not written; damaged in
/// one place it takes the dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_wrong_signature() {
    let image = folder().join("damaged.img");
    for at in [0_usize, 30] {
        std::fs::create_dir_all(folder()).expect("a folder");
        let file = std::fs::File::create(&image).expect("a disk");
        file.set_len(128 << 20).expect("its length");
        let layout = vmcore::Layout { slots: 1, ..vmcore::Layout::default() };
        vmcore::prepare(&image, layout).expect("a dump area");
        let mut bytes = bytes_of(&image);
        bytes[at] ^= 1;
        std::fs::write(&image, &bytes).expect("damage");
        // A disk on which a dump is looked for, and one on which none is.
        let run_on_it = |disk: Disk, expect| {
            let disk_image = Some(image.clone());
            run(&Options { disk_image, ..options(&[disk], expect) })
        };
        let outcome = run_on_it(Disk::new(Bus::Virtio), Verdict::Captured);
        let warned = "dump area: its header is damaged, the copy is used";
        assert!(outcome.console.has(warned));
        let copy = bytes.len() - (1 << 20);
        bytes[copy + at] ^= 1;
        std::fs::write(&image, &bytes).expect("more damage");
        let outcome = run_on_it(Disk::blank(Bus::Virtio), Verdict::LastWords);
        let why = outcome.console.after("] not armed: ").expect("said at boot already");
        assert!(why.contains("dump area") && why.contains("run: vmcore prepare"), "{why}");
        assert!(
            outcome.console.after("capture: FAILED: ").is_some_and(|why| why.contains("prepare"))
        );
        assert!(bytes_of(&outcome.out.join("disk.img")) == bytes, "it was written all the same");
    }
}

/// Dumps that nobody collected are not overwritten, unless that is allowed; a collected one
/// is.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn all_slots_full() {
    let images = Images::make(&folder().join("before")).expect("disks with dumps");
    let scene = Scene { before: Before::NoneFree, ..Scene::list(1)[0] };
    let run_on = |image: &Path, words: &str, expect| {
        let mut options = scene.options(&images, folder());
        options.disk_image = Some(image.to_owned());
        options.command_line = format!("workload=memstamp pages=all dump=raw {words}");
        options.expect = Some(expect);
        // The older dumps on it are nothing that this run has left.
        options.disks[0].prepared = expect == Verdict::Captured;
        options.tidy = true;
        run(&options)
    };
    let outcome = run_on(&images.none_free, "", Verdict::LastWords);
    let why = outcome.console.after("] not armed: ").expect("said at boot already");
    assert!(why.contains("in each a dump that nobody has collected"), "{why}");
    let waiting = outcome.console.after("target: 2 uncollected dumps on disk 0, ").expect("told");
    assert!(waiting.contains("the newest of 20") && waiting.contains("dump 2, panic"), "{waiting}");
    let failed = outcome.console.after("capture: FAILED: ").expect("a reason");
    assert!(failed.contains("in each a dump that nobody has collected"), "{failed}");
    let disk = outcome.out.join("disk.img");
    // Block 1 counts crashes; all else is as it was.
    let dumps = |image: &Path| {
        let mut bytes = bytes_of(image);
        bytes[4096..8192].fill(0);
        bytes
    };
    assert!(dumps(&disk) == dumps(&images.none_free), "it was written all the same");
    drop(outcome);

    let outcome = run_on(&images.none_free, "slots=overwrite-oldest", Verdict::Captured);
    assert_eq!(newest(&outcome.out.join("disk.img")), (0, 3));
    let armed = outcome.console.after("] armed: ").expect("armed");
    assert!(armed.contains("slot 0 of 2, replaces dump 1, which nobody collected"), "{armed}");
    drop(outcome);

    let cores = folder().join("cores");
    let taken = vmcore::collect(std::slice::from_ref(&images.none_free), &cores, &mut |_, _, _| ())
        .expect("both");
    assert!(taken.is_good() && taken.dumps.iter().all(|dump| dump.marked), "{taken:?}");
    let names: Vec<PathBuf> = taken.dumps.iter().filter_map(|dump| dump.core.clone()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.iter().all(|core| Dump::open(core).is_ok_and(|dump| dump.is_complete())));
    let again = vmcore::collect(std::slice::from_ref(&images.none_free), &cores, &mut |_, _, _| ())
        .expect("nothing");
    assert_eq!((again.dumps.len(), again.collected_before), (0, 2));
    let outcome = run_on(&images.none_free, "", Verdict::Captured);
    assert!(!outcome.console.has("uncollected"), "they are in safety");
    assert_eq!(newest(&outcome.out.join("disk.img")), (0, 3));
    for folder in [folder().join("before"), cores] {
        std::fs::remove_dir_all(folder).expect("large files gone");
    }
}

/// Slot and sequence number of the newest dump.
fn newest(disk: &Path) -> (u32, u64) {
    let dump = Source::open(disk).expect("a disk").dump(OpenOptions::default()).expect("a dump");
    let stored = dump.stored.as_ref().expect("a slot");
    (stored.slot, stored.open.sequence)
}

/// Somebody has written over what the crashing CPU left, between its last check and the
/// capture image: no dump is made of it, and the last words say so.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_damaged_hand_off() {
    let plain = run(&options(&[Disk::new(Bus::Virtio)], Verdict::Captured));
    let dump = Dump::open(plain.vmcore.as_ref().expect("a vmcore")).expect("a dump");
    let entry = dump.facts.as_ref().expect("boot facts").image_entry;
    let image = plain.report.image.clone();
    // Unix sockets have short names, folders may have long ones.
    let socket = std::env::temp_dir().join(format!("epitaph-{}-handoff", std::process::id()));
    let server = format!("socket,id=gdb,path={},server=on,wait=off", socket.display());
    let mut options = options(&[Disk::new(Bus::Virtio)], Verdict::LastWords);
    options.out = folder().join("damaged");
    options.command_line.push_str(" rehearsal=off");
    // Where the hand-off is lost, so is the policy: the machine is reset.
    options.policy = Policy::Reboot;
    options.qemu_args = ["-S", "-chardev", &server, "-gdb", "chardev:gdb"].map(String::from).into();
    let running = harness::start(&options).expect("a machine");
    let commands = [
        format!("target remote {}", socket.display()),
        format!("hbreak *{entry:#x}"),
        "continue".into(),
        // A byte of the cause's message.
        "set {char}($rdi + 300) = 0x7f".into(),
        "delete".into(),
        "detach".into(),
    ];
    let output = std::process::Command::new("timeout")
        .args(["--kill-after=5", "90", "gdb", "-nx", "-batch"])
        .args(commands.iter().flat_map(|command| ["-ex", command]))
        .arg(&image)
        .output()
        .expect("gdb: cargo xtask setup installs it");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_verdict(&outcome, Verdict::LastWords);
    let reason = outcome.console.after("capture: FAILED: ").expect("a reason");
    assert!(reason.contains("hand-off") && reason.contains("checksum"), "{reason}; {said}");
    assert_eq!(sealed_on(&outcome, 0), None);
}
