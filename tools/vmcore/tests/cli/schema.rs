//! The JSON of every command against its published schema.

use std::path::Path;

use e2e::synth::core::Core;
use e2e::synth::{area, area_v2};
use jsonschema::Validator;
use serde_json::Value;

use crate::common::{Folder, answer, vmcore, with_small_core};

fn schema(name: &str) -> Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema").join(format!("{name}.json"));
    let text = std::fs::read(path).expect("the schema is there");
    jsonschema::validator_for(&serde_json::from_slice(&text).expect("JSON")).expect("a schema")
}

fn check(name: &str, answer: &str) {
    let schema = schema(name);
    let value: Value = serde_json::from_str(answer).expect("JSON");
    if let Err(error) = schema.validate(&value) {
        panic!("{name}: {error} at {}", error.instance_path());
    }
    // A schema that accepts anything would prove nothing.
    for key in value.as_object().expect("an object").keys() {
        let mut less = value.clone();
        less.as_object_mut().expect("an object").remove(key);
        assert!(!schema.is_valid(&less), "{name} does not require {key}");
    }
    let mut more = value.clone();
    more["surprise"] = 1.into();
    assert!(!schema.is_valid(&more), "{name} accepts what it does not describe");
}

#[test]
fn every_answer_is_what_its_schema_says() {
    let folder = with_small_core("schema");
    for name in ["info", "cpus", "locks", "timeline", "trace", "regs", "bt", "stamps", "log"] {
        check(name, &answer(&folder, &[name, "vmcore", "--json"]));
    }
    let words = vmcore_format::last_words::LastWords::begin(String::new()).end();
    folder.file("console.log", words.as_bytes());
    check("last-words", &answer(&folder, &["last-words", "console.log", "--json"]));
    let mut words = vmcore_format::last_words::LastWords::begin(String::new());
    let cpu = "cpu index=0 apic_id=0 stopped_by=crash registers_from=self rip=0x1 rsp=0x2 rbp=0x3";
    words.line(format_args!("{cpu}"));
    folder.file("cpu.log", words.end().as_bytes());
    let small = ["from-console", "cpu.log", "-o", "small", "--json"];
    check("from-console", &answer(&folder, &small));
    check("hashtree", &answer(&folder, &["hashtree", "--leaves", "3", "--json"]));
    folder.file("disk.img", &vec![0; 4 << 20]);
    check("prepare", &answer(&folder, &["prepare", "disk.img", "--json"]));
    check("wipe", &answer(&folder, &["wipe", "disk.img", "--json"]));
    let unverified = vmcore(&folder, &["verify", "vmcore", "--json"]);
    check("verify", &String::from_utf8_lossy(&unverified.stdout));
    let dump = area_v2::Dump::sealed(3, Core::small().build(), area_v2::Storing::Raw);
    folder.file("new.img", &area_v2::build(&[Some(dump)]));
    let collected = answer(&folder, &["collect", "new.img", "-o", "cores", "--json"]);
    check("collect", &collected);
    let collected: vmcore::Collection = serde_json::from_str(&collected).expect("JSON");
    let watched =
        vmcore::Watched { crashes: 1, dumps: collected.dumps, warnings: vec!["none".into()] };
    check("watch", &serde_json::to_string(&watched).expect("JSON"));
    let plan = ["prepare", "--for", "4G", "--slots", "3", "--json"];
    check("prepare-plan", &answer(&folder, &plan));
    let disk = area::build(&[Some(area::Dump::sealed(3, Core::small().build()))]);
    folder.file("disk.img", &disk);
    check("info", &answer(&folder, &["info", "disk.img", "--json"]));
    check("extract", &answer(&folder, &["extract", "disk.img", "-o", "out", "--json"]));
    let dump = area_v2::Dump::sealed(3, Core::small().build(), area_v2::Storing::Lz4);
    folder.file("disk.img", &area_v2::build(&[Some(dump)]));
    check("info", &answer(&folder, &["info", "disk.img", "--json"]));
    check("extract", &answer(&folder, &["extract", "out", "-o", "again", "--json"]));
}

#[test]
fn a_dump_without_our_records_has_the_same_shape() {
    let folder = Folder::new("schema-lost");
    let mut core = Core::small().build();
    // Notes of a type that nobody knows: nothing but the standard registers is left.
    for number in (1..=7u32).chain([9, 10]) {
        let kind = (0x4550_0000 + number).to_le_bytes();
        let at = core.windows(4).position(|bytes| bytes == kind).expect("the note");
        core[at + 1] = 0x77;
    }
    folder.file("vmcore", &core);
    for name in ["info", "cpus", "regs"] {
        check(name, &answer(&folder, &[name, "vmcore", "--json"]));
    }
    let info: Value =
        serde_json::from_str(&answer(&folder, &["info", "vmcore", "--json"])).expect("JSON");
    assert_eq!((&info["cause"], &info["complete"]), (&Value::Null, &false.into()));
    assert_eq!(info["cpus"].as_array().map(Vec::len), Some(4));
    assert_eq!(info["cpus"][1]["stopped_by"], "unknown");
}

#[test]
fn numbers_beyond_53_bits_survive() {
    let schema = schema("bt");
    let folder = with_small_core("schema-numbers");
    let mut bt: Value =
        serde_json::from_str(&answer(&folder, &["bt", "vmcore", "--json"])).expect("JSON");
    assert!(schema.is_valid(&bt));
    bt["cpus"][0]["frames"][0]["pc"] = 0x100_0230.into();
    assert!(!schema.is_valid(&bt), "an address must not be a JSON number");
}
