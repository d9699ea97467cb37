//! A dump area of version 2: chunks, stages that share them, checksums.

use crate::common::{Folder, answer, complaint, is_core, vmcore as program};
use e2e::synth::area::{DATA, SLOT_BYTES};
use e2e::synth::area_v2::{Dump, Stage, Storing, build};
use e2e::synth::core::Core;
use e2e::synth::image;
use serde_json::Value;
use vmcore::{OpenOptions, Source};

fn json(folder: &Folder, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&answer(folder, &all)).expect("JSON")
}

/// A core with a segment of several chunks and a long run of zeros, part of it not stored.
fn core() -> Core {
    let mut core = Core::small();
    let mut bytes = vec![0; 80 * 4096];
    for (at, byte) in bytes[..40 * 4096].iter_mut().enumerate() {
        *byte = (at * 7 + at / 251) as u8;
    }
    core.memory.push(e2e::synth::core::Memory { address: 0x200_0000, bytes, zeros: 0x3000 });
    core
}

#[test]
fn a_disk_is_read_like_the_core_it_holds() {
    let folder = Folder::new("v2-disk");
    let core = core().build();
    folder.file("appliance", &image::build(&image::BUILD_ID));
    folder.file("core", &core);
    for storing in [Storing::Raw, Storing::Lz4] {
        let mut older = Core::small();
        older.message = "an older crash";
        let older = Dump { collected: true, ..Dump::sealed(7, older.build(), storing) };
        let disk = build(&[Some(Dump::sealed(8, core.clone(), storing)), Some(older), None]);
        folder.file("disk.img", &disk);
        let info = json(&folder, &["info", "disk.img"]);
        assert_eq!((&info["slot"]["slot"], &info["slot"]["sequence"]), (&0.into(), &8.into()));
        assert_eq!(info["complete"], true);
        assert_eq!(info["stages"][0]["sealed_after_crash_ns"], 60000000);
        for command in ["cpus", "regs", "bt", "stamps", "log"] {
            let found = answer(&folder, &[command, "disk.img"]);
            assert_eq!(found, answer(&folder, &[command, "core"]), "{command}");
        }
        answer(&folder, &["extract", "disk.img", "--force"]);
        is_core(&folder, "vmcore", &core);
        let found = complaint(&folder, &["info", "disk.img", "--slot", "2"]);
        assert!(found.contains("empty"), "{found}");
        let source = Source::open(folder.path("disk.img")).expect("a disk");
        let slots = &source.disk().expect("an area").slots;
        assert!(slots[1].describe().ends_with("sealed, collected"), "{}", slots[1].describe());
        assert!(!slots[0].describe().contains("collected"));
    }
}

