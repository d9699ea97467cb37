//! The checksums that travel with an extracted core, and what else extract makes of its header.

use std::path::Path;
use std::process::Command;

use e2e::synth::area::{DATA, SLOT_BYTES};
use e2e::synth::area_v2::{Dump as Stored, Storing, build};
use e2e::synth::core::{Core, Memory};
use e2e::synth::image;
use serde_json::Value;
use vmcore::Dump;
use vmcore::commands::verify::State;

use crate::common::{Folder, answer, is_core, vmcore};

/// Exit code and text of an answer.
fn given(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String) {
    let output = vmcore(folder, arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("UTF-8"))
}

/// The JSON of an answer with this exit code.
fn json(folder: &Folder, arguments: &[&str], code: i32) -> Value {
    let output = vmcore(folder, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A core with several chunks, runs of zeros among them, whose segments are in no order.
fn core() -> Core {
    let mut core = Core::small();
    let mut bytes = vec![0; 80 * 4096];
    for (at, byte) in bytes[..40 * 4096].iter_mut().enumerate() {
        *byte = (at * 7 + at / 251) as u8;
    }
    core.memory.insert(0, Memory { address: 0x200_0000, bytes, zeros: 0x3000 });
    core
}

fn disk(core: &Core, storing: Storing) -> Vec<u8> {
    build(&[Some(Stored::sealed(5, core.build(), storing))])
}

/// Type, flags, offset, virtual and physical address, bytes in the file and in memory.
fn programs(elf: &[u8]) -> Vec<[u64; 7]> {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| word(at) & 0xffff_ffff;
    let count = usize::from(elf[56]) + 256 * usize::from(elf[57]);
    (0..count)
        .map(|index| 64 + 56 * index)
        .map(|at| {
            let [offset, virt, phys, file, memory] = [8, 16, 24, 32, 40].map(|to| word(at + to));
            [half(at), half(at + 4), offset, virt, phys, file, memory]
        })
        .collect()
}

#[test]
fn segments_are_sorted_and_zero_memory_is_a_hole() {
    let folder = Folder::new("sorted");
    let core = core();
    for storing in [Storing::Raw, Storing::Lz4] {
        folder.file("disk.img", &disk(&core, storing));
        answer(&folder, &["extract", "disk.img", "--force"]);
        is_core(&folder, "vmcore", &core.build());
        let elf = std::fs::read(folder.path("vmcore")).expect("the core");
        let loads: Vec<_> = programs(&elf).into_iter().filter(|load| load[0] == 1).collect();
        for pair in loads.windows(2) {
            assert!(pair[0][3] + pair[0][6] <= pair[1][3], "by virtual address: {loads:x?}");
            assert!(pair[0][4] + pair[0][6] <= pair[1][4], "by physical address: {loads:x?}");
        }
        assert!(loads.iter().all(|load| load[5] == load[6]), "drgn and lldb need all bytes");
        // The holes take no room: 40 pages, and 127 more that the dump did not store.
        let used = std::os::unix::fs::MetadataExt::blocks(
            &std::fs::metadata(folder.path("vmcore")).expect("the core"),
        ) * 512;
        assert!(used + 100 * 4096 < elf.len() as u64, "{used} of {} bytes used", elf.len());

        answer(&folder, &["extract", "disk.img", "--elide-zero", "-o", "short", "--force"]);
        is_core(&folder, "short", &core.build());
        let short = std::fs::read(folder.path("short")).expect("the core");
        assert!(short.len() + 100 * 4096 < elf.len());
    }
}

#[test]
fn no_byte_of_an_extracted_core_can_change_unnoticed() {
    let folder = Folder::new("core-flips");
    folder.file("disk.img", &disk(&core(), Storing::Lz4));
    for form in [&[][..], &["--elide-zero"]] {
        answer(&folder, &[&["extract", "disk.img", "-o", "core", "--force"], form].concat());
        let good = std::fs::read(folder.path("core")).expect("the core");
        let found = json(&folder, &["verify", "core"], 0);
        assert_eq!((&found["state"], &found["complete"]), (&"good".into(), &true.into()));
        assert_eq!(found["unchecked_bytes"], 0);
        let loads = programs(&good).into_iter().filter(|load| load[0] == 1);
        let memory: u64 = loads.map(|load| load[6]).sum();
        assert_eq!(found["checked_bytes"], memory);
        let all = programs(&good);
        let first = all.iter().filter(|load| load[0] == 1 && load[5] > 0);
        let first = first.map(|load| load[2]).min().expect("memory") as usize;
        let header = (0..first).step_by(41);
        let behind = (first + 17..good.len()).step_by(9973);
        for at in header.chain(behind) {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            let bad = folder.file("bad", &bad);
            // Without its first bytes it is no core, and without the name of the note it is one
            // that has no checksums.
            let (state, said) = match Dump::open(&bad) {
                Ok(dump) => {
                    let verified = vmcore::verify(&dump, &mut |_, _| ());
                    (Some(verified.state), verified.render())
                }
                Err(error) => (None, error.to_string()),
            };
            assert!(state != Some(State::Good), "byte {at:#x}: {said}");
            if at % 17 == 0 {
                let code = match (state, Dump::open(&bad)) {
                    (Some(State::NoChecksums), _) => 1,
                    (None, Err(vmcore::Error::Foreign { .. })) => 1,
                    _ => 3,
                };
                assert_eq!(given(&folder, &["verify", "bad"]).0, Some(code), "byte {at:#x}");
            }
            if at >= first {
                assert_eq!(state, Some(State::Damaged), "byte {at:#x}: {said}");
                let load = programs(&good)
                    .into_iter()
                    .find(|load| (load[2]..load[2] + load[5]).contains(&(at as u64)))
                    .expect("memory");
                let address = load[4] + at as u64 - load[2];
                let named = chunk_named(&said);
                assert!(named.contains(&address), "{address:#x} is not in what is named: {said}");
            }
        }
    }
}

/// The memory of the one chunk that a verdict names.
fn chunk_named(said: &str) -> std::ops::Range<u64> {
    let line = said.lines().find(|line| line.contains("bytes of memory at")).expect("a chunk");
    let words: Vec<&str> = line.split([' ', ',']).collect();
    let at = words.iter().position(|word| *word == "bytes").expect("bytes");
    let bytes: u64 = words[at - 1].parse().expect("a number");
    let start = words.iter().find_map(|word| word.strip_prefix("0x")).expect("an address");
    let start = u64::from_str_radix(start, 16).expect("an address");
    start..start + bytes
}

#[test]
fn a_core_without_checksums_is_never_called_good() {
    let folder = Folder::new("no-checksums");
    folder.file("plain", &Core::small().build());
    let old = e2e::synth::area::Dump::sealed(1, Core::small().build());
    folder.file("old.img", &e2e::synth::area::build(&[Some(old)]));
    // Extracting does not give checksums to what never had any.
    answer(&folder, &["extract", "plain", "-o", "again"]);
    for file in ["plain", "old.img", "again"] {
        let (code, said) = given(&folder, &["verify", file]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("no checksums: cannot be verified"), "{said}");
        assert_eq!(json(&folder, &["verify", file], 1)["state"], "no-checksums");
    }
}

#[test]
fn checksums_go_with_every_further_copy() {
    let folder = Folder::new("checksums-again");
    folder.file("disk.img", &disk(&core(), Storing::Raw));
    answer(&folder, &["extract", "disk.img", "-o", "one"]);
    answer(&folder, &["extract", "one", "--elide-zero", "-o", "two"]);
    answer(&folder, &["extract", "two", "-o", "three"]);
    for file in ["one", "two", "three"] {
        assert!(given(&folder, &["verify", file]).1.starts_with("Good: "), "{file}");
        is_core(&folder, file, &core().build());
    }
    let read = |name| std::fs::read(folder.path(name)).expect("a core");
    answer(&folder, &["extract", "one", "-o", "same"]);
    assert!(read("one") == read("same"), "a copy of a copy is the same");
    // A damaged one is not copied as if it were good.
    let mut bad = read("one");
    let at = bad.len() - 100 * 4096;
    let at = at + bad[at..].iter().position(|&byte| byte != 0).expect("memory");
    bad[at] ^= 1;
    folder.file("bad", &bad);
    let (code, said) = given(&folder, &["extract", "bad", "-o", "copy"]);
    assert!(code != Some(0) && said.contains("bad: damaged: chunk"), "{said}");
    assert!(!folder.path("copy").exists());
    let copied = json(&folder, &["extract", "bad", "--partial", "-o", "copy"], 3);
    assert_eq!(copied["left_out"].as_array().map(Vec::len), Some(1), "{copied}");
    assert_eq!(json(&folder, &["verify", "copy"], 0)["left_out"].as_array().map(Vec::len), Some(1));
}

#[test]
fn chunks_left_out_are_listed_and_never_read_as_absent() {
    let folder = Folder::new("left-out");
    let mut bad = disk(&core(), Storing::Raw);
    let log = (SLOT_BYTES + DATA) as usize;
    // The first chunk: 128 KiB at 0x2000000.
    bad[log + 5000] ^= 1;
    folder.file("disk.img", &bad);
    let (code, said) = given(&folder, &["extract", "disk.img"]);
    assert!(
        code != Some(0) && said.contains("disk.img: damaged: slot 0: chunk 0, 131072 bytes"),
        "{said}"
    );
    let extracted = json(&folder, &["extract", "disk.img", "--partial"], 3);
    assert_eq!((&extracted["complete"], &extracted["damaged"]), (&false.into(), &true.into()));
    let left_out = serde_json::json!([{
        "address": "0x2000000",
        "bytes": 0x20000,
        "reason": "does not match its checksum",
    }]);
    assert_eq!(extracted["left_out"], left_out);
    let verified = json(&folder, &["verify", "vmcore"], 0);
    assert_eq!((&verified["state"], &verified["complete"]), (&"good".into(), &false.into()));
    assert_eq!(verified["left_out"][0], "131072 bytes of memory at 0x2000000");
    let info = json(&folder, &["info", "vmcore"], 0);
    let damaged = info["excluded"].as_array().expect("ranges").last().expect("one").clone();
    assert_eq!((&damaged["start"], &damaged["bytes"]), (&"0x2000000".into(), &0x20000.into()));
    assert_eq!(damaged["reason"], "damaged");
    let dump = Dump::open(folder.path("vmcore")).expect("the core");
    let word = |address| vmcore::dump::Memory::word(&dump, address);
    assert!(matches!(word(0x200_0000), Err(vmcore::dump::MemoryFault::Damaged(_))));
    assert!(matches!(word(0x300_0000), Err(vmcore::dump::MemoryFault::NotInDump(_))));
    assert!(word(0x202_0000).is_ok());
}

#[test]
fn zero_memory_of_any_size_takes_no_time() {
    let folder = Folder::new("petabyte");
    let mut core = core();
    core.memory.push(Memory { address: 1 << 40, bytes: vec![7; 4096], zeros: 1 << 50 });
    folder.file("disk.img", &disk(&core, Storing::Raw));
    answer(&folder, &["extract", "disk.img", "--elide-zero"]);
    let found = json(&folder, &["verify", "vmcore"], 0);
    assert!(found["checked_bytes"].as_u64() > Some(1 << 50), "{found}");
    let dump = Dump::open(folder.path("vmcore")).expect("the core");
    assert_eq!(vmcore::dump::Memory::word(&dump, (1 << 40) + (1 << 49)), Ok(0));
}

/// A disk whose dump has more chunks than a note among the others takes.
fn many_chunks() -> Core {
    let mut core = Core::small();
    for number in 0..2200u64 {
        // Not adjacent: each is a segment of its own, and so a chunk.
        let address = 0x1000_0000 + number * 8192;
        core.memory.push(Memory { address, bytes: vec![number as u8 | 1; 4096], zeros: 0 });
    }
    core
}

#[test]
fn a_large_table_stands_behind_the_memory() {
    let folder = Folder::new("large-table");
    let core = many_chunks();
    let stored = Stored::sealed(5, core.build(), Storing::Lz4);
    folder.file("disk.img", &e2e::synth::area_v2::build_sized(&[Some(stored)], 16 << 20));
    answer(&folder, &["extract", "disk.img"]);
    is_core(&folder, "vmcore", &core.build());
    let good = std::fs::read(folder.path("vmcore")).expect("the core");
    let programs = programs(&good);
    let notes: Vec<_> = programs.iter().filter(|program| program[0] == 4).collect();
    assert_eq!(notes.len(), 2, "a second PT_NOTE");
    assert_eq!(notes[1][2] + notes[1][5], good.len() as u64, "at the end of the file");
    assert!(given(&folder, &["verify", "vmcore"]).1.starts_with("Good: "));
    answer(&folder, &["extract", "vmcore", "-o", "again"]);
    is_core(&folder, "again", &core.build());
    assert!(given(&folder, &["verify", "again"]).1.starts_with("Good: "));
    for at in [200, 4000, good.len() / 2, notes[1][2] as usize + 90, good.len() - 3] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        folder.file("bad", &bad);
        let (code, said) = given(&folder, &["verify", "bad"]);
        assert_eq!(code, Some(3), "byte {at:#x}: {said}");
    }
    // Debuggers open it like any other.
    folder.file("appliance", &image::build(&image::BUILD_ID));
    let said = debugger(&folder.path("appliance"), &folder.path("vmcore"));
    for pid in 1..=4 {
        assert!(said.contains(&format!("LWP {pid} ")), "{said}");
    }
}

/// What gdb says about the threads and two registers of a core.
fn debugger(image: &Path, core: &Path) -> String {
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-ex", "info threads", "-ex", "info registers rip mxcsr"])
        .args([image, core])
        .output()
        .expect("gdb: cargo xtask setup installs it");
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

#[test]
fn registers_that_were_never_saved_are_dropped() {
    let folder = Folder::new("no-fpu");
    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cores/panic");
    let old = std::fs::read(saved.join("vmcore")).expect("a saved core of version 1");
    folder.file("old", &old);
    let kinds = |bytes: &[u8]| {
        let reader = vmcore_format::reader::CoreReader::new(bytes, bytes.len() as u64);
        let reader = reader.expect("a core");
        let notes = reader.notes().map(|note| note.expect("a note"));
        notes.map(|note| (note.owner.to_owned(), note.kind)).collect::<Vec<_>>()
    };
    let [fpregset, xstate] = [("CORE".to_owned(), 2), ("LINUX".to_owned(), 0x202)];
    assert!(kinds(&old).contains(&fpregset) && kinds(&old).contains(&xstate));
    answer(&folder, &["extract", "old", "-o", "new"]);
    let new = std::fs::read(folder.path("new")).expect("the core");
    assert!(!kinds(&new).contains(&fpregset) && !kinds(&new).contains(&xstate));
    assert!(kinds(&new).contains(&("LINUX".to_owned(), 0x4550_0000)), "lldb wants one");
    is_core(&folder, "new", &old);
    let said = debugger(&saved.join("appliance"), &folder.path("new"));
    assert!(said.contains("LWP 1 ") && said.contains("LWP 2 "), "{said}");
    assert!(said.contains("0x1011d13"), "rip: {said}");
    let mxcsr = said.lines().find(|line| line.starts_with("mxcsr")).expect("mxcsr");
    assert!(mxcsr.contains("<unavailable>"), "{mxcsr}");
    // What somebody else measured stays.
    let mut measured = old.clone();
    let note = [&6u32.to_le_bytes()[..], &576u32.to_le_bytes(), &0x202u32.to_le_bytes()].concat();
    let at = old.windows(12).position(|bytes| bytes == note).expect("XSTATE");
    measured[at + 12 + 8 + 24] = 0x80;
    folder.file("measured", &measured);
    answer(&folder, &["extract", "measured", "--force", "-o", "new"]);
    let new = std::fs::read(folder.path("new")).expect("the core");
    assert!(kinds(&new).contains(&xstate) && !kinds(&new).contains(&fpregset));
}

#[test]
fn elfutils_name_the_modules_of_a_core() {
    let folder = Folder::new("elfutils");
    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cores/panic");
    let old = std::fs::read(saved.join("vmcore")).expect("a saved core");
    // The program headers backwards, as a dump in stages has them in no order.
    let mut shuffled = old.clone();
    let count = usize::from(old[56]);
    for index in 1..count {
        let (to, from) = (64 + 56 * index, 64 + 56 * (count - index));
        shuffled[to..to + 56].copy_from_slice(&old[from..from + 56]);
    }
    folder.file("shuffled", &shuffled);
    answer(&folder, &["extract", "shuffled", "-o", "core"]);
    let mut core = std::ffi::OsString::from("--core=");
    core.push(folder.path("core"));
    let Ok(output) = Command::new("eu-unstrip").arg("-n").arg(core).output() else {
        println!("skipped: eu-unstrip is not there (apt install elfutils)");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("e2af3fa943e21b699865851d4b3163945950d2df"), "{said}");
    let mut core = std::ffi::OsString::from("--core=");
    core.push(folder.path("core"));
    let stack = Command::new("eu-stack").arg(core).arg("-e").arg(saved.join("appliance")).output();
    let said = stack.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.expect("eu-stack is of the same package");
    assert!(said.contains("kernel::crash::on_panic") && said.contains("ap_entry64"), "{said}");
}
