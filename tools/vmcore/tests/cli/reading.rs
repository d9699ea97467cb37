//! Damage that a command meets on its way to an answer, and text that would steer the terminal.

use e2e::synth::area::{DATA, SLOT_BYTES};
use e2e::synth::area_v2::{Dump, Storing, build};
use e2e::synth::core::{Core, LOG, RINGS, STACKS, STAMPS};
use e2e::synth::image;
use serde_json::Value;

use crate::common::{Folder, answer, vmcore};

/// A disk with the small core in slot 0, and a folder with its image.
fn folder(name: &str, storing: Storing) -> (Folder, Vec<u8>) {
    let folder = Folder::new(name);
    folder.file("appliance", &image::build(&image::BUILD_ID));
    (folder, build(&[Some(Dump::sealed(5, Core::small().build(), storing))]))
}

/// Flips a byte of the stored chunk that holds the memory at `address`.
fn flip(disk: &mut [u8], address: u64) {
    let word = |at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().expect("eight bytes"));
    let slot = SLOT_BYTES as usize;
    let (table, bytes) = (word(slot + 4096 + 120) as usize, word(slot + 4096 + 128) as usize);
    let holds = |entry: &usize| {
        let (start, sizes) = (word(entry + 8), word(entry + 16));
        (start..start + (sizes >> 32)).contains(&address)
    };
    let entry = (slot + table..slot + table + bytes).step_by(40).find(holds).expect("a chunk");
    let stored = slot + word(entry) as usize;
    assert!(stored >= slot + DATA as usize && word(entry + 16) as u32 > 40);
    disk[stored + 40] ^= 0x10;
}

