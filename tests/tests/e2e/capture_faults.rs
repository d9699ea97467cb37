//! The capture image makes a mistake, anywhere: what was sealed before stays, the stage that was
//! being written is closed as far as it came, the dump and the last words say why there is no
//! more. A helper that makes one is done without.
//!
//! QEMU's debugger stub stops the machine as the image is entered and then at every function
//! of the image that it comes to. Of those, some are taken at even distances; in a boot for
//! each, the CPU is let into the function for a few instructions and then sent to where
//! nothing is mapped. No memory is changed.

use std::path::Path;
use std::time::Duration;

use e2e::harness::{self, Boot, Bus, Disk, Gdb, Images, Options, Outcome, Policy, Verdict};
use e2e::power::{Images as Before, Plan, replay};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use vmcore::{Dump, OpenOptions, Source};
use vmcore_format::area::{incomplete, stage_kind};
use vmcore_format::last_words;

use crate::story::{assert_verdict, folder};

/// Nothing is mapped there, and it is a canonical address: the fault is a page fault.
pub const NOWHERE: u64 = 0x7f00_dead_b000;
/// No answer of the stub takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Points of a test.
const POINTS: usize = 12;

/// One CPU, so that it is always the same one that comes to a point.
fn options(name: &str) -> Options {
    Options {
        cpus: 1,
        memory: 96 << 20,
        crash: Some("panic,at=round-done".into()),
        command_line: "workload=sieve,n=100000 pages=all rehearsal=off".into(),
        // What an image does that does not know the policy yet.
        policy: Policy::Reboot,
        expect: Some(Verdict::LastWords),
        tidy: true,
        ..Options::new(Boot::Pvh, folder().join(name))
    }
}

/// Where the image is entered, and where it lies.
fn entry_and_base() -> (u64, u64) {
    let outcome = harness::run(&options("plain"), &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Captured);
    let dump = Dump::open(outcome.vmcore.as_ref().expect("a vmcore")).expect("a dump");
    let facts = dump.facts.as_ref().expect("boot facts");
    (facts.image_entry, facts.image.start)
}

