//! Files of other kinds than the command is about: each is named, and none makes it hang.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{Folder, complaint, vmcore};
use e2e::synth::core::Core;

const COMMANDS: [&str; 5] = ["info", "bt", "log", "extract", "verify"];

fn note(owner: &str, kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [owner.len() as u32 + 1, desc.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    note.extend(owner.as_bytes());
    note.push(0);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(desc);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// An ELF file of this type for this machine, with these notes and nothing else.
fn elf(kind: u16, machine: u16, notes: &[Vec<u8>]) -> Vec<u8> {
    let notes = notes.concat();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64 + 56, 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &kind.to_le_bytes());
    put(18, &machine.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &4_u32.to_le_bytes());
    put(72, &120_u64.to_le_bytes());
    put(96, &(notes.len() as u64).to_le_bytes());
    file.extend(notes);
    file
}

fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 4096];
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn what_is_on_a_disk_is_named_by_the_signatures_that_claim_one() {
    let folder = Folder::new("kinds-disks");
    let all: [(usize, &[u8], &str); 8] = [
        (3, b"EXFAT   ", "an exFAT file system"),
        (82, b"FAT32", "a FAT file system"),
        (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
        (4120, b"\xc6\x85\x73\xf6", "a bcache or bcachefs device"),
        (32768, b"JFS1", "a JFS file system"),
        (65588, b"ReIsEr", "a ReiserFS file system"),
        (32769, b"CD001", "an ISO 9660 image"),
        (0, b"hsqs", "a squashfs"),
    ];
    for (offset, signature, name) in all {
        let mut disk = vec![0; 1 << 20];
        // Most have a boot sector as well.
        disk[510..512].copy_from_slice(b"\x55\xaa");
        disk[offset..offset + signature.len()].copy_from_slice(signature);
        folder.file("disk.img", &disk);
        let said = complaint(&folder, &["info", "disk.img"]);
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[test]
fn foreign_files_are_named_with_what_reads_them() {
    let folder = Folder::new("kinds");
    let registers = || note("CORE", 1, &[0; 336]);
    let mut process = vec![0; 136];
    process[40..45].copy_from_slice(b"nginx");
    let mut arm = Core::small().build();
    arm[18..20].copy_from_slice(&183_u16.to_le_bytes());
    let mut kernel = at(0x202, b"HdrS");
    kernel[510..512].copy_from_slice(b"\x55\xaa");
    let files: [(&str, Vec<u8>, &str); 22] = [
        ("qemu", elf(4, 62, &[registers(), note("QEMU", 0, &[0; 432])]), "dump-guest-memory"),
        ("qemu-boot", elf(4, 3, &[registers(), note("QEMU", 0, &[0; 432])]), "dump-guest-memory"),
        (
            "linux",
            elf(4, 62, &[registers(), note("VMCOREINFO", 0, b"OSRELEASE=6.1\n")]),
            "a vmcore of a Linux kernel (VMCOREINFO)",
        ),
        (
            "process",
            elf(4, 62, &[registers(), note("CORE", 3, &process)]),
            "a core of a process `nginx`",
        ),
        ("arm64", elf(4, 183, &[registers()]), "a core of AArch64 (e_machine 183)"),
        ("our-arm64", arm, "a core of AArch64 (e_machine 183)"),
        ("odd", elf(4, 999, &[]), "a machine of type 999 (e_machine)"),
        ("vmlinux", elf(2, 62, &[note("Linux", 0x100, &[0; 4])]), "a Linux kernel image"),
        ("program", elf(2, 62, &[]), "give it with --image"),
        ("module.ko", elf(1, 62, &[]), "an object file or kernel module for x86_64"),
        ("bzimage", kernel, "a Linux kernel image (bzImage)"),
        ("kdump", at(0, b"KDUMP   "), "kdump-compressed"),
        ("flattened", at(0, b"makedumpfile\0\0\0\0"), "makedumpfile -R"),
        ("gz", at(0, b"\x1f\x8b\x08"), "gzip -d"),
        ("xz", at(0, b"\xfd7zXZ\0"), "xz -d"),
        ("zst", at(0, b"\x28\xb5\x2f\xfd"), "zstd -d"),
        ("lz4", at(0, b"\x04\x22\x4d\x18"), "lz4 -d"),
        ("bz2", at(0, b"BZh91AY"), "bzip2 -d"),
        ("tar", at(257, b"ustar"), "tar -xf"),
        (
            "console",
            b"SeaBIOS\r\n~EP 0000 14 996575c4 last-words version=1\r\n".to_vec(),
            "vmcore last-words FILE",
        ),
        ("text", b"dear diary\n".to_vec(), "a text; if it is what a console showed"),
        ("elf-be", b"\x7fELF\x02\x02\x01\0\0\0\0\0\0\0\0\0".repeat(8), "a big-endian one"),
    ];
    for (name, bytes, expected) in files {
        folder.file(name, &bytes);
        for command in COMMANDS {
            let found = complaint(&folder, &[command, name]);
            assert!(found.contains(expected), "{command} {name}: {found}");
        }
    }
    // A dump given where a console is asked for.
    folder.file("vmcore", &Core::small().build());
    for command in ["last-words", "from-console"] {
        let found = complaint(
            &folder,
            &[command, "vmcore", "-o", "out"][..if command == "last-words" { 2 } else { 4 }],
        );
        assert!(found.contains("`vmcore info FILE` reads it"), "{command}: {found}");
        let found = complaint(
            &folder,
            &[command, "gz", "-o", "out"][..if command == "last-words" { 2 } else { 4 }],
        );
        assert!(found.contains("gzip -d"), "{command}: {found}");
    }
}

/// Runs the program to its end, with `input` as its standard input. One that hangs is
/// ended, and the test with it; no time is measured.
fn ends(folder: &Folder, arguments: &[&str], input: Stdio) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmcore"))
        .args(arguments)
        .current_dir(folder.path(""))
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start vmcore");
    for _ in 0..6000 {
        if child.try_wait().expect("ask for its end").is_some() {
            let output = child.wait_with_output().expect("its output");
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            return String::from_utf8_lossy(&output.stderr).into_owned();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("end it");
    panic!("vmcore {arguments:?} hangs");
}

#[test]
fn nothing_waits_for_a_stream_that_never_ends() {
    let folder = Folder::new("streams");
    let pipe = folder.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("start mkfifo");
    assert!(made.success());
    for command in COMMANDS {
        for (name, kind) in [("pipe", "a pipe"), ("/dev/zero", "a character device")] {
            let found = ends(&folder, &[command, name], Stdio::null());
            assert!(
                found.contains(kind) && found.contains("write its content to a file"),
                "{found}"
            );
        }
        let found = ends(&folder, &[command, "-"], Stdio::piped());
        assert!(found.contains("standard input"), "{command}: {found}");
    }
    let found = ends(&folder, &["bt", "/dev/stdin"], Stdio::piped());
    assert!(found.contains("a pipe"), "{found}");
    // Streams are read where they can be, up to a bound.
    let found = ends(&folder, &["last-words", "/dev/zero"], Stdio::null());
    assert!(found.contains("a stream of more than 1024 MiB"), "{found}");
    let found = ends(&folder, &["last-words", "pipe"], Stdio::null());
    assert!(found.contains("nothing came for 10 seconds"), "{found}");
    let found = ends(&folder, &["from-console", "/dev/null"], Stdio::null());
    assert!(found.contains("no byte came out of it"), "{found}");
    let output = vmcore(&folder, &["last-words", "."]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("this is a folder"));
}
