//! Damaged and cut disks: what is good is taken, what is not is left out and named.

use e2e::synth::area::SLOT_BYTES;
use e2e::synth::area_v2::{Dump, Stage, Storing, build};
use e2e::synth::core::{Core, Memory};
use serde_json::Value;
use vmcore::commands::verify::State;
use vmcore::dump::{Memory as _, MemoryFault};
use vmcore::stage::ChunkFault;
use vmcore::{OpenOptions, Source};

use crate::common::{Folder, answer, complaint, given, is_core, vmcore};

/// A core with a segment of several chunks.
fn core() -> Core {
    let mut core = Core::small();
    let mut bytes = vec![0; 80 * 4096];
    for (at, byte) in bytes[..64 * 4096].iter_mut().enumerate() {
        *byte = (at * 7 + at / 251) as u8 | 1;
    }
    core.memory.push(Memory { address: 0x200_0000, bytes, zeros: 0x3000 });
    core
}

/// First byte of the log of slot 0.
const LOG: usize = SLOT_BYTES as usize + 65536;

/// Returns where chunk `index` is stored on the disk, and the address and bytes of its memory.
fn chunk(folder: &Folder, disk: &str, index: usize) -> (usize, u64, u64) {
    let source = Source::open(folder.path(disk)).expect("a disk");
    let dump = source.dump(OpenOptions::default()).expect("a dump");
    let entry = dump.stage_file().expect("chunks").entries()[index];
    let at = (SLOT_BYTES + entry.offset) as usize;
    (at, entry.address, u64::from(entry.memory_bytes))
}

/// Checks that the core `name` holds the memory of `whole`, but for what is at `address`, which
/// is in none of its segments and listed as left out, and that nothing else is wrong with it.
fn lacks_only(folder: &Folder, name: &str, whole: &Core, (address, bytes): (u64, u64)) {
    let dump = vmcore::Dump::open(folder.path(name)).expect("a core");
    for memory in &whole.memory {
        let end = memory.address + memory.bytes.len() as u64 + memory.zeros;
        for at in (memory.address..end).step_by(4096) {
            let mut page = [0xee; 4096];
            let read = dump.read(at, &mut page);
            if (address..address + bytes).contains(&at) {
                let Err(MemoryFault::Damaged(bad)) = read else { panic!("{name}: {read:?}") };
                assert_eq!((bad.address, bad.bytes), (address, bytes), "{name}");
                assert_eq!(bad.fault, ChunkFault::LeftOut, "{name}");
                continue;
            }
            assert_eq!(read, Ok(()), "{name}: {at:#x}");
            let inside = (at - memory.address) as usize;
            let wanted = memory.bytes.get(inside..inside + 4096).unwrap_or(&[0; 4096]);
            assert!(page == *wanted, "{name}: wrong bytes at {at:#x}");
        }
    }
    let load = |segment: &vmcore_format::reader::FileSegment| segment.load;
    assert!(dump.segments().iter().map(load).all(|load| {
        load.physical_address >= address + bytes
            || load.physical_address + load.memory_bytes <= address
    }));
    assert!(!dump.is_complete(), "{name}");
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    assert_eq!((verified.state, verified.complete), (State::Good, false), "{verified:?}");
    assert_eq!(verified.left_out, [format!("{bytes} bytes of memory at {address:#x}")]);
    assert!(verified.bad.is_empty() && verified.warnings.is_empty(), "{verified:?}");
}

