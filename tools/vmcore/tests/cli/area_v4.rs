//! A dump area of version 4: two headers, slots that are found without any, making and removing.

use crate::common::{Folder, answer, complaint, given};
use e2e::synth::area_v2::{Dump, Storing, build, build_v4};
use e2e::synth::core::Core;
use serde_json::Value;

fn json(folder: &Folder, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&answer(folder, &all)).expect("JSON")
}

fn two_dumps() -> Vec<u8> {
    let dump = |sequence| Some(Dump::sealed(sequence, Core::small().build(), Storing::Raw));
    build_v4(&[dump(5), dump(6)])
}

/// Whether `info` reads dump 6, and what it warns of.
fn warned(folder: &Folder, disk: &[u8]) -> String {
    folder.file("disk.img", disk);
    let info = json(folder, &["info", "disk.img"]);
    assert_eq!(info["slot"]["sequence"], 6);
    info["warnings"].to_string()
}

#[test]
fn dumps_are_found_with_one_header_and_with_none() {
    let folder = Folder::new("v4-headers");
    let good = two_dumps();
    assert_eq!(warned(&folder, &good), "[]");
    let copy = good.len() - (1 << 20);
    // A bit, a sector, and something else in its place.
    for bytes in [vec![good[9] ^ 1], vec![0; 512], vec![0xa5; 4096]] {
        let mut bad = good.clone();
        bad[9..9 + bytes.len()].copy_from_slice(&bytes);
        let warnings = warned(&folder, &bad);
        assert!(warnings.contains("the header of the dump area is damaged"), "{warnings}");
        let mut bad = good.clone();
        bad[copy + 9..copy + 9 + bytes.len()].copy_from_slice(&bytes);
        let warnings = warned(&folder, &bad);
        assert!(warnings.contains("copy of the header of the dump area is damaged"), "{warnings}");
        let mut bad = good.clone();
        bad[9..9 + bytes.len()].copy_from_slice(&bytes);
        bad[copy + 9..copy + 9 + bytes.len()].copy_from_slice(&bytes);
        let warnings = warned(&folder, &bad);
        assert!(warnings.contains("found by an open record"), "{warnings}");
    }
}

#[test]
fn a_damaged_header_is_a_bad_answer_with_dumps_and_without() {
    let folder = Folder::new("v4-header-collected");
    for slots in [two_dumps(), e2e::synth::area_v2::build_v4(&[None, None])] {
        let copy = slots.len() - (1 << 20);
        for at in [9, copy + 9] {
            let mut bad = slots.clone();
            bad[at] ^= 1;
            folder.file("disk.img", &bad);
            let (code, collected) = given(&folder, &["collect", "disk.img", "-o", "cores"]);
            assert_eq!(code, Some(3), "{at}: {collected}");
            let failure = &collected["failures"][0];
            assert_eq!(failure["damaged"], true);
            let reason = failure["reason"].as_str().expect("words");
            assert!(reason.contains("header of the dump area"), "{reason}");
            // What is there is taken all the same.
            let dumps = collected["dumps"].as_array().expect("dumps");
            assert!(dumps.iter().all(|dump| dump["verified"] == true && dump["marked"] == true));
            assert_eq!(dumps.is_empty(), slots.iter().skip(1 << 20).take(4096).all(|&b| b == 0));
        }
    }
}

#[test]
fn a_disk_with_something_else_on_it_is_read_and_not_written() {
    let folder = Folder::new("v4-claimed");
    let mut disk = two_dumps();
    disk[1080..1082].copy_from_slice(b"\x53\xef");
    let warnings = warned(&folder, &disk);
    assert!(warnings.contains("an ext file system at byte 0"), "{warnings}");
    let collected = json(&folder, &["collect", "disk.img", "-o", "cores"]);
    assert_eq!(collected["dumps"][0]["marked"], false);
    assert!(std::fs::read(folder.path("disk.img")).expect("the disk") == disk);
}

