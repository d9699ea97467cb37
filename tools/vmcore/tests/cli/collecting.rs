//! Verifying what is on a disk, and taking it off.

use e2e::synth::area_v2::{Dump, Storing, build};
use e2e::synth::core::Core;
use serde_json::Value;

use crate::common::{Folder, answer, complaint, is_core, vmcore};

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
    let sequences: Vec<_> = dumps.iter().map(|dump| dump["sequence"].as_str()).collect();
    assert_eq!(sequences, [Some("0x8"), Some("0x9")], "oldest first");
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
