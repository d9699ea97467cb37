//! A dump in a partition of a disk that others use as well: not one of their bytes changes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use e2e::harness::{self, Boot, Bus, Disk, Options, Outcome, Verdict};
use e2e::synth::gpt::{LINUX, Wanted, write};
use vmcore::{Layout, OpenOptions, Source, Which};
use vmcore_format::gpt::TYPE_GUID;

use crate::story::{assert_verdict, folder};

const MEMORY: u64 = 96 << 20;
const AREA: u64 = 128 << 20;
const OTHER: u64 = 4 << 20;
/// What the other partitions are full of.
const THEIRS: u8 = 0x5a;

/// Another's, one for dumps, another's, a second one for dumps, and space that belongs to
/// nobody. Returns where each begins.
fn disk(path: &Path, block: u64) -> Vec<u64> {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let mut file = File::options();
    let file = file.create(true).truncate(true).read(true).write(true).open(path);
    let mut file = file.expect("a disk");
    file.set_len(2 * AREA + 3 * OTHER).expect("its length");
    let part = |kind, guid, bytes| Wanted { kind, guid: [guid; 16], bytes };
    let wanted = [
        part(LINUX, 1, OTHER),
        part(TYPE_GUID, 2, AREA - (1 << 20)),
        part(LINUX, 3, OTHER),
        part(TYPE_GUID, 4, AREA - (1 << 20)),
    ];
    let starts = write(&mut file, block, &wanted).expect("a table");
    for at in [starts[0], starts[2]] {
        file.write_all_at(&vec![THEIRS; OTHER as usize], at).expect("content");
    }
    for number in [2, 4] {
        let partition = Some(Which::Number(number));
        let layout = Layout { slots: 1, partition, ..Layout::default() };
        vmcore::prepare(path, layout).expect("a dump area");
    }
    starts
}

fn run(image: &Path, disk: Disk, words: &str, expect: Verdict) -> Outcome {
    let options = Options {
        cpus: 2,
        memory: MEMORY,
        disks: vec![disk],
        disk_image: Some(image.to_owned()),
        crash: Some("panic,cpu=1".into()),
        command_line: format!("workload=memstamp pages=all dump=raw {words}"),
        expect: Some(expect),
        tidy: true,
        ..Options::new(Boot::Pvh, folder())
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, expect);
    outcome
}

/// Whether the two disks are the same but for the bytes of `partition`.
fn same_but(one: &Path, other: &Path, partition: std::ops::Range<u64>) {
    let (one, other) = (File::open(one).expect("a disk"), File::open(other).expect("a disk"));
    let bytes = one.metadata().expect("its size").len();
    assert_eq!(bytes, other.metadata().expect("its size").len());
    const STEP: u64 = 1 << 20;
    let (mut first, mut second) = (vec![0; STEP as usize], vec![0; STEP as usize]);
    for at in (0..bytes).step_by(STEP as usize) {
        let take = STEP.min(bytes - at) as usize;
        one.read_exact_at(&mut first[..take], at).expect("bytes");
        other.read_exact_at(&mut second[..take], at).expect("bytes");
        let differ = (0..take)
            .find(|&byte| first[byte] != second[byte] && !partition.contains(&(at + byte as u64)));
        assert_eq!(differ.map(|byte| at + byte as u64), None, "a byte of somebody else");
    }
}

/// The first partition for dumps takes it, unless another is named; nothing else is written.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nothing_outside_the_partition_is_written() {
    let guid = |byte: &str| {
        let group = |bytes| byte.repeat(bytes);
        [group(4), group(2), group(2), group(2), group(6)].join("-")
    };
    for (disk_kind, words, used) in [
        (Disk::new(Bus::Virtio), String::new(), 1),
        (Disk { block_bytes: 4096, ..Disk::new(Bus::Nvme) }, format!("dump_to={}", guid("04")), 3),
    ] {
        let image = folder().join("parts.img");
        let starts = disk(&image, u64::from(disk_kind.block_bytes));
        let outcome = run(&image, disk_kind, &words, Verdict::Captured);
        let armed = outcome.console.after("] armed: ").expect("armed");
        assert!(armed.starts_with("disk 0, ") && armed.contains("slot 0 of 1"), "{armed}");
        let after = outcome.out.join("disk.img");
        same_but(&image, &after, starts[used]..starts[used] + AREA - (1 << 20));
        let source = Source::open_partition(&after, Which::Number(used as u32 + 1));
        let dump = source.expect("an area").dump(OpenOptions::default()).expect("a dump");
        assert!(vmcore::verify(&dump, &mut |_, _| ()).is_good());
        std::fs::remove_file(&image).expect("large files gone");
    }
}

/// A partition that is not there: nothing is written at all.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_partition_that_is_not_there() {
    let image = folder().join("parts.img");
    disk(&image, 512);
    let words = "dump_to=0fc63daf-8483-4772-8e79-3d69d8477de4";
    let outcome = run(&image, Disk::new(Bus::Virtio), words, Verdict::LastWords);
    assert!(outcome.console.has("no partition for dumps"), "{}", outcome.console.tail(20));
    assert!(outcome.console.has("] not armed: disk 0, virtio at 00:01.0: no partition for dumps"));
    same_but(&image, &outcome.out.join("disk.img"), 0..0);
    std::fs::remove_file(&image).expect("large files gone");
}
