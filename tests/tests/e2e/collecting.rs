//! Taking dumps off disks: never from under a running machine, and as soon as one is sealed.

use std::sync::mpsc::channel;
use std::time::Duration;

use e2e::harness::{self, Boot, Bus, Disk, Event, Options, Policy, Verdict};
use serde_json::{Value, json};
use vmcore::{Dump, Error, Watch};

use crate::story::{assert_verdict, folder};

fn options(policy: Policy) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        disks: vec![Disk { slots: 2, ..Disk::new(Bus::Virtio) }],
        crash: Some("panic,cpu=1".into()),
        command_line: "workload=memstamp pages=all".into(),
        policy,
        tidy: true,
        ..Options::new(Boot::Pvh, folder())
    }
}

/// The machine has dumped and stands still, and its disk is still its own.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_running_machine_keeps_its_disk() {
    let options = options(Policy::Halt);
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("capture: policy: halt").expect("a dump");
    let disk = options.out.join("disk.img");
    let cores = options.out.join("cores");
    let before = std::fs::read(&disk).expect("the disk");
    let collected = vmcore::collect(std::slice::from_ref(&disk), &cores, &mut |_, _, _| ())
        .expect("a folder for cores");
    let [failure] = collected.failures.as_slice() else { panic!("{collected:?}") };
    assert!(failure.reason.contains("in use by a running machine"), "{collected:?}");
    assert!(collected.dumps.is_empty() && !failure.damaged, "{collected:?}");
    let layout = vmcore::Layout { slots: 1, force: true, ..vmcore::Layout::default() };
    assert!(matches!(vmcore::prepare(&disk, layout), Err(Error::Held { .. })));
    assert!(std::fs::read(&disk).expect("the disk") == before, "written all the same");
    running.machine.kill();
    while !matches!(running.machine.next_event(), None | Some(Event::Exited(_))) {}

    let collected =
        vmcore::collect(std::slice::from_ref(&disk), &cores, &mut |_, _, _| ()).expect("a dump");
    let [dump] = collected.dumps.as_slice() else { panic!("{collected:?}") };
    assert!(dump.verified && dump.marked && dump.complete, "{dump:?}");
    let core = dump.core.as_ref().expect("a core");
    let name = core.file_name().expect("a name").to_string_lossy().into_owned();
    let build_id = &dump.build_id[..8];
    assert!(name.len() == 30 && name.ends_with(&format!("Z-{build_id}.core")), "{name}");
    assert_eq!(Dump::open(core).expect("a core").build_id.len(), 20);
    std::fs::remove_dir_all(&cores).expect("large files gone");
}

/// From the crash to the hook, without anybody asking.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_crash_is_noticed_and_its_dump_taken() {
    let mut options = options(Policy::Poweroff);
    // Unix sockets have short names, folders may have long ones.
    let socket = std::env::temp_dir().join(format!("epitaph-{}.qmp", std::process::id()));
    let server = format!("unix:{},server=on,wait=off", socket.display());
    let words = ["-S", "-qmp", &server, "-device", "pvpanic"];
    options.qemu_args = words.map(str::to_owned).to_vec();
    let mut running = harness::start(&options).expect("a machine");
    let cores = options.out.join("cores");
    let watch = Watch {
        qmp: socket.clone(),
        disks: Vec::new(),
        folder: cores.clone(),
        hook: Some("printf '%s' \"$EPITAPH_SUMMARY\" > \"$EPITAPH_CORE.json\"".into()),
        once: false,
        patience: Duration::from_secs(60),
    };
    let (ready, watching) = channel();
    let watcher = std::thread::spawn(move || {
        let mut said = |line: &str| {
            // Nobody waits for the later ones.
            let _ = ready.send(line.to_owned());
        };
        vmcore::watch(&watch, &mut said, &mut |_, _, _| ())
    });
    let first = watching.recv_timeout(Duration::from_secs(30)).expect("a watcher");
    assert!(first.contains("disk.img"), "{first}");
    running.machine.qmp().execute("cont", json!({})).expect("to go on");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    let watched = watcher.join().expect("no panic").expect("a watch");
    assert!(watched.is_good() && watched.crashes == 1, "{watched:?}");
    let [dump] = watched.dumps.as_slice() else { panic!("{watched:?}") };
    assert!(dump.marked && dump.complete, "{dump:?}");
    let core = dump.core.as_ref().expect("a core");
    assert!(Dump::open(core).expect("a core").is_complete());
    let summary = std::fs::read(format!("{}.json", core.display())).expect("the hook's file");
    let summary: Value = serde_json::from_slice(&summary).expect("JSON");
    assert_eq!(summary["schema"], vmcore::json::SCHEMA);
    assert_eq!(summary["core"].as_str(), core.to_str());
    assert!(summary["message"].as_str().expect("words").contains("panic"), "{summary}");
    // Nothing is left to be collected.
    let again = vmcore::collect(&[outcome.out.join("disk.img")], &cores, &mut |_, _, _| ());
    assert_eq!(again.expect("a look").collected_before, 1);
    std::fs::remove_dir_all(&cores).expect("large files gone");
    std::fs::remove_file(&socket).unwrap_or_default();
}
