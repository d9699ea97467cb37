//! Verifying what is on a disk, and taking it off.

use e2e::synth::area_v2::{Dump, Storing, build};
use e2e::synth::core::Core;
use serde_json::Value;

use crate::common::{Folder, answer, complaint, given as given_json, is_core, vmcore};

/// Answer and exit code, for answers that are given and bad.
fn given(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String) {
    let output = vmcore(folder, arguments);
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Three dumps: one collected, two not.
fn disk() -> Vec<u8> {
    let core = Core::small().build();
    let dump = |sequence| Dump::sealed(sequence, core.clone(), Storing::Raw);
    build(&[Some(dump(8)), Some(Dump { collected: true, ..dump(7) }), Some(dump(9))])
}

/// Where the memory of slot `slot` stands: something of it that is not zero.
fn memory(disk: &[u8], slot: usize) -> usize {
    let log = (1 + slot) * e2e::synth::area::SLOT_BYTES as usize + 65536;
    log + disk[log..].iter().position(|&byte| byte != 0).expect("memory")
}

#[test]
fn every_checksum_is_computed() {
    let folder = Folder::new("verify");
    let mut disk = disk();
    folder.file("disk.img", &disk);
    let (code, said) = given(&folder, &["verify", "disk.img"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("Good: "), "{said}");
    // One bit of memory, in the newest dump.
    let at = memory(&disk, 2);
    disk[at] ^= 1;
    folder.file("disk.img", &disk);
    let (code, said) = given(&folder, &["verify", "disk.img"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("DAMAGED: 1 of ") && said.contains("checksum"), "{said}");
    let (code, _) = given(&folder, &["verify", "disk.img", "--slot", "0"]);
    assert_eq!(code, Some(0));
    // What was extracted has its checksums with it.
    answer(&folder, &["extract", "disk.img", "--slot", "0", "-o", "core"]);
    let (code, said) = given(&folder, &["verify", "core"]);
    assert_eq!((code, said.starts_with("Good: ")), (Some(0), true), "{said}");
    let found = complaint(&folder, &["verify", "gone"]);
    assert!(found.contains("gone"), "{found}");
}

#[test]
fn dumps_are_taken_once() {
    let folder = Folder::new("collect");
    folder.file("disk.img", &disk());
    let (code, said) = given(&folder, &["collect", "disk.img", "-o", "cores", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let taken: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(taken["collected_before"], 1);
    let dumps = taken["dumps"].as_array().expect("dumps");
    let sequences: Vec<_> = dumps.iter().map(|dump| dump["sequence"].as_u64()).collect();
    assert_eq!(sequences, [Some(8), Some(9)], "oldest first");
    let names: Vec<_> = dumps.iter().filter_map(|dump| dump["core"].as_str()).collect();
    assert!(names[0].starts_with("cores/20260101T000000Z-"), "{names:?}");
    assert!(names[1].ends_with("-2.core"), "the same second, the same image: {names:?}");
    for name in names {
        is_core(&folder, name, &Core::small().build());
        let (code, said) = given(&folder, &["verify", name]);
        assert_eq!((code, said.starts_with("Good: ")), (Some(0), true), "{said}");
    }
    let (code, said) = given(&folder, &["collect", "disk.img", "-o", "cores"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("no dump to collect, 3 of them collected before"), "{said}");
    // They are still there, for who wants to read them in place.
    assert!(answer(&folder, &["info", "disk.img"]).contains("index out of bounds"));
}

#[test]
fn a_damaged_dump_is_left_where_it_is() {
    let folder = Folder::new("collect-damaged");
    let mut disk = disk();
    let at = memory(&disk, 0);
    disk[at] ^= 1;
    folder.file("disk.img", &disk);
    for before in [1, 2] {
        let (code, said) = given(&folder, &["collect", "disk.img", "-o", "cores", "--json"]);
        assert_eq!(code, Some(3), "{said}");
        let taken: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(taken["collected_before"], before);
        let bad = &taken["dumps"][0];
        assert_eq!((&bad["core"], &bad["marked"]), (&Value::Null, &Value::Bool(false)));
        assert!(bad["warnings"].to_string().contains("--partial"), "{bad}");
    }
}

#[test]
fn a_bad_disk_does_not_stop_the_others() {
    let folder = Folder::new("collect-others");
    let good = || build(&[Some(Dump::sealed(8, Core::small().build(), Storing::Raw))]);
    folder.file("blank.img", &vec![0; 4 << 20]);
    folder.file("text.img", b"dear diary");
    folder.file("held.img", &good());
    // What QEMU does with a disk of a running machine.
    let held = std::fs::File::options().write(true).open(folder.path("held.img")).expect("it");
    let lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: 100,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).expect("a lock");
    let bad = [
        ("blank.img", "without a dump area"),
        ("gone.img", "No such file"),
        ("text.img", "neither"),
        ("held.img", "in use by a running machine"),
    ];
    for (name, why) in bad {
        for disks in [["good.img", name], [name, "good.img"]] {
            folder.file("good.img", &good());
            let words = [&["collect"], &disks[..], &["-o", "cores"]].concat();
            let (code, taken) = given_json(&folder, &words);
            assert_eq!(code, Some(1), "{disks:?}: {taken}");
            assert_eq!(taken["dumps"][0]["marked"], true, "{disks:?}: {taken}");
            let failures = taken["failures"].as_array().expect("failures");
            assert_eq!(failures.len(), 1, "{taken}");
            assert_eq!(failures[0]["disk"], name);
            assert!(failures[0]["reason"].as_str().expect("why").contains(why), "{taken}");
            let output = vmcore(&folder, &words);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(name) && said.contains(why), "{said}");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains("good.img: no dump to collect, 1 of them"), "{said}");
            assert!(said.contains("NOT DONE") && said.contains(why), "{said}");
        }
    }
    folder.file("good.img", &good());
    let words = ["collect", "blank.img", "good.img", "gone.img", "held.img", "-o", "cores"];
    let (code, taken) = given_json(&folder, &words);
    assert_eq!((code, taken["failures"].as_array().map(Vec::len)), (Some(1), Some(3)), "{taken}");
    assert_eq!(taken["dumps"].as_array().map(Vec::len), Some(1));
    // Damage says more than a disk that is not there.
    let mut damaged = good();
    damaged[20] ^= 1;
    folder.file("damaged.img", &damaged);
    let (code, taken) = given_json(&folder, &["collect", "gone.img", "damaged.img", "-o", "cores"]);
    assert_eq!(code, Some(3), "{taken}");
    assert_eq!(taken["failures"][1]["damaged"], true);
    assert!(!taken["failures"][1]["hint"].to_string().contains("--partial"), "{taken}");
}

#[test]
fn a_disk_given_twice_is_taken_once() {
    let folder = Folder::new("collect-twice");
    std::os::unix::fs::symlink("disk.img", folder.path("soft")).expect("a link");
    folder.file("disk.img", &[]);
    std::fs::hard_link(folder.path("disk.img"), folder.path("hard")).expect("a link");
    for other in ["disk.img", "./disk.img", "soft", "hard"] {
        let disk = build(&[Some(Dump::sealed(8, Core::small().build(), Storing::Raw))]);
        folder.file("disk.img", &disk);
        let (code, taken) = given_json(&folder, &["collect", "disk.img", other, "-o", "cores"]);
        assert_eq!(code, Some(0), "{taken}");
        assert_eq!(taken["dumps"].as_array().map(Vec::len), Some(1), "{taken}");
        assert_eq!(taken["disks"].as_array().map(Vec::len), Some(1), "{taken}");
        let note = taken["notes"][0].as_str().expect("a note");
        assert!(note.contains("the same disk") && note.contains(other), "{note}");
    }
}

#[test]
fn a_slot_with_damaged_records_is_unknown_and_not_empty() {
    let folder = Folder::new("collect-unknown");
    let core = Core::small().build();
    let slot = e2e::synth::area::SLOT_BYTES as usize;
    let one = || build(&[None, Some(Dump::sealed(8, core.clone(), Storing::Raw))]);
    let unknown = |what: &str| {
        let (code, taken) = given_json(&folder, &["collect", "disk.img", "-o", "cores"]);
        assert_eq!(code, Some(3), "{what}: {taken}");
        let found = &taken["unknown"][0];
        let place = 2 * slot;
        assert_eq!((&found["slot"], &found["offset"]), (&1.into(), &place.into()), "{taken}");
        let output = vmcore(&folder, &["collect", "disk.img", "-o", "cores"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("slot 1, at byte ") && !said.contains("there is none"), "{said}");
        let said = complaint(&folder, &["info", "disk.img"]);
        assert!(said.contains("slot 1: ") && !said.contains("nothing was ever dumped"), "{said}");
    };
    // The open record: one bit, or all of it.
    for (what, damage) in [("a bit", 24..25), ("its magic", 0..1), ("all", 0..256)] {
        let mut disk = one();
        let record = &mut disk[2 * slot..][damage];
        if record.len() > 1 {
            record.fill(0)
        } else {
            record[0] ^= 4
        }
        folder.file("disk.img", &disk);
        unknown(what);
    }
    // The only seal.
    let mut disk = one();
    disk[2 * slot + 4096 + 50] ^= 4;
    folder.file("disk.img", &disk);
    unknown("the seal");
    // A dump beside it is taken, and the other one still named; commands that read say so.
    let both = [8, 9].map(|sequence| Some(Dump::sealed(sequence, core.clone(), Storing::Raw)));
    let mut disk = build(&both);
    disk[2 * slot + 24] ^= 4;
    folder.file("disk.img", &disk);
    let output = vmcore(&folder, &["info", "disk.img"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("slot 1: unknown"), "{said}");
    let (code, taken) = given_json(&folder, &["collect", "disk.img", "-o", "cores"]);
    assert_eq!((code, &taken["dumps"][0]["marked"]), (Some(3), &true.into()), "{taken}");
    assert_eq!(taken["unknown"].as_array().map(Vec::len), Some(1), "{taken}");
    // One that was collected is in safety, whatever becomes of its records.
    let dump = Dump { collected: true, ..Dump::sealed(8, core.clone(), Storing::Raw) };
    let mut disk = build(&[None, Some(dump)]);
    disk[2 * slot + 24] ^= 4;
    folder.file("disk.img", &disk);
    let (code, taken) = given_json(&folder, &["collect", "disk.img", "-o", "cores"]);
    assert_eq!((code, taken["unknown"].as_array().map(Vec::len)), (Some(0), Some(0)), "{taken}");
}

#[test]
fn an_image_of_another_format_is_named_with_the_way_to_its_dumps() {
    let folder = Folder::new("collect-formats");
    let core = Core::small().build();
    folder.file("disk", &build(&[Some(Dump::sealed(8, core.clone(), Storing::Raw))]));
    let shell = |line: &str| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", line]).current_dir(folder.path("."));
        command.output().is_ok_and(|output| output.status.success())
    };
    let formats = [
        ("a.qcow2", "qemu-img convert -f raw -O qcow2 disk a.qcow2", "a qcow2 image"),
        ("a.vmdk", "qemu-img convert -f raw -O vmdk disk a.vmdk", "VMDK"),
        ("a.vdi", "qemu-img convert -f raw -O vdi disk a.vdi", "VDI"),
        ("a.vhd", "qemu-img convert -f raw -O vpc disk a.vhd", "a VHD image"),
        ("a.vhdx", "qemu-img convert -f raw -O vhdx disk a.vhdx", "a VHDX image"),
        ("a.img.gz", "gzip -c disk > a.img.gz", "a gzip file"),
        ("a.img.xz", "xz -c disk > a.img.xz", "an xz file"),
        ("a.img.zst", "zstd -q -c disk > a.img.zst", "a zstd file"),
        ("a.img.lz4", "lz4 -q -c disk > a.img.lz4", "an LZ4 file"),
        ("a.img.bz2", "bzip2 -c disk > a.img.bz2", "a bzip2 file"),
    ];
    let mut tried = 0;
    for (name, make, kind) in formats {
        // The programs are those of the machine that tests: what it has not is not tried.
        if !shell(make) {
            continue;
        }
        tried += 1;
        let (code, taken) = given_json(&folder, &["collect", name, "-o", "cores"]);
        assert_eq!(code, Some(1), "{taken}");
        let failure = &taken["failures"][0];
        let reason = failure["reason"].as_str().expect("why");
        assert!(reason.contains(kind), "{reason}");
        // What `collect` does with the copy is said before it is made.
        let hint = failure["hint"].as_str().expect("a hint");
        assert!(hint.contains("mark the dump in the copy only"), "{hint}");
        assert_eq!(hint.contains("qemu-nbd"), !name.contains(".img."), "{hint}");
        let (_, command) = reason.split_once("to read what is in it: ").expect("a command");
        assert!(shell(command), "{command}");
        let copy = command.rsplit(' ').next().expect("a name");
        answer(&folder, &["extract", copy, "-o", "core", "--force"]);
        is_core(&folder, "core", &core);
        std::fs::remove_file(folder.path(copy)).expect("remove it");
    }
    assert!(tried > 0, "none of the programs is here");
}