#[test]
fn a_damaged_chunk_is_left_out() {
    for storing in [Storing::Raw, Storing::Lz4] {
        let folder = Folder::new(&format!("salvage-chunk-{storing:?}"));
        let good = build(&[Some(Dump::sealed(8, core().build(), storing))]);
        folder.file("good.img", &good);
        let (at, address, bytes) = chunk(&folder, "good.img", core().memory.len() - 1);
        let mut bad = good.clone();
        bad[at + 700] ^= 0x20;
        folder.file("disk.img", &bad);
        let found = complaint(&folder, &["extract", "disk.img", "-o", "core"]);
        assert!(found.contains("disk.img: damaged: slot 0: chunk "), "{found}");
        assert!(found.contains(&format!("stored at byte {at} of the disk")), "{found}");
        for elide in [&[][..], &["--elide-zero"]] {
            let words = ["extract", "disk.img", "--partial", "-o", "core", "--force"];
            let (code, out) = given(&folder, &[&words[..], elide].concat());
            assert_eq!(code, Some(3), "{out}");
            assert_eq!((&out["complete"], &out["damaged"]), (&false.into(), &true.into()));
            let left = &out["left_out"][0];
            assert_eq!(left["address"], format!("{address:#x}"), "{out}");
            assert_eq!(left["bytes"], bytes, "{out}");
            lacks_only(&folder, "core", &core(), (address, bytes));
            let output = vmcore(&folder, &[&words[..], elide].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(&format!("at {address:#x}")), "{said}");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains("INCOMPLETE") && said.contains("DAMAGED"), "{said}");
            let info: Value =
                serde_json::from_str(&answer(&folder, &["info", "core", "--json"])).expect("JSON");
            let excluded = info["excluded"].as_array().expect("ranges");
            assert_eq!(excluded.last().expect("one")["reason"], "damaged");
            assert_eq!(info["complete"], false);
        }
        // Every other command meets an error there, and no invented bytes.
        let source = Source::open(folder.path("disk.img")).expect("a disk");
        let options = OpenOptions { partial: true, ..OpenOptions::default() };
        let dump = source.dump(options).expect("a dump");
        let Err(MemoryFault::Damaged(bad)) = dump.read(address, &mut [0; 8]) else {
            panic!("damaged memory was handed out");
        };
        assert_eq!((bad.address, bad.bytes, bad.place), (address, bytes, Some(at as u64)));
        // With nothing damaged, it is what it is without the option.
        let (code, out) = given(&folder, &["extract", "good.img", "--partial", "-o", "whole"]);
        assert_eq!((code, &out["complete"]), (Some(0), &true.into()));
        is_core(&folder, "whole", &core().build());
    }
}

#[test]
fn a_damaged_entry_of_the_table_takes_its_own_chunk_with_it() {
    for storing in [Storing::Raw, Storing::Lz4] {
        let folder = Folder::new(&format!("salvage-table-{storing:?}"));
        let good = build(&[Some(Dump::sealed(8, core().build(), storing))]);
        folder.file("good.img", &good);
        let index = core().memory.len() - 1;
        let (_, address, bytes) = chunk(&folder, "good.img", index);
        let seal = SLOT_BYTES as usize + 4096;
        let table = u64::from_le_bytes(good[seal + 120..seal + 128].try_into().expect("eight"));
        let entry = SLOT_BYTES as usize + table as usize + 40 * index;
        for byte in 0..40 {
            // What is said of the other area means nothing in a dump that has none.
            if (28..32).contains(&byte) {
                continue;
            }
            let mut bad = good.clone();
            bad[entry + byte] ^= 0x11;
            folder.file("disk.img", &bad);
            complaint(&folder, &["extract", "disk.img", "-o", "core"]);
            let words = ["extract", "disk.img", "--partial", "-o", "core", "--force"];
            let (code, out) = given(&folder, &words);
            assert_eq!(code, Some(3), "byte {byte}: {out}");
            lacks_only(&folder, "core", &core(), (address, bytes));
            // The table that was read all the same is damage to every command.
            let (code, info) = given(&folder, &["info", "disk.img", "--partial"]);
            assert_eq!(code, Some(3), "byte {byte}: {info}");
            let met = info["damage_met"][0]["what"].as_str().expect("what is damaged");
            assert!(met.contains("the table of chunks"), "byte {byte}: {met}");
        }
    }
}

