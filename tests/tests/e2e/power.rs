//! The power goes during a dump, at every write and in between.
//!
//! `cargo xtask soak --power-loss` does the same with more dumps and more states.

use std::path::PathBuf;

use e2e::harness::{self, Boot, Bus, Disk, Options, Verdict};
use e2e::power::{Plan, replay};

use crate::story::{assert_verdict, folder};

/// A small machine that dumps all it has.
fn options(out: PathBuf, bus: Bus) -> Options {
    Options {
        cpus: 2,
        memory: 96 << 20,
        disks: vec![Disk { slots: 2, ..Disk::new(bus) }],
        crash: Some("panic,cpu=1".into()),
        command_line: "workload=memstamp pages=all dump=raw".into(),
        ..Options::new(Boot::Pvh, out)
    }
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_state_of_the_disk_lies() {
    let before = options(folder().join("before"), Bus::Virtio);
    let before = harness::run(&before, &mut |_| ()).expect("a run");
    assert_verdict(&before, Verdict::Captured);
    let image = before.out.join("disk.img");
    for (bus, name) in [(Bus::Virtio, "virtio"), (Bus::Nvme, "nvme"), (Bus::Ahci, "ahci")] {
        let mut options = Options {
            disk_image: Some(image.clone()),
            tidy: true,
            ..options(folder().join(name), bus)
        };
        options.disks[0].recorded = true;
        let outcome = harness::run(&options, &mut |_| ()).expect("a run");
        assert_verdict(&outcome, Verdict::Captured);
        let log = outcome.out.join("disk.img.writes");
        let plan = Plan { seed: 1, subsets: 50 };
        let report = replay(&image, &log, &plan, &mut |_| ()).expect("every state is right");
        println!("{name}: {report:?}");
        assert!(report.states > 150, "{report:?}");
        assert!(report.found.len() >= 2, "before and behind the seal: {report:?}");
    }
    std::fs::remove_dir_all(&before.out).expect("large files gone");
}
