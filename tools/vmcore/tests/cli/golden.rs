//! Every command on every core: what it answered once and was looked over, it answers
//! still. `EPITAPH_BLESS=1` writes the answers anew; then read the difference.
//!
//! The cores are the synthetic one and the folders of `tests/cores`, which hold real
//! dumps of the appliance.

use std::path::{Path, PathBuf};

use crate::common::{Folder, vmcore};

const COMMANDS: [&str; 9] =
    ["info", "cpus", "locks", "timeline", "trace", "regs", "bt", "stamps", "log"];

fn golden(core: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(core)
}

/// Runs every command on the core in `folder` and compares.
fn compare(core: &str, folder: &Folder) {
    let bless = std::env::var_os("EPITAPH_BLESS").is_some();
    let mut wrong = Vec::new();
    for command in COMMANDS {
        for json in [false, true] {
            let mut arguments = vec![command, "vmcore"];
            arguments.extend(json.then_some("--json"));
            let output = vmcore(folder, &arguments);
            // A core without stamps or log says so, and that belongs to the answer.
            let found = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            let name = format!("{command}.{}", if json { "json" } else { "txt" });
            let path = golden(core).join(name);
            if bless {
                std::fs::create_dir_all(golden(core)).expect("a folder for the answers");
                std::fs::write(&path, &found).expect("write the answer");
            } else if std::fs::read_to_string(&path).ok().as_ref() != Some(&found) {
                wrong.push(format!("{}:\n{found}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "not what it was (EPITAPH_BLESS=1 accepts it):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_synthetic_core() {
    compare("synthetic", &crate::common::with_small_core("golden-synthetic"));
}

#[test]
fn every_saved_core() {
    let cores = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cores");
    let Ok(entries) = std::fs::read_dir(cores) else { return };
    for entry in entries {
        let path = entry.expect("list the saved cores").path();
        if !path.join("vmcore").is_file() {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
        let folder = Folder::new(&format!("golden-{name}"));
        for file in ["vmcore", "appliance"] {
            std::fs::copy(path.join(file), folder.path(file)).expect("copy the core");
        }
        compare(name, &folder);
    }
}