#[test]
fn a_later_stage_shares_the_chunks_of_the_one_before() {
    let folder = Folder::new("v2-stages");
    let mut mini = core();
    (mini.stages, mini.stage) = (2, 1);
    mini.memory.truncate(3);
    let mut used = core();
    (used.stages, used.stage) = (2, 2);
    let (mini, used) = (mini.build(), used.build());
    let disk = |sealed, complete| {
        let first = Stage { elf: mini.clone(), sealed: true, complete: 1 };
        let second = Stage { elf: used.clone(), sealed, complete };
        let stages = vec![first, second];
        let (storing, collected) = (Storing::Lz4, false);
        build(&[Some(Dump { sequence: 5, planned: 2, stages, storing, collected })])
    };
    let extracted = |expected: &[u8], name: &str, complete: bool| {
        let out = json(&folder, &["extract", name, "--force"]);
        assert_eq!(out["complete"], complete);
        is_core(&folder, "vmcore", expected);
    };
    folder.file("both.img", &disk(true, 1));
    extracted(&used, "both.img", true);
    folder.file("one.img", &disk(false, 1));
    extracted(&mini, "one.img", false);
    folder.file("deadline.img", &disk(true, 0));
    extracted(&used, "deadline.img", false);
    let info = json(&folder, &["info", "deadline.img"]);
    assert_eq!(info["stages"][1]["incomplete"], "deadline");
    // The table of the second stage is damaged: the first is still good.
    let mut damaged = disk(true, 1);
    let slot = SLOT_BYTES as usize;
    let seal = &damaged[slot + 2 * 4096..];
    let table = u64::from_le_bytes(seal[120..128].try_into().expect("eight bytes")) as usize;
    damaged[slot + table + 41] ^= 0x10;
    folder.file("damaged.img", &damaged);
    let output = program(&folder, &["extract", "damaged.img", "--force", "--json"]);
    assert_eq!(output.status.code(), Some(3), "a stage is damaged");
    let out: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&out["complete"], &out["damaged"]), (&false.into(), &true.into()));
    is_core(&folder, "vmcore", &mini);
    let output = program(&folder, &["info", "damaged.img", "--json"]);
    assert_eq!(output.status.code(), Some(3), "a sealed stage was passed over");
    let info: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(info["warnings"][0].as_str().expect("a warning").contains("stage 2"), "{info}");
    let met = &info["damage_met"][0];
    assert!(met["what"].as_str().expect("words").contains("stage 2"), "{info}");
    assert_eq!((&met["address"], &met["bytes"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_fault_of_the_capture_is_told_from_disk_and_file() {
    let folder = Folder::new("v2-fault");
    let mut core = core();
    core.fault = "exception 14 (page fault) at 0x4012345";
    core.excluded.push((0x300_0000, 0x2000, 10));
    let disk = build(&[Some(Dump::sealed(3, core.build(), Storing::Raw))]);
    folder.file("disk.img", &disk);
    answer(&folder, &["extract", "disk.img"]);
    for file in ["disk.img", "vmcore"] {
        let info = json(&folder, &["info", file]);
        assert_eq!(info["capture"]["fault"], core.fault);
        // Although its one seal, and the number of its stage, say nothing of that.
        assert_eq!(info["complete"], false, "{file}");
        let excluded = info["excluded"].as_array().expect("ranges");
        assert_eq!(excluded.last().expect("a range")["reason"], "fault");
        let told = answer(&folder, &["info", file]);
        let line = "ended by a fault in the capture image: exception 14 (page fault) at 0x4012345";
        assert!(told.contains(line) && told.contains("INCOMPLETE"), "{told}");
    }
}

#[test]
fn a_flipped_byte_of_memory_is_found_and_named() {
    let folder = Folder::new("v2-flips");
    let whole = core().build();
    for storing in [Storing::Raw, Storing::Lz4] {
        let good = build(&[Some(Dump::sealed(1, whole.clone(), storing))]);
        let start = (SLOT_BYTES + DATA) as usize;
        let seal = &good[SLOT_BYTES as usize + 4096..];
        let table = u64::from_le_bytes(seal[120..128].try_into().expect("eight bytes")) as usize;
        let end = SLOT_BYTES as usize + table;
        let mut found = 0;
        for at in (start..end).step_by(9973) {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            folder.file("disk.img", &bad);
            let source = Source::open(folder.path("disk.img")).expect("a disk");
            let dump = source.dump(OpenOptions::default()).expect("a sound header");
            let file = dump.stage_file().expect("chunks");
            let count = file.entries().len();
            let wrong: Vec<_> = (0..count).filter_map(|index| file.chunk(index).err()).collect();
            // Between two chunks there is padding, which says nothing.
            assert!(wrong.len() <= 1, "{wrong:?}");
            let Some(wrong) = wrong.first() else { continue };
            found += 1;
            let told = complaint(&folder, &["extract", "disk.img", "--force"]);
            assert!(told.contains(&format!("chunk {}", wrong.index)), "{told}");
            assert!(!folder.path("vmcore").exists());
            let output = program(&folder, &["extract", "disk.img", "--partial", "-o", "part"]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert!(said.contains(&format!("at {:#x}", wrong.address)), "{said}");
            std::fs::remove_file(folder.path("part")).expect("remove it");
        }
        assert!(found > 5, "{found} with {storing:?}");
    }
}

#[test]
fn no_damage_to_the_records_makes_it_panic_or_lie() {
    let folder = Folder::new("v2-damage");
    let whole = core().build();
    let good = build(&[Some(Dump::sealed(1, whole.clone(), Storing::Lz4))]);
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    let slot = SLOT_BYTES as usize;
    for _ in 0..400 {
        let mut bad = good.clone();
        let block = slot + 4096 * below(2);
        bad[block + below(256)] = below(256) as u8;
        let path = folder.file("disk.img", &bad);
        for partial in [false, true] {
            let options = OpenOptions { partial, ..OpenOptions::default() };
            if let Ok(dump) = Source::open(&path).and_then(|source| source.dump(options)) {
                assert_eq!(dump.file_bytes(), whole.len() as u64);
            }
        }
    }
}
