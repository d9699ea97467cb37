//! The EL3 monitor under a client of its own: return codes, events at a CPU that has masked
//! everything, and what is left of a CPU that went off inside of an event, in every mode.

use e2e::harness::{Facts, run_client};
use epitaph_monitor::Mode;

/// Calls of PSCI and what they return.
const PSCI: &[(&str, i64)] = &[
    ("psci version", 0x1_0001),
    ("psci features of CPU_ON", 0),
    ("psci features of CPU_SUSPEND", -1),
    ("psci features of SMCCC_VERSION", 0),
    ("psci migration", 2),
    ("psci unknown", -1),
    ("smccc version", 0x1_0001),
    ("smccc features of itself", 0),
    ("smccc features of unknown", -1),
    ("cpu_on nobody", -2),
    ("cpu_on MPIDR bit 31", -2),
    ("cpu_on itself", -4),
    ("cpu_on odd entry", -9),
    ("cpu_on secure entry", -9),
    ("cpu_on secure entry, 32 bits", -9),
    ("affinity itself", 0),
    ("affinity off", 1),
    ("affinity off, 32 bits", 1),
    ("affinity nobody", -2),
    ("affinity level 1", -2),
];

/// Calls of SDEI and what they return.
const SDEI: &[(&str, i64)] = &[
    ("sdei version", 1 << 48 | 1),
    ("sdei unknown", -1),
    ("bind slots", 0),
    ("features 1", -2),
    ("status, fresh", 0),
    ("status of event 1", -2),
    ("enable, unregistered", -3),
    ("disable, unregistered", -3),
    ("unregister, unregistered", -3),
    ("register event 1", -2),
    ("register at 0", -2),
    ("register at an odd entry", -2),
    ("register with routing 2", -2),
    ("register for nobody", -2),
    ("register", 0),
    ("register twice", -3),
    ("status, registered", 1),
    ("enable", 0),
    ("enable twice", 0),
    ("status, enabled", 3),
    ("disable", 0),
    ("info type", 0),
    ("info not signalled", 0),
    ("info priority", 0),
    ("info routing", -2),
    ("info affinity", -2),
    ("info 5", -2),
    ("info of event 1", -2),
    ("routing", -2),
    ("mask, masked", 0),
    ("unmask", 0),
    ("mask", 1),
    ("context outside", -3),
    ("context of x18", -2),
    ("complete outside", -3),
    ("complete and resume outside", -3),
    ("signal event 1", -2),
    ("signal nobody", -2),
    ("signal a CPU that is off", -2),
    ("bind an SGI", -2),
    ("bind a PPI", -10),
    ("bind an SPI", -10),
    ("bind no interrupt", -2),
    ("release event 0", -2),
    ("private reset", 0),
    ("status, reset", 0),
    ("private reset twice", 0),
    ("shared reset", 0),
];

/// Calls of a CPU that signals itself, and of its handler.
const INSIDE: &[(&str, i64)] = &[
    ("signal itself", 0),
    ("handled by itself", 1),
    ("inside: status", 7),
    ("inside: context of x18", -2),
    ("inside: resume at 1", -2),
    ("inside: unregister", -5),
    ("inside: register", -3),
    ("inside: private reset", -3),
    ("inside: status, unregistered", 4),
    ("status, completed", 0),
    ("register again", 0),
    ("argument arrived", 1),
];

fn boot(mode: Mode, processor: &str) -> Facts {
    run_client(mode, processor).unwrap_or_else(|error| panic!("{}: {error:#}", mode.name()))
}

fn assert_codes(facts: &Facts, codes: &[(&str, i64)]) {
    for (name, wanted) in codes {
        let found = facts.get(&format!("code {name}"));
        assert_eq!(found, wanted.to_string(), "{name}");
    }
}

fn assert_facts(facts: &Facts, wanted: &[(&str, &str)]) {
    for (name, wanted) in wanted {
        assert_eq!(facts.get(name), *wanted, "{name}");
    }
}