/// Exit code, stdout and stderr.
fn given(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = vmcore(folder, arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The commands that read memory, and an address that each of them reads.
const READERS: [(&str, u64); 4] =
    [("bt", STACKS), ("log", LOG), ("trace", RINGS), ("stamps", STAMPS)];

#[test]
fn every_command_that_meets_damage_says_so() {
    for storing in [Storing::Raw, Storing::Lz4] {
        let (folder, good) = folder("meets-damage", storing);
        for (command, address) in READERS {
            let mut bad = good.clone();
            flip(&mut bad, address);
            folder.file("disk.img", &bad);
            for partial in [&[][..], &["--partial"]] {
                let arguments = [&[command, "disk.img"], partial].concat();
                let (code, stdout, stderr) = given(&folder, &arguments);
                let context = format!("{arguments:?} with {storing:?}:\n{stdout}\n{stderr}");
                assert_eq!(code, Some(3), "{context}");
                let said = format!("bytes of memory at {address:#x}, ");
                assert!(stderr.contains("damaged: chunk") && stderr.contains(&said), "{context}");
                for lie in ["is not in this dump", "is what it must be", "followed any further"] {
                    assert!(!stdout.contains(lie) && !stderr.contains(lie), "{context}");
                }
                let (code, json, _) = given(&folder, &[&arguments[..], &["--json"]].concat());
                assert_eq!(code, Some(3), "{context}");
                let json: Value = serde_json::from_str(&json).expect("JSON");
                let met = json["damage_met"].as_array().expect("damage");
                assert_eq!(met.len(), 1, "{json}");
                assert_eq!(met[0]["address"], format!("{address:#x}"), "{json}");
                assert!(met[0]["what"].as_str().expect("words").contains("chunk"), "{json}");
            }
        }
        // Damage that a command does not meet is none of its business.
        let mut bad = good.clone();
        flip(&mut bad, STAMPS);
        folder.file("disk.img", &bad);
        for command in ["info", "cpus", "regs", "locks", "timeline", "bt", "log", "trace"] {
            let (code, json, stderr) = given(&folder, &[command, "disk.img", "--json"]);
            assert_eq!((code, &*stderr), (Some(0), ""), "{command}");
            let json: Value = serde_json::from_str(&json).expect("JSON");
            assert_eq!(json["damage_met"].as_array().map(Vec::len), Some(0), "{command}");
        }
    }
}

#[test]
fn what_is_damaged_is_counted_and_the_rest_is_still_told() {
    let (folder, good) = folder("damage-counts", Storing::Raw);
    let json = |command: &str| -> Value {
        let (_, json, _) = given(&folder, &[command, "disk.img", "--json"]);
        serde_json::from_str(&json).expect("JSON")
    };
    let damaged = |address| {
        let mut bad = good.clone();
        flip(&mut bad, address);
        folder.file("disk.img", &bad);
    };
    damaged(STAMPS);
    let stamps = json("stamps");
    assert_eq!((&stamps["damaged"], &stamps["absent"]), (&5.into(), &0.into()));
    assert_eq!(
        (&stamps["damage"][0]["kind"], &stamps["verified"]),
        (&"unreadable".into(), &0.into())
    );
    damaged(LOG);
    let log = json("log");
    assert_eq!(
        (&log["damaged_bytes"], &log["text"]),
        (&0x40.into(), &"[64 damaged bytes]\n".into())
    );
    damaged(RINGS);
    let trace = json("trace");
    assert!(trace["rings"].as_array().expect("rings").iter().any(|ring| ring["damaged"] == true));
    damaged(STACKS);
    let bt = json("bt");
    // The innermost frame comes from the registers, which are in a note.
    let cpu = &bt["cpus"][0];
    assert_eq!(cpu["frames"][0]["function"], "workloads::sieve::mark");
    assert_eq!(cpu["damaged_at"], format!("{:#x}", STACKS + 0xf20));
    assert_eq!(bt["cpus"][4]["damaged_at"], Value::Null);
}

#[test]
fn a_damaged_core_file_is_read_like_a_damaged_disk() {
    let (folder, good) = folder("damaged-core", Storing::Lz4);
    folder.file("disk.img", &good);
    for form in [&[][..], &["--elide-zero"]] {
        answer(&folder, &[&["extract", "disk.img", "-o", "core", "--force"], form].concat());
        let core = std::fs::read(folder.path("core")).expect("the core");
        for (command, address) in READERS {
            let mut bad = core.clone();
            let dump = vmcore::Dump::open(folder.path("core")).expect("the core");
            let holds = |segment: &&vmcore_format::reader::FileSegment| {
                let load = &segment.load;
                (load.physical_address..load.physical_address + load.file_bytes).contains(&address)
            };
            let segment = dump.segments().iter().find(holds).expect("a segment");
            let at = segment.offset + address - segment.load.physical_address;
            bad[at as usize + 3000] ^= 1;
            folder.file("bad", &bad);
            let (code, stdout, stderr) = given(&folder, &[command, "bad"]);
            assert_eq!(code, Some(3), "{command}: {stdout}{stderr}");
            assert!(stderr.contains(&format!("bytes of memory at {address:#x}, ")), "{stderr}");
            assert!(
                !format!("{stdout}{stderr}").contains("is not in this dump"),
                "{stdout}{stderr}"
            );
        }
        // A damaged header is no answer at all, and with --partial a bad one.
        let mut bad = core.clone();
        bad[5000] ^= 1;
        folder.file("bad", &bad);
        let (code, _, stderr) = given(&folder, &["regs", "bad"]);
        assert!(code == Some(1) && stderr.contains("damaged: "), "{stderr}");
        let (code, json, stderr) = given(&folder, &["regs", "bad", "--partial", "--json"]);
        assert_eq!(code, Some(3), "{stderr}");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert!(json["damage_met"].to_string().contains("do not match their checksum"), "{json}");
    }
}

/// Text that clears the screen, hides a line, reorders it, and forges another.
const HOSTILE: &str = "x\x1b[2J\u{9b}8m\u{202e}\r\ny";

/// Asserts that an output has nothing in it that a terminal would obey.
fn is_plain(context: &str, text: &str) {
    let steers = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.chars().any(|c| steers(&c)), "{context}: {text:?}");
}

#[test]
fn no_text_of_a_file_steers_the_terminal() {
    let folder = Folder::new("hostile-text");
    let mut core = Core::small();
    core.message = HOSTILE;
    core.file = HOSTILE;
    core.command_line = HOSTILE;
    core.fault = HOSTILE;
    core.words = vec![("memstamp", HOSTILE)];
    core.cpus[0].workload = "a\x1b[2J\r\nb";
    core.locks[0].name = "l\x1b[31m\r\nc";
    let log = core.log;
    core.at(log.0)[..20].copy_from_slice(b"\x1b]0;t\x07\r\x9b2J\xc2\x9b31m!\x7f\x08\x0bz");
    folder.file("vmcore", &core.build());
    folder.file("appliance", &image::build_named(&image::BUILD_ID, "f\x1b[2J\u{9b}m\r\nCPU 9: g"));
    let stored = Dump::sealed(5, core.build(), Storing::Raw);
    let mut disk = build(&[Some(stored)]);
    // The line that the open record has of the crash.
    let open = SLOT_BYTES as usize;
    disk[open + 96..open + 96 + HOSTILE.len()].copy_from_slice(HOSTILE.as_bytes());
    reseal(&mut disk[open..open + 256]);
    folder.file("disk.img", &disk);
    let mut begun = disk.clone();
    begun[open + 4096..open + 8192].fill(0);
    folder.file("begun.img", &begun);
    let mut console = vmcore_format::last_words::LastWords::begin(String::new());
    console.line(format_args!("message=\u{1b}[2J\u{9b}31m"));
    folder.file("console.log", console.end().as_bytes());
    let commands: [&[&str]; 15] = [
        &["info", "vmcore"],
        &["cpus", "vmcore"],
        &["locks", "vmcore"],
        &["timeline", "vmcore"],
        &["trace", "vmcore"],
        &["regs", "vmcore"],
        &["bt", "vmcore"],
        &["stamps", "vmcore"],
        &["log", "vmcore"],
        &["info", "disk.img"],
        &["info", "begun.img"],
        &["verify", "disk.img"],
        &["extract", "disk.img", "-o", "out", "--force"],
        &["last-words", "console.log"],
        &["collect", "disk.img", "-o", "cores"],
    ];
    for arguments in commands {
        let (_, stdout, stderr) = given(&folder, arguments);
        is_plain(&format!("{arguments:?}"), &format!("{stdout}{stderr}"));
        // Nor can it begin a line of its own.
        for line in stdout.lines().chain(stderr.lines()) {
            let forged = line.trim_start().starts_with('y') || line.starts_with("CPU 9");
            assert!(!forged, "{arguments:?}: {stdout}{stderr}");
        }
        let (_, stdout, _) = given(&folder, &[arguments, &["--json"]].concat());
        is_plain(&format!("{arguments:?} --json"), &stdout);
    }
    let bt = answer(&folder, &["bt", "vmcore"]);
    assert!(bt.contains("f\u{fffd}[2J"), "the symbol is shown: {bt}");
}

/// Puts the checksum of a record of 256 bytes right.
fn reseal(record: &mut [u8]) {
    record[16..20].fill(0);
    let crc = crc32fast::hash(record);
    record[16..20].copy_from_slice(&crc.to_le_bytes());
}