#[test]
fn data_anywhere_near_is_not_prepared_over() {
    let folder = Folder::new("v4-prepare");
    let place = |from: usize, bytes: usize| {
        let mut disk = vec![0; 32 << 20];
        disk[from..from + bytes].fill(0x11);
        folder.file("disk.img", &disk);
        let found = complaint(&folder, &["prepare", "disk.img", "--slots", "2"]);
        assert!(found.contains("not blank"), "{from}: {found}");
        assert!(std::fs::read(folder.path("disk.img")).expect("the disk") == disk);
    };
    place(1 << 20, 20 << 20);
    place((1 << 20) + 60000, 1);
    place(16 << 20, 1);
    place((32 << 20) - 1, 1);
    place(9 << 20, 600 << 10);
    // What is there is gone, as far as the area says that it is zero.
    let mut disk = vec![0x11; 32 << 20];
    folder.file("disk.img", &disk);
    let made = json(&folder, &["prepare", "disk.img", "--slots", "2", "--force"]);
    assert_eq!((&made["version"], &made["upgraded_from"]), (&4.into(), &Value::Null));
    disk = std::fs::read(folder.path("disk.img")).expect("the disk");
    let copy = disk.len() - (1 << 20);
    assert!(disk[..128] == disk[copy..copy + 128] && disk[..8] == *b"EPIAREA\x01");
    assert!(disk[128..1 << 20].iter().chain(&disk[copy + 128..]).all(|&byte| byte == 0));
}

#[test]
fn an_area_is_removed_and_nothing_else() {
    let folder = Folder::new("v4-wipe");
    let mut disk = two_dumps();
    // Somebody has partitioned it since.
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    folder.file("disk.img", &disk);
    let found = complaint(&folder, &["wipe", "disk.img"]);
    assert!(found.contains("slot 0: dump 5") && found.contains("collect"), "{found}");
    assert!(std::fs::read(folder.path("disk.img")).expect("the disk") == disk);
    let wiped = json(&folder, &["wipe", "disk.img", "--force"]);
    // Two headers, two open records, two seals.
    assert_eq!(wiped["records"], 6);
    let after = std::fs::read(folder.path("disk.img")).expect("the disk");
    for magic in [&b"EPIAREA"[..], b"EPIOPEN", b"EPISEAL", b"EPICOLL"] {
        assert!(!after.windows(7).any(|bytes| bytes == magic));
    }
    assert_eq!(after[510..512], [0x55, 0xaa]);
    // Chunks are still there.
    assert!(after[(1 << 20) + 65536..].iter().any(|&byte| byte != 0));
    let found = complaint(&folder, &["wipe", "disk.img"]);
    assert!(found.contains("no dump area to wipe"), "{found}");
    folder.file("disk.img", &two_dumps());
    answer(&folder, &["wipe", "disk.img", "--all", "--force"]);
    let after = std::fs::read(folder.path("disk.img")).expect("the disk");
    assert!(after.iter().all(|&byte| byte == 0));
}

#[test]
fn an_old_area_is_upgraded_when_nothing_waits_in_it() {
    let folder = Folder::new("v4-upgrade");
    let dump = |collected| {
        Some(Dump { collected, ..Dump::sealed(3, Core::small().build(), Storing::Raw) })
    };
    let mut disk = build(&[None, dump(false)]);
    disk.resize(8 << 20, 0);
    folder.file("disk.img", &disk);
    let found = complaint(&folder, &["prepare", "disk.img", "--upgrade"]);
    assert!(found.contains("slot 1: dump 3"), "{found}");
    assert!(std::fs::read(folder.path("disk.img")).expect("the disk") == disk);
    let mut disk = build(&[None, dump(true)]);
    disk.resize(8 << 20, 0);
    folder.file("disk.img", &disk);
    let upgraded = json(&folder, &["prepare", "disk.img", "--upgrade"]);
    assert_eq!((&upgraded["version"], &upgraded["upgraded_from"]), (&4.into(), &2.into()));
    assert_eq!(
        (&upgraded["slots"], &upgraded["uuid"].as_str().expect("text")[..8]),
        (&2.into(), "22222222")
    );
    let found = complaint(&folder, &["info", "disk.img"]);
    assert!(found.contains("slot 1: empty"), "{found}");
    let found = complaint(&folder, &["prepare", "disk.img", "--upgrade"]);
    assert!(found.contains("version 4 already"), "{found}");
    folder.file("disk.img", &vec![0; 8 << 20]);
    complaint(&folder, &["prepare", "disk.img", "--upgrade"]);
}
