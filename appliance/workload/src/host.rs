//! Runs a workload on the threads of a host, for its tests.
//!
//! ```
//! use epitaph_workload::{Context, Digest, Setup, SetupError, Workload, host};
//!
//! struct Ones;
//! impl Workload for Ones {
//!     fn name(&self) -> &'static str { "ones" }
//!     fn prepare(&self, _: &Setup<'_>) -> Result<u64, SetupError> { Ok(100) }
//!     fn run(&self, _unit: u64, _: &Context<'_>) -> Digest { Digest::number(1) }
//!     fn expected(&self, _round: u64) -> Digest { Digest::number(100) }
//! }
//!
//! for cpus in [1, 4] {
//!     assert_eq!(host::run(&Ones, &[], cpus, 2), Ok(vec![Digest::number(100); 2]));
//! }
//! ```

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Context, Digest, Kernel, LAST_WORDS_BYTES, LOCKS, Setup, Workload};

/// A kernel made of threads.
struct Threads {
    start: Instant,
    locks: [Mutex<()>; LOCKS],
    /// By CPU: called, and not yet answered.
    called: Vec<AtomicBool>,
}

impl Threads {
    fn new(cpus: usize) -> Self {
        Self {
            start: Instant::now(),
            locks: [const { Mutex::new(()) }; LOCKS],
            called: (0..cpus).map(|_| AtomicBool::new(false)).collect(),
        }
    }
}

impl Kernel for Threads {
    fn cpus(&self) -> usize {
        self.called.len()
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Nobody watches a thread.
    fn beat(&self) {}

    fn log(&self, line: fmt::Arguments<'_>) {
        println!("{line}");
    }

    fn locked(&self, lock: usize, work: &mut dyn FnMut()) {
        // The lock guards no data of its own that a panic could have spoilt.
        let _held = self.locks[lock].lock().unwrap_or_else(PoisonError::into_inner);
        work();
    }

    /// A host writes no dump of its own.
    fn never_dumped(&self, words: usize) -> Option<&'static [AtomicU64]> {
        Some((0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak())
    }

    fn call(&self, cpu: usize) -> bool {
        self.called[cpu].store(true, Ordering::Release);
        true
    }
}

/// Runs `rounds` rounds of `workload` with parameters `asked`, on `cpus` threads; returns
/// the digest of each. Each "CPU" has a second thread that answers its calls, as an
/// interrupt would.
///
/// # Errors
/// What the workload refused, or how a round went wrong: another digest than expected, a
/// panic, last words that do not fit.
pub fn run(
    workload: &dyn Workload,
    asked: &[(&str, &str)],
    cpus: usize,
    rounds: u64,
) -> Result<Vec<Digest>, String> {
    let setup = Setup::check(workload, asked.iter().copied(), cpus);
    let kernel = Threads::new(cpus);
    let setup = setup.map_err(|refusal| refusal.to_string())?.lent_by(&kernel);
    let units = workload.prepare(&setup).map_err(|refusal| refusal.to_string())?;
    (0..rounds).map(|number| round(workload, units, number, &kernel)).collect()
}

fn round(
    workload: &dyn Workload,
    units: u64,
    round: u64,
    kernel: &Threads,
) -> Result<Digest, String> {
    let next = AtomicU64::new(0);
    let working = AtomicBool::new(true);
    let merged = Mutex::new(None);
    let digest = thread::scope(|scope| {
        for cpu in 0..kernel.cpus() {
            let working = &working;
            scope.spawn(move || {
                while working.load(Ordering::Acquire) {
                    if kernel.called[cpu].swap(false, Ordering::AcqRel) {
                        workload.on_call(&Context::new(cpu, round, kernel));
                    }
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        let take_part = |cpu| loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            let digest = workload.run(unit, &Context::new(cpu, round, kernel));
            let mut merged = merged.lock().unwrap_or_else(PoisonError::into_inner);
            *merged = Some(merged.map_or(digest, |so_far| workload.merge(so_far, digest)));
        };
        let workers: Vec<_> =
            (0..kernel.cpus()).map(|cpu| scope.spawn(move || take_part(cpu))).collect();
        let lost = workers.into_iter().filter_map(|worker| worker.join().err()).count();
        let merged = merged.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default();
        // In a thread of its own, so that a panic there does not leave the others waiting.
        let finish = move || workload.finish(merged, &Context::new(0, round, kernel));
        let finished = (lost == 0).then(|| scope.spawn(finish).join().ok()).flatten();
        working.store(false, Ordering::Release);
        finished
    });
    let digest = digest.ok_or("it panicked")?;
    let expected = workload.expected(round);
    if digest != expected {
        return Err(format!("round {round}: {digest}, expected {expected}"));
    }
    let mut words = String::new();
    workload.last_words(&mut words).map_err(|_| "last words fail")?;
    if words.len() > LAST_WORDS_BYTES {
        return Err(format!("last words have {} bytes: {words}", words.len()));
    }
    Ok(digest)
}
