//! The last guard, and what a run that it ended leaves for the next one.

use std::time::Duration;

use e2e::harness::{self, Event, Gdb, Images, Options, Policy, Running, Verdict};

use crate::capture_faults::{NOWHERE, named_in};
use crate::story::{Crashed, Story, assert_verdict};
use crate::way_out::statics;

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

/// QEMU's watchdog sends an NMI instead of a reset: every CPU is stuck, and there is a dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn an_nmi_by_it_is_captured() {
    let mut options = watched(2, "wedge=irqs-off,cpu=0 wedge=irqs-off,cpu=1");
    options.comes_back = false;
    options.expect = Some(Verdict::Captured);
    options.qemu_args = ["-action", "watchdog=inject-nmi"].map(str::to_owned).into();
    let crashed = Crashed::from(&options);
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!(cause.kind.name().unwrap_or_default(), "nmi");
    for cpu in 0..2 {
        let names = crashed.functions(cpu);
        assert!(names.iter().any(|name| name.contains("spin_irqs_off")), "CPU {cpu}: {names:#?}");
    }
}

/// A triple fault: nothing is left of the run but the breadcrumb, which the next run reads.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_triple_fault_leaves_the_breadcrumb() {
    let mut options = Story::PANIC.options();
    options.comes_back = true;
    let appliance = Images::of(&options).expect("images").appliance;
    let panics = named_in(&appliance, &["rust_begin_unwind"]);
    let socket = Gdb::wanted_by(&mut options);
    let mut running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, Duration::from_secs(60)).expect("a stub");
    gdb.break_at(panics[0]).expect("a breakpoint");
    let stop = gdb.run().expect("a stop").expect("the panic");
    gdb.no_break_at(panics[0]).expect("gone");
    // No gate is present any more: a page fault, a double fault, the end.
    let idt = statics(&options, &["machine", "tables", "IDT"]);
    for place in idt {
        gdb.write(place, &[0; 512]).expect("written");
    }
    gdb.send_to(stop.cpu, NOWHERE).expect("sent");
    gdb.leave().expect("left");
    let said = running.machine.wait_for_line("last run: ").expect("word of it");
    assert!(said.contains("did not end: it had come to stage round-done"), "{said}");
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
