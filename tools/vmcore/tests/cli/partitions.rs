//! A dump area in a partition: found, prepared, and nothing else touched.

use std::fs::File;
use std::os::unix::fs::FileExt;

use e2e::synth::area;
use e2e::synth::core::Core;
use e2e::synth::gpt::{LINUX, Wanted, write};
use serde_json::Value;
use vmcore_format::gpt::TYPE_GUID;

use crate::common::{Folder, answer, complaint};

const DISK: u64 = 48 << 20;
const PART: u64 = 12 << 20;

/// A disk with three partitions, the second one for dumps, every byte of which is 0x5a.
fn disk(folder: &Folder, sector: u64) -> [u64; 3] {
    let path = folder.file("disk.img", &[]);
    let mut file = File::options().read(true).write(true).open(path).expect("a disk");
    file.set_len(DISK).expect("its length");
    let part = |kind, guid| Wanted { kind, guid: [guid; 16], bytes: PART };
    let wanted = [part(LINUX, 1), part(TYPE_GUID, 2), part(LINUX, 3)];
    let starts = write(&mut file, sector, &wanted).expect("a table");
    for &start in &starts {
        file.write_all_at(&vec![0x5a; PART as usize], start).expect("content");
    }
    starts.try_into().expect("three of them")
}

#[test]
fn a_partition_is_prepared_and_its_neighbours_are_not_touched() {
    for sector in [512, 4096] {
        let folder = Folder::new(&format!("partition-{sector}"));
        let [_, start, behind] = disk(&folder, sector);
        let before = std::fs::read(folder.path("disk.img")).expect("the disk");
        let found = complaint(&folder, &["prepare", "disk.img"]);
        assert!(found.contains("partition table"), "{found}");
        let found = complaint(&folder, &["prepare", "disk.img", "--partition", "1", "--force"]);
        assert!(found.contains("sgdisk -t 1:7408c5f2-"), "{found}");
        let found = complaint(&folder, &["prepare", "disk.img", "--partition", "2"]);
        assert!(found.contains("not blank"), "{found}");
        let found = complaint(&folder, &["info", "disk.img"]);
        assert!(found.contains("without") || found.contains("neither"), "{found}");

        let guid = "02020202-0202-0202-0202-020202020202";
        let words =
            ["prepare", "disk.img", "--partition", guid, "--slots", "2", "--force", "--json"];
        let made: Value = serde_json::from_str(&answer(&folder, &words)).expect("JSON");
        assert_eq!(made["partition"], guid);
        assert_eq!(made["offset"], start);
        let after = std::fs::read(folder.path("disk.img")).expect("the disk");
        let (start, behind) = (start as usize, behind as usize);
        assert!(before[..start] == after[..start] && before[behind..] == after[behind..]);
        assert!(before[start..behind] != after[start..behind]);
        let found = complaint(&folder, &["info", "disk.img"]);
        assert!(found.contains("slot 1: empty"), "{found}");
    }
}

/// A dump in a partition reads as one on a whole disk, from either copy of the table.
#[test]
fn a_dump_in_a_partition_is_found() {
    let folder = Folder::new("partition-dump");
    let [_, start, _] = disk(&folder, 512);
    let dump = area::build(&[Some(area::Dump::sealed(3, Core::small().build()))]);
    let file = File::options().write(true).open(folder.path("disk.img")).expect("the disk");
    file.write_all_at(&dump, start).expect("a dump");
    folder.file("whole.img", &dump);
    let wanted = answer(&folder, &["info", "whole.img"]);
    assert_eq!(answer(&folder, &["info", "disk.img"]), wanted);
    // The first table is gone; the second one stands at the end.
    file.write_all_at(&[0; 1024], 512).expect("damage");
    assert_eq!(answer(&folder, &["info", "disk.img"]), wanted);
    file.write_all_at(&[0; 512], DISK - 512).expect("more damage");
    let found = complaint(&folder, &["info", "disk.img"]);
    assert!(found.contains("both copies of its partition table"), "{found}");
}

#[test]
fn the_size_is_planned() {
    let folder = Folder::new("plan");
    let said = answer(&folder, &["prepare", "--for", "1G", "--pages", "all", "--slots", "2"]);
    assert!(said.contains("2 slots for a machine with 1 GiB take 2.0 GiB: 1.0 GiB each"), "{said}");
    folder.file("disk.img", &vec![0; 40 << 20]);
    let small = complaint(&folder, &["prepare", "disk.img", "--for", "64M"]);
    assert!(small.contains("at least 50 MiB are needed"), "{small}");
    answer(&folder, &["prepare", "disk.img", "--for", "32M"]);
}
