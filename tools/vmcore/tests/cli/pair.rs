//! A dump that two disks shared.

use e2e::synth::area::SLOT_BYTES;
use e2e::synth::area_v2::{Dump, Stage, Storing, build_pair};
use e2e::synth::core::{Core, Memory};
use serde_json::Value;

use crate::common::{Folder, answer, complaint, given, is_core, vmcore};

/// A folder with the two disks, and the core they hold.
fn folder(name: &str, storing: Storing) -> (Folder, Vec<u8>) {
    let folder = Folder::new(name);
    let core = Core::small().build();
    let [first, second] = build_pair(&Dump::sealed(7, core.clone(), storing));
    folder.file("one.img", &first);
    folder.file("two.img", &second);
    (folder, core)
}

#[test]
fn with_both_it_is_read_like_any_other() {
    for storing in [Storing::Raw, Storing::Lz4] {
        let (folder, core) = folder("pair-read", storing);
        // Whichever is named first.
        for [one, other] in [["one.img", "two.img"], ["two.img", "one.img"]] {
            answer(&folder, &["extract", one, "--with", other, "--force", "-o", "core"]);
            is_core(&folder, "core", &core);
            let (code, info) = given(&folder, &["info", one, "--with", other]);
            assert_eq!((code, &info["complete"]), (Some(0), &true.into()));
            let half = &info["slot"]["other"];
            assert_eq!(half["area"], "33333333-3333-3333-3333-333333333333");
            assert_eq!((&half["slot"], &half["sequence"]), (&0.into(), &0x28.into()));
            assert_eq!(half["here"], true);
        }
        let said = answer(&folder, &["verify", "one.img", "--with", "two.img"]);
        assert!(said.starts_with("Good: "), "{said}");
    }
}

#[test]
fn with_one_of_them_the_other_is_named() {
    let (folder, _) = folder("pair-half", Storing::Raw);
    let said = complaint(&folder, &["info", "one.img"]);
    let area = "slot 0 of the dump area 33333333-3333-3333-3333-333333333333";
    assert!(said.contains(area) && said.contains("--with"), "{said}");
    let said = complaint(&folder, &["info", "two.img"]);
    let area = "memory of dump 7, the rest of which is in slot 0 of the dump area 22222222-";
    assert!(said.contains(area) && said.contains("--with"), "{said}");
}

#[test]
fn what_is_absent_is_not_called_damaged() {
    let folder = Folder::new("pair-absent");
    // Its first stage is on the first disk alone, the second on both.
    let mut used = Core::small();
    // Memory of zeros is stored nowhere, and so is on no other disk.
    used.memory.insert(0, Memory { address: 0x300_0000, bytes: vec![0; 8192], zeros: 0 });
    let mut mini = used.clone();
    (mini.stages, mini.stage) = (2, 1);
    mini.memory.truncate(1);
    (used.stages, used.stage) = (2, 2);
    let stage = |core: &Core| Stage { elf: core.build(), sealed: true, complete: 1 };
    let stages = vec![stage(&mini), stage(&used)];
    let (storing, collected) = (Storing::Lz4, false);
    let dump = Dump { sequence: 7, planned: 2, stages, storing, collected };
    let [one, two] = build_pair(&dump);
    folder.file("one.img", &one);
    folder.file("two.img", &two);
    let area = "the dump area 33333333-3333-3333-3333-333333333333";
    let (code, verified) = given(&folder, &["verify", "one.img"]);
    assert_eq!((code, &verified["state"]), (Some(4), &"absent".into()), "{verified}");
    assert_eq!((&verified["bad_count"], &verified["bad"]), (&0.into(), &Value::Array(vec![])));
    assert!(verified["absent"][0].as_str().expect("a line").contains(area), "{verified}");
    let said = vmcore(&folder, &["verify", "one.img"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("ABSENT") && said.contains(area), "{said}");
    assert!(!said.contains("DAMAGED"), "{said}");
    // The disk with memory only names the one that has the records.
    let output = vmcore(&folder, &["verify", "two.img"]);
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the dump area 22222222-") && said.contains("--with"), "{said}");
    let (code, verified) = given(&folder, &["verify", "one.img", "--with", "two.img"]);
    assert_eq!((code, &verified["state"]), (Some(0), &"good".into()), "{verified}");
    // Damage is still damage: here to the table of the first stage.
    let mut bad = one;
    bad[SLOT_BYTES as usize + 65536] ^= 1;
    folder.file("one.img", &bad);
    let output = vmcore(&folder, &["verify", "one.img"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("damaged") && said.contains("the table of chunks"), "{said}");
}

#[test]
fn it_is_collected_from_both_or_not_at_all() {
    let (folder, core) = folder("pair-collect", Storing::Raw);
    let images =
        || ["one.img", "two.img"].map(|name| std::fs::read(folder.path(name)).expect("it"));
    let before = images();
    let (code, one) = given(&folder, &["collect", "one.img", "-o", "cores"]);
    assert_eq!((code, &one["dumps"][0]["marked"]), (Some(3), &false.into()));
    assert!(one["dumps"][0]["warnings"].to_string().contains("the dump area 33333333-"), "{one}");
    let (code, two) = given(&folder, &["collect", "two.img", "-o", "cores"]);
    assert_eq!((code, two["dumps"].as_array().map(Vec::len)), (Some(3), Some(0)));
    assert!(two["halves"].to_string().contains("the dump area 22222222-"), "{two}");
    assert!(images() == before, "something was marked");
    let (code, both) = given(&folder, &["collect", "two.img", "one.img", "-o", "cores"]);
    assert_eq!((code, &both["dumps"][0]["marked"]), (Some(0), &true.into()));
    let name = both["dumps"][0]["core"].as_str().expect("a core").to_owned();
    is_core(&folder, &name, &core);
    let after = images();
    let changed = |index: usize| {
        let differs = |(at, (old, new)): (usize, (&u8, &u8))| (old != new).then_some(at);
        let found = before[index].iter().zip(&after[index]).enumerate().filter_map(differs);
        found.map(|at| at / 4096).collect::<std::collections::BTreeSet<_>>()
    };
    let mark = SLOT_BYTES as usize / 4096 + 15;
    assert_eq!([changed(0), changed(1)], [[mark].into(), [mark].into()]);
    let (code, none) = given(&folder, &["collect", "one.img", "two.img", "-o", "cores"]);
    assert_eq!((code, &none["collected_before"]), (Some(0), &1.into()));
    // Marked on the first alone, as when that was cut off in between: the second is released.
    folder.file("two.img", &before[1]);
    let (code, rest) = given(&folder, &["collect", "one.img", "two.img", "-o", "cores"]);
    assert_eq!((code, rest["dumps"].as_array().map(Vec::len)), (Some(0), Some(0)));
    assert_ne!(images()[1], before[1]);
}

#[test]
fn another_half_than_its_own_is_none() {
    let (folder, _) = folder("pair-wrong", Storing::Raw);
    // The slot of the second has another dump's memory by now.
    let mut second = std::fs::read(folder.path("two.img")).expect("a disk");
    let open = SLOT_BYTES as usize;
    second[open + 32] ^= 1;
    second[open + 16..open + 20].fill(0);
    let crc = crc32fast::hash(&second[open..open + 256]);
    second[open + 16..open + 20].copy_from_slice(&crc.to_le_bytes());
    folder.file("two.img", &second);
    let said = complaint(&folder, &["info", "one.img", "--with", "two.img"]);
    assert!(said.contains("the rest of it was in slot 0 of the dump area 33333333-"), "{said}");
}
