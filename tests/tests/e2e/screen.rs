//! What stands on the screen, read from QEMU's picture of it letter by letter.

use e2e::harness::{self, Boot, Options, Outcome, Policy, Screen, Verdict};

use crate::story::{Crashed, Story, assert_verdict};

/// Fails with all that could be read.
fn assert_shown(outcome: &Outcome, words: &[&str]) {
    let lines = outcome.screen.as_ref().expect("a picture").lines();
    let words_of = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<_> = lines.iter().map(words_of).collect();
    for wanted in words {
        assert!(lines.iter().any(|line| line.contains(wanted)), "{wanted} is not in {lines:#?}");
    }
}

/// A framebuffer: the cause, who was stopped how and after how long, and that there is a
/// dump. What is on the screen is what is in the dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_panic_can_be_read_in_a_photo() {
    let story = Story {
        boot: Boot::Bios,
        wedges: &["irqs-off,cpu=3"],
        stopped: &[(3, "nmi", "interrupted")],
        ..Story::PANIC
    };
    let crashed = Crashed::from(&Options { screen: Screen::Pixels, ..story.options() });
    story.check(&crashed);
    let late = crashed.dump.cpus[3].latency_ns / 100_000;
    let row = format!("3 nmi {}.{} ms sieve", late / 10, late % 10);
    assert_shown(
        &crashed.outcome,
        &[
            "panic on CPU 1",
            "asked for by crash=panic",
            "at appliance/kernel/src/trial/inject/crashes.rs:",
            "0 irq ",
            "1 crash - sieve",
            "2 irq ",
            &row,
            "captured: dump 1 on disk 0",
        ],
    );
    assert!(crashed.outcome.out.join("screen-running.png").is_file(), "a picture of it at work");
}

/// By UEFI, and with a capture image that cannot be trusted.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn that_there_is_no_dump_is_said() {
    let options = Options {
        crash: Some("damaged-image".into()),
        boot: Boot::Uefi,
        screen: Screen::Pixels,
        ..Story::PANIC.options()
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::LastWords);
    assert_shown(&outcome, &["panic on CPU 1", "NO DUMP", "the capture image is damaged"]);
}

/// Without a serial port the screen is all there is.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_serial_port() {
    let story = Story { boot: Boot::Bios, cpus: 1, on: 0, ..Story::PANIC };
    let options = Options { screen: Screen::Pixels, serial: false, ..story.options() };
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    assert_eq!(crashed.outcome.console.text(), "");
    assert_shown(&crashed.outcome, &["panic on CPU 0", "captured: dump 1 on disk 0"]);
}

/// Without a screen either, nobody hears of it but the disk, where the log is in the dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_serial_port_and_no_screen() {
    let crashed = Crashed::from(&Options { serial: false, ..Story::PANIC.options() });
    Story::PANIC.check(&crashed);
    assert_eq!(crashed.outcome.console.text(), "");
    let log = vmcore::log(&crashed.dump).expect("a log");
    for wanted in ["epitaph: booted by PVH", "panic: asked for", "no serial port"] {
        assert!(log.text.contains(wanted), "{wanted} is not in {}", log.text);
    }
}

/// The cells of a text mode. They are memory, so they are read as such.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_text_mode_will_do() {
    let mut options = Story::PANIC.options();
    options.boot = Boot::Bios;
    options.screen = Screen::Text;
    options.policy = Policy::Halt;
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("capture: policy: halt").expect("a dump");
    let file = options.out.join("cells");
    let save = serde_json::json!({ "val": 0xb_8000, "size": 80 * 25 * 2, "filename": file });
    running.machine.qmp().execute("pmemsave", save).expect("the cells");
    let cells = std::fs::read(&file).expect("the cells");
    let letters: String = cells.chunks_exact(2).map(|cell| char::from(cell[0])).collect();
    for wanted in ["panic on CPU 1", "0  irq", "1  crash", "captured: dump 1 on disk 0"] {
        assert!(letters.contains(wanted), "{wanted} is not in {letters}");
    }
    assert_verdict(&running.finish(&mut |_| ()).expect("an end"), Verdict::Captured);
}
