//! The last guard, and what a run that it ended leaves for the next one.

use std::time::Duration;

use e2e::harness::{self, Event, Options, Policy, Running, Verdict};

use crate::story::{Crashed, Story, assert_verdict};

/// A machine that comes back after a reset, with a hardware watchdog set to seconds.
fn watched(cpus: u32, more: &str) -> Options {
    Options {
        cpus,
        crash: None,
        command_line: format!("workload=sieve,n=1000000 watchdog=5 {more}"),
        comes_back: true,
        timeout: Duration::from_secs(60),
        ..Story::PANIC.options()
    }
}

/// Waits for QEMU's word that the watchdog device came to its end.
fn await_watchdog(running: &mut Running) {
    loop {
        match running.machine.next_event() {
            Some(Event::Qmp(event)) if event["event"] == "WATCHDOG" => return,
            Some(Event::Line(_) | Event::Qmp(_)) => {}
            other => panic!("{other:?}; {}", running.machine.console().tail(20)),
        }
    }
}

/// One CPU alone, with its interrupts off: nobody but the chipset's timer can notice. With
/// two, and another watchdog, the same.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn when_every_cpu_is_stuck_the_machine_is_reset() {
    let alone = watched(1, "wedge=irqs-off,cpu=0");
    let mut both = watched(2, "wedge=irqs-off,cpu=0 wedge=irqs-off,cpu=1");
    both.qemu_args = vec!["-device".into(), "i6300esb".into()];
    both.out = both.out.join("both");
    for (options, name) in [(alone, "iTCO"), (both, "i6300esb")] {
        let mut running = harness::start(&options).expect("a machine");
        let line = running.machine.wait_for_line("watchdog: ").expect("a watchdog");
        assert!(
            line.contains(&format!("watchdog: {name}, resets the machine after 5 s")),
            "{line}"
        );
        running.machine.wait_for_line("in place").expect("a wedge");
        await_watchdog(&mut running);
        let said = running.machine.wait_for_line("last run: ").expect("word of it");
        assert!(said.contains("did not end: it had come to stage round-done"), "{said}");
        assert!(
            said.ends_with(&format!(
                "; the hardware watchdog ({name}) reset the machine; 1 in a row"
            )),
            "{said}"
        );
    }
}

/// A machine that may not come back: the verdict says that it hung.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_reset_by_it_is_a_hang() {
    let options = Options { comes_back: false, ..watched(1, "wedge=irqs-off,cpu=0") };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Hung);
    assert_eq!(outcome.report.why, "a hardware watchdog fired");
}

/// Twice as long as the watchdog waits, on a slow disk that takes memory as it is: it is fed.
/// When the machine then stays halted, the timer stands: bit 11 of TCO1_CNT.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_slow_dump_is_no_hang() {
    let mut options = Story::PANIC.options();
    options.command_line.push_str(" watchdog=5 dump=raw");
    options.policy = Policy::Halt;
    let bytes_per_second = (crate::story::MEMORY / 10).to_string();
    options.qemu_args =
        vec!["-set".into(), format!("drive.disk0.throttling.bps-write={bytes_per_second}")];
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("capture: policy: halt").expect("a dump");
    let control = running.machine.qmp().human("i /2h 0x668").expect("an input from a port");
    let value = control.trim().rsplit("0x").next().expect("a value");
    let value = u16::from_str_radix(value, 16).expect("a number");
    assert_ne!(value & 1 << 11, 0, "{control}");
    let crashed = Crashed::read(running.finish(&mut |_| ()).expect("an end"));
    Story::PANIC.check(&crashed);
}

/// The operator's five seconds are for the work. While a disk takes what its driver allows, many
/// times as long, the machine is not reset.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_short_watchdog_waits_for_a_slow_disk() {
    let mut options = Story::PANIC.options();
    options.command_line.push_str(" watchdog=5 dump=raw pages=mini");
    options.timeout = Duration::from_secs(110);
    options.qemu_args = ["-set", "drive.disk0.throttling.bps-write=150000"].map(Into::into).into();
    options.qemu_args.extend(["-action", "watchdog=reset"].map(Into::into));
    let crashed = Crashed::from(&options);
    Story::PANIC.check(&crashed);
}

/// A reset from outside, at work and while the dump is written; then a run that ends in good
/// order, after which there is nothing to say.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_next_run_says_how_far_the_last_one_came() {
    let mut options = Story::PANIC.options();
    options.comes_back = true;
    options.policy = Policy::Reboot;
    // The reset cuts off a dump whose first stage is sealed.
    options.command_line.push_str(" slots=overwrite-oldest");
    options.qemu_args = vec!["-set".into(), "drive.disk0.throttling.bps-write=20000000".into()];
    let mut running = harness::start(&options).expect("a machine");
    let reset = |running: &mut Running| {
        running.machine.qmp().execute("system_reset", serde_json::json!({})).expect("a reset");
    };
    running.machine.wait_for_line("round 0 right").expect("work");
    reset(&mut running);
    let drain = |running: &mut Running, marker: &str| loop {
        match running.machine.next_event() {
            Some(Event::Line(line)) if line.contains(marker) => return line,
            Some(Event::Line(_) | Event::Qmp(_)) => {}
            other => panic!("{other:?}; {}", running.machine.console().tail(20)),
        }
    };
    let said = drain(&mut running, "last run: ");
    assert!(said.contains("did not end: it had come to stage "), "{said}");
    assert!(said.ends_with("; 1 in a row"), "{said}");
    drain(&mut running, "slot 0, dump 1, free");
    drain(&mut running, "capture: ");
    reset(&mut running);
    let said = drain(&mut running, "last run: ");
    assert!(said.ends_with("it had crashed, and its dump was being written; 2 in a row"), "{said}");
    drain(&mut running, "capture: policy: reboot");
    let said = drain(&mut running, "last run: ");
    assert!(said.ends_with("crashed: its dump was sealed"), "{said}");
}
