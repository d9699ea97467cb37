//! Memory that must be in no dump: in none it is, on no disk, and not in the machine either
//! once the dump is written. QEMU, not the product, says what is in the machine.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use e2e::harness::{self, Policy};
use vmcore_format::notes::excluded_reason;

use crate::story::{Crashed, MEMORY, Story};

/// What the key is made of, and its words as the workload makes them: each from the one
/// before.
const NUMBER: u64 = 4_711;
const WORDS: usize = 64;

fn key() -> Vec<u64> {
    let next = |word: &u64| {
        let word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Some(word.wrapping_add(0xbf58_476d_1ce4_e5b9))
    };
    std::iter::successors(next(&NUMBER), next).take(WORDS).collect()
}

/// How often two words of the key stand behind each other in the file, at any byte.
fn traces(path: &Path) -> usize {
    const CHUNK: usize = 1 << 20;
    let key = key();
    let mut starts = vec![false; 1 << 16];
    for word in &key {
        let bytes = word.to_le_bytes();
        starts[usize::from(bytes[0]) << 8 | usize::from(bytes[1])] = true;
    }
    let zeros = vec![0; CHUNK];
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = vec![0; CHUNK];
    // What the last chunk ended with, lest a pair lies across.
    let mut kept: Vec<u8> = Vec::new();
    let mut found = 0;
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            match file.read(&mut bytes[filled..]).expect("read it") {
                0 => break,
                more => filled += more,
            }
        }
        if filled == 0 {
            return found;
        }
        if bytes[..filled] == zeros[..filled] {
            kept.clear();
            continue;
        }
        kept.extend(&bytes[..filled]);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        for window in kept.windows(16) {
            // Few places go beyond this, and there are many.
            if !starts[usize::from(window[0]) << 8 | usize::from(window[1])] {
                continue;
            }
            let first = word(&window[..8]);
            let pair = key.windows(2).any(|pair| pair[0] == first && pair[1] == word(&window[8..]));
            found += usize::from(pair);
        }
        kept.drain(..kept.len().saturating_sub(15));
    }
}

/// Lets QEMU write all memory to `path`.
fn save(socket: &Path, path: &Path) -> String {
    let commands = [
        // There is no file to learn it from.
        "set architecture i386:x86-64".into(),
        format!("target remote {}", socket.display()),
        // Without the quotes the path would go on with the number: a division.
        format!("monitor pmemsave 0 {MEMORY:#x} \"{}\"", path.display()),
        "detach".into(),
    ];
    let output = Command::new("timeout")
        .args(["--kill-after=5", "60", "gdb", "-nx", "-batch"])
        .args(commands.iter().flat_map(|command| ["-ex", command]))
        .output()
        .expect("gdb: cargo xtask setup installs it");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A key is in the machine when it crashes, and nowhere after the capture.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn leave_no_trace() {
    // The stop waits a second for the wedged CPU: time to look before the capture begins.
    let mut options = Story { wedges: &["irqs-off,cpu=3"], ..Story::PANIC }.options();
    options.command_line = format!("workload=bank,key={NUMBER} workload=sieve pages=all dump=raw");
    options.policy = Policy::Halt;
    std::fs::create_dir_all(&options.out).expect("a folder");
    let out = options.out.canonicalize().expect("the folder");
    let socket = std::env::temp_dir().join(format!("epitaph-keys-{}.gdb", std::process::id()));
    let gdb = format!("socket,id=gdb,path={},server=on,wait=off", socket.display());
    options.qemu_args = ["-chardev", &gdb, "-gdb", "chardev:gdb"].map(str::to_owned).into();
    let (before, after) = (out.join("before.mem"), out.join("after.mem"));
    let mut said = String::new();
    let outcome = harness::run(&options, &mut |line| {
        if line.contains("wedge: irqs-off on cpu 3 in place") {
            said += &save(&socket, &before);
        } else if line.contains("capture: policy: halt") {
            said += &save(&socket, &after);
        }
    });
    let _ = std::fs::remove_file(&socket);
    let crashed = Crashed::read(outcome.expect("a run"));
    assert!(before.exists() && after.exists(), "{said}");
    assert_eq!(traces(&before), WORDS - 1, "it was there once\n{said}");
    assert_eq!(traces(&after), 0, "in memory after the capture\n{said}");
    assert_eq!(traces(&crashed.vmcore), 0, "in the dump");
    assert_eq!(traces(&crashed.outcome.out.join("disk.img")), 0, "on the disk");
    let left_out = crashed.dump.excluded.iter();
    let mut left_out = left_out.filter(|range| range.reason == excluded_reason::NEVER_DUMP);
    assert_eq!(left_out.next().map(|range| range.bytes), Some(64 << 10));
    let console = &crashed.outcome.console;
    assert!(console.has("capture: 64 of 64 KiB never to be dumped written over"));
}
