//! Dumps of every version of the records, and of last words.

use e2e::synth::core::Core;
use e2e::synth::image;
use serde_json::Value;

use crate::common::{Folder, answer};

fn json(folder: &Folder, arguments: &[&str]) -> Value {
    let text = answer(folder, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).expect("JSON")
}

/// The same crash, in the records of versions 2, 4 and 5: every command answers the same.
#[test]
fn every_version_says_the_same_of_the_same_crash() {
    let folder = Folder::new("versions");
    folder.file("appliance", &image::build(&image::BUILD_ID));
    for version in [2, 4, 5] {
        folder.file(&format!("v{version}"), &Core { version, ..Core::small() }.build());
    }
    for command in ["info", "cpus", "locks", "timeline", "trace", "regs", "bt", "stamps", "log"] {
        let mut old = json(&folder, &[command, "v2"]);
        for version in ["v4", "v5"] {
            let mut new = json(&folder, &[command, version]);
            for answer in [&mut old, &mut new].into_iter().filter(|_| command == "info") {
                // The sizes of the notes, and with them the file's, differ.
                answer["memory"]["file_bytes"] = Value::Null;
                answer["stages"][0]["bytes"] = Value::Null;
                answer["capture"]["bytes_written"] = Value::Null;
            }
            assert_eq!(new, old, "{command} {version}");
        }
    }
}

#[test]
fn a_hardware_id_of_64_bits_is_shown_whole() {
    let folder = Folder::new("wide-id");
    let mut core = Core { version: 5, ..Core::small() };
    core.cpus[1].hardware_id = 0x1_0000_0203;
    folder.file("vmcore", &core.build());
    let text = answer(&folder, &["regs", "vmcore", "--cpu", "1"]);
    assert!(text.contains("CPU 1 (APIC 4294967811): "), "{text}");
    let cpus = json(&folder, &["cpus", "vmcore"]);
    assert_eq!(cpus["cpus"][1]["hardware_id"], "0x100000203");
}

/// Last words of today and those before, which lacked the time and said APIC ID.
#[test]
fn last_words_say_when_the_crash_was() {
    let folder = Folder::new("when");
    for (time, id, utc) in [
        ("", "apic_id=3", Value::Null),
        (" time=1767225600", "hardware_id=3", "2026-01-01T00:00:00Z".into()),
        (" time=soon", "hardware_id=3", Value::Null),
    ] {
        let mut words = vmcore_format::last_words::LastWords::begin(String::new());
        // A message may look like anything.
        let message = "message=it is time=7";
        words.line(format_args!("cause kind=panic cpu=0 vector=-1 address=0x0{time} {message}"));
        words.line(format_args!(
            "cpu index=0 {id} stopped_by=crash registers_from=self rip=0x1 rsp=0x2 rbp=0x3"
        ));
        folder.file("console.log", words.end().as_bytes());
        answer(&folder, &["from-console", "console.log", "-o", "small", "--force"]);
        let info = json(&folder, &["info", "small"]);
        assert_eq!(info["time"]["utc"], utc, "{time}");
        assert_eq!(info["cpus"][0]["hardware_id"], "0x3", "{id}");
        assert_eq!(info["cause"]["message"], "it is time=7");
    }
}
