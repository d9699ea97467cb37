//! A machine that is paused as a whole while it waits for a disk, and a disk that answers late.
//!
//! `SIGSTOP` of QEMU is what a host does that suspends or moves a machine: under emulation the
//! guest's time-stamp counter goes on meanwhile, as it may on hardware.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::harness::{self, Bus, Disk, Options, Running, Verdict};

use crate::hung::{READ, Server, WRITE, start};
use crate::story::{Crashed, Story, assert_verdict};

/// Starts a machine whose only disk falls silent at the first request of the kind and behind
/// the byte of `until`; returns as soon as it has.
fn silent(mut options: Options, until: (u16, u64)) -> (Running, Arc<Mutex<Server>>) {
    let server = Arc::new(Mutex::new(Server::new(until)));
    let served_at = Some(start(&server, options.out.join("disk.img")));
    options.disks = vec![Disk { served_at, ..Disk::new(Bus::Virtio) }];
    options.timeout = Duration::from_secs(110);
    let running = harness::start(&options).expect("a machine");
    for _ in 0..6_000 {
        if server.lock().expect("no panic").is_silent() {
            return (running, server);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the disk was never asked");
}

/// Pauses the machine for `seconds`; the disk has answered when it goes on.
fn pause(running: &mut Running, server: &Mutex<Server>, seconds: u64) {
    running.machine.pause(true).expect("a pause");
    std::thread::sleep(Duration::from_secs(seconds));
    server.lock().expect("no panic").answer_all();
    running.machine.pause(false).expect("an end of it");
}

/// Longer than a write may take: the disk is not given up, and the dump is complete.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_pause_during_the_dump_loses_nothing() {
    let (mut running, server) = silent(Story::PANIC.options(), (WRITE, 40 << 20));
    pause(&mut running, &server, 32);
    let crashed = Crashed::read(running.finish(&mut |_| ()).expect("an end"));
    assert!(!crashed.outcome.console.has("no answer in time"));
    Story::PANIC.check(&crashed);
}

/// Longer than the appliance waits for a disk at boot: armed all the same.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_pause_during_the_look_at_boot_disarms_nothing() {
    // The first slot: no firmware reads there.
    let (mut running, server) = silent(Story::PANIC.options(), (READ, 1 << 20));
    pause(&mut running, &server, 7);
    let crashed = Crashed::read(running.finish(&mut |_| ()).expect("an end"));
    let console = &crashed.outcome.console;
    assert!(!console.has("no answer in time") && !console.has("not armed"));
    assert!(console.has("] armed: disk 0, virtio at 00:01.0"));
    Story::PANIC.check(&crashed);
}

/// A disk that answers after the appliance has given it up is looked at again, and takes the
/// dump of a crash that comes later.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_disk_that_was_late_at_boot_is_looked_at_again() {
    let mut options = Story::PANIC.options();
    options.crash = None;
    options.command_line = "workload=sieve,n=1000000 load=60".into();
    let (mut running, server) = silent(options, (READ, 1 << 20));
    let why = running.machine.wait_for_line("] not armed: ").expect("given up");
    assert!(why.contains("no answer in time: read"), "{why}");
    server.lock().expect("no panic").answer_all();
    running.machine.wait_for_line("has answered: looked at again").expect("another look");
    running.machine.wait_for_line("] armed: disk 0, virtio at 00:01.0").expect("armed");
    running.machine.qmp().execute("inject-nmi", serde_json::json!({})).expect("an NMI");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    assert!(!outcome.console.has("missed a deadline before"));
}
