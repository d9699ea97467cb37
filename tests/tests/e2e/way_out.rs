//! Damage to what the way out itself runs on: the park area, the claim, lists that only an
//! optional table needs; a workload that never returns; CPUs that the host does not run.
//!
//! QEMU's debugger stub writes to memory as a wild write or a bad bit would, whatever the page
//! tables protect.

use std::time::Duration;

use e2e::harness::{self, Gdb, Images, Options, Outcome, Verdict};
use handoff::devices::Mailbox;
use handoff::{BootFacts, MAX_CPUS};
use object::{Object, ObjectSymbol};
use serde_json::json;

use crate::capture_faults::{NOWHERE, named_in};
use crate::story::{Crashed, Story, assert_verdict};

/// No answer of the stub takes so long.
const PATIENCE: Duration = Duration::from_secs(90);

/// Addresses of the statics whose mangled names have all `parts`, in the appliance that
/// `options` boot.
pub fn statics(options: &Options, parts: &[&str]) -> Vec<u64> {
    let bytes = std::fs::read(Images::of(options).expect("images").appliance).expect("the image");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let named = file.symbols().filter(|symbol| {
        symbol.name().is_ok_and(|name| parts.iter().all(|part| name.contains(part)))
    });
    named.map(|symbol| symbol.address()).filter(|&address| address != 0).collect()
}

/// The facts of a machine with `options`, from a run without damage.
fn facts(options: &Options) -> BootFacts {
    let whole = Options { out: options.out.join("whole"), ..options.clone() };
    *Crashed::from(&whole).dump.facts.clone().expect("boot facts")
}

/// Runs until the panic of `options`, has `damage` change memory, and lets the machine go on.
fn damaged(mut options: Options, damage: impl FnOnce(&mut Gdb)) -> Outcome {
    let appliance = Images::of(&options).expect("images").appliance;
    let panics = named_in(&appliance, &["rust_begin_unwind"]);
    let socket = Gdb::wanted_by(&mut options);
    let running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.break_at(panics[0]).expect("a breakpoint");
    gdb.run().expect("a stop").expect("the panic");
    damage(&mut gdb);
    gdb.no_break_at(panics[0]).expect("gone");
    gdb.leave().expect("left");
    running.finish(&mut |_| ()).expect("an end")
}

/// Flips one bit of the word at `address`.
fn flip(gdb: &mut Gdb, address: u64, bit: u32) {
    let word = gdb.read_word(address).expect("a word") ^ 1 << bit;
    gdb.write(address, &word.to_le_bytes()).expect("written");
}

/// The workload that is asked for its last words loops, with one CPU and with four.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn last_words_that_never_return() {
    for (cpus, on) in [(4, 1), (1, 0)] {
        for crash in ["loop-in-last-words", "lock-in-last-words"] {
            let crashed = Story { crash, cpus, on, ..Story::PANIC }.tell();
            let handoff = crashed.dump.handoff.as_ref().expect("the hand-off");
            assert_eq!(handoff.nested, 1, "{crash}: given up once");
            let said = &crashed.outcome.console;
            assert!(said.has("the workload's last words took too long"), "{}", said.tail(30));
        }
    }
}

/// Root of the park area's page tables.
fn park_root(facts: &BootFacts) -> u64 {
    let mailboxes = (MAX_CPUS * size_of::<Mailbox>()) as u64;
    let stacks = (3 * 4096 + mailboxes).next_multiple_of(4096);
    facts.park.start + stacks + MAX_CPUS as u64 * 512
}

/// One bit of the park area's tables, code or gates: it is built again before the first signal.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn park_area_with_a_flipped_bit() {
    let options = Story::PANIC.options();
    let facts = facts(&options);
    let root = park_root(&facts);
    let places = [
        ("the present bit of the root", root, 0),
        ("an address bit of the root", root, 20),
        ("code", facts.park.start + 16, 3),
        ("a gate", facts.park.start + 4096 + 2 * 16, 40),
    ];
    for (number, (what, address, bit)) in places.into_iter().enumerate() {
        let options = Options { out: options.out.join(number.to_string()), ..options.clone() };
        let outcome = damaged(options, |gdb| flip(gdb, address, bit));
        assert_verdict(&outcome, Verdict::Captured);
        let built = "crash: the park area was damaged and has been built again";
        assert!(outcome.console.has(built), "{what}: {}", outcome.console.tail(30));
        Story::PANIC.check(&Crashed::read(outcome));
    }
}

