//! What each command does, on files built for the purpose.

use std::path::Path;
use std::process::Stdio;

use crate::common::{Folder, answer, complaint, is_core, memory_is_in, vmcore, with_small_core};
use e2e::synth::core::{Core, STAMPS};
use e2e::synth::{area, image};
use serde_json::Value;
use vmcore::{Dump, ExtractOptions};

fn json(folder: &Folder, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&answer(folder, &all)).expect("JSON")
}

#[test]
fn backtraces_say_how_each_frame_was_found() {
    let folder = with_small_core("bt");
    let bt = json(&folder, &["bt", "vmcore"]);
    let stack = |cpu: usize| -> Vec<(String, String)> {
        let frames = bt["cpus"][cpu]["frames"].as_array().expect("frames");
        let word = |value: &Value| value.as_str().unwrap_or("??").to_owned();
        frames.iter().map(|frame| (word(&frame["function"]), word(&frame["trust"]))).collect()
    };
    let expect = |cpu: usize, frames: &[(&str, &str)], end: &str| {
        let frames: Vec<_> = frames.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect();
        assert_eq!(stack(cpu), frames, "CPU {cpu}");
        assert_eq!(bt["cpus"][cpu]["end"], end, "CPU {cpu}");
    };
    let (main, worker) = ("appliance::main", "workloads::sieve::mark");
    let by_pointer = [(worker, "context"), (main, "frame-pointer"), ("_start", "cfi")];
    expect(0, &by_pointer, "outermost");
    let by_search = [
        ("leaf", "context"),
        ("helper", "cfi"),
        (worker, "scan"),
        (main, "scan"),
        ("_start", "scan"),
    ];
    expect(1, &by_search, "outermost");
    expect(2, &[(main, "context"), ("_start", "cfi")], "outermost");
    let jumped = [("??", "context"), (worker, "scan"), (main, "frame-pointer")];
    assert_eq!(stack(3)[..3], jumped.map(|(a, b)| (a.to_owned(), b.to_owned())));
    expect(4, &[], "no-registers");
    let one = json(&folder, &["bt", "vmcore", "--cpu", "2"]);
    assert_eq!(one["cpus"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["cpus"][0], bt["cpus"][2]);
}

#[test]
fn a_cpu_that_is_not_there_is_an_error() {
    let folder = with_small_core("no-cpu");
    for command in ["bt", "regs"] {
        let found = complaint(&folder, &[command, "vmcore", "--cpu", "5"]);
        assert!(found.contains("no CPU 5 in this dump, only 0 to 4"), "{found}");
    }
}

#[test]
fn the_image_is_found_by_its_build_id_or_missed_by_name() {
    let folder = Folder::new("image");
    let core = folder.file("vmcore", &Core::small().build());
    let wrong = folder.file("appliance", &image::build(&[0xab; 20]));
    folder.file("text.elf", b"no ELF file");
    let found = complaint(&folder, &["bt", "vmcore"]);
    assert!(found.contains("wanted build-id e917af"), "{found}");
    assert!(found.contains(&format!("build-id {}", "ab".repeat(20))), "{found}");
    let found = complaint(&folder, &["bt", "vmcore", "--image", "text.elf"]);
    assert!(found.contains("not an ELF file"), "{found}");
    let found = complaint(&folder, &["bt", "vmcore", "--image", "appliance"]);
    assert!(found.contains("wanted build-id e917af"), "{found}");

    // In the file that the run left, relative to it.
    let right = image::build(&image::BUILD_ID);
    folder.file("built/app", &right);
    folder.file("run.json", br#"{"image": "built/app", "verdict": "captured"}"#);
    let text = answer(&folder, &["bt", "vmcore"]);
    assert!(text.contains("workloads::sieve::mark"), "{text}");
    std::fs::remove_file(folder.path("run.json")).expect("remove it");
    complaint(&folder, &["bt", "vmcore"]);

    // In a folder of debug files, and by the name given.
    let name = format!("debug/.build-id/e9/17af0102{}.debug", "030405060708090a0b0c0d0e0f1011");
    folder.file(&name, &right);
    let dump = Dump::open(&core).expect("the core");
    assert!(vmcore::find_image(&dump, None).is_err());
    assert!(vmcore::find_image(&dump, Some(&folder.path(&name))).is_ok());
    let found = std::process::Command::new(env!("CARGO_BIN_EXE_vmcore"))
        .args(["bt", "vmcore"])
        .current_dir(folder.path(""))
        .env("EPITAPH_IMAGE_PATH", "nowhere:debug")
        .output()
        .expect("start vmcore");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));

    // Without any image the rest works, and names no function.
    std::fs::remove_file(wrong).expect("remove it");
    for command in ["info", "cpus", "regs", "stamps", "log"] {
        answer(&folder, &[command, "vmcore"]);
    }
    let cpus = json(&folder, &["cpus", "vmcore"]);
    assert_eq!(cpus["cpus"][0]["function"], Value::Null);
}

