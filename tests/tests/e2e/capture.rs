//! How far a dump goes, how it is stored, and what happens when there is no room or no time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use e2e::harness::{self, Event, Options, Outcome, Verdict};
use e2e::synth::gpt::{self, LINUX, Wanted};
use vmcore::dump::Memory;
use vmcore::{Dump, OpenOptions, Source, Which};
use vmcore_format::gpt::TYPE_GUID;
use vmcore_format::last_words;

use crate::story::{Story, assert_verdict, folder};

/// A panic with this on the command line beside the workloads of every story.
fn crashed(name: &str, line: &str, expect: Verdict) -> Outcome {
    let workloads = Story::PANIC.options().command_line;
    crashed_at_work(name, format!("{workloads} {line}"), expect)
}

/// A panic with just this on the command line.
fn crashed_at_work(name: &str, command_line: String, expect: Verdict) -> Outcome {
    let options = Options {
        command_line,
        expect: Some(expect),
        out: folder().join(name),
        ..Story::PANIC.options()
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, expect);
    outcome
}

fn on_disk(outcome: &Outcome) -> Dump {
    let source = Source::open(outcome.out.join("disk.img")).expect("a disk");
    source.dump(OpenOptions::default()).expect("a dump")
}

/// Every chunk is what its checksum says, and every stage is a core of its own.
fn verify(dump: &Dump) {
    let file = dump.stage_file().expect("chunks");
    for index in 0..file.entries().len() {
        file.chunk(index).expect("a chunk as it was sealed");
    }
    for segment in dump.segments() {
        let mut page = [0; 4096];
        dump.read(segment.load.physical_address, &mut page).expect("its first page");
    }
}

