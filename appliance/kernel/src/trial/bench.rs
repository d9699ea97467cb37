//! `bench_stop=PAIRS`: how long a stop takes, beside a plain interrupt and back; and what
//! the other measurements share.
//!
//! Rehearsed stops and round trips alternate, so that both see the same machine; first with
//! all other CPUs halted, then with all of them computing. The samples go to the console,
//! in nanoseconds, once all of one kind are taken; statistics are for the host.

pub mod recorder;

use heapless::Vec;

use crate::base::{clock, cpus};
use crate::crash::drill;
use crate::firmware::cmdline::Load;
use crate::log;

/// Pairs at most.
const MOST: usize = 512;
/// Pairs that are not counted: the first ones fill caches, and an emulator translates code.
const WARM_UP: usize = 8;
/// Before each sample, so that CPUs with nothing to do are halted again.
const SETTLE_US: u64 = 200;
/// Samples on a line.
const PER_LINE: usize = 16;

/// Numbers, separated by spaces.
struct Numbers<'a>(&'a [u64]);

impl core::fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|number| write!(f, " {number}"))
    }
}

/// Prints what was measured of `what`, one kind of it.
fn show(what: &str, kind: &str, samples: &[u64]) {
    for line in samples.chunks(PER_LINE) {
        log!("bench: {what} {kind}{}", Numbers(line));
    }
}

/// Takes `pairs` of samples under the load, or each of both, and prints them.
pub fn stops(pairs: usize, load: Load) {
    let pairs = pairs.min(MOST);
    let loads = [(Load::Idle, cpus::Waiting::Halted), (Load::Busy, cpus::Waiting::Computing)];
    for (this, waiting) in loads {
        if load != this && load != Load::Both {
            continue;
        }
        let name = this.word();
        cpus::set_waiting(waiting);
        let mut trips: Vec<u64, MOST> = Vec::new();
        let mut stops: Vec<u64, MOST> = Vec::new();
        let mut releases: Vec<u64, MOST> = Vec::new();
        let mut failed = 0;
        for pair in 0..pairs + WARM_UP {
            clock::wait_us(SETTLE_US);
            let trip = cpus::round_trip();
            clock::wait_us(SETTLE_US);
            let stop = drill::rehearse().filter(|rehearsal| rehearsal.missing.is_empty());
            match (trip, stop) {
                _ if pair < WARM_UP => {}
                (Some(trip), Some(stop)) => {
                    // As many as there are pairs, which the lists have room for.
                    let _ = trips.push(trip);
                    let _ = stops.push(stop.stop_ns);
                    let _ = releases.push(stop.release_ns);
                }
                _ => failed += 1,
            }
        }
        show(name, "trip", &trips);
        show(name, "stop", &stops);
        show(name, "release", &releases);
        log!("bench: {name} done, {failed} of {pairs} failed");
    }
    cpus::set_waiting(cpus::Waiting::Halted);
}
