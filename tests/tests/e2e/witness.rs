//! An outside witness: QEMU stops the machine in the moment the capture image is entered
//! and writes all memory to a file by itself. The dump has to hold exactly that.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use e2e::harness;
use vmcore::Dump;
use vmcore::dump::Memory;
use vmcore_format::reader::FileSegment;

use crate::story::{Crashed, Story};

const PAGE: u64 = 4096;

/// A stretch of physical memory and where QEMU's file holds it.
pub struct Stretch {
    start: u64,
    bytes: u64,
    offset: u64,
}

/// The PT_LOADs of QEMU's ELF core, read without any code of the product (ELF-64 object
/// file format, "program header").
pub fn stretches(file: &File) -> Vec<Stretch> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).expect("an ELF header");
    let word = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    let table = word(&header, 32);
    let count = u16::from_le_bytes([header[56], header[57]]);
    let mut found = Vec::new();
    for index in 0..u64::from(count) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table + index * 56).expect("a program header");
        if entry[..4] == [1, 0, 0, 0] {
            let (offset, start, bytes) = (word(&entry, 8), word(&entry, 24), word(&entry, 32));
            found.push(Stretch { start, bytes, offset });
        }
    }
    found
}

/// Lets QEMU write memory to `memory` when `entry` is about to be executed.
pub fn witness(socket: &Path, image: &Path, entry: u64, memory: &Path) -> String {
    let commands = [
        format!("target remote {}", socket.display()),
        format!("hbreak *{entry:#x}"),
        "continue".into(),
        format!("monitor dump-guest-memory {}", memory.display()),
        "delete".into(),
        "detach".into(),
    ];
    let output = Command::new("timeout")
        .args(["--kill-after=5", "90", "gdb", "-nx", "-batch"])
        .args(commands.iter().flat_map(|command| ["-ex", command]))
        .arg(image)
        .output()
        .expect("gdb: cargo xtask setup installs it");
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Addresses of pages of the dump that differ from QEMU's file, and how many were compared.
pub fn compare(dump: &Dump, memory: &File, stretches: &[Stretch]) -> (Vec<u64>, u64) {
    let (mut different, mut compared) = (Vec::new(), 0);
    for segment in dump.segments() {
        let start = segment.load.physical_address;
        for at in (0..segment.load.memory_bytes).step_by(PAGE as usize) {
            let address = start + at;
            let stretch = stretches
                .iter()
                .find(|stretch| (stretch.start..stretch.start + stretch.bytes).contains(&address))
                .unwrap_or_else(|| panic!("QEMU has no memory at {address:#x}"));
            let (mut ours, mut theirs) = ([0; PAGE as usize], [0; PAGE as usize]);
            dump.read(address, &mut ours).expect("a page of ours");
            let offset = stretch.offset + (address - stretch.start);
            memory.read_exact_at(&mut theirs, offset).expect("a page of theirs");
            compared += 1;
            if ours != theirs {
                different.push(address);
            }
        }
    }
    (different, compared)
}

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
