//! Work on a disk beside the dump's, and crashes in the middle of it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use e2e::harness::{self, DataDisk, Options, Outcome, Policy, Running, Verdict};
use serde_json::json;

use crate::locks::{lock, locks};
use crate::story::{Crashed, Story, assert_verdict};
use e2e::witness::{compare, stretches};

const BLOCK: u64 = 4096;
const SIZE: u64 = 8 << 20;

fn options() -> Options {
    let data_disk = Some(DataDisk::blank(SIZE));
    Options { data_disk, command_line: "workload=blkverify".into(), ..Story::PANIC.options() }
}

fn word(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).expect("a word of the data disk");
    u64::from_le_bytes(bytes)
}

/// Every block is where it should be, as the host sees it, and nothing is behind them.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn every_block_is_in_its_place() {
    let options = Options { crash: None, tidy: false, ..options() };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Finished);
    assert!(outcome.console.has("blkverify: round 0 right: 1024 (16 units"));
    let path = outcome.out.join("data.img");
    let data = File::open(&path).expect("the data disk");
    assert_eq!(&word(&data, 0).to_le_bytes(), b"EPIBLKV\x01");
    for position in 0..1024 {
        let at = (position + 1) * BLOCK;
        // Position, then generation: the first round's.
        assert_eq!((word(&data, at), word(&data, at + 8)), (position, 1));
    }
    assert!((1025 * BLOCK..SIZE).step_by(8).all(|at| word(&data, at) == 0));
    let _ = std::fs::remove_file(path);
}

/// A byte that changes on the disk is noticed by the next round and makes the work fail.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_wrong_byte_is_loud() {
    // A wedge that never shows keeps the rounds going.
    let command_line = "workload=blkverify,blocks=256 wedge=slow-acker,cpu=3".into();
    let options =
        Options { crash: None, command_line, expect: Some(Verdict::Unknown), ..options() };
    let path = options.out.join("data.img");
    let outcome = harness::run(&options, &mut |line| {
        if line.contains(" right: ") {
            // Between its check and its next writing, a block is open to this in each round.
            let file = File::options().read(true).write(true).open(&path).expect("data.img");
            for position in 1..256 {
                file.write_all_at(b"!", position * BLOCK + 100).expect("another byte");
            }
        }
    });
    let outcome = outcome.expect("a run");
    assert_verdict(&outcome, Verdict::Unknown);
    assert!(outcome.console.has("is WRONG at byte 96: "), "{}", outcome.console.tail(20));
    assert!(outcome.console.has("verdict: FAILED"));
}

/// A disk with somebody's data is not written to: not the dump's, not a partitioned one.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_disk_of_somebody_else_is_left_alone() {
    let mut first_sector = [0; 512];
    first_sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let data_disk = Some(DataDisk { first_sector: Some(first_sector), ..DataDisk::blank(SIZE) });
    let options = Options {
        crash: None,
        data_disk,
        expect: Some(Verdict::Unknown),
        tidy: false,
        ..options()
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Unknown);
    let said = outcome.console.after("verdict: FAILED blkverify: ").expect("a verdict");
    assert!(said.contains("00:01.0: a dump area; 00:02.0: partitioned"), "{said}");
    let data = std::fs::read(outcome.out.join("data.img")).expect("the data disk");
    assert_eq!(data[..512], first_sector);
    assert!(data[512..].iter().all(|&byte| byte == 0), "it was written all the same");
    for name in ["data.img", "disk.img"] {
        let _ = std::fs::remove_file(outcome.out.join(name));
    }
}

/// Lets QEMU write all memory to a file of the run, and says where that is.
fn photograph(running: &mut Running, options: &Options, name: &str) -> File {
    let path = options.out.canonicalize().expect("the folder").join(name);
    let arguments = json!({ "paging": false, "protocol": format!("file:{}", path.display()) });
    running.machine.qmp().execute("dump-guest-memory", arguments).expect("all memory");
    File::open(path).expect("QEMU's file")
}

/// Crashes with CPU 3 in the block driver and reads of a slow disk in flight. From the moment
/// the capture image has silenced the devices until after the seal, memory does not change but
/// where the hand-off says that a function with requests in flight may write: there alone two
/// pictures that QEMU took may differ from the dump.
fn mid_submit(
    wedge: &'static str,
    stopped: &'static [(u32, &'static str, &'static str)],
) -> Crashed {
    let wedges: &'static [&'static str] = Box::leak(Box::new([wedge]));
    let story = Story { wedges, stopped, through: &[], ..Story::PANIC };
    let options = Options {
        data_disk: Some(DataDisk::slow()),
        command_line: "workload=blkverify,blocks=256 stop_irq_ms=300 pages=all".into(),
        policy: Policy::Halt,
        ..story.options()
    };
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("capture: bus mastering off").expect("quiet devices");
    let before = photograph(&mut running, &options, "before.elf");
    running.machine.wait_for_line("capture: policy: halt").expect("the end");
    let after = photograph(&mut running, &options, "after.elf");
    let outcome: Outcome = running.finish(&mut |_| ()).expect("a run");
    let crashed = Crashed::read(outcome);
    story.check(&crashed);
    let handoff = crashed.dump.handoff.as_ref().expect("the hand-off");
    let in_flight = &handoff.in_flight[..handoff.in_flight_count as usize];
    // The data disk alone, with the pages of its driver and no more.
    assert!(in_flight.iter().all(|entry| (1..8 << 20).contains(&entry.memory.bytes)));
    for picture in [&before, &after] {
        let (mut different, compared) = compare(&crashed.dump, picture, &stretches(picture));
        assert!(compared > 10_000, "{compared} pages");
        different.retain(|page| !in_flight.iter().any(|entry| entry.memory.holds(*page, 1)));
        assert!(different.is_empty(), "{} pages: {different:x?}", different.len());
    }
    let said = crashed.outcome.console.after("crash: blkverify says: ").expect("its words");
    let reads: u32 = said.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!(reads >= 32, "{said}");
    assert!(crashed.functions(3).iter().any(|name| name.contains("blkverify")));
    crashed
}

/// Proves R21.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_cpu_in_the_driver_for_ever_is_stopped_by_nmi() {
    let crashed = mid_submit("io-holder,cpu=3", &[(3, "nmi", "interrupted")]);
    let names = crashed.functions(3);
    assert!(names.iter().any(|name| name.contains("spin_in_the_block_driver")), "{names:?}");
    assert_eq!(lock(&locks(&crashed), "disk").owner, Some(3));
}

/// It finishes its request, gives the lock back, and is stopped like everyone else.
/// Proves R21.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_cpu_in_the_driver_for_a_moment_is_stopped_by_the_interrupt() {
    let crashed = mid_submit("io-holder-brief,cpu=3", &[]);
    assert!(crashed.dump.cpus.iter().all(|cpu| cpu.nmi_count == 0));
    assert!(!crashed.outcome.console.has("stop: about to send nmi"));
    let names = crashed.functions(3);
    assert!(!names.iter().any(|name| name.contains("mid_submit")), "{names:?}");
    assert_eq!(lock(&locks(&crashed), "disk").owner, None);
}
