//! QEMU stops the machine in the moment the capture image is entered and writes all memory to a
//! file by itself, which a dump is held against.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use vmcore::Dump;
use vmcore::dump::Memory;

const PAGE: u64 = 4096;

/// A stretch of physical memory and where QEMU's file holds it.
pub struct Stretch {
    start: u64,
    bytes: u64,
    offset: u64,
}

/// Returns the PT_LOADs of QEMU's ELF core, read without any code of the product (ELF-64 object
/// file format, "program header").
///
/// # Panics
/// They cannot be read.
#[must_use]
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

/// Lets QEMU write memory to `memory` when `entry` is about to be executed; returns what gdb said.
///
/// # Panics
/// There is no gdb.
#[must_use]
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

/// Returns the addresses of pages of the dump that differ from QEMU's file, and how many were
/// compared.
///
/// # Panics
/// A page cannot be read, or QEMU has no memory there.
#[must_use]
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