/// The park area is damaged while all is well: `ready` says no.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn ready_says_no_to_a_damaged_park_area() {
    let mut options = Story::PANIC.options();
    let root = park_root(&facts(&options));
    options.crash = None;
    options.talk = true;
    options.command_line = "workload=sieve,n=100000 on_finish=idle".into();
    let socket = Gdb::wanted_by(&mut options);
    let mut running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.run_only(&[0, 1, 2, 3], Duration::from_secs(12)).expect("a stop").expect("idle");
    flip(&mut gdb, root, 20);
    gdb.leave().expect("left");
    running.say("ready").expect("typed");
    let answer = running.machine.wait_for_line("ready: no: ").expect("an answer");
    assert!(answer.contains("the park area is damaged"), "{answer}");
    // A crash is captured all the same.
    running.say("crash").expect("typed");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
}

/// A claim that a wild write made, of no CPU and of a CPU that does not crash.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn claim_with_a_wild_value() {
    let options = Story::PANIC.options();
    let claim = statics(&options, &["kernel", "crash", "CLAIM"]);
    // The last is a valid claim of CPU 3, which never begins: the loser takes over.
    for word in [3, u64::MAX, 0xa5a5_a5a5_a5a5_a5a5, 1, 0x57c1_a1d3_a569_0003] {
        let options = Options { out: options.out.join(format!("{word:x}")), ..options.clone() };
        let write = |gdb: &mut Gdb| gdb.write(claim[0], &word.to_le_bytes()).expect("written");
        let outcome = damaged(options, write);
        assert_verdict(&outcome, Verdict::Captured);
        Story::PANIC.check(&Crashed::read(outcome));
    }
}

/// The list of locks leads nowhere: the dump lacks the table of locks and nothing else.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn list_of_locks_that_leads_nowhere() {
    let list = statics(&Story::PANIC.options(), &["machine", "lock", "LIST"]);
    let length = statics(&Story::PANIC.options(), &["machine", "lock", "LIST_LENGTH"]);
    let list = list.into_iter().find(|address| !length.contains(address)).expect("the list");
    for wild in [0, NOWHERE] {
        let mut options = Story::PANIC.options();
        options.out = options.out.join(format!("{wild:x}"));
        let outcome = damaged(options, |gdb| {
            // Two words for each: one is the state, the other the address of a lock.
            for at in [list, list + 8] {
                let word = gdb.read_word(at).expect("a word");
                if (0x100_0000..0x400_0000).contains(&word) {
                    gdb.write(at, &wild.to_le_bytes()).expect("written");
                }
            }
        });
        assert_verdict(&outcome, Verdict::Captured);
        let crashed = Crashed::read(outcome);
        Story::PANIC.check(&crashed);
        let handoff = crashed.dump.handoff.as_ref().expect("the hand-off");
        assert_eq!((handoff.nested, handoff.locks.count), (1, 0));
    }
}

/// What is kept of the hardware watchdog is damaged, and each use of it faults: it costs the
/// watchdog and not the dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn watchdog_that_leads_nowhere() {
    // Behind the state there is the kind: the chipset's, by ports. With one flipped bit it is the
    // other kind, whose registers are in memory.
    let watchdog = statics(&Story::PANIC.options(), &["kernel", "hw_watchdog", "WATCHDOG"])[0];
    let outcome = damaged(Story::PANIC.options(), |gdb| flip(gdb, watchdog, 0));
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    let handoff = crashed.dump.handoff.as_ref().expect("the hand-off");
    assert!(handoff.nested >= 1, "the watchdog was not used");
}

