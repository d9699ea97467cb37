//! Crashes that cannot be captured: a clear word, a last-words record, and an end.

use std::path::PathBuf;
use std::time::Duration;

use e2e::harness::{self, Bus, Disk, Gdb, Images, Module, Options, Outcome, Verdict};
use vmcore::Dump;
use vmcore_format::last_words;

use crate::capture_faults::named_in;
use crate::debugger::gdb;
use crate::story::{Crashed, Story, assert_verdict, folder};

fn options() -> Options {
    Options { expect: Some(Verdict::LastWords), ..Story::PANIC.options() }
}

/// Runs, and checks what every record of last words has to say.
fn last_words(options: &Options) -> Outcome {
    let outcome = harness::run(options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::LastWords);
    let record = last_words::find(outcome.console.text()).expect("a record");
    let lines: Vec<_> = record.lines().collect();
    let says = |word: &str| lines.iter().any(|line| line.contains(word));
    assert!(says("panic"), "the kind of the cause: {lines:#?}");
    assert!(says("build"), "the build-id: {lines:#?}");
    assert!(says("rip="), "where CPUs stood: {lines:#?}");
    outcome
}

/// The capture image was there, and what it missed was a disk.
fn says_it_is_the_disk(outcome: &Outcome) {
    let mut reasons = outcome.console.all_after("capture: FAILED: ");
    let reason = reasons.find(|reason| reason.contains("disk"));
    assert!(reason.is_some(), "{}", outcome.console.tail(30));
}

/// The built capture image, changed by `change`, as a file of this test.
fn changed_module(change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(Images::find().expect("images").capture).expect("the module");
    change(&mut bytes);
    let folder = folder();
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("capture.changed");
    std::fs::write(&path, bytes).expect("a changed module");
    path
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_capture_module() {
    let outcome = last_words(&Options { module: Module::Absent, ..options() });
    assert!(outcome.console.has("not armed: "), "said at boot already");
    assert!(outcome.console.has("no-dump: "));
    a_small_dump_is_in_them(&outcome, false);
}

/// Not an ELF file any more: refused when it is loaded.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn module_with_a_broken_header() {
    let module = Module::File(changed_module(|bytes| bytes[0] ^= 1));
    let outcome = last_words(&Options { module, ..options() });
    assert!(outcome.console.has("not armed: "));
}

/// One bit of its code is not what was built, and nothing else gives that away.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn module_with_a_flipped_bit_of_code() {
    let module = Module::File(changed_module(|bytes| {
        // The second segment is the code (images/capture.ld): p_offset, p_filesz (ELF gABI,
        // "Program Header").
        let header = 64 + 56;
        let word = |at: usize| {
            usize::from_le_bytes(bytes[header + at..header + at + 8].try_into().expect("a word"))
        };
        let (offset, length) = (word(8), word(32));
        bytes[offset + length / 2] ^= 1;
    }));
    let outcome = last_words(&Options { module, ..options() });
    let reason = outcome.console.after("not armed: ").expect("a reason");
    assert!(reason.contains("its checksum is not the one it was built with"), "{reason}");
}

/// The loader got half of it.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn module_cut_short() {
    let module = Module::File(changed_module(|bytes| bytes.truncate(bytes.len() / 2)));
    let outcome = last_words(&Options { module, ..options() });
    assert!(outcome.console.has("not armed: "));
}

/// Damaged in memory after it was loaded: its checksum no longer fits, and jumping into
/// it would be worse than not jumping.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn image_damaged_in_memory() {
    let crash = Some("damaged-image,cpu=1".into());
    let outcome = last_words(&Options { crash, ..options() });
    assert!(outcome.console.has("armed: "));
    let reason = outcome.console.after("no-dump: ").expect("a reason");
    assert!(reason.contains("checksum") || reason.contains("damaged"), "{reason}");
}

