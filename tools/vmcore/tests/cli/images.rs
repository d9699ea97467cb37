//! The crashed image: which file is taken for it, and what it says about a stack.

use crate::common::{Folder, answer, complaint, vmcore, with_small_core};
use e2e::synth::core::{Core, STACKS};
use e2e::synth::image;
use serde_json::Value;

fn backtrace(folder: &Folder, cpu: &str) -> Value {
    let text = answer(folder, &["bt", "vmcore", "--cpu", cpu, "--json"]);
    let mut found: Value = serde_json::from_str(&text).expect("JSON");
    found["cpus"][0].take()
}

#[test]
fn an_instruction_of_line_0_shows_the_line_before_it() {
    let folder = Folder::new("line-0");
    folder.file("vmcore", &Core::small().build());
    folder.file("appliance", &image::build_with(&image::BUILD_ID, &image::debug_lines()));
    // CPU 2 stands at the first instruction of `main`; CPU 0 called from it at a line 0.
    let stands = backtrace(&folder, "2");
    assert_eq!(stands["frames"][0]["line"], 10, "{stands}");
    let called = backtrace(&folder, "0");
    assert_eq!(called["frames"][1]["function"], "appliance::main");
    assert_eq!(
        (&called["frames"][1]["file"], &called["frames"][1]["line"]),
        (&"main.rs".into(), &11.into())
    );
}

#[test]
fn a_stack_that_was_smashed_says_where_it_is_cut_short() {
    let folder = with_small_core("smashed");
    let mut core = Core::small();
    // The return address of `main`, into `_start`, which is the outermost function.
    core.at(STACKS + 0xf48)[..8].fill(0);
    folder.file("vmcore", &core.build());
    let found = backtrace(&folder, "0");
    assert_eq!(found["frames"].as_array().map(Vec::len), Some(2), "{found}");
    assert_eq!(found["end"], "cut-short");
    let text = answer(&folder, &["bt", "vmcore", "--cpu", "0"]);
    assert!(text.contains("CUT SHORT: the return address here is zero"), "{text}");
}

#[test]
fn a_stack_pointer_smashed_upwards_leaves_the_frames_that_rbp_leads_to() {
    let folder = with_small_core("smashed-rsp");
    let mut core = Core::small();
    core.cpus[0].rsp = STACKS + 0xf80;
    // What a search would take for the caller.
    core.at(STACKS + 0xf90)[..8].copy_from_slice(&(image::LEAF + image::RETURN).to_le_bytes());
    folder.file("vmcore", &core.build());
    let found = backtrace(&folder, "0");
    let names: Vec<&str> = found["frames"]
        .as_array()
        .expect("frames")
        .iter()
        .filter_map(|f| f["function"].as_str())
        .collect();
    assert_eq!(names, ["workloads::sieve::mark", "appliance::main", "_start"], "{found}");
}

