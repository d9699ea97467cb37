//! Long random schedules with clocks nobody should trust, and the cases worth a name.
#![cfg(not(loom))]

mod common;

use common::{Observer, rungs};
use epitaph_stop::{Action, CpuMask, Escalation, MAX_CPUS, Rung, RungKind};
use proptest::prelude::*;

/// A clock reading: mostly sound, now and then not.
fn clock() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..200u64, 1 => Just(0), 1 => any::<u64>()]
}

fn cpus(most: usize) -> impl Strategy<Value = CpuMask> {
    prop::collection::vec(0..MAX_CPUS, 0..most)
        .prop_map(|cpus| cpus.into_iter().fold(CpuMask::new(), CpuMask::with))
}

fn ladder() -> impl Strategy<Value = Vec<Rung>> {
    let kinds = [RungKind::Irq, RungKind::Nmi, RungKind::Init];
    prop::collection::vec((0..90u64, 0..40u64, 0..2u8, cpus(60)), 1..=3).prop_map(move |rungs| {
        let rungs = rungs.into_iter().zip(kinds);
        rungs
            .map(|((window_ns, polls, resend, spare), kind)| Rung {
                kind,
                window_ns,
                polls,
                resend,
                spare,
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_promise_holds_whatever_the_clock_says(
        rungs in ladder(),
        targets in cpus(80),
        acks in prop::collection::vec((cpus(3), clock()), 0..400),
    ) {
        let mut ladder = Escalation::new(&rungs, targets);
        let mut observer = Observer::new(targets);
        let mut acked = CpuMask::new();
        // When the schedule is over the clock stands still and nobody acknowledges.
        let tail = std::iter::repeat((CpuMask::new(), 7));
        let steps = 4 * rungs.len() as u64 + Observer::wait_bound(&rungs) + 8;
        let mut end = None;
        for (fresh, now) in acks.into_iter().chain(tail).take(steps as usize) {
            // A mask that forgets what it said before must not bring a CPU back.
            acked = if now % 5 == 0 { fresh } else { acked.or(&fresh) };
            let action = ladder.step(&acked, now);
            observer.saw(&rungs, acked, now, &action);
            if matches!(action, Action::Finished { .. }) {
                end = Some(action);
                break;
            }
        }
        prop_assert!(end.is_some(), "it ends within {} steps", steps);
    }
}

/// Climbs with a clock that advances by one each poll; `acks` says who has acknowledged
/// at a time.
fn climb(rungs: &[Rung], targets: CpuMask, acks: impl Fn(u64) -> CpuMask) -> (Vec<RungKind>, u64) {
    let mut ladder = Escalation::new(rungs, targets);
    let mut observer = Observer::new(targets);
    for now in 0.. {
        let action = ladder.step(&acks(now), now);
        observer.saw(rungs, acks(now), now, &action);
        if let Action::Finished { .. } = action {
            return (ladder.timeline().map(|send| send.kind).collect(), now);
        }
    }
    unreachable!("the clock does not run out")
}

/// Proves R2, R3.
#[test]
fn a_healthy_machine_never_sees_an_nmi() {
    let rungs = rungs(CpuMask::new());
    let others = CpuMask::new().with(1).with(2);
    let (seen, now) = climb(&rungs, others, |now| if now < 2 { CpuMask::new() } else { others });
    assert_eq!(seen, [RungKind::Irq]);
    assert_eq!(now, 2, "left at once");
}

#[test]
fn nobody_to_stop_is_no_signal() {
    let (seen, now) = climb(&rungs(CpuMask::new()), CpuMask::new(), |_| CpuMask::new());
    assert_eq!((seen.len(), now), (0, 0));
}

/// Proves L4.
#[test]
fn a_boot_processor_that_ignores_nmi_is_left_and_named() {
    let rungs = rungs(CpuMask::new().with(0));
    let mut ladder = Escalation::new(&rungs, CpuMask::new().with(0));
    let end = (0..100).map(|now| ladder.step(&CpuMask::new(), now)).last().unwrap();
    let not_stopped = CpuMask::new().with(0);
    assert_eq!(end, Action::Finished { stopped: CpuMask::new(), not_stopped });
    assert!(ladder.sent_to(RungKind::Init).is_empty());
    assert_eq!(ladder.sent_to(RungKind::Nmi), not_stopped);
}

/// Proves L8.
#[test]
fn the_timeline_tells_what_was_sent_and_when() {
    let rungs = rungs(CpuMask::new().with(0));
    let (zero, both) = (CpuMask::new().with(0), CpuMask::first(2));
    let mut ladder = Escalation::new(&rungs, both);
    let mut now = 100;
    // CPU 0 comes at the first NMI; CPU 1 never says anything again.
    while !matches!(
        ladder.step(&if now > 105 { zero } else { CpuMask::new() }, now),
        Action::Finished { .. }
    ) {
        now += 1;
    }
    let timeline: Vec<_> = ladder
        .timeline()
        .map(|send| (send.kind, send.mask, send.sent_ns, send.closed_ns, send.window_ns))
        .collect();
    let one = CpuMask::new().with(1);
    assert_eq!(
        timeline,
        [
            (RungKind::Irq, both, 100, 104, 4),
            (RungKind::Nmi, both, 105, 107, 2),
            (RungKind::Nmi, one, 107, 109, 2),
            (RungKind::Init, one, 110, 112, 2),
        ]
    );
}

/// Proves R8.
#[test]
fn a_window_for_ever_has_no_limit_but_ends_with_the_last_acknowledgement() {
    let [mut first, nmi, _] = rungs(CpuMask::new());
    first.window_ns = u64::MAX;
    let (rungs, target) = ([first, nmi], CpuMask::new().with(3));
    let mut ladder = Escalation::new(&rungs, target);
    assert!(matches!(ladder.step(&CpuMask::new(), 0), Action::Send { .. }));
    for now in (0..u64::MAX).step_by(usize::MAX / 5000) {
        assert_eq!(ladder.step(&CpuMask::new(), now), Action::Wait);
    }
    let stopped = Action::Finished { stopped: target, not_stopped: CpuMask::new() };
    assert_eq!(ladder.step(&target, 0), stopped);
}

#[test]
fn a_clock_that_jumps_ahead_leaves_time_for_a_few_polls() {
    let rungs = rungs(CpuMask::new());
    let mut ladder = Escalation::new(&rungs, CpuMask::new().with(1));
    assert!(matches!(ladder.step(&CpuMask::new(), 0), Action::Send { .. }));
    for now in [1 << 40, 1 << 41, 1 << 42] {
        assert_eq!(ladder.step(&CpuMask::new(), now), Action::Wait);
    }
    assert!(matches!(ladder.step(&CpuMask::new(), 1 << 43), Action::Announce(..)));
}

#[test]
fn a_ladder_too_long_for_its_record_still_ends() {
    let [irq, mut nmi, init] = rungs(CpuMask::new());
    nmi.resend = u8::MAX;
    let long = [irq, nmi, init];
    let mut ladder = Escalation::new(&long, CpuMask::new().with(1));
    let end = (0..200).map(|now| ladder.step(&CpuMask::new(), now)).last().unwrap();
    assert!(matches!(end, Action::Finished { .. }));
    assert_eq!(ladder.timeline().count(), epitaph_stop::MAX_SENDS);
}
