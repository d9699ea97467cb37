//! A live backtrace: every CPU is asked where it stands, by an NMI that returns.

use crate::story::{Crashed, Story};

/// One CPU with interrupts off answers, one inside an NMI handler cannot. The crash that
/// follows finds everyone as if nobody had asked.
/// Proves R22.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn asks_and_leaves_everyone_as_it_was() {
    let story = Story {
        crash: "live-backtrace",
        wedges: &["irqs-off,cpu=3", "nmi-blocked,cpu=2"],
        stopped: &[(2, "init", "last-known"), (3, "nmi", "interrupted")],
        ..Story::PANIC
    };
    let crashed = Crashed::from(&story.options());
    story.check(&crashed);

    let console = &crashed.outcome.console;
    let image = vmcore::find_image(&crashed.dump, Some(&crashed.outcome.report.image));
    let image = image.expect("the image");
    let chain = |cpu: u32| -> Vec<String> {
        let line = console.after(&format!("live: CPU {cpu}: ")).expect("a line for every CPU");
        let addresses = line.split_whitespace().map(|word| {
            let digits = word.strip_prefix("0x").unwrap_or_else(|| panic!("{line}"));
            u64::from_str_radix(digits, 16).expect("an address")
        });
        // All but the first are return addresses: the call is just before.
        let exact = addresses.enumerate().map(|(n, address)| address - u64::from(n > 0));
        exact.flat_map(|address| image.places(address)).filter_map(|place| place.function).collect()
    };
    let stands = |cpu: u32, function: &str| {
        let names = chain(cpu);
        assert!(names.iter().any(|name| name.contains(function)), "CPU {cpu}: {names:#?}");
    };
    stands(0, "kernel::start::start");
    stands(1, "inject::strike");
    // Interrupted before the innermost function has set up its frame, the chain lacks that
    // one's caller: this is the loop or who entered it.
    stands(3, "wedges::");
    assert_eq!(console.after("live: CPU 2: "), Some("no answer"));

    // A question is no NMI to the ladder: CPU 2 made its own, CPU 3 was stopped by one.
    let nmis: Vec<_> = crashed.dump.cpus.iter().map(|cpu| cpu.nmi_count).collect();
    assert_eq!(nmis, [0, 0, 1, 1]);
}
