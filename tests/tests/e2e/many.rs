//! A machine with more CPUs than hosts have.

use e2e::harness::{self, Boot, Options, Outcome, Verdict};
use vmcore::Dump;

use crate::story::{assert_verdict, folder};

/// Crashes a machine with `cpus` CPUs. Windows are those it has measured for itself.
fn run(cpus: u32, crash: &str, wedge: Option<&str>) -> (Outcome, Dump) {
    let options = Options {
        cpus,
        // A stack with guards for each, and the reserved region.
        memory: 128 << 20,
        crash: Some(crash.into()),
        wedges: wedge.into_iter().map(str::to_owned).collect(),
        command_line: "workload=sieve,n=1000000".into(),
        timeout: std::time::Duration::from_secs(180),
        tidy: true,
        ..Options::new(Boot::Pvh, folder().join(crash.replace(',', "-")))
    };
    let outcome = harness::run(&options, &mut |_| ()).expect("a run");
    assert_verdict(&outcome, Verdict::Captured);
    let dump = Dump::open(outcome.vmcore.as_deref().expect("a vmcore")).expect("readable");
    assert_eq!(dump.cpus.len(), cpus as usize);
    assert!(
        dump.cpus.iter().all(|cpu| cpu.x86().is_some_and(|set| set.rip != 0)),
        "registers of everybody"
    );
    (outcome, dump)
}

/// How many CPUs were stopped in each of the ways of `words`; fails when one was stopped in
/// another.
fn count<const N: usize>(dump: &Dump, words: [&str; N]) -> [usize; N] {
    let of = |word: &str| {
        dump.cpus.iter().filter(|cpu| cpu.stopped_by.name().unwrap_or_default() == word).count()
    };
    let counts = words.map(of);
    let names: Vec<_> =
        dump.cpus.iter().map(|cpu| cpu.stopped_by.name().unwrap_or_default()).collect();
    assert_eq!(counts.iter().sum::<usize>(), dump.cpus.len(), "{words:?} of {names:?}");
    counts
}

/// A panic, with one CPU whose interrupts are off.
fn panic_with_one_wedged(cpus: u32) {
    let (_, dump) = run(cpus, "panic,cpu=1", Some("irqs-off,cpu=7"));
    // On a host with few cores one that is merely late may see the NMI as well.
    let [crash, irq, nmi] = count(&dump, ["crash", "irq", "nmi"]);
    assert_eq!(crash, 1);
    assert!(nmi >= 1 && irq > nmi, "{irq} by IRQ, {nmi} by NMI");
    assert_eq!(dump.cpu(7).expect("CPU 7").stopped_by.name().unwrap_or_default(), "nmi");
}

/// Everyone panics at once: one crashes, all others stop themselves.
fn parallel_panic(cpus: u32) {
    let (_, dump) = run(cpus, "parallel-panic", None);
    let [crash, own, _, _] = count(&dump, ["crash", "self", "nmi", "irq"]);
    assert_eq!(crash, 1);
    assert!(own > 0, "nobody raced");
}

/// Proves R4, R12.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn sixty_four_cpus() {
    panic_with_one_wedged(64);
    parallel_panic(64);
}
