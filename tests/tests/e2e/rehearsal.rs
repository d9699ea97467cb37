//! The capture image is rehearsed at boot: what it changes, what it says, and what becomes of one
//! that goes wrong.

use std::time::Duration;

use e2e::harness::{self, Bus, Disk, Gdb, Options, Policy, Running, Verdict};
use e2e::power::Images as Before;
use vmcore::Dump;

use crate::capture_faults::{NOWHERE, named};
use crate::story::{Crashed, MEMORY, Story, assert_verdict, folder};

const PATIENCE: Duration = Duration::from_secs(60);
const SAID: &str = "rehearsal: the capture image came to the seal of `mini` on disk 0; nothing was \
                    written";

/// What is the same in every boot of this build.
struct Places {
    /// Where the image is entered.
    entry: u64,
    /// Where it writes memory of a stage.
    middle: u64,
    /// Where keys are.
    keys: u64,
}

fn places() -> Places {
    let options = Story::PANIC.options();
    let options = Options { out: options.out.join("plain"), ..options };
    let crashed = Crashed::from(&options);
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    let writers = named(facts.image.start, &["capture_engine", "stream", "append_raw"]);
    let middle = *writers.first().expect("a function that writes memory of a stage");
    let keys = facts.never_dump().first().expect("keys").range.start;
    Places { entry: facts.image_entry, middle, keys }
}

/// Starts a machine and stops it in the middle of its rehearsal.
fn stopped(options: &mut Options) -> (Running, Gdb) {
    let place = places().middle;
    let socket = Gdb::wanted_by(options);
    let running = harness::start(options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.break_at(place).expect("a breakpoint");
    let stop = gdb.run().expect("a stop").expect("in the rehearsal");
    assert_eq!(stop.cpu, 0, "there is no other yet");
    gdb.no_break_at(place).expect("gone");
    (running, gdb)
}

/// Over a disk that holds a dump: not a byte of it is another one afterwards.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn it_says_how_far_it_came_and_changes_nothing() {
    let before = Before::make(&folder().join("before")).expect("disks with dumps");
    let options = Options {
        crash: None,
        disks: vec![Disk { slots: 2, ..Disk::new(Bus::Virtio) }],
        disk_image: Some(before.one_free.clone()),
        // The one that was on the disk before.
        expect: Some(Verdict::Captured),
        // Its disk is to be looked at.
        tidy: false,
        ..Story::PANIC.options()
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert!(outcome.console.has("verdict: finished"), "{}", outcome.console.tail(40));
    assert!(outcome.console.has(SAID), "{}", outcome.console.tail(40));
    assert!(outcome.console.has("rehearsal: 3 CPUs stopped in "));
    assert!(outcome.console.has("round 0 right"));
    assert!(!outcome.console.has("capture: "), "its lines are nobody's");
    let read = |path: &std::path::Path| std::fs::read(path).expect("a disk");
    let (then, now) = (read(&before.one_free), read(&outcome.out.join("disk.img")));
    assert!(then == now[..then.len()] && now[then.len()..].iter().all(|&byte| byte == 0));
    std::fs::remove_file(outcome.out.join("disk.img")).expect("gone");
}

/// Keys that were there already would be there afterwards.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn it_wipes_no_key() {
    const KEY: u64 = 0x6b65_7920_6b65_7921;
    let Places { entry, middle, keys } = places();
    let mut options = Story::PANIC.options();
    let socket = Gdb::wanted_by(&mut options);
    let running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    for place in [entry, middle] {
        gdb.break_at(place).expect("a breakpoint");
        gdb.run().expect("a stop").expect("in the rehearsal");
        gdb.no_break_at(place).expect("gone");
        if place == entry {
            gdb.write(keys, &KEY.to_le_bytes()).expect("a key");
        }
    }
    // A crash has written over them by then, and so would this one.
    assert_eq!(gdb.read_word(keys).expect("a word"), KEY);
    gdb.write(keys, &[0; 8]).expect("no key");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert!(outcome.console.has(SAID));
    Story::PANIC.check(&Crashed::read(outcome));
}

/// `rehearsal=off`: the disk is looked at by the appliance, and that is all.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn it_is_left_out_when_nobody_wants_it() {
    let mut options = Story::PANIC.options();
    options.command_line.push_str(" rehearsal=off");
    let crashed = Crashed::from(&options);
    assert!(!crashed.outcome.console.has("rehearsal: "));
    Story::PANIC.check(&crashed);
}

/// A fault in the middle: it is said, and the image is as new afterwards.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_fault_in_it_is_said_and_harms_nobody() {
    let mut options = Story::PANIC.options();
    let (running, mut gdb) = stopped(&mut options);
    gdb.send_to(0, NOWHERE).expect("sent away");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    let said = outcome.console.after("warning: rehearsal: the capture image came to no dump: ");
    let said = said.expect("a warning");
    assert!(said.starts_with("exception 14 (page fault) at 0x7f00dead"), "{said}");
    Story::PANIC.check(&Crashed::read(outcome));
}

/// An NMI in the middle is not for the image: it crashes the appliance as soon as that is back.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn an_nmi_in_it_comes_through() {
    let mut options = Options { crash: None, ..Story::PANIC.options() };
    options.expect = Some(Verdict::Captured);
    let (mut running, gdb) = stopped(&mut options);
    running.machine.qmp().execute("inject-nmi", serde_json::json!({})).expect("an NMI");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    assert!(outcome.console.has(SAID));
    let dump = Dump::open(outcome.vmcore.as_ref().expect("a vmcore")).expect("a dump");
    let cause = &dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!((cause.cpu, cause.message()), (0, "NMI that nobody here asked for"));
}

/// A machine that is reset in the middle, as by a watchdog when the image does not come back,
/// starts without it the next time, and with it the time after that.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn one_that_does_not_end_is_left_out_the_next_time() {
    let mut options = Story::PANIC.options();
    options.policy = Policy::Reboot;
    options.memory = MEMORY;
    options.comes_back = true;
    options.command_line.push_str(" slots=overwrite-oldest");
    let (mut running, gdb) = stopped(&mut options);
    running.machine.qmp().execute("system_reset", serde_json::json!({})).expect("a reset");
    gdb.leave().expect("left");
    let said = running.machine.wait_for_line("last run: ").expect("word of it");
    assert!(said.contains("did not end: it had come to stage target"), "{said}");
    let left_out = "warning: rehearsal: left out, the last run did not come back from it";
    running.machine.wait_for_line(left_out).expect("left out");
    running.machine.wait_for_line("capture: sealed stage `used`").expect("a dump");
    running.machine.wait_for_line(SAID).expect("and again");
}
