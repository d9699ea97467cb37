//! An outside witness: QEMU stops the machine in the moment the capture image is entered
//! and writes all memory to a file by itself. The dump has to hold exactly that.

use std::fs::File;
use std::os::unix::fs::FileExt;

use e2e::harness;
use e2e::witness::{compare, stretches, witness};
use vmcore_format::reader::FileSegment;

use crate::story::{Crashed, Story};

const PAGE: u64 = 4096;

/// Proves L1.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_page_is_what_qemu_saw() {
    // The entry is where the capture image was loaded, the same in every boot of a build.
    let story = Story { wedges: &["irqs-off,cpu=3"], ..Story::PANIC };
    let mut options = story.options();
    options.command_line += " pages=all rehearsal=off";
    let out = options.out.clone();
    options.out = out.join("first");
    let first = Crashed::from(&options);
    let entry = first.dump.facts.as_ref().expect("boot facts").image_entry;

    // What the CPUs that are left compressed together is held against QEMU's memory.
    options.out = out.join("second");
    options.command_line += " dump=lz4";
    std::fs::create_dir_all(&options.out).expect("a folder");
    // Unix sockets have short names, folders may have long ones.
    let socket = std::env::temp_dir().join(format!("epitaph-{}.gdb", std::process::id()));
    let gdb = format!("socket,id=gdb,path={},server=on,wait=off", socket.display());
    options.qemu_args = ["-S", "-chardev", &gdb, "-gdb", "chardev:gdb"].map(str::to_owned).into();
    let running = harness::start(&options).expect("a machine");
    let path = options.out.canonicalize().expect("the folder").join("memory.elf");
    let said = witness(&socket, &first.outcome.report.image, entry, &path);
    let outcome = running.finish(&mut |_| ()).expect("a run");
    // QEMU removes it when it ends in order; nobody minds when it is gone.
    let _ = std::fs::remove_file(&socket);
    let crashed = Crashed::read(outcome);
    let working = crashed.dump.metrics.expect("capture metrics").cpus_working;
    assert!((2..=3).contains(&working), "{working} CPUs compressed");
    let memory = File::open(&path).unwrap_or_else(|error| panic!("{error}\n{said}"));

    let stretches = stretches(&memory);
    let (different, compared) = compare(&crashed.dump, &memory, &stretches);
    assert!(compared > 10_000, "{compared} pages");
    assert!(
        different.is_empty(),
        "{} of {compared} pages differ, the first at {:#x?}",
        different.len(),
        &different[..different.len().min(8)]
    );
    // That the comparison sees a difference at all: one byte, one page.
    let large = |segment: &&FileSegment| segment.load.file_bytes > 2 * PAGE;
    let segment = crashed.dump.segments().iter().find(large).expect("a segment of some pages");
    let file = File::options().read(true).write(true).open(&crashed.vmcore).expect("the vmcore");
    let mut byte = [0];
    file.read_exact_at(&mut byte, segment.offset + 5000).expect("a byte");
    file.write_all_at(&[!byte[0]], segment.offset + 5000).expect("another byte");
    let (different, _) = compare(&crashed.dump, &memory, &stretches);
    assert_eq!(different, [segment.load.physical_address + PAGE]);

    // The other way round: what the dump leaves out, it says so.
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    let ram: u64 = facts
        .memory()
        .iter()
        .filter(|range| range.kind == handoff::facts::MemoryKind::RAM)
        .map(|range| range.range.bytes & !(PAGE - 1))
        .sum();
    let dumped: u64 = crashed.dump.segments().iter().map(|s| s.load.memory_bytes).sum();
    let excluded: u64 = crashed.dump.excluded.iter().map(|range| range.bytes).sum();
    assert!(dumped + excluded >= ram, "{dumped:#x} + {excluded:#x} of {ram:#x}");
}
