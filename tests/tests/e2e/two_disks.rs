//! Two disks that are named together share the work of one dump: both are needed to read it,
//! and either may be missing or fail.

use std::fs::File;
use std::path::{Path, PathBuf};

use e2e::harness::{self, Boot, Bus, Disk, Options, Outcome, Verdict};
use vmcore::{Dump, Error, OpenOptions, Source};
use vmcore_format::area::stage_kind;

use crate::story::{Crashed, assert_verdict, folder};
use e2e::witness::{compare, stretches, witness};

/// A small machine whose dump has every stage.
fn options(disks: &[Disk], dump_to: &str) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        disks: disks.to_vec(),
        crash: Some("panic,cpu=1".into()),
        command_line: format!("workload=memstamp pages=all dump=raw dump_to={dump_to}"),
        tidy: true,
        ..Options::new(Boot::Pvh, folder())
    }
}

fn disks_of(outcome: &Outcome) -> [PathBuf; 2] {
    ["disk.img", "disk1.img"].map(|name| outcome.out.join(name))
}

fn run(options: &Options) -> Outcome {
    let outcome = harness::run(options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Captured);
    outcome
}

/// What the last sealed stage of the dump on `disk` holds that can be read without another.
fn sealed_on(disk: &Path) -> Option<u32> {
    let dump = Source::open(disk).ok()?.dump(OpenOptions::default()).ok()?;
    dump.stored.as_ref()?.seal().map(|seal| seal.kind)
}

/// Bytes of a dump that each of two disks has.
fn shares(disks: &[PathBuf; 2]) -> [u64; 2] {
    let source = Source::open_with(&disks[0], &disks[1..]).expect("two disks");
    let dump = source.dump(OpenOptions::default()).expect("a dump");
    assert!(vmcore::verify(&dump, &mut |_, _| ()).is_good());
    let seals = &dump.stored.as_ref().expect("slots").seals;
    let all: u64 = seals.iter().map(|(_, seal)| seal.stored_bytes).sum();
    let other: u64 = seals.iter().map(|(_, seal)| seal.other_bytes).sum();
    [all - other, other]
}

/// Nothing is done about half of a dump; with both halves it is taken, and both slots are free.
fn taken_together(outcome: &Outcome) {
    let disks = disks_of(outcome);
    let cores = outcome.out.join("cores");
    let collect = |disks: &[PathBuf]| vmcore::collect(disks, &cores, &mut |_, _, _| ());
    let bytes = || disks.clone().map(|disk| std::fs::read(disk).expect("a disk"));
    let before = bytes();
    let first = collect(&disks[..1]).expect("the first alone");
    let [dump] = first.dumps.as_slice() else { panic!("{first:?}") };
    let why = dump.warnings.join(" ");
    assert!(!first.is_good() && !dump.marked && dump.core.is_none(), "{first:?}");
    assert!(why.contains("of the dump area ") && why.contains("give that disk as well"), "{why}");
    let second = collect(&disks[1..]).expect("the second alone");
    assert!(!second.is_good() && second.dumps.is_empty(), "{second:?}");
    assert!(second.halves[0].contains("memory of dump 1, the rest of which is in slot 0 of the "));
    assert!(bytes() == before, "it was written all the same");
    let alone = Source::open(&disks[1]).and_then(|source| source.dump(OpenOptions::default()));
    assert!(matches!(alone, Err(Error::OtherHalf { .. })), "{alone:?}");
    // In whatever order.
    let [one, other] = disks.clone();
    let both = collect(&[other.clone(), one.clone()]).expect("both");
    let [dump] = both.dumps.as_slice() else { panic!("{both:?}") };
    assert!(both.is_good() && dump.marked && dump.complete, "{both:?}");
    let core = Dump::open(dump.core.as_ref().expect("a core")).expect("a dump");
    assert!(core.is_complete());
    for disk in [&one, &other] {
        let source = Source::open(disk).expect("a disk");
        let said = source.disk().expect("an area").slots[0].describe();
        assert!(said.ends_with(", collected"), "{said}");
    }
    std::fs::remove_dir_all(&cores).expect("large files gone");
}