/// What a command says on stderr, when it succeeds.
fn warnings(folder: &Folder, arguments: &[&str]) -> String {
    let output = vmcore(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    stderr
}

#[test]
fn the_best_image_with_the_build_id_is_taken() {
    let folder = Folder::new("best-image");
    folder.file("vmcore", &Core::small().build());
    let symbols = image::build(&image::BUILD_ID);
    let lines = image::build_with(&image::BUILD_ID, &image::debug_lines());
    // Without its symbol table: the type of that section becomes SHT_PROGBITS.
    let mut stripped = symbols.clone();
    let table = u64::from_le_bytes(stripped[40..48].try_into().expect("8 bytes")) as usize;
    stripped[table + 4 * 64 + 4] = 1;

    folder.file("appliance", &stripped);
    let said = warnings(&folder, &["bt", "vmcore"]);
    assert!(said.contains("appliance is stripped: no names and no lines"), "{said}");
    let text = answer(&folder, &["bt", "vmcore"]);
    assert!(text.contains("??"), "{text}");

    folder.file("appliance.elf", &symbols);
    assert_eq!(warnings(&folder, &["bt", "vmcore"]), "");
    assert!(answer(&folder, &["bt", "vmcore"]).contains("workloads::sieve::mark"));

    // Under any name.
    folder.file("my-build.out", &lines);
    assert_eq!(warnings(&folder, &["bt", "vmcore"]), "");
    assert!(answer(&folder, &["bt", "vmcore"]).contains("main.rs:11"));
    // One that is named is taken, and what it lacks is said.
    let said = warnings(&folder, &["cpus", "vmcore", "--image", "appliance"]);
    assert!(said.contains("is stripped"), "{said}");
}

#[test]
fn an_image_of_any_name_beside_the_dump_is_found() {
    let folder = Folder::new("any-name");
    folder.file("vmcore", &Core::small().build());
    folder.file("another", &image::build(&[7; 20]));
    folder.file("notes.txt", b"not an image");
    let found = complaint(&folder, &["bt", "vmcore"]);
    assert!(found.contains("1 other ELF file, none with this build-id"), "{found}");
    folder.file("Kernel-2", &image::build_with(&image::BUILD_ID, &image::debug_lines()));
    assert!(answer(&folder, &["bt", "vmcore"]).contains("appliance::main at main.rs:11"));
}

#[test]
fn what_is_given_as_image_is_named_when_it_is_none() {
    let folder = with_small_core("no-image");
    folder.file("folder/file", b"");
    folder.file("packed.gz", b"\x1f\x8b\x08\0");
    folder.file("console.log", b"~EP 0000 14 996575c4 last-words version=1\n");
    for (name, expected) in [
        ("folder", "this is a folder; name the ELF file in it"),
        ("packed.gz", "not an ELF file: this is a gzip file; unpack it with `gzip -d`"),
        ("console.log", "not an ELF file: this is the text of a console with last words"),
        ("vmcore", "a core, not an image"),
        ("/dev/zero", "this is a character device, not an ELF file"),
        ("nowhere", "No such file"),
    ] {
        for command in ["bt", "cpus", "locks", "trace"] {
            let found = complaint(&folder, &[command, "vmcore", "--image", name]);
            assert!(found.contains(expected), "{command} {name}: {found}");
        }
    }
}

#[test]
fn an_image_of_another_build_is_never_passed_over_in_silence() {
    let folder = Folder::new("other-build");
    folder.file("vmcore", &Core::small().build());
    folder.file("appliance", &image::build(&[0xab; 20]));
    for command in ["bt", "cpus", "locks", "trace"] {
        let found = complaint(&folder, &[command, "vmcore", "--image", "appliance"]);
        assert!(found.contains("another image, of build-id abab"), "{command}: {found}");
    }
    for arguments in [&["info", "vmcore"][..], &["info", "vmcore", "--image", "appliance"]] {
        let said = warnings(&folder, arguments);
        assert!(said.contains("the dump is of another image than the one at hand"), "{said}");
        assert!(said.contains("appliance: another image, of build-id abab"), "{said}");
    }
    // When it was made stands in the answer.
    assert!(answer(&folder, &["info", "vmcore"]).contains("when       2026-01-01T00:33:20Z"));
    folder.file("appliance", &image::build(&image::BUILD_ID));
    assert_eq!(warnings(&folder, &["info", "vmcore"]), "");
}

#[test]
fn a_dump_without_a_build_id_takes_the_image_that_is_given() {
    let folder = with_small_core("no-build-id");
    let mut core = Core { build_id: Vec::new(), ..Core::small() }.build();
    // The boot facts hold it as well.
    let at = core.windows(20).position(|bytes| bytes == image::BUILD_ID);
    if let Some(at) = at {
        core[at..at + 20].fill(0);
    }
    folder.file("vmcore", &core);
    let found = complaint(&folder, &["bt", "vmcore"]);
    assert!(found.contains("it has no build-id") && found.contains("--image"), "{found}");
    let said = warnings(&folder, &["bt", "vmcore", "--image", "appliance"]);
    assert!(said.contains("nothing proves that appliance is its image"), "{said}");
    let text = answer(&folder, &["bt", "vmcore", "--image", "appliance"]);
    assert!(text.contains("workloads::sieve::mark"), "{text}");
}