/// The flight recorder's memory is gone: recording faults at the first signal, is turned off,
/// and the ladder is climbed once more.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn flight_recorder_that_leads_nowhere() {
    let options = Story::PANIC.options();
    let address = facts(&options).trace.address;
    let rings = statics(&options, &["machine", "trace", "RINGS"])[0];
    let outcome = damaged(options, |gdb| {
        for at in [rings, rings + 8, rings + 16] {
            if gdb.read_word(at).expect("a word") == address {
                gdb.write(at, &NOWHERE.to_le_bytes()).expect("written");
            }
        }
    });
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    let dump = &crashed.dump;
    let handoff = dump.handoff.as_ref().expect("the hand-off");
    // A CPU that records an event before the planned crash is the one that crashes, by the
    // recorder's page fault.
    let cause = (handoff.cause.cpu, handoff.cause.message());
    let by_the_recorder = cause.1.starts_with("page fault, ") && cause.1.contains("0x7f00de");
    assert!(cause == (1, "asked for by crash=panic") || by_the_recorder, "{cause:?}");
    assert!(handoff.nested >= 1);
    // Those that the interrupt reaches fault in the same recorder: they stop by themselves.
    for cpu in dump.cpus.iter().filter(|cpu| cpu.index != handoff.cause.cpu) {
        let by = cpu.stopped_by.name().unwrap_or_default();
        assert!(["irq", "nmi", "self"].contains(&by), "CPU {}: {by}", cpu.index);
    }
}

/// The local APIC of the CPU that crashes is off: it is turned on again before the first signal,
/// and the dump has the cause, the ladder and the clock.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn local_apic_that_is_off() {
    for processor in ["max", "max,-x2apic"] {
        let mut options = Story::PANIC.options();
        options.qemu_args.extend(["-cpu".into(), processor.into()]);
        options.out = options.out.join(processor);
        let outcome = damaged(options, |gdb| {
            // IA32_APIC_BASE: where the registers are, and not enabled.
            gdb.write_msr(Story::PANIC.on, 0x1b, 0xfee0_0000).expect("written");
        });
        assert_verdict(&outcome, Verdict::Captured);
        let crashed = Crashed::read(outcome);
        Story::PANIC.check(&crashed);
        let said = &crashed.outcome.console;
        let on_again = "stop: the local APIC was off and has been turned on again";
        assert!(said.has(on_again), "{}", said.tail(30));
        let handoff = crashed.dump.handoff.as_ref().expect("the hand-off");
        assert!(handoff.timeline_count >= 1 && handoff.unix_time != 0, "{processor}");
    }
}

/// Neither is the park area as it was built nor can it be built again, since the facts that say
/// of what are damaged as well: no dump, and last words with the reason.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn park_area_that_cannot_be_built_again() {
    let mut options = Story::PANIC.options();
    let facts = facts(&options);
    options.expect = Some(Verdict::LastWords);
    let sealed = facts.region.start + (2 << 20);
    let outcome = damaged(options, |gdb| {
        flip(gdb, park_root(&facts), 20);
        flip(gdb, sealed + 64, 3);
    });
    assert_verdict(&outcome, Verdict::LastWords);
    assert!(
        outcome.console.has("no-dump: the boot facts are damaged"),
        "{}",
        outcome.console.tail(9)
    );
}

/// A machine check that its CPU survives, in the middle of the ladder of a crash by another.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn machine_check_during_the_ladder_of_one() {
    let story = Story {
        crash: "mce",
        kind: "mce",
        vector: Some(18),
        wedges: &["nmi-blocked,cpu=3"],
        stopped: &[(3, "init", "last-known")],
        through: &[],
        ..Story::PANIC
    };
    let options = Options { crash: None, ..story.options() };
    let options = Options { command_line: "workload=sieve,n=100000000".into(), ..options };
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("wedge: nmi-blocked on cpu 3 in place").expect("at work");
    let lost = "mce 1 5 0xbe00000000000134 6 0x1234000 0";
    running.machine.qmp().human(lost).expect("a machine check");
    running.machine.wait_for_line("stop: about to send nmi").expect("the second rung");
    let check = "mce 1 1 0xb000000000000134 5 0 0";
    running.machine.qmp().human(check).expect("a machine check");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    story.check(&crashed);
    assert_eq!(crashed.dump.handoff.as_ref().expect("the hand-off").nested, 0);
}

