//! Who held what, and who waited for it, by what the dump says.

use vmcore::Locks;
use vmcore::commands::locks::LockInfo;

use crate::story::{Crashed, Story};

/// What `vmcore locks` makes of a dump.
pub fn locks(crashed: &Crashed) -> Locks {
    let image = vmcore::find_image(&crashed.dump, Some(&crashed.outcome.report.image));
    vmcore::locks(&crashed.dump, Some(&image.expect("the image"))).expect("the locks")
}

/// The lock called `name`.
pub fn lock<'a>(locks: &'a Locks, name: &str) -> &'a LockInfo {
    let found = locks.locks.iter().find(|lock| lock.name == name);
    found.unwrap_or_else(|| panic!("no lock `{name}` in {:#?}", locks.locks))
}

/// Two CPUs take two locks in opposite order. They go on ticking, so the neighbour misses
/// their work; both waits are in the dump, and the circle is named.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn taken_in_opposite_order() {
    let story = Story {
        crash: "deadlock",
        on: 2,
        kind: "soft-lockup",
        through: &["lockup::on_tick"],
        ..Story::PANIC
    };
    let mut options = story.options();
    options.crash = Some("deadlock,cpu=1".into());
    options.command_line = "workload=sieve lockup_hard_ms=2000 lockup_soft_ms=1500".into();
    let crashed = Crashed::from(&options);
    story.check(&crashed);
    let cause = &crashed.dump.handoff.as_ref().expect("the hand-off").cause;
    assert!(cause.message().starts_with("CPU 1 has not beaten for "), "{}", cause.message());
    let locks = locks(&crashed);
    assert_eq!(locks.cycles, [[1, 3]], "{:#?}", locks.sentences);
    for (name, owner, waiter) in [("left", 1, 3), ("right", 3, 1)] {
        let lock = lock(&locks, name);
        assert_eq!((lock.owner, &lock.waiters[..]), (Some(owner), &[waiter][..]), "{name}");
        let site = lock.acquired.as_ref().and_then(|site| site.function.as_deref());
        let site = site.expect("the place of the acquisition");
        assert!(site.ends_with("deadlock::take_both"), "{name}: {site}");
        let cpu = crashed.dump.cpu(owner).expect("its record");
        assert_eq!(cpu.locks_held, 1, "CPU {owner}");
        let names = crashed.functions(waiter);
        assert!(names.iter().any(|name| name.ends_with("deadlock::take_both")), "{names:#?}");
    }
    // The flight recorder saw them take the first and wait for the second, and the stop.
    let trace = vmcore::trace(&crashed.dump, None, Default::default()).expect("the trace");
    assert_eq!(trace.rings.len(), 4);
    for (cpu, first, second) in [(1, "left", "right"), (3, "right", "left")] {
        let mut of_cpu = trace.events.iter().filter(|line| line.cpu == cpu);
        let of_locks = of_cpu.clone().filter(|line| line.event.starts_with("lock"));
        let last: Vec<_> = of_locks.map(|line| (line.event.as_str(), line.text.as_str())).collect();
        // Ticks go on meanwhile and fill the ring, but not so far that these are lost.
        let [.., (taken, one), (waits, other)] = last[..] else { panic!("{last:?}") };
        assert_eq!((taken, waits), ("lock", "lock-wait"), "CPU {cpu}");
        assert!(one.starts_with(first) && other.starts_with(second), "CPU {cpu}: {one}; {other}");
        let end = of_cpu.next_back().expect("an event");
        assert_eq!((end.event.as_str(), end.after), ("stopped", true), "CPU {cpu}");
    }
    let wanted = "deadlock: CPU 1 waits for `right`, held by CPU 3, which waits for `left`, \
                  held by CPU 1";
    assert_eq!(locks.sentences[0], wanted);
}