/// Two of a kind and two kinds; the dump is what QEMU saw in memory.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn both_take_part() {
    let mut options = options(
        &[Disk::new(Bus::Virtio), Disk { slots: 2, ..Disk::new(Bus::Nvme) }],
        "virtio+nvme",
    );
    let out = options.out.clone();
    options.out = out.join("two-kinds");
    let first = Crashed::read(run(&options));
    let console = &first.outcome.console;
    let armed = console.after("] armed: disk 0, virtio at ").expect("armed");
    assert!(armed.contains(", with disk 1, nvme at ") && armed.contains(" slot 0 of 2"), "{armed}");
    assert!(console.has("capture: disk 1 shares the work"));
    let [one, other] = shares(&disks_of(&first.outcome));
    assert!(one > 1 << 20 && other > 1 << 20, "{one} and {other}");
    // The first stage is readable by itself.
    assert_eq!(sealed_on(&first.outcome.out.join("disk.img")), Some(stage_kind::MINI));
    let stamps = vmcore::stamps(&first.dump).expect("stamps");
    assert!(stamps.is_good(), "{stamps:?}");
    taken_together(&first.outcome);

    let entry = first.dump.facts.as_ref().expect("boot facts").image_entry;
    options.out = out.join("two-of-a-kind");
    options.disks = vec![Disk::new(Bus::Virtio); 2];
    options.command_line =
        "workload=memstamp pages=all dump=lz4 dump_to=virtio+virtio rehearsal=off \
         capture_cpus=all"
            .into();
    // Unix sockets have short names, folders may have long ones.
    let socket = std::env::temp_dir().join(format!("epitaph-{}-two.gdb", std::process::id()));
    let gdb = format!("socket,id=gdb,path={},server=on,wait=off", socket.display());
    options.qemu_args = ["-S", "-chardev", &gdb, "-gdb", "chardev:gdb"].map(str::to_owned).into();
    std::fs::create_dir_all(&options.out).expect("a folder");
    let running = harness::start(&options).expect("a machine");
    let path = options.out.canonicalize().expect("the folder").join("memory.elf");
    let said = witness(&socket, &first.outcome.report.image, entry, &path);
    let outcome = running.finish(&mut |_| ()).expect("an end");
    let _ = std::fs::remove_file(&socket);
    assert_verdict(&outcome, Verdict::Captured);
    let [one, other] = shares(&disks_of(&outcome));
    assert!(one > 1 << 20 && other > 1 << 20, "{one} and {other}");
    let dump = Dump::open(outcome.vmcore.as_ref().expect("a vmcore")).expect("a dump");
    let memory = File::open(&path).unwrap_or_else(|error| panic!("{error}; gdb said: {said}"));
    let (different, compared) = compare(&dump, &memory, &stretches(&memory));
    assert!(different.is_empty(), "{different:x?}");
    assert!(compared * 4096 > 80 << 20, "{compared} pages");
    std::fs::remove_file(&path).expect("a large file gone");
}

/// Somebody takes the second medium away while the dump is written: what it had is written to
/// the first once more, which then has all of it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_second_fails_in_the_middle() {
    let slow = |bus| Disk { bytes_per_second: Some(10 << 20), ..Disk::new(bus) };
    let options = options(&[slow(Bus::Virtio), slow(Bus::Nvme)], "virtio+nvme");
    let mut running = harness::start(&options).expect("a machine");
    // The first line of progress.
    running.machine.wait_for_line(" % (").expect("a dump under way");
    running.machine.qmp().human("drive_del disk1").expect("gone");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    let said = outcome.console.after("capture: the other disk: ").expect("said");
    assert!(said.ends_with(": goes on with one"), "{said}");
    assert_eq!(sealed_on(&outcome.out.join("disk.img")), Some(stage_kind::ALL));
}

/// The first medium is taken away: the second takes the dump from the beginning.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_first_fails_in_the_middle() {
    let slow = |bus| Disk { bytes_per_second: Some(10 << 20), ..Disk::new(bus) };
    let mut options = options(&[slow(Bus::Virtio), slow(Bus::Virtio)], "virtio+virtio");
    options.command_line = options.command_line.replace("pages=all", "pages=used");
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line(" % (").expect("a dump under way");
    running.machine.qmp().human("drive_del disk0").expect("gone");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    assert!(outcome.console.has("capture: no disk (virtio) to share the work: disk "));
    assert_eq!(sealed_on(&outcome.out.join("disk1.img")), Some(stage_kind::USED));
    assert_eq!(sealed_on(&outcome.out.join("disk.img")), Some(stage_kind::MINI));
}

/// One of the two has no dump area: the other takes the dump alone, whichever it is, and that
/// is said at boot already.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn one_is_missing() {
    let one = [Disk::new(Bus::Virtio), Disk::blank(Bus::Nvme)];
    let outcome = run(&options(&one, "virtio+nvme"));
    let armed = outcome.console.after("] armed: disk 0, virtio at ").expect("armed");
    assert!(armed.contains(", alone: no disk (nvme) to share the work: room for `all`"), "{armed}");
    assert!(outcome.console.has("capture: no disk (nvme) to share the work: disk 0 alone"));
    assert_eq!(sealed_on(&outcome.out.join("disk.img")), Some(stage_kind::ALL));

    let outcome = run(&options(&one, "nvme+virtio"));
    let armed = outcome.console.after("] armed: disk 1, virtio at ").expect("armed");
    assert!(!armed.contains("to share the work"), "{armed}");
    assert_eq!(sealed_on(&outcome.out.join("disk.img")), Some(stage_kind::ALL));
}
