//! When it happened.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::story::{Crashed, Story};

/// What the dump says about when it happened: the boot's Unix time, 0 for unknown, and
/// the crash's.
fn dates(clock: &[&str]) -> (u64, Option<u64>) {
    let mut options = Story::PANIC.options();
    options.qemu_args = clock.iter().map(|&word| word.to_owned()).collect();
    let crashed = Crashed::from(&options);
    let facts = crashed.dump.facts.as_ref().expect("boot facts");
    (facts.boot_unix_time, vmcore::info(&crashed.dump).time.unix_s)
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_dump_says_when_it_was() {
    // By `date -u -d "2031-05-06 07:08:09" +%s`.
    const SET: u64 = 1_935_817_689;
    let (boot, crash) = dates(&["-rtc", "base=2031-05-06T07:08:09"]);
    let crash = crash.expect("a date");
    // Firmware and loader take their time before the appliance looks at the clock.
    assert!((SET..SET + 60).contains(&boot), "{boot}");
    assert!((boot..boot + 120).contains(&crash), "{crash}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let (boot, _) = dates(&[]);
    assert!(now.abs_diff(boot) < 120, "{boot}, the host says {now}");
}

/// A clock that has lost its battery is not believed.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_date_that_cannot_be_is_none() {
    assert_eq!(dates(&["-rtc", "base=2000-01-01T00:00:00"]), (0, None));
}