/// Addresses of the image's functions, from its beginning.
fn functions(image: &Path) -> Vec<u64> {
    let bytes = std::fs::read(image).expect("the image");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let code = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    let mut found: Vec<u64> = code.map(|symbol| symbol.address()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The functions the image comes to after its entry, in their order, each once.
fn reached(entry: u64, base: u64) -> Vec<u64> {
    let mut options = options("reached");
    let socket = Gdb::wanted_by(&mut options);
    let running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.break_at(entry).expect("a breakpoint");
    gdb.run().expect("a stop").expect("the entry");
    gdb.no_break_at(entry).expect("gone");
    let functions = functions(&Images::find().expect("images").capture_debug);
    let all: Vec<u64> = functions.into_iter().map(|function| base + function).collect();
    for &function in all.iter().filter(|&&function| function != entry) {
        gdb.break_at(function).expect("a breakpoint");
    }
    let mut reached = Vec::new();
    while let Ok(Some(stop)) = gdb.run() {
        let at = gdb.instruction_pointer(stop.cpu).expect("its place");
        gdb.no_break_at(at).expect("gone");
        reached.push(at);
    }
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    reached
}

/// Runs with a fault `steps` instructions after the first visit to `point`; `None` when this
/// run did not come there: what is compressed depends on how busy the host is.
fn break_at(point: u64, entry: u64, steps: usize) -> Option<Outcome> {
    let mut options = options(&format!("{point:x}"));
    let socket = Gdb::wanted_by(&mut options);
    let running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    // Not before the image is entered: until then the same address may hold other code.
    for address in [entry, point] {
        gdb.break_at(address).expect("a breakpoint");
        if gdb.run().ok().flatten().is_none() {
            let outcome = running.finish(&mut |_| ()).expect("an end");
            assert_verdict(&outcome, Verdict::Captured);
            return None;
        }
        gdb.no_break_at(address).expect("gone");
    }
    for _ in 0..steps {
        gdb.step(0).expect("a step").expect("no end");
    }
    gdb.send_to(0, NOWHERE).expect("sent away");
    gdb.leave().expect("left");
    Some(running.finish(&mut |_| ()).expect("an end"))
}

/// The last stage that a reader finds on the disk, every checksum right: its kind, 0 for none,
/// and with what fault it ended, if it was one.
fn sealed_on_disk(outcome: &Outcome) -> (u32, Option<String>) {
    let source = Source::open(outcome.out.join("disk.img")).expect("a disk");
    let Ok(dump) = source.dump(OpenOptions::default()) else { return (0, None) };
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    assert!(verified.is_good(), "{verified:?}");
    let stored = dump.stored.as_ref().expect("on a disk");
    let seal = stored.seal().expect("a seal");
    assert_eq!(seal.incomplete == incomplete::FAULT, dump.capture_fault.is_some());
    if dump.capture_fault.is_some() {
        assert_ends_by_fault(outcome, &dump);
    }
    (seal.kind, dump.capture_fault)
}

/// What was closed after a fault says so in every way there is, and lacks nothing of the stage
/// before.
fn assert_ends_by_fault(outcome: &Outcome, dump: &Dump) {
    let fault = dump.capture_fault.as_deref().expect("a fault");
    let info = vmcore::info(dump);
    assert!(!info.complete);
    assert_eq!(info.capture.as_ref().and_then(|capture| capture.fault.as_deref()), Some(fault));
    let stage = info.stages.iter().find(|stage| stage.read).expect("a stage");
    assert_eq!(stage.incomplete.as_deref(), Some("fault"));
    let page = info.render();
    assert!(page.contains("ended by a fault in the capture image: "), "{page}");
    // The same in the file that is extracted, where there is no seal.
    let file = Dump::open(outcome.vmcore.as_ref().expect("a vmcore")).expect("a dump");
    assert_eq!(file.capture_fault.as_deref(), Some(fault));
    assert!(!file.is_complete());
    // All of RAM is in it, or is named.
    let ram = info.memory.ram_bytes;
    let left_out = info.excluded.iter().filter(|range| range.reason != "not-ram");
    let left_out: u64 = left_out.map(|range| range.bytes).sum();
    let known = info.memory.dumped_bytes + left_out;
    assert!(known.abs_diff(ram) < 1 << 20, "{known:#x} of {ram:#x}");
}

/// What the console says was sealed, as a number of [`stage_kind`].
fn sealed_by_console(outcome: &Outcome) -> u32 {
    let last = outcome.console.all_after("capture: sealed stage `").last();
    let kinds = [stage_kind::MINI, stage_kind::USED, stage_kind::ALL];
    let named = |kind: &u32| last.is_some_and(|last| last.starts_with(stage_kind::name(*kind)));
    kinds.into_iter().find(named).unwrap_or(0)
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn leave_what_is_sealed_and_last_words() {
    let (entry, base) = entry_and_base();
    let reached = reached(entry, base);
    assert!(reached.len() >= POINTS, "only {} functions reached", reached.len());
    let (mut cut_short, mut closed) = (0, 0);
    for index in 0..POINTS {
        let point = reached[index * reached.len() / POINTS];
        let Some(outcome) = break_at(point, entry, index * 13 % 40) else { continue };
        let ((disk, fault), console) = (sealed_on_disk(&outcome), sealed_by_console(&outcome));
        let place = format!("{point:#x}: {disk} sealed, {console} said, {fault:?}; {outcome}");
        let end = outcome.console.tail(6);
        // Between the seal and the word of it there is a moment.
        assert!(disk == console || disk == console + 1, "{place}");
        assert_eq!(fault.is_some(), outcome.console.has("capture: closed stage `"), "{place}");
        if let Some(fault) = &fault {
            assert!(fault.starts_with("exception 14 "), "{place}");
            assert!(console > 0 && disk == console + 1, "closed before the first; {place}");
            closed += 1;
        } else if console > 0 && disk < stage_kind::ALL {
            // Its driver may be in the middle of something, or the next stage has not begun: the
            // line that says the seal is not finished.
            let spoken = outcome.console.has(" is not closed: its disk was being spoken to");
            let between = outcome.console.text().lines().any(|line| {
                line.starts_with("capture: sealed stage `") && line.contains("capture: fault in ")
            });
            assert!(spoken || between, "{place}; {end}");
        }
        let record = last_words::find(outcome.console.text());
        let whole = record.is_some_and(|record| record.state == last_words::State::Complete);
        match outcome.report.verdict {
            Verdict::Captured => assert_eq!(disk, stage_kind::ALL, "{place}"),
            Verdict::Incomplete | Verdict::LastWords => {
                assert!(whole, "no last words; {place}; {end}");
                cut_short += 1;
            }
            _ => panic!("{place}; {end}"),
        }
        let failed = outcome.console.after("capture: FAILED: exception 14 ");
        // Its first instructions run under the appliance's own handlers.
        let nested = outcome.console.has("crash: the crash path itself crashed (");
        assert!(failed.is_some() || nested, "{place}; {end}");
        if let Some(failed) = failed.filter(|_| console > 0) {
            let kept = |kind| format!("; stage `{}` is sealed on disk 0", stage_kind::name(kind));
            let closed = format!(", and `{}` as far as it came", stage_kind::name(disk));
            let known = match fault {
                Some(_) => failed.ends_with(&(kept(console) + &closed)),
                None => [console, disk].map(kept).iter().any(|kept| failed.ends_with(kept)),
            };
            assert!(known, "{failed}; {place}");
        }
    }
    assert!(cut_short >= POINTS / 2, "only {cut_short} faults cut the dump short");
    println!("{closed} of {cut_short} closed");
}

/// An error that the interrupted program cannot go on after: bank 1, valid, uncorrected,
/// enabled (Intel SDM vol. 3, figure 16-6).
const DEADLY: &str = "1 0xb000000000000134 4 0 0";

/// Functions of the image with all of `parts` in their names, where it lies at `base`.
pub fn named(base: u64, parts: &[&str]) -> Vec<u64> {
    let found = named_in(&Images::find().expect("images").capture_debug, parts);
    found.into_iter().map(|address| base + address).collect()
}

/// Addresses of the functions of an ELF file with all of `parts` in their names.
pub fn named_in(path: &Path, parts: &[&str]) -> Vec<u64> {
    let bytes = std::fs::read(path).expect("the image");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let code = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    let named = code.filter(|symbol| {
        symbol.name().is_ok_and(|name| parts.iter().all(|part| name.contains(part)))
    });
    named.map(|symbol| symbol.address()).collect()
}

/// Where the image panics: an instruction that loads the place in the source for a check of
/// bounds that has failed, and close behind it the call that says so.
fn panic_site(base: u64) -> u64 {
    const LEA: usize = 7;
    const CALL: usize = 5;
    let panics = named(0, &["core", "panicking", "panic_bounds_check"]);
    let bytes = std::fs::read(Images::find().expect("images").capture_debug).expect("the image");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let text = file.section_by_name(".text").expect("code");
    let (start, code) = (text.address(), text.data().expect("its bytes"));
    let calls = |&at: &usize| {
        let to = i32::from_le_bytes(code[at + 1..at + CALL].try_into().expect("four bytes"));
        let behind = start + (at + CALL) as u64;
        code[at] == 0xe8 && panics.contains(&behind.wrapping_add_signed(i64::from(to)))
    };
    let site = (0..code.len() - CALL).filter(calls).find_map(|call| {
        // LEA RDX, [RIP + disp32], and the index and the length moved in between.
        let before = (LEA..=LEA + 10).map(|bytes| call.saturating_sub(bytes));
        before.into_iter().find(|&at| code[at..].starts_with(&[0x48, 0x8d, 0x15]))
    });
    base + start + site.expect("a place where it panics") as u64
}

/// Visits to the compressor that are let pass, so that something is stored.
const PASSED_OVER: u32 = 40;

/// What is done to a CPU at work on the second stage.
#[derive(Debug, Clone, Copy)]
enum Blow {
    SendTo(u64),
    MachineCheck,
}

/// Runs `options` up to the second stage, lets one CPU after the other come to a place where
/// memory is compressed, and deals each of `blows` to a CPU that `fits`.
fn strike(mut options: Options, work: &[u64], blows: &[Blow], fits: fn(u32) -> bool) -> Outcome {
    let socket = Gdb::wanted_by(&mut options);
    let mut running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    for &place in work {
        gdb.break_at(place).expect("a breakpoint");
    }
    let (mut struck, mut visits) = (Vec::new(), 0);
    for &blow in blows {
        let cpu = loop {
            let stop = gdb.run().expect("a stop").expect("before the end");
            // The compressor is at home in the image, and nobody compresses in the first stage.
            visits += 1;
            if visits > PASSED_OVER && fits(stop.cpu) && !struck.contains(&stop.cpu) {
                break stop.cpu;
            }
            for &place in work {
                gdb.no_break_at(place).expect("gone");
            }
            gdb.step(stop.cpu).expect("a step").expect("no end");
            for &place in work {
                gdb.break_at(place).expect("a breakpoint");
            }
        };
        struck.push(cpu);
        match blow {
            Blow::SendTo(address) => gdb.send_to(cpu, address).expect("sent away"),
            Blow::MachineCheck => {
                let said = running.machine.qmp().human(&format!("mce {cpu} {DEADLY}"));
                assert_eq!(said.expect("an error").trim(), "");
            }
        }
    }
    for &place in work {
        gdb.no_break_at(place).expect("gone");
    }
    gdb.leave().expect("left");
    running.finish(&mut |_| ()).expect("an end")
}

/// An exception, a machine check and a panic, each in the middle of the second stage and away
/// from the disk: the stage is closed, and the dump says with what.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn in_the_middle_of_a_stage_close_it() {
    let (_, base) = entry_and_base();
    let work = named(base, &["lz4_flex", "compress_internal"]);
    assert!(!work.is_empty(), "no function that compresses");
    let before = Before::make(&folder().join("before")).expect("disks with dumps");
    for (name, blow, reason) in [
        ("exception", Blow::SendTo(NOWHERE), "exception 14 (page fault) at 0x7f00dead"),
        ("mce", Blow::MachineCheck, "machine check: bank 1 status 0xb000000000000134"),
        ("panic", Blow::SendTo(panic_site(base)), "panic at "),
    ] {
        let command_line =
            "workload=memstamp,repeat=1 pages=all dump=lz4 rehearsal=off capture_cpus=all".into();
        // Over a disk that holds a dump already, every write of this one on record.
        let disk = Disk { slots: 2, recorded: true, ..Disk::new(Bus::Virtio) };
        let (disks, disk_image) = (vec![disk], Some(before.one_free.clone()));
        let options = Options { command_line, disks, disk_image, ..options(name) };
        let outcome = strike(
            Options { expect: Some(Verdict::Incomplete), ..options },
            &work,
            &[blow],
            |_| true,
        );
        assert_verdict(&outcome, Verdict::Incomplete);
        let (kind, fault) = sealed_on_disk(&outcome);
        let fault = fault.expect("a fault in the dump");
        assert_eq!((kind, sealed_by_console(&outcome)), (stage_kind::USED, stage_kind::MINI));
        assert!(fault.starts_with(reason), "{fault}");
        let stored = outcome.console.after("capture: closed stage `used` after the fault: ");
        assert!(stored.is_some_and(|stored| !stored.contains(" 0.0 MiB stored")), "{stored:?}");
        // The power goes while the stage is being closed, or before: nothing is lost by it.
        let plan = Plan { seed: 1, subsets: 50 };
        let log = outcome.out.join("disk.img.writes");
        let replayed = replay(&before.one_free, &log, &plan, &mut |_| ()).expect("right");
        assert_eq!(replayed.found.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{replayed:?}");
        let record = last_words::find(outcome.console.text()).expect("last words");
        assert_eq!(record.state, last_words::State::Complete);
    }
    std::fs::remove_dir_all(folder().join("before")).expect("large files gone");
}

/// CPU 0, which comes to the end of a round, writes. Of its three helpers one is sent astray,
/// one panics and one is hit by a machine check, each while it compresses: the dump is whole
/// without them.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn of_helpers_are_done_without() {
    let (_, base) = entry_and_base();
    let work = named(base, &["lz4_flex", "compress_internal"]);
    let command_line = "workload=memstamp,repeat=1 pages=used dump=lz4 capture_cpus=all".into();
    let options = Options {
        cpus: 4,
        memory: 256 << 20,
        command_line,
        expect: Some(Verdict::Captured),
        ..options("helpers")
    };
    let blows = [Blow::SendTo(NOWHERE), Blow::SendTo(panic_site(base)), Blow::MachineCheck];
    let outcome = strike(options, &work, &blows, |cpu| cpu != 0);
    assert_verdict(&outcome, Verdict::Captured);
    assert_eq!(outcome.console.all_after("capture: a helping CPU does not answer").count(), 3);
    assert!(outcome.console.has("capture: a helping CPU gave up: panic at "));
    assert!(!outcome.console.has("capture: fault in the capture image"));
    assert_eq!(sealed_on_disk(&outcome), (stage_kind::USED, None));
    let dump = Dump::open(outcome.vmcore.as_ref().expect("a vmcore")).expect("a dump");
    let report = vmcore::stamps(&dump).expect("stamped memory");
    assert!(report.is_good() && report.absent == 0, "{report:?}");
}
