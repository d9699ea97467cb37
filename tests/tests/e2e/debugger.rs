//! gdb opens the dump as it would any core file.

use std::path::Path;
use std::process::Command;

use e2e::harness::Outcome;

use crate::story::Story;

/// Runs gdb with `commands` on a dump of `outcome`; what it said.
pub fn gdb(outcome: &Outcome, vmcore: &Path, commands: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["--kill-after=5", "60", "gdb", "-nx", "-batch"])
        .args(commands.iter().flat_map(|command| ["-ex", command]))
        .arg(&outcome.report.image)
        .arg(vmcore)
        .output()
        .expect("gdb: cargo xtask setup installs it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(outcome.out.join("gdb.txt"), &text).expect("a log");
    text
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn shows_every_cpu_and_the_way_to_the_workload() {
    let crashed = Story {
        wedges: &["irqs-off,cpu=3"],
        stopped: &[(3, "nmi", "interrupted")],
        ..Story::PANIC
    }
    .tell();
    let text =
        gdb(&crashed.outcome, &crashed.vmcore, &["info threads", "bt", "thread apply all bt"]);
    for lwp in 1..=4 {
        let row = format!("LWP {lwp} ");
        let rows = text.lines().filter(|line| line.contains(&row) && !line.contains("Thread"));
        assert_eq!(rows.count(), 1, "one row of {row}in\n{text}");
    }
    // gdb selects the crashing CPU by itself: it is the first note.
    let order = ["panic", "inject::strike", "::run (", "take_part", "ap_entry64"];
    let mut rest = text.as_str();
    for word in order {
        let at = rest.find(word);
        assert!(at.is_some(), "'{word}' is not in its place in\n{text}");
        rest = &rest[at.unwrap_or_default()..];
    }
    assert!(text.contains("spin_irqs_off"), "{text}");
    assert!(!text.contains("Backtrace stopped"), "{text}");
}