#[test]
fn a_flipped_stamp_is_found() {
    let folder = Folder::new("stamps");
    let mut core = Core::small();
    folder.file("vmcore", &core.build());
    let good = json(&folder, &["stamps", "vmcore"]);
    assert_eq!((&good["verified"], &good["exempt"]), (&3.into(), &1.into()));
    assert_eq!((&good["unstamped"], &good["damaged"]), (&1.into(), &0.into()));

    core.at(STAMPS + 2 * 4096)[1000] ^= 0x10;
    // The page that CPU 1 is writing may hold anything.
    core.at(STAMPS + 4096)[1000] ^= 0x10;
    folder.file("vmcore", &core.build());
    let output = vmcore(&folder, &["stamps", "vmcore", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let bad: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(bad["damaged"], 1);
    assert_eq!(bad["damage"][0]["address"], format!("{:#x}", STAMPS + 2 * 4096));
    assert_eq!(bad["damage"][0]["kind"], "damaged");

    // A page of the epoch before, below `next`.
    let mut core = Core::small();
    let stale = e2e::synth::core::stamped_page(STAMPS, 1);
    core.at(STAMPS)[..4096].copy_from_slice(&stale);
    folder.file("vmcore", &core.build());
    let bad = vmcore(&folder, &["stamps", "vmcore", "--json"]);
    let bad: Value = serde_json::from_slice(&bad.stdout).expect("JSON");
    assert_eq!(bad["damage"][0]["kind"], "wrong-epoch");
    assert_eq!(bad["damage"][0]["found"], "0x1");
}

#[test]
fn a_disk_is_read_like_its_newest_sealed_dump() {
    let folder = Folder::new("disk");
    let core = Core::small().build();
    let mut older = Core::small();
    older.message = "an older crash";
    let begun = area::Dump { sequence: 9, planned: 1, stages: Vec::new() };
    let disk = area::build(&[
        Some(area::Dump::sealed(8, core.clone())),
        Some(area::Dump::sealed(7, older.build())),
        Some(begun),
        None,
    ]);
    folder.file("disk.img", &disk);
    folder.file("appliance", &image::build(&image::BUILD_ID));
    folder.file("core", &core);
    let info = json(&folder, &["info", "disk.img"]);
    assert_eq!((&info["slot"]["slot"], &info["slot"]["sequence"]), (&0.into(), &8.into()));
    assert_eq!(info["complete"], true);
    assert_eq!(info["stages"][0]["sealed_after_ns"], 57000000);
    for command in ["cpus", "regs", "bt", "stamps", "log"] {
        let found = answer(&folder, &[command, "disk.img"]);
        assert_eq!(found, answer(&folder, &[command, "core"]), "{command}");
    }
    let info = json(&folder, &["info", "disk.img", "--slot", "1"]);
    assert_eq!(info["cause"]["message"], "an older crash");
    for (slot, why) in [("2", "begun and never sealed"), ("3", "empty"), ("4", "4 slots")] {
        let found = complaint(&folder, &["info", "disk.img", "--slot", slot]);
        assert!(found.contains(why), "{found}");
    }
    answer(&folder, &["extract", "disk.img"]);
    is_core(&folder, "vmcore", &core);
    let found = complaint(&folder, &["extract", "disk.img"]);
    assert!(found.contains("exists already"), "{found}");
    answer(&folder, &["extract", "disk.img", "--force", "--slot", "1"]);
    is_core(&folder, "vmcore", &older.build());
}

#[test]
fn stages_that_were_not_sealed_do_not_count() {
    let folder = Folder::new("stages");
    let mut mini = Core::small();
    (mini.stages, mini.stage) = (2, 1);
    mini.memory.truncate(3);
    let mut used = Core::small();
    (used.stages, used.stage) = (2, 2);
    let stage = |core: &Core, sealed: Option<u64>| {
        let elf = core.build();
        area::Stage { header_bytes: area::header_bytes(&elf), elf, sealed, complete: 1 }
    };
    let disk = |second: Option<u64>| {
        let stages = vec![stage(&mini, Some(5)), stage(&used, second)];
        area::build(&[Some(area::Dump { sequence: 5, planned: 2, stages })])
    };
    folder.file("both.img", &disk(Some(5)));
    let info = json(&folder, &["info", "both.img"]);
    assert_eq!(info["complete"], true);
    assert_eq!(info["stages"].as_array().map(Vec::len), Some(2));
    // Never sealed, or sealed by an older dump in the same slot.
    for second in [None, Some(4)] {
        folder.file("one.img", &disk(second));
        let info = json(&folder, &["info", "one.img"]);
        assert_eq!(info["complete"], false);
        assert_eq!((&info["stages"][0]["stage"], &info["stages_planned"]), (&1.into(), &2.into()));
        let out = json(&folder, &["extract", "one.img", "--force"]);
        assert_eq!(out["complete"], false);
        assert!(out["warnings"][0].as_str().expect("a warning").contains("1 of 2"), "{out}");
        assert_eq!(json(&folder, &["info", "vmcore"])["complete"], false);
    }
    // The second is sealed and was damaged since: the first is still good.
    let mut damaged = disk(Some(5));
    let second = (area::SLOT_BYTES + area::DATA) as usize + mini.build().len();
    damaged[second + 200] ^= 1;
    folder.file("damaged.img", &damaged);
    let output = vmcore(&folder, &["info", "damaged.img", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let info: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(info["complete"], false);
    assert!(info["warnings"][0].as_str().expect("a warning").contains("stage 2"), "{info}");
}

#[test]
fn a_disk_without_a_dump_says_what_is_in_its_slots() {
    let folder = Folder::new("no-dump");
    folder.file("empty.img", &area::build(&[None, None]));
    let found = complaint(&folder, &["extract", "empty.img"]);
    assert!(
        found.contains("slot 1: empty") && found.contains("nothing was ever dumped"),
        "{found}"
    );
    let begun = area::Dump { sequence: 1, planned: 1, stages: Vec::new() };
    folder.file("begun.img", &area::build(&[Some(begun)]));
    let found = complaint(&folder, &["info", "begun.img"]);
    assert!(found.contains("begun and never sealed (index out of bounds)"), "{found}");
    assert!(!folder.path("vmcore").exists() && !folder.path("vmcore.partial").exists());
}

#[test]
fn zero_memory_takes_no_space_and_still_reads_as_zero() {
    let folder = Folder::new("elide");
    let mut core = Core::small();
    // Runs of zeros in the middle, at the end, and one too short to be worth it.
    let mut bytes = vec![0; 40 * 4096];
    bytes[3 * 4096] = 1;
    bytes[20 * 4096] = 1;
    core.memory.push(e2e::synth::core::Memory { address: 0x200_0000, bytes, zeros: 0 });
    folder.file("whole", &core.build());
    let small = folder.path("small");
    let options = ExtractOptions { elide_zero: true, ..ExtractOptions::default() };
    vmcore::extract(&folder.path("whole"), &small, options).expect("extract");
    let (one, other) = (Dump::open(folder.path("whole")), Dump::open(&small));
    let (one, other) = (one.expect("whole"), other.expect("small"));
    assert!(other.file_bytes() + 30 * 4096 < one.file_bytes());
    // Two long runs make one more segment; the short one is not worth a header.
    assert_eq!(other.segments().len(), one.segments().len() + 1);
    memory_is_in(&one, &other);
    memory_is_in(&other, &one);
    assert_eq!(one.cpus.len(), other.cpus.len());
    let zero: u64 = other.zero.iter().map(|range| range.bytes).sum();
    assert_eq!(vmcore::info(&other).memory.zero_bytes, zero);
    // Doing it twice changes nothing.
    let again = folder.path("again");
    let options = ExtractOptions { elide_zero: true, ..ExtractOptions::default() };
    vmcore::extract(&small, &again, options).expect("extract");
    assert!(std::fs::read(small).expect("small") == std::fs::read(again).expect("again"));
}

#[test]
fn a_disk_in_use_is_left_alone() {
    let folder = Folder::new("prepare");
    let blank = |bytes: usize| folder.file("disk.img", &vec![0; bytes]);
    blank(8 << 20);
    let made = json(&folder, &["prepare", "disk.img", "--slots", "3"]);
    assert_eq!(made["slots"], 3);
    let found = complaint(&folder, &["info", "disk.img"]);
    assert!(found.contains("slot 2: empty"), "{found}");
    let found = complaint(&folder, &["prepare", "disk.img"]);
    assert!(found.contains("it holds a dump area") && found.contains("--force"), "{found}");
    answer(&folder, &["prepare", "disk.img", "--force"]);

    blank(2 << 20);
    let found = complaint(&folder, &["prepare", "disk.img", "--slots", "2"]);
    assert!(found.contains("too few for 2 slots: at least 4 MiB"), "{found}");
    let found = complaint(&folder, &["prepare", "disk.img", "--slots", "65"]);
    assert!(found.contains("1 to 64"), "{found}");
    for (at, content, expected) in [
        (1080, &b"\x53\xef"[..], "an ext file system"),
        (1_000_000, b"x", "first at byte 1000000"),
        ((4 << 20) - 512, b"EFI PART", "second header of a GPT"),
    ] {
        let mut disk = vec![0; 4 << 20];
        disk[at..at + content.len()].copy_from_slice(content);
        folder.file("disk.img", &disk);
        let found = complaint(&folder, &["prepare", "disk.img"]);
        assert!(found.contains(expected), "{found}");
        assert!(std::fs::read(folder.path("disk.img")).expect("the disk") == disk);
    }
    // Old dumps do not shine through a new area.
    let mut old = area::build(&[Some(area::Dump::sealed(1, Core::small().build()))]);
    old.resize(3 << 20, 0);
    folder.file("disk.img", &old);
    answer(&folder, &["info", "disk.img"]);
    answer(&folder, &["prepare", "disk.img", "--force"]);
    assert!(complaint(&folder, &["info", "disk.img"]).contains("slot 0: empty"));
}

#[test]
fn last_words_are_found_in_the_noise_of_a_console() {
    use vmcore_format::last_words::LastWords;
    let folder = Folder::new("last-words");
    let mut words = LastWords::begin(String::new());
    words.line(format_args!("cause=panic"));
    words.line(format_args!("message=index out of bounds"));
    let words = words.end();
    let noisy = format!("\x1b[2JSeaBIOS\r\n{}\r\nreset\r\n", words.replace('\n', "\r\n"));
    folder.file("console.log", noisy.as_bytes());
    let found = json(&folder, &["last-words", "console.log"]);
    assert_eq!(found["state"], "complete");
    assert_eq!(found["lines"][1], "message=index out of bounds");
    let text = answer(&folder, &["last-words", "console.log"]);
    assert!(text.starts_with("Complete") && text.contains("\ncause=panic\n"), "{text}");
    folder.file("cut.log", &words.as_bytes()[..words.len() - 20]);
    let found = vmcore(&folder, &["last-words", "cut.log"]);
    assert!(String::from_utf8_lossy(&found.stdout).contains("INCOMPLETE"));
    folder.file("silent.log", b"nothing to see here");
    let found = complaint(&folder, &["last-words", "silent.log"]);
    assert!(found.contains("no last words"), "{found}");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let folder = with_small_core("pipe");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_vmcore"))
        .args(["info", "vmcore"])
        .current_dir(folder.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start vmcore");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait for it");
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_library_gives_what_the_json_says() {
    let folder = with_small_core("library");
    let text = answer(&folder, &["info", "vmcore", "--json"]);
    let info: vmcore::Info = serde_json::from_str(&text).expect("an Info");
    let dump = Dump::open(folder.path("vmcore")).expect("the core");
    assert_eq!(info, vmcore::info(&dump));
    assert_eq!(dump.path(), Path::new(&folder.path("vmcore")));
}

#[test]
fn a_dump_of_version_1_is_read_and_what_it_lacks_is_null() {
    let folder = Folder::new("version-1");
    let whole = Core::small();
    folder.file("new", &whole.build());
    folder.file("old", &Core { version: 1, ..whole }.build());
    folder.file("appliance", &image::build(&image::BUILD_ID));
    let (mut new, old) = (json(&folder, &["info", "new"]), json(&folder, &["info", "old"]));
    assert_eq!(old["words"].as_array().map(Vec::len), Some(0));
    assert_eq!(new["cpus"][2]["stop_nmi_count"], 1);
    for field in
        ["stop_nmi_count", "live_nmi_count", "mce_count", "interrupts", "locks_held", "reclaimable"]
    {
        assert_eq!(old["cpus"][2][field], Value::Null, "{field}");
        assert_ne!(new["cpus"][2][field], Value::Null, "{field}");
        for cpu in new["cpus"].as_array_mut().expect("CPUs") {
            cpu[field] = Value::Null;
        }
    }
    new["words"] = Value::Array(Vec::new());
    // The sizes of the notes, and with them the file's, differ.
    new["memory"]["file_bytes"] = old["memory"]["file_bytes"].clone();
    new["stages"][0]["bytes"] = old["stages"][0]["bytes"].clone();
    new["capture"]["bytes_written"] = old["capture"]["bytes_written"].clone();
    assert_eq!(new, old);
    for command in ["cpus", "regs", "bt", "stamps", "log"] {
        answer(&folder, &[command, "old"]);
    }
}
