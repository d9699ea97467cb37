//! The JSON of every command against its published schema.

use std::path::Path;

use e2e::synth::core::Core;
use e2e::synth::{area, area_v2, image};
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
    assert_eq!(value["schema"], vmcore::json::SCHEMA, "{name}");
    assert!(answer.trim_start().trim_start_matches('{').trim_start().starts_with("\"schema\""));
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
    let watched = vmcore::json::Versioned::new(watched);
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
fn words_of_a_later_version_are_shown_with_their_numbers() {
    let folder = Folder::new("schema-words");
    let mut core = Core::small();
    core.cpus[0].stopped_by = 17;
    core.cpus[2].registers_from = 18;
    core.excluded[0].2 = 19;
    folder.file("vmcore", &core.build());
    folder.file("appliance", &image::build(&image::BUILD_ID));
    let json = |name: &str| -> Value {
        let text = answer(&folder, &[name, "vmcore", "--json"]);
        check(name, &text);
        serde_json::from_str(&text).expect("JSON")
    };
    let cpus = json("cpus");
    assert_eq!(cpus["cpus"][0]["stopped_by"], "unknown(17)");
    assert_eq!(cpus["cpus"][2]["registers_from"], "unknown(18)");
    assert_eq!(json("info")["excluded"][0]["reason"], "unknown(19)");
    assert_eq!(json("bt")["cpus"][0]["stopped_by"], "unknown(17)");
    assert_eq!(json("regs")["cpus"][2]["registers_from"], "unknown(18)");
    let text = answer(&folder, &["cpus", "vmcore"]);
    assert!(text.contains("unknown(17)"), "{text}");
}

#[test]
fn every_key_of_a_schema_is_described() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    for entry in std::fs::read_dir(folder).expect("the schemas") {
        let path = entry.expect("a schema").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        let text = std::fs::read(&path).expect("a schema");
        let schema: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(schema["$id"], format!("urn:epitaph:vmcore:schema:2:{name}"));
        assert!(schema["title"].is_string() && schema["description"].is_string(), "{name}");
        described(name, &schema);
    }
}

/// Asserts that `value`, a part of the schema `name`, describes each of its keys, and that a
/// duration has its unit in its key.
fn described(name: &str, value: &Value) {
    let parts: Vec<&Value> = match value {
        Value::Array(parts) => parts.iter().collect(),
        Value::Object(parts) => parts.values().collect(),
        _ => return,
    };
    for part in parts {
        described(name, part);
    }
    let Some(properties) = value.get("properties").and_then(Value::as_object) else { return };
    for (key, property) in properties {
        let text = property.get("description").or_else(|| property.get("$ref"));
        let text = text.and_then(Value::as_str).unwrap_or_else(|| panic!("{name}: {key}"));
        let is_time = text.contains("anoseconds") || text.starts_with("Unix time");
        let has_unit = key.ends_with("_ns") || key.ends_with("_s") || key.starts_with("ns_");
        assert_eq!(is_time, has_unit, "{name}: {key}: {text}");
    }
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