/// Damaged after the crashing CPU had looked at it, while a CPU that had to be forced to stop
/// might still have written anywhere: looked at again, and refused.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn image_damaged_during_the_stop() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let story = Story { wedges: &["irqs-off,cpu=3"], ..Story::PANIC };
    let whole = Options { out: folder().join("whole"), ..story.options() };
    let image = Crashed::from(&whole).dump.facts.as_ref().expect("boot facts").image.start;
    let mut options = Options { expect: Some(Verdict::LastWords), ..story.options() };
    // What is run there runs in a crash only.
    options.command_line.push_str(" rehearsal=off");
    let appliance = Images::of(&options).expect("images").appliance;
    let recorded = named_in(&appliance, &["record", "Records", "fill"]);
    let socket = Gdb::wanted_by(&mut options);
    let running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.break_at(recorded[0]).expect("a breakpoint");
    let stop = gdb.run().expect("a stop").expect("with the others stopped");
    assert_eq!(stop.cpu, story.on);
    gdb.write(image + 0x200, &[0x5a; 4]).expect("damaged");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::LastWords);
    let reason = outcome.console.after("no-dump: ").expect("a reason");
    assert!(reason.contains("the capture image is damaged"), "{reason}");
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_disk() {
    let outcome = last_words(&Options { disks: vec![], ..options() });
    says_it_is_the_disk(&outcome);
    a_small_dump_is_in_them(&outcome, true);
}

/// Of the last words alone comes a dump that the same commands read, and gdb; the capture
/// image says the top of `every_stack`, the appliance that of the crashing CPU.
fn a_small_dump_is_in_them(outcome: &Outcome, every_stack: bool) {
    let core = outcome.out.join("from-console");
    let made = vmcore::from_console(&outcome.out.join("console.log"), &core, true);
    let made = made.expect("a vmcore");
    assert_eq!((made.cpus, made.registers, made.complete), (4, 4, true), "{made:?}");
    let dump = Dump::open(&core).expect("a vmcore");
    assert!(!dump.is_complete(), "most of memory is not in it");
    let cause = &dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!((cause.cpu, cause.message()), (1, "asked for by crash=panic"));
    let image = vmcore::find_image(&dump, Some(&outcome.report.image)).expect("the image");
    let backtraces = vmcore::backtraces(&dump, &image);
    let names = |cpu: u32| {
        let backtrace = backtraces.iter().find(|backtrace| backtrace.index == cpu);
        let frames = &backtrace.expect("a backtrace for every CPU").frames;
        let names = frames.iter().map(|frame| frame.function.clone().unwrap_or_default());
        names.collect::<Vec<_>>()
    };
    assert!(names(1).iter().any(|name| name.contains("inject::strike")), "{:#?}", names(1));
    for cpu in [0, 2, 3].into_iter().filter(|_| every_stack) {
        assert!(names(cpu).len() >= 2, "CPU {cpu}: {:?}", names(cpu));
    }
    let log = vmcore::log(&dump).expect("a log");
    assert!(log.text.contains("crash: panic on cpu 1"), "{}", log.text);
    // The crashing CPU is the first thread.
    let said = gdb(outcome, &core, &["info threads", "bt"]);
    for word in ["LWP 4", "inject::strike", "run ("] {
        assert!(said.contains(word), "no {word} in\n{said}");
    }
}

/// A disk that nobody prepared may hold somebody's data: it is not written.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn blank_disk() {
    let outcome = last_words(&Options { disks: vec![Disk::blank(Bus::Virtio)], ..options() });
    says_it_is_the_disk(&outcome);
    let disk = std::fs::read(outcome.out.join("disk.img")).expect("the disk");
    assert!(disk.iter().all(|&byte| byte == 0), "it was written all the same");
}

/// The second disk is prepared, the first is not.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn blank_disk_before_a_prepared_one() {
    let disks = vec![Disk::blank(Bus::Virtio), Disk::new(Bus::Virtio)];
    let options = Options { disks, expect: None, ..options() };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Captured);
}
