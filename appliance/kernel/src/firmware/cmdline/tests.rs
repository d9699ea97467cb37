//! What a line says, what it leaves out, and what is wrong with it.

use super::*;

fn parse(line: &str) -> (Options, std::vec::Vec<std::string::String>) {
    let mut warnings = std::vec::Vec::new();
    let options = Options::parse(line, &mut |text| warnings.push(text.to_string()));
    (options, warnings)
}

#[test]
fn an_empty_line_gives_the_defaults() {
    let (options, warnings) = parse("");
    assert!(warnings.is_empty());
    assert_eq!(options.on_finish, OnFinish::Poweroff);
    assert_eq!(options.crash_policy, CrashPolicy::Reboot);
    let names: std::vec::Vec<_> = options.workloads.iter().map(|w| w.name.as_str()).collect();
    assert_eq!(names, ["sieve", "memstamp"]);
    assert_eq!(options.not_yet().count(), 0);
}

#[test]
fn every_part_of_a_full_line_arrives() {
    let (options, warnings) = parse(
        "/boot/appliance workload=sieve,n=1000000 workload=memstamp crash=panic,cpu=2 \
         wedge=irqs-off,cpu=3 wedge=nmi-blocked stop_irq_ms=250 stop_wait=forever \
         on_finish=halt crash_policy=halt dump_to=virtio+nvme,7408c5f2-1103-4e04-9ea7-9a7d2a17cc31,serial \
         pages=mini dump=raw slots=keep \
         crash_loop=3/7 capture_bench=raw capture_cpus=all load=30 lockup_hard_ms=1500 lockup_soft_ms=0 \
         trace=off rehearsal=off bench_trace=7",
    );
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(options.workloads[0].value("n"), Some("1000000"));
    assert_eq!(options.workloads[0].value("m"), None);
    let crash = options.crash.as_ref().unwrap();
    assert_eq!((crash.name.as_str(), crash.cpu), ("panic", Some(2)));
    assert_eq!(options.wedges.len(), 2);
    assert_eq!(options.wedges[0].cpu, Some(3));
    assert_eq!(options.wedges[1].cpu, None);
    assert_eq!((options.stop_irq_ms, options.stop_nmi_ms), (Some(250), None));
    assert!(options.stop_wait_forever && options.capture_bench_raw && options.capture_cpus_all);
    assert_eq!((options.load_s, options.trace), (30, Switch::Off));
    assert_eq!(options.rehearsal, Switch::Off);
    assert_eq!(options.crash_loop, (3, 7));
    assert_eq!((options.lockup_hard_ms, options.lockup_soft_ms), (1500, 0));
    let not_yet: std::vec::Vec<_> = options.not_yet().collect();
    assert_eq!(not_yet, ["dump_to other than virtio, nvme, ahci or a partition"]);
}

proptest::proptest! {
    #[test]
    fn no_line_makes_it_panic_and_what_is_shown_reads_the_same(words in proptest::collection::vec(
        proptest::prop_oneof![
            "(workload|crash|wedge|dump_to|pages|dump|slots|crash_loop|stop_wait|lockup_soft_ms)\
             =[a-z0-9=,/+]{0,50}",
            "stop_(irq|nmi|init)_ms=[0-9]{0,22}",
            "(on_finish|crash_policy)=(poweroff|halt|reboot|idle)",
            "\\PC{0,40}",
        ],
        0..20,
    )) {
        let (options, _) = parse(&words.join(" "));
        let shown = options.to_string();
        proptest::prop_assert!(!shown.contains('\n'));
        let again = parse(&shown).0;
        proptest::prop_assert_eq!(again.on_finish, options.on_finish);
        proptest::prop_assert_eq!(again.stop_wait_forever, options.stop_wait_forever);
        proptest::prop_assert_eq!(again.stop_irq_ms, options.stop_irq_ms);
        proptest::prop_assert_eq!(again.lockup_soft_ms, options.lockup_soft_ms);
    }
}

#[test]
fn what_cannot_be_read_is_a_warning_and_changes_nothing() {
    let (options, warnings) = parse(
        "colour=blue stop_irq_ms=soon crash_policy=explode pages=some word crash_loop=5 \
         wedge=irqs-off,core=1 workload=sieve,n",
    );
    assert_eq!(warnings.len(), 8, "{warnings:?}");
    assert!(warnings[0].contains("unknown key `colour`"));
    assert!(warnings[1].contains("whole number"));
    assert!(warnings[2].contains("poweroff reboot halt"));
    assert_eq!(options.stop_irq_ms, None);
    assert_eq!(options.crash_policy, CrashPolicy::Reboot);
    assert_eq!(options.crash_loop, (5, 10));
}