/// Firmware leaves five levels of page tables asked for.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn five_levels_at_entry() {
    let mut options = Story::PANIC.options();
    let entry = named_in(&Images::of(&options).expect("images").appliance, &["boot_entry"]);
    let socket = Gdb::wanted_by(&mut options);
    let running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    let entry = *entry.iter().min().expect("the entry");
    gdb.break_at(entry).expect("a breakpoint");
    let stop = gdb.run().expect("a stop").expect("the entry");
    gdb.set_cr4(stop.cpu, 1 << 12).expect("set");
    gdb.no_break_at(entry).expect("gone");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    Story::PANIC.check(&Crashed::read(outcome));
}

/// An NMI at the first instruction of the rehearsed capture image, which has no descriptor
/// tables of its own yet: it is kept until the rehearsal is over, and then captured.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nmi_at_the_first_instruction_of_the_rehearsed_image() {
    let mut options = Story::PANIC.options();
    let entry = facts(&options).image_entry;
    options.crash = None;
    let socket = Gdb::wanted_by(&mut options);
    let mut running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.break_at(entry).expect("a breakpoint");
    gdb.run().expect("a stop").expect("the entry");
    running.machine.qmp().execute("inject-nmi", json!({})).expect("an NMI");
    gdb.no_break_at(entry).expect("gone");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert_eq!((cause.kind.name().unwrap_or_default(), cause.cpu), ("nmi", 0));
}

/// An NMI at a CPU that has left for the park area and has not acknowledged yet.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn nmi_in_the_park_area_before_the_acknowledgement() {
    let story = Story { crash: "panic-during-stop", ..Story::PANIC };
    let mut options = story.options();
    // The park code begins with the way in for CPUs that nothing calls back.
    let park = facts(&options).park.start;
    let socket = Gdb::wanted_by(&mut options);
    let mut running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.break_at(park).expect("a breakpoint");
    let stop = gdb.run().expect("a stop").expect("the loser");
    running.machine.qmp().execute("inject-nmi", json!({})).expect("an NMI");
    gdb.no_break_at(park).expect("gone");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    let loser = crashed.dump.cpu(stop.cpu).expect("the loser");
    assert_eq!(loser.stopped_by.name().unwrap_or_default(), "self");
    assert!(!crashed.outcome.console.has("about to send init"));
}

/// The host does not run an idle CPU for longer than the threshold: no lockup.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn cpu_that_is_not_run_for_a_while_is_no_lockup() {
    let mut options = Story::PANIC.options();
    options.crash = None;
    options.command_line = "workload=sieve lockup_hard_ms=1000 on_finish=idle".into();
    options.timeout = Duration::from_secs(40);
    options.expect = Some(Verdict::Hung);
    let socket = Gdb::wanted_by(&mut options);
    let mut running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.run_only(&[0, 1, 2, 3], Duration::from_secs(12)).expect("a stop").expect("at work");
    gdb.run_only(&[0, 1, 2], Duration::from_millis(1800)).expect("a stop").expect("without CPU 3");
    gdb.leave().expect("left");
    running.machine.wait_for_line("verdict: finished").expect("an end of the work");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert!(!outcome.console.has("hard-lockup"), "{}", outcome.console.tail(30));
}

/// A healthy CPU that the host does not run for two seconds keeps its registers.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn cpu_that_is_not_run_during_the_ladder_keeps_its_registers() {
    let mut options = Story::PANIC.options();
    // So that the NMI's window is the one that has to be long enough.
    options.command_line.push_str(" stop_irq_ms=50");
    let appliance = Images::of(&options).expect("images").appliance;
    let panics = named_in(&appliance, &["rust_begin_unwind"]);
    let socket = Gdb::wanted_by(&mut options);
    let running = harness::start(&options).expect("a machine");
    let mut gdb = Gdb::connect(&socket, PATIENCE).expect("a stub");
    gdb.break_at(panics[0]).expect("a breakpoint");
    gdb.run().expect("a stop").expect("the panic");
    gdb.no_break_at(panics[0]).expect("gone");
    gdb.run_only(&[0, 1, 2], Duration::from_millis(1500)).expect("a stop").expect("on the ladder");
    gdb.leave().expect("left");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    let crashed = Crashed::read(outcome);
    let cpu = crashed.dump.cpu(3).expect("CPU 3");
    let by = cpu.stopped_by.name().unwrap_or_default();
    assert!(["irq", "nmi"].contains(&by), "{by}");
    assert!(cpu.x86().expect("registers").rip != 0);
}