/// What is the same in every mode with SDEI. `rounds` events are handled by one wedged CPU.
fn assert_common(facts: &Facts, rounds: u64) {
    assert_codes(facts, &[PSCI, SDEI, INSIDE].concat());
    assert_eq!(facts.count("code "), PSCI.len() + SDEI.len() + INSIDE.len());
    let rounds_text = rounds.to_string();
    // x0-x30, SP, PC, v0-v31 in halves, FPSR and FPCR, each time.
    let checked = ((31 + 2 + 64 + 2) * rounds).to_string();
    assert_facts(
        facts,
        &[
            // E1: an event reaches a CPU that an interrupt does not.
            ("E1 wedged", "1"),
            ("E1 interrupt", "0"),
            ("E1 event", "1"),
            ("E1 in the loop", "1"),
            ("E1 DAIF", "15"),
            ("E1 damaged", "0"),
            // E3: nothing changes, and a change would be seen.
            ("E3 events", &rounds_text),
            ("E3 checked", &checked),
            ("E3 damaged", "0"),
            ("E3 control", "1"),
            // E11: completed by way of a resumption, then off: the CPU is as good as new.
            ("E11 event", "1"),
            ("E11 off", "1"),
            ("E11 as after an exception", "1"),
            // E6, but for what a masked CPU gets later.
            ("E6 ready", "1"),
            ("E6 signal", "0"),
            ("E6 while masked", "0"),
            ("E6 a second one", "1"),
            ("E6 off", "1"),
            // E9, but for what is left of the CPU.
            ("E9 wedged", "1"),
            ("E9 event", "1"),
            ("E9 off", "1"),
            // E7: a CPU that parks in its handler cannot be called back.
            ("E7 wedged", "1"),
            ("E7 event", "1"),
            ("E7 affinity", "0"),
            ("E7 cpu_on", "-4"),
            ("E7 signal", "0"),
            ("E7 a second event", "0"),
        ],
    );
    assert_probe(facts, "E11 again", true, true);
    assert_interrupts(facts);
    assert_probe(facts, "G ended again", true, true);
    assert_probe(facts, "G active again", false, true);
    assert_probe(facts, "G cleared again", true, true);
}

/// G: an interrupt that a CPU ended before it went off comes again; one that it did not end is
/// dead until bring-up clears it.
fn assert_interrupts(facts: &Facts) {
    for experiment in ["G ended", "G active"] {
        assert_eq!(facts.get(experiment), "1");
        assert_eq!(facts.get(&format!("{experiment} interrupt")), "1");
        assert_eq!(facts.get(&format!("{experiment} off")), "1");
    }
    for (experiment, comes) in
        [("G ended again", "1"), ("G active again", "0"), ("G cleared again", "1")]
    {
        assert_eq!(facts.get(&format!("{experiment} interrupt")), comes, "{experiment}");
    }
}

/// A CPU that was started again: what reached it.
fn assert_probe(facts: &Facts, experiment: &str, interrupt: bool, event: bool) {
    let digit = |arrives: bool| if arrives { "1" } else { "0" };
    assert_eq!(facts.get(experiment), "on 1", "{experiment}");
    for (what, arrives) in [("interrupt", interrupt), ("event", event), ("off", true)] {
        let name = format!("{experiment} {what}");
        assert_eq!(facts.get(&name), digit(arrives), "{name}");
    }
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn fixed_keeps_every_register_through_1000_events() {
    let facts = boot(Mode::Fixed, "max");
    assert_common(&facts, 1000);
    assert_eq!(facts.get("E6 once unmasked"), "1");
    assert_probe(&facts, "E9 again", true, true);
    assert_probe(&facts, "E9 third time", true, true);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn fixed_on_a_processor_without_nmi() {
    let facts = boot(Mode::Fixed, "cortex-a72");
    assert_common(&facts, 50);
    assert_eq!(facts.get("E6 once unmasked"), "1");
    assert_probe(&facts, "E9 again", true, true);
}

/// The CPU that goes off inside of an event comes on again and hears nothing, this time and
/// the next: `docs/findings/psci-cpu-off-inside-sdei.md`.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn naive_leaves_a_cpu_deaf_that_went_off_inside_of_an_event() {
    let facts = boot(Mode::Naive, "neoverse-n1");
    assert_common(&facts, 50);
    assert_eq!(facts.get("E6 once unmasked"), "1");
    assert_probe(&facts, "E9 again", false, false);
    assert_probe(&facts, "E9 third time", false, false);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn drop_when_masked_loses_an_event_at_a_masked_cpu() {
    let facts = boot(Mode::DropWhenMasked, "neoverse-n1");
    assert_common(&facts, 50);
    assert_eq!(facts.get("E6 once unmasked"), "0");
    assert_probe(&facts, "E9 again", true, true);
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_sdei_refuses_every_call_and_starts_cpus_all_the_same() {
    let facts = boot(Mode::NoSdei, "max");
    assert_codes(&facts, PSCI);
    for (name, _) in SDEI {
        assert_eq!(facts.get(&format!("code {name}")), "-1", "{name}");
    }
    assert_interrupts(&facts);
}
