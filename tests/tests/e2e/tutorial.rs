//! The tutorial, followed to the letter: its files written, its commands run.

use std::path::Path;
use std::process::Command;

use e2e::harness;

use crate::story::folder;

/// The part of the tutorial that is followed here; what is before it happens once on a
/// machine, and `cargo xtask test` has done it.
const FROM: &str = "## Your own repository";

/// One fenced block.
enum Block<'a> {
    /// Commands for a shell.
    Commands(String),
    /// A file: its name begins the paragraph before, between backticks.
    File(&'a str, String),
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut name = None;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text = lines.by_ref().take_while(|line| *line != "```");
            let text = text.flat_map(|line| [line, "\n"]).collect();
            blocks.push(match (language, name.take()) {
                ("sh", _) => Block::Commands(text),
                (_, Some(name)) => Block::File(name, text),
                _ => panic!("a file without a name: {text}"),
            });
        } else if let Some((word, _)) = line.strip_prefix('`').and_then(|rest| rest.split_once('`'))
        {
            name = Some(word);
        }
    }
    blocks
}

/// The clone of the tutorial: everything of this checkout, and its built images.
fn clone_beside(folder: &Path) {
    let clone = folder.join("epitaph");
    std::fs::create_dir_all(&clone).expect("a folder");
    for entry in harness::root().read_dir().expect("the checkout") {
        let entry = entry.expect("an entry");
        if entry.file_name() != "target" {
            link(&entry.path(), &clone.join(entry.file_name()));
        }
    }
    link(&harness::target_dir(), &clone.join("target"));
}

fn link(to: &Path, at: &Path) {
    std::os::unix::fs::symlink(to, at).expect("a link");
}

/// Runs a command to its end, bounded; its standard output.
fn run(folder: &Path, script: &str) -> String {
    let output = Command::new("timeout")
        .args(["--kill-after=5", "900", "bash", "-e", "-c", script])
        .current_dir(folder)
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .expect("bash");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{said}\n{complaint}");
    said
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_tutorial_ends_in_a_readable_dump() {
    let folder = folder();
    let _ = std::fs::remove_dir_all(&folder);
    let own = folder.join("my-appliance");
    std::fs::create_dir_all(&own).expect("a folder");
    clone_beside(&folder);
    let target = harness::target_dir();
    let reader = format!("cargo build --release -p vmcore --target-dir '{}'", target.display());
    run(harness::root(), &reader);

    let page = std::fs::read_to_string(harness::root().join("docs/tutorial.md")).expect("the page");
    let (_, page) = page.split_once(FROM).expect("the part to follow");
    let mut said = String::new();
    let mut files = 0;
    // Crash and read: done once more, before the image for shipping takes the place of this one.
    let mut again = String::new();
    let mut second = String::new();
    for block in blocks(page) {
        match block {
            Block::Commands(script) => {
                said += &run(&own, &script);
                if script.contains("qemu-system") || script.contains("collect") {
                    again += &script;
                }
                if script.contains("collect") {
                    second = run(&own, &again.replace("crash=panic", "crash=divide"));
                }
            }
            Block::File(name, text) => {
                let path = own.join(name);
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                std::fs::write(path, text).expect("write a file of the tutorial");
                files += 1;
            }
        }
    }
    assert_eq!(files, 6);
    assert!(said.contains("circle: round 0 right: 3141549 "), "{said}");
    assert!(said.contains("crash: circle says: "), "{said}");
    // As `vmcore bt` writes it: the type and its method.
    assert!(said.contains("my_appliance::Circle as epitaph_workload::Workload>::run"), "{said}");
    assert!(said.contains("asked for by crash=panic"), "{said}");

    // The second time it is the second crash that is read.
    let (_, read) = second.rsplit_once("capture: policy").expect("the commands that read");
    assert!(read.contains("divide error"), "{read}");
    assert!(!read.contains("asked for by crash=panic"), "{read}");

    let image = own.join("target/x86_64-unknown-none/release/my-appliance");
    let mut kept: Vec<_> = std::fs::read_dir(own.join("dumps"))
        .expect("dumps")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(kept.len(), 2);
    kept.push(image);
    let home = std::env::home_dir().expect("a home").join("").display().to_string();
    for host in [folder.display().to_string(), harness::root().display().to_string(), home] {
        assert!(!said.contains(&host) && !second.contains(&host), "{host} in what was said");
        for path in &kept {
            let bytes = std::fs::read(path).expect("a file");
            let at = bytes.windows(host.len()).position(|window| window == host.as_bytes());
            let around =
                at.map(|at| String::from_utf8_lossy(&bytes[at..(at + 100).min(bytes.len())]));
            assert_eq!(around, None, "{host} in {}", path.display());
        }
    }
    // What was built is large, and the next run starts anew. What is left over does no harm.
    let _ = std::fs::remove_dir_all(own.join("target"));
}