/// The stages of a dump: kind, complete, bytes of memory added, bytes stored.
fn stages(dump: &Dump) -> Vec<(u32, u32, u64, u64)> {
    let seals = &dump.stored.as_ref().expect("on a disk").seals;
    seals
        .iter()
        .map(|(_, seal)| (seal.kind, seal.complete, seal.memory_bytes, seal.stored_bytes))
        .collect()
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn the_dearest_stage_comes_first_and_may_be_all() {
    let outcome = crashed("mini", "pages=mini", Verdict::Captured);
    let dump = on_disk(&outcome);
    verify(&dump);
    let stages = stages(&dump);
    assert_eq!(stages.len(), 1);
    assert!(stages[0].2 < 16 << 20, "a few MiB: {stages:?}");
    // Small as it is, it holds what a first look needs.
    let image = vmcore::find_image(&dump, Some(&outcome.report.image)).expect("the image");
    let backtraces = vmcore::backtraces(&dump, &image);
    assert_eq!(backtraces.len(), 4);
    assert!(backtraces.iter().all(|backtrace| backtrace.frames.len() >= 2), "{backtraces:#?}");
    let log = vmcore::log(&dump).expect("the log").render();
    assert!(log.contains("crash: panic on cpu 1"), "{log}");
    assert!(dump.excluded.iter().any(|range| range.reason == 5), "the rest is listed");
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn compressed_or_not_the_memory_is_the_same() {
    // Pages that LZ4 makes half as large, and pages that it does not.
    for (storing, all, repeat) in [("lz4", true, 1), ("auto", false, 0)] {
        let pages = if all { "all" } else { "used" };
        let line = format!("workload=memstamp,repeat={repeat} pages={pages} dump={storing}");
        let outcome = crashed_at_work(storing, line, Verdict::Captured);
        let dump = on_disk(&outcome);
        verify(&dump);
        assert_eq!(stages(&dump).len(), if all { 3 } else { 2 });
        let report = vmcore::stamps(&dump).expect("stamped memory");
        assert!(report.is_good() && report.absent == 0, "{report:?}");
        assert!(report.verified > 1000, "{report:?}");
        if storing == "lz4" {
            let file = dump.stage_file().expect("chunks");
            let packed = file.entries().iter().filter(|entry| entry.kind == 2);
            let bytes = packed.fold((0, 0), |(stored, memory), entry| {
                (stored + entry.stored_bytes, memory + entry.memory_bytes)
            });
            assert!(bytes.1 > 64 << 20, "most was compressed: {bytes:?}");
            assert!(bytes.0 < bytes.1 / 10 * 6, "half of each page repeats: {bytes:?}");
            let working = dump.metrics.expect("capture metrics").cpus_working;
            assert!(working >= 2, "{working} of 4 CPUs compressed");
        }
    }
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn when_the_time_is_up_the_stages_so_far_stand() {
    let outcome = crashed("deadline", "pages=all dump=raw dump_deadline_ms=1", Verdict::Incomplete);
    let dump = on_disk(&outcome);
    verify(&dump);
    let stages = stages(&dump);
    let last = stages.last().expect("a stage");
    assert_eq!(last.1, 0, "{stages:?}");
    assert!(outcome.console.has("capture: the deadline of dump_deadline_ms= has passed"));
    assert!(dump.excluded.iter().any(|range| range.reason == 7), "what is missing is listed");
}

/// A disk with a dump area of 24 MiB in the second of three partitions, the others full of
/// something. Returns where the area begins and ends.
fn partitioned(path: &Path) -> (usize, usize) {
    const PART: u64 = 24 << 20;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("a disk");
    file.set_len(80 << 20).expect("its length");
    let part = |kind, guid| Wanted { kind, guid: [guid; 16], bytes: PART };
    let wanted = [part(LINUX, 1), part(TYPE_GUID, 2), part(LINUX, 3)];
    let starts = gpt::write(&mut file, 512, &wanted).expect("a table");
    for start in [starts[0], starts[2]] {
        file.write_all_at(&[0x5a; 1 << 20], start).expect("content");
    }
    let partition = Some(Which::Number(2));
    let layout = vmcore::Layout { slots: 1, partition, ..vmcore::Layout::default() };
    vmcore::prepare(path, layout).expect("a dump area");
    (starts[1] as usize, starts[2] as usize)
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_small_area_in_a_partition_keeps_what_fits_and_is_left_alone_when_full() {
    let folder = folder();
    std::fs::create_dir_all(&folder).expect("a folder");
    let small = folder.join("small.img");
    let (start, end) = partitioned(&small);
    let blank = std::fs::read(&small).expect("the disk");
    let run = |name: &str, image: &Path, line: &str, expect| {
        let options = Story::PANIC.options();
        let options = Options {
            command_line: format!("{} {line}", options.command_line),
            expect: Some(expect),
            disk_image: Some(image.to_owned()),
            out: folder.join(name),
            // At a port of its own, and on PCI.
            qemu_args: if name == "second" {
                ["-device", "pvpanic-pci"].map(str::to_owned).into()
            } else {
                ["-device", "pvpanic,ioport=0x50a"].map(str::to_owned).into()
            },
            ..options
        };
        let mut running = harness::start(&options).expect("a machine");
        // The host hears of the crash before anything else happens.
        loop {
            match running.machine.next_event() {
                Some(Event::Qmp(event)) if event["event"] == "GUEST_CRASHLOADED" => break,
                Some(Event::Line(line)) if line.contains("capture: disk 0") => {
                    panic!("writing, and the host does not know")
                }
                Some(Event::Exited(_)) | None => panic!("no crash"),
                _ => {}
            }
        }
        let outcome = running.finish(&mut |_| ()).expect("a run");
        assert_verdict(&outcome, expect);
        outcome
    };
    let first = run("first", &small, "dump=raw", Verdict::Incomplete);
    assert!(first.console.has("capture: too small for `used`, kept `mini`"));
    let dump = on_disk(&first);
    verify(&dump);
    let stages = stages(&dump);
    assert_eq!((stages[0].1, stages[1].1), (1, 0), "{stages:?}");
    let full = first.out.join("disk.img");
    let before = std::fs::read(&full).expect("the disk");
    assert!(before[..start] == blank[..start] && before[end..] == blank[end..], "outside");

    // Nobody has collected it: it stays, byte by byte, and there are last words. What the
    // harness finds is the old dump.
    let second = run("second", &full, "pages=mini", Verdict::Incomplete);
    assert!(second.console.has("in each a dump that nobody has collected"));
    let words = last_words::find(second.console.text()).expect("last words");
    assert_eq!(words.state, last_words::State::Complete);
    let after = std::fs::read(second.out.join("disk.img")).expect("the disk");
    // But for the record of crashes in the second block of the area.
    let slots = start + (1 << 20);
    assert!(after[slots..] == before[slots..] && after[..start] == before[..start]);

    let line = "pages=mini slots=overwrite-oldest";
    let third = run("third", &full, line, Verdict::Captured);
    assert_eq!(on_disk(&third).stored.expect("on a disk").open.sequence, 2);

    // The third crash of this machine within minutes, and the second is one too many: last
    // words, and what is on the disk stays.
    let line = "pages=mini slots=overwrite-oldest crash_loop=1/10";
    let fourth = run("fourth", &third.out.join("disk.img"), line, Verdict::Captured);
    assert!(fourth.console.has("crash loop: "), "{}", fourth.console.tail(20));
    assert!(last_words::find(fourth.console.text()).is_some());
    assert_eq!(on_disk(&fourth).stored.expect("on a disk").open.sequence, 2);
}
