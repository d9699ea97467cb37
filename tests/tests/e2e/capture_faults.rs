//! The capture image makes a mistake, anywhere: what was sealed before stays, nothing else is
//! taken for sealed, and the last words say why there is no more.
//!
//! QEMU's debugger stub stops the machine as the image is entered and then at every function
//! of the image that it comes to. Of those, some are taken at even distances; in a boot for
//! each, the CPU is let into the function for a few instructions and then sent to where
//! nothing is mapped. No memory is changed.

use std::path::Path;
use std::time::Duration;

use e2e::harness::{self, Boot, Gdb, Images, Options, Outcome, Policy, Verdict};
use object::{Object, ObjectSymbol, SymbolKind};
use vmcore::{Dump, OpenOptions, Source};
use vmcore_format::area::stage_kind;
use vmcore_format::last_words;

use crate::story::{assert_verdict, folder};

/// Nothing is mapped there, and it is a canonical address: the fault is a page fault.
const NOWHERE: u64 = 0x7f00_dead_b000;
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
        command_line: "workload=sieve,n=100000 pages=all".into(),
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

/// The kind of the last stage that a reader finds on the disk, every checksum right; 0 for
/// none.
fn sealed_on_disk(outcome: &Outcome) -> u32 {
    let source = Source::open(outcome.out.join("disk.img")).expect("a disk");
    let Ok(dump) = source.dump(OpenOptions::default()) else { return 0 };
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    assert!(verified.is_good(), "{verified:?}");
    dump.stored.as_ref().and_then(|stored| stored.seal()).map_or(0, |seal| seal.kind)
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
    let mut cut_short = 0;
    for index in 0..POINTS {
        let point = reached[index * reached.len() / POINTS];
        let Some(outcome) = break_at(point, entry, index * 13 % 40) else { continue };
        let (disk, console) = (sealed_on_disk(&outcome), sealed_by_console(&outcome));
        let place = format!("{point:#x}: {disk} sealed, {console} said; {outcome}");
        let end = outcome.console.tail(6);
        // Between the seal and the word of it there is a moment.
        assert!(disk == console || disk == console + 1, "{place}");
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
            let known = [console, disk].map(kept).iter().any(|kept| failed.ends_with(kept));
            assert!(known, "{failed}; {place}");
        }
    }
    assert!(cut_short >= POINTS / 2, "only {cut_short} faults cut the dump short");
}