#[test]
fn a_damaged_dump_is_salvaged_and_its_slot_freed() {
    let folder = Folder::new("salvage-collect");
    let good = build(&[Some(Dump::sealed(8, core().build(), Storing::Raw))]);
    folder.file("disk.img", &good);
    let (at, address, bytes) = chunk(&folder, "disk.img", core().memory.len());
    let mut bad = good;
    bad[at] ^= 1;
    folder.file("disk.img", &bad);
    let (code, left) = given(&folder, &["collect", "disk.img", "-o", "cores"]);
    let dump = &left["dumps"][0];
    assert_eq!((code, &dump["marked"], &dump["core"]), (Some(3), &false.into(), &Value::Null));
    assert!(dump["warnings"].to_string().contains("--salvage"), "{dump}");
    let (code, taken) = given(&folder, &["collect", "disk.img", "-o", "cores", "--salvage"]);
    let dump = &taken["dumps"][0];
    assert_eq!(code, Some(3), "{taken}");
    assert_eq!((&dump["salvaged"], &dump["marked"]), (&true.into(), &true.into()), "{dump}");
    assert_eq!((&dump["verified"], &dump["complete"]), (&false.into(), &false.into()));
    assert_eq!(dump["left_out"][0]["address"], format!("{address:#x}"));
    let name = dump["core"].as_str().expect("a core");
    assert!(name.ends_with(".salvaged.core"), "{name}");
    lacks_only(&folder, name, &core(), (address, bytes));
    let (code, none) = given(&folder, &["collect", "disk.img", "-o", "cores", "--salvage"]);
    assert_eq!((code, &none["collected_before"]), (Some(0), &1.into()), "the slot is free");
    // A good dump is taken as ever.
    folder.file("disk.img", &build(&[Some(Dump::sealed(9, core().build(), Storing::Lz4))]));
    let (code, taken) = given(&folder, &["collect", "disk.img", "-o", "cores", "--salvage"]);
    let dump = &taken["dumps"][0];
    assert_eq!(
        (code, &dump["salvaged"], &dump["complete"]),
        (Some(0), &false.into(), &true.into())
    );
}

#[test]
fn a_damaged_seal_of_a_later_stage_is_told() {
    let folder = Folder::new("salvage-seal");
    let (mut mini, mut used) = (core(), core());
    (mini.stages, mini.stage) = (2, 1);
    mini.memory.truncate(3);
    (used.stages, used.stage) = (2, 2);
    let stage = |core: &Core| Stage { elf: core.build(), sealed: true, complete: 1 };
    let stages = vec![stage(&mini), stage(&used)];
    let (storing, collected) = (Storing::Raw, false);
    let mut disk = build(&[Some(Dump { sequence: 5, planned: 2, stages, storing, collected })]);
    disk[SLOT_BYTES as usize + 2 * 4096 + 100] ^= 1;
    folder.file("disk.img", &disk);
    let seal = format!("the seal of stage 2, at byte {} of the disk, is damaged", (1 << 20) + 8192);
    let (code, verified) = given(&folder, &["verify", "disk.img"]);
    assert_eq!((code, &verified["state"]), (Some(3), &"damaged".into()), "{verified}");
    assert!(verified["bad"][0].as_str().expect("a line").contains(&seal), "{verified}");
    let (code, out) = given(&folder, &["extract", "disk.img", "-o", "core"]);
    assert_eq!((code, &out["complete"], &out["stage"]), (Some(3), &false.into(), &1.into()));
    is_core(&folder, "core", &mini.build());
    let (code, left) = given(&folder, &["collect", "disk.img", "-o", "cores"]);
    assert_eq!((code, &left["dumps"][0]["marked"]), (Some(3), &false.into()), "{left}");
    assert!(left["dumps"][0]["warnings"][0].as_str().expect("why").contains(&seal), "{left}");
    let (code, taken) = given(&folder, &["collect", "disk.img", "-o", "cores", "--salvage"]);
    let dump = &taken["dumps"][0];
    assert_eq!((code, &dump["marked"], &dump["salvaged"]), (Some(3), &true.into(), &true.into()));
    let name = dump["core"].as_str().expect("a core");
    is_core(&folder, name, &mini.build());
}

