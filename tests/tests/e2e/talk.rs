//! Talking to the appliance on its serial console.

use e2e::harness::{self, Appliance, Options, Running, Verdict};

use crate::story::{Crashed, Story, assert_verdict};

fn machine(appliance: Appliance) -> Running {
    let options = Options {
        crash: None,
        appliance,
        talk: true,
        command_line: "workload=sieve,n=100000 on_finish=idle".into(),
        expect: Some(Verdict::Captured),
        ..Story::PANIC.options()
    };
    harness::start(&options).expect("a machine")
}

/// Asks, and waits for the line that ends the answer; lines before it are not lost.
fn ask(running: &mut Running, question: &str, last: &str) -> String {
    running.say(question).expect("typed");
    running.machine.wait_for_line(last).expect("an answer")
}

/// Every question has its answer, none of them changes anything, and the machine crashes
/// when it is asked to: on the CPU named, captured like any other.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn questions_then_a_crash() {
    let mut running = machine(Appliance::Faults);
    running.machine.wait_for_line("finish: idle").expect("all work done");
    ask(&mut running, "help", "help: reboot");
    ask(&mut running, "cpus", "cpus: 3 (APIC 3) idle");
    ask(&mut running, "workloads", "workloads: none");
    ask(&mut running, "memory", "MiB free");
    ask(&mut running, "trace", "trace: 3 at ");
    ask(&mut running, "bt", "live: CPU 3: 0x");
    // Mistyped, taken back, typed again.
    ask(&mut running, "lox\u{8}g", "log: [");
    ask(&mut running, "sing", "console: no such word: sing");
    ask(&mut running, "crash meteor", "console: no such fault; there are panic assert ");
    ask(&mut running, "crash panic,cpu=9", "console: no such CPU");
    let yes = ask(&mut running, "ready", "ready: yes");
    assert!(yes.contains("up to `used` would be written"), "{yes}");
    ask(&mut running, "crash panic,cpu=2", "console: panic will strike on cpu 2");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    // Once at boot and once as the answer; what `log` shows again is neither.
    let lines = outcome.console.text().lines().filter(|line| !line.contains("log: "));
    assert_eq!(lines.filter(|line| line.ends_with(" MiB free")).count(), 2);
    let target = outcome.console.after("ready: target: ").expect("a disk");
    assert!(target.starts_with("disk 0, virtio at 00:01.0, area v4, slot 0 of 1, free: room "));
    let time = outcome.console.after(" to write take ").expect("an estimate");
    assert!(time.contains(" s, as it reads, ") && time.ends_with(" MiB/s"), "{time}");
    let stopped = outcome.console.after("ready: 3 CPUs stopped in ");
    assert!(stopped.is_some(), "{}", outcome.console.tail(40));
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!((cause.cpu, cause.message()), (2, "asked for by crash=panic"));
    // The rehearsal was no stop: nobody was left out of the one that counts.
    let by = |cpu: u32| crashed.dump.cpu(cpu).expect("a record").stopped_by;
    for cpu in [0, 1, 3] {
        assert_eq!(by(cpu).name().unwrap_or_default(), "irq", "CPU {cpu}");
    }
}

/// A shipped image has no faults on request: it ignores one of the command line and refuses one of
/// the console, each time with what to do. A dump on request it takes all the same.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_shipped_image_has_no_faults_and_takes_a_dump() {
    let options = Options {
        crash: None,
        appliance: Appliance::Shipped,
        talk: true,
        command_line: "workload=sieve,n=100000 on_finish=idle crash=panic,cpu=1 wedge=irqs-off"
            .into(),
        expect: Some(Verdict::Captured),
        ..Story::PANIC.options()
    };
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("finish: idle").expect("all work done");
    ask(&mut running, "crash panic", "console: built without faults: `crash` without a name");
    ask(&mut running, "crash", "panic: asked for on the console (appliance/kernel/src/watch/shell");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    for ignored in ["crash=panic", "wedge=irqs-off"] {
        let said = format!("warning: built without faults: {ignored} is ignored; boot an image ");
        assert!(outcome.console.has(&said), "{}", outcome.console.text());
    }
    assert!(outcome.console.has("verdict: finished"));
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!(cause.message(), "asked for on the console");
    let names = crashed.functions(cause.cpu);
    for part in ["shell::listen", "trap_common"] {
        assert!(names.iter().any(|name| name.contains(part)), "{part}: {names:#?}");
    }
}

/// An image of the caller's is asked whether it has faults, before a machine is made.
#[test]
#[ignore = "reads the linked images: run cargo xtask test"]
fn a_fault_wants_an_image_that_has_it() {
    let shipped = harness::Images::find().expect("the images: run cargo xtask build").appliance;
    let mut options =
        Options { appliance: Appliance::File(shipped.clone()), ..Story::PANIC.options() };
    let refused = harness::Images::of(&options).expect_err("no faults in it").to_string();
    for part in ["built without faults", "feature `faults`", "images/appliance-faults"] {
        assert!(refused.contains(part), "{refused}");
    }
    options.crash = None;
    assert_eq!(harness::Images::of(&options).expect("nothing is asked for").appliance, shipped);
    options.crash = Some("panic".into());
    let faults = harness::Images::find_with_faults().expect("the image with faults").appliance;
    options.appliance = Appliance::File(faults);
    assert!(harness::Images::of(&options).is_ok());
}

/// The console answers while one CPU has its interrupts off and all others work. The one
/// shows in `ready` as one that would take an NMI, and takes one when the machine is rebooted.
/// Proves R20.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn rebooting_past_a_wedged_cpu() {
    let options = Options {
        crash: None,
        talk: true,
        wedges: vec!["irqs-off,cpu=0".into()],
        // The second round, in which all of this happens, is longer than it.
        command_line: "workload=sieve,n=1000000000 stop_irq_ms=300".into(),
        expect: Some(Verdict::Unknown),
        ..Story::PANIC.options()
    };
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("wedge: irqs-off on cpu 0 in place").expect("wedged");
    // At work, or between the rounds: the wedge is there as soon as the first has ended.
    ask(&mut running, "cpus", "cpus: 3 (APIC 3) ");
    ask(&mut running, "ready", "ready: CPU 0 did not stop: a crash would send an NMI");
    ask(&mut running, "reboot", "power: resetting");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert!(
        outcome.console.has("stop: about to send nmi to CPU 0"),
        "{}",
        outcome.console.tail(20)
    );
    assert!(outcome.console.has("stop: 3 of 3 CPUs acknowledged"));
    assert_eq!((outcome.report.qemu_exit, outcome.vmcore), (Some(0), None));
}
