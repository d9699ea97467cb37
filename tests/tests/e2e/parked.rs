//! CPUs after the stop: they outlive what may still come, and some can be called back.

use e2e::harness::{self, Options, Verdict};
use serde_json::json;

use crate::story::{Crashed, Story, assert_verdict};

/// An error in bank 1 that every CPU survives: valid, uncorrected, enabled (Intel SDM vol. 3,
/// figure 16-6); the interrupted program can go on.
const SURVIVABLE: &str = "1 0xb000000000000134 5 0 0";

/// CPUs 0 and 3 are stopped by the interrupt, CPU 2 by INIT. While the capture image writes
/// to a slow disk and they compress, an NMI goes to every CPU, a machine check to every CPU,
/// both once more, and the dump is as good as any. Proves R16, L2, L6.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn outlive_nmis_and_machine_checks() {
    let story = Story {
        wedges: &["nmi-blocked,cpu=2"],
        stopped: &[(2, "init", "last-known")],
        ..Story::PANIC
    };
    // Only such a processor takes part in a broadcast.
    let processor = ["-cpu", "max,vendor=GenuineIntel,family=6,model=94"];
    let qemu_args = processor.map(str::to_owned).into();
    let options = Options { qemu_args, ..story.options() };
    let command_line = format!("{} dump=lz4 capture_cpus=all", options.command_line);
    let options = Options { command_line, ..options };
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("stop: CPU 2: parked after INIT").expect("parked");
    // 32 MiB/s: some six seconds of writing.
    let throttle = json!({
        "device": "disk0", "bps": 32 << 20, "bps_rd": 0, "bps_wr": 0,
        "iops": 0, "iops_rd": 0, "iops_wr": 0,
    });
    let qmp = running.machine.qmp();
    qmp.execute("block_set_io_throttle", throttle).expect("a slow disk");
    // From then on the others help.
    running.machine.wait_for_line("capture: sealed stage `mini`").expect("the capture writes");
    for _ in 0..2 {
        let qmp = running.machine.qmp();
        qmp.execute("inject-nmi", json!({})).expect("an NMI");
        let said = qmp.human(&format!("mce -b 3 {SURVIVABLE}")).expect("a machine check");
        assert_eq!(said.trim(), "");
        // The capture image's own CPU has had its part; then so have the others.
        running.machine.wait_for_line("capture: machine check survived: ").expect("survived");
    }
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_eq!(outcome.console.all_after("capture: machine check survived: ").count(), 2);
    let sealed = "capture: sealed stage `used`";
    let place = |text: &str| outcome.console.text().find(text).expect("on the console");
    assert!(place("machine check survived") < place(sealed), "it came while writing");
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    story.check(&crashed);
    // Both answered the call, on the capture image's page tables and stacks.
    let metrics = crashed.dump.metrics.expect("capture metrics");
    assert_eq!((metrics.cpus_waiting, metrics.cpus_answered), (2, 2));
    assert_eq!(metrics.cpus_working, 3, "and both compressed");
}
