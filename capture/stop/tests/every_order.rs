//! Walks every order of acknowledgements and clock ticks for two to four CPUs.
#![cfg(not(loom))]

mod common;

use std::collections::HashSet;

use common::{Observer, rungs};
use epitaph_stop::{Action, CpuMask, Escalation, Rung};

/// One state of the walk: the ladder, its observer, who has acknowledged, the clock.
type State<'a> = (Escalation<'a>, Observer, CpuMask, u64);

/// Takes every path from the start and returns how many states and ends it met.
fn walk(rungs: &[Rung], targets: CpuMask, ticks: &[i64]) -> (usize, usize) {
    let start = 10;
    let mut seen: HashSet<State> = HashSet::new();
    let mut todo: Vec<State> =
        vec![(Escalation::new(rungs, targets), Observer::new(targets), CpuMask::new(), start)];
    let mut ends = 0;
    let cpus: Vec<u32> = targets.iter().collect();
    while let Some((ladder, observer, acked, now)) = todo.pop() {
        // Any set of CPUs may have acknowledged since the last poll, at any tick.
        for subset in 0..1u32 << cpus.len() {
            let fresh = cpus.iter().enumerate().filter(|(bit, _)| subset >> bit & 1 == 1);
            let fresh = fresh.fold(CpuMask::new(), |mask, (_, &cpu)| mask.with(cpu));
            if !fresh.and(&acked).is_empty() {
                continue;
            }
            for &tick in ticks {
                let (mut ladder, mut observer) = (ladder.clone(), observer.clone());
                let (acked, now) = (acked.or(&fresh), now.saturating_add_signed(tick));
                let action = ladder.step(&acked, now);
                observer.saw(rungs, acked, now, &action);
                if let Action::Finished { .. } = action {
                    ends += 1;
                    assert_eq!(ladder.step(&targets, now), action, "the end is the end");
                } else {
                    let state = (ladder, observer, acked, now);
                    if seen.insert(state.clone()) {
                        todo.push(state);
                    }
                }
            }
        }
    }
    println!("{} states, {ends} ends", seen.len());
    (seen.len(), ends)
}

#[test]
fn two_cpus_with_a_clock_that_stands_still_advances_and_jumps_back() {
    let mut rungs = rungs(CpuMask::new());
    for rung in &mut rungs {
        rung.polls -= 2;
    }
    let (states, ends) = walk(&rungs, CpuMask::new().with(1), &[0, 2, -1]);
    assert!(states > 1000 && ends > 1000, "{states} states, {ends} ends");
}

/// Proves R8, R12, R17.
#[test]
fn three_cpus_with_a_clock_that_stands_still_and_advances() {
    // CPU 1 crashed; CPU 0 is the boot processor and spared the last rung.
    let targets = CpuMask::new().with(0).with(2);
    let (states, ends) = walk(&rungs(CpuMask::new().with(0)), targets, &[0, 1]);
    assert!(states > 1000 && ends > 1000, "{states} states, {ends} ends");
}

/// Proves R12.
#[test]
fn four_cpus_with_a_clock_that_advances_by_one_tick_or_by_three() {
    let targets = CpuMask::new().with(0).with(1).with(3);
    let (states, ends) = walk(&rungs(CpuMask::new().with(0)), targets, &[1, 3]);
    assert!(states > 1000 && ends > 1000, "{states} states, {ends} ends");
}