#[test]
fn of_a_dump_that_cannot_be_read_the_slot_is_copied() {
    let folder = Folder::new("salvage-slot");
    let good = build(&[Some(Dump::sealed(8, core().build(), Storing::Raw))]);
    let slot = SLOT_BYTES as usize;
    let word = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().expect("eight bytes"));
    let (header, end) = (word(slot + 4096 + 40) as usize, word(slot + 4096 + 144) as usize);
    let mut bad = good.clone();
    // It is no ELF file any more.
    bad[slot + header] ^= 1;
    folder.file("disk.img", &bad);
    let found = complaint(&folder, &["extract", "disk.img", "--partial", "-o", "core"]);
    assert!(!found.contains("--partial") && found.contains("keep the disk"), "{found}");
    let (code, left) = given(&folder, &["collect", "disk.img", "-o", "cores"]);
    let dump = &left["dumps"][0];
    assert_eq!((code, &dump["marked"]), (Some(3), &false.into()), "{left}");
    let (code, taken) = given(&folder, &["collect", "disk.img", "-o", "cores", "--salvage"]);
    let dump = &taken["dumps"][0];
    assert_eq!((code, &dump["marked"]), (Some(3), &true.into()), "{taken}");
    assert_eq!((&dump["core"], &dump["verified"]), (&Value::Null, &false.into()), "{taken}");
    let name = dump["slot_copy"].as_str().expect("a copy");
    assert!(name.ends_with(".salvaged.slot"), "{name}");
    let copy = std::fs::read(folder.path(name)).expect("a copy");
    assert!(copy == bad[slot..slot + end], "{} bytes", copy.len());
    let (code, none) = given(&folder, &["collect", "disk.img", "-o", "cores", "--salvage"]);
    assert_eq!((code, &none["collected_before"]), (Some(0), &1.into()), "the slot is free");
}

#[test]
fn a_disk_that_is_cut_short_is_read_as_far_as_it_goes() {
    let folder = Folder::new("salvage-cut");
    // Two stages: what the first needs is in front of the second's chunks.
    let (mut mini, mut used) = (core(), core());
    (mini.stages, mini.stage) = (2, 1);
    mini.memory.truncate(3);
    (used.stages, used.stage) = (2, 2);
    let stage = |core: &Core| Stage { elf: core.build(), sealed: true, complete: 1 };
    let stages = vec![stage(&mini), stage(&used)];
    let (storing, collected) = (Storing::Raw, false);
    let disk = build(&[Some(Dump { sequence: 5, planned: 2, stages, storing, collected }), None]);
    folder.file("disk.img", &disk);
    // Only an empty slot is cut off: all of the dump is there.
    folder.file("cut.img", &disk[..disk.len() - (700 << 10)]);
    let found = complaint(&folder, &["extract", "cut.img", "-o", "core"]);
    assert!(found.contains("cut short") && found.contains("--partial"), "{found}");
    answer(&folder, &["extract", "cut.img", "-o", "core", "--partial"]);
    is_core(&folder, "core", &used.build());
    // The second stage's header and table are cut off: the first is what there is.
    let seal = SLOT_BYTES as usize + 2 * 4096;
    let table = u64::from_le_bytes(disk[seal + 120..seal + 128].try_into().expect("eight"));
    folder.file("cut.img", &disk[..(SLOT_BYTES + table) as usize + 8]);
    let found = complaint(&folder, &["info", "cut.img"]);
    assert!(found.contains("--partial"), "{found}");
    let (code, out) = given(&folder, &["extract", "cut.img", "-o", "core", "--partial", "--force"]);
    assert_eq!((code, &out["stage"], &out["complete"]), (Some(3), &1.into(), &false.into()));
    is_core(&folder, "core", &mini.build());
    // Nothing is left: the hint does not offer what does not work.
    folder.file("cut.img", &disk[..LOG + 100]);
    for words in [&["info", "cut.img"][..], &["extract", "cut.img", "-o", "none", "--partial"]] {
        let found = complaint(&folder, words);
        assert!(found.contains("cut short") && !found.contains("--partial"), "{found}");
    }
    let (code, left) = given(&folder, &["collect", "cut.img", "-o", "cores"]);
    assert_eq!(code, Some(3), "{left}");
    assert!(left["dumps"][0]["warnings"].to_string().contains("nothing of it can be read"));
}

