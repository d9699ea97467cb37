//! The crashed image: which file is taken for it, and what it says about a stack.

use crate::common::{Folder, answer, with_small_core};
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
