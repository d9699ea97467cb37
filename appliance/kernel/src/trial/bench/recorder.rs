//! `bench_trace=PAIRS`: what the flight recorder costs.
//!
//! With it on and with it off in turns, in one boot: single events on the boot processor, in
//! cycles, and rounds of each workload on all CPUs, in nanoseconds. Which of the two goes
//! first changes from pair to pair. The samples go to the console; statistics are for the
//! host.

use heapless::Vec;
use machine::{cpu, trace};

use super::show;
use crate::log;
use crate::work::workload;

/// Pairs at most.
const MOST: usize = 128;
/// Pairs that are not counted, as in [`super::stops`].
const WARM_UP: usize = 1;

/// Samples with the recorder on, and off.
#[derive(Default)]
struct Samples([Vec<u64, MOST>; 2]);

impl Samples {
    /// Takes `pairs` of samples, each of which may fail.
    fn take(pairs: usize, mut sample: impl FnMut(bool) -> Option<u64>) -> Option<Self> {
        let mut samples = Self::default();
        for pair in 0..pairs.min(MOST) + WARM_UP {
            let turns = if pair % 2 == 0 { [true, false] } else { [false, true] };
            for recording in turns {
                trace::go_on(recording);
                let taken = sample(recording);
                trace::go_on(true);
                if pair >= WARM_UP {
                    // As many as there are pairs, which the lists have room for.
                    let _ = samples.0[usize::from(!recording)].push(taken?);
                }
            }
        }
        Some(samples)
    }

    fn show(&self, what: &str) {
        for (kind, samples) in ["on", "off"].into_iter().zip(&self.0) {
            show(what, kind, samples);
        }
    }
}

/// Takes `pairs` of everything and prints them; whether the digests of all rounds were right.
pub fn costs(pairs: usize, chosen: &[workload::Prepared]) -> bool {
    if trace::range().rings == 0 {
        log!("bench: nothing is recorded, so there is nothing to measure");
        return false;
    }
    let events = Samples::take(pairs, |_| {
        cpu::interrupts_off();
        let cycles = trace::measure();
        cpu::interrupts_on();
        Some(cycles)
    });
    events.iter().for_each(|events| events.show("event"));
    for one in chosen {
        let mut recorded: Vec<u64, MOST> = Vec::new();
        let mut number = 0;
        let rounds = Samples::take(pairs, |recording| {
            let before = trace::begun();
            let taken = one.timed_round(number);
            number += 1;
            if recording {
                // The first is that of the warm-up, and leaves the room of one.
                let _ = recorded.push(trace::begun() - before);
            }
            taken
        });
        let Some(rounds) = rounds else {
            log!("bench: {}: round {} was wrong", one.name(), number - 1);
            return false;
        };
        rounds.show(one.name());
        show(one.name(), "events", recorded.get(WARM_UP..).unwrap_or_default());
    }
    true
}