#[test]
fn chunks_behind_the_end_are_left_out() {
    let folder = Folder::new("salvage-behind");
    // The table and the header of a dump in the first slot are moved in front of its chunks.
    let mut disk = build(&[Some(Dump::sealed(5, core().build(), Storing::Raw))]);
    let slot = SLOT_BYTES as usize;
    let word = |disk: &[u8], at: usize| {
        u64::from_le_bytes(disk[at..at + 8].try_into().expect("eight bytes")) as usize
    };
    let seal = slot + 4096;
    let (header, table) = (word(&disk, seal + 40), word(&disk, seal + 120));
    let (header_bytes, table_bytes) = (word(&disk, seal + 56), word(&disk, seal + 128));
    let end = word(&disk, seal + 144);
    let front = (table_bytes.next_multiple_of(4096) + header_bytes).next_multiple_of(4096);
    let log: Vec<u8> = disk[slot + 65536..slot + table].to_vec();
    let mut records = disk[slot + table..slot + table + table_bytes].to_vec();
    let header = disk[slot + header..slot + header + header_bytes].to_vec();
    for entry in records.chunks_mut(40) {
        let moved = word(entry, 0) as u64 + front as u64;
        entry[..8].copy_from_slice(&moved.to_le_bytes());
    }
    disk[slot + 65536..slot + 65536 + table_bytes].copy_from_slice(&records);
    let at = 65536 + table_bytes.next_multiple_of(4096);
    disk[slot + at..slot + at + header_bytes].copy_from_slice(&header);
    disk[slot + 65536 + front..slot + 65536 + front + log.len()].copy_from_slice(&log);
    disk[seal + 40..seal + 48].copy_from_slice(&(at as u64).to_le_bytes());
    disk[seal + 120..seal + 128].copy_from_slice(&65536u64.to_le_bytes());
    disk[seal + 144..seal + 152].copy_from_slice(&(end as u64).to_le_bytes());
    let crc = crc32fast::hash(&records);
    disk[seal + 136..seal + 140].copy_from_slice(&crc.to_le_bytes());
    disk[seal + 16..seal + 20].fill(0);
    let crc = crc32fast::hash(&disk[seal..seal + 256]);
    disk[seal + 16..seal + 20].copy_from_slice(&crc.to_le_bytes());
    folder.file("disk.img", &disk);
    answer(&folder, &["extract", "disk.img", "-o", "core"]);
    is_core(&folder, "core", &core().build());
    let last = core().memory.len() + 1;
    let (at, address, bytes) = chunk(&folder, "disk.img", last);
    folder.file("disk.img", &disk[..at + 100]);
    let words = ["extract", "disk.img", "-o", "core", "--partial", "--force"];
    let (code, out) = given(&folder, &words);
    assert_eq!(code, Some(3), "{out}");
    let left = &out["left_out"][0];
    assert_eq!(left["address"], format!("{address:#x}"), "{out}");
    assert!(left["reason"].as_str().expect("why").contains("behind the end"), "{out}");
    lacks_only(&folder, "core", &core(), (address, bytes));
}
