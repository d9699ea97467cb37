//! Faults and measurements on request: `crash=`, `wedge=`, `bench_stop=`, `bench_trace=`.
//!
//! The faults are part of an image only when it is built with the feature `faults`. The rest of
//! the kernel calls [`faults`] in both cases: that is `inject` with the feature, and without it
//! a module of empty functions, which leave nothing in the image. Both have the same functions,
//! so a caller needs no `cfg`.
//!
//! What every image has is here: the stages of a run, and the signs of life of the CPUs.

pub mod bench;
#[cfg(feature = "faults")]
pub mod inject;
#[cfg(not(feature = "faults"))]
pub mod no_faults;

use core::sync::atomic::Ordering;

#[cfg(feature = "faults")]
pub use inject as faults;
#[cfg(not(feature = "faults"))]
pub use no_faults as faults;

use crate::arming::last_run;
use crate::base::cpus;

/// Vector of the interrupt whose handler panics in `crash=panic-in-irq`. It is set aside in every
/// image, so that the vectors of an image do not depend on the feature.
pub const VECTOR_FAULT: u8 = 0xe3;

/// The stages of the boot and the work, in their order. The run after a reset names the last one
/// that was reached, and `crash=NAME,at=STAGE` strikes at one. From `armed` on a crash is
/// captured; before it there are last words.
pub const STAGES: [&str; 24] = [
    "options",
    "region",
    "park-area",
    "image-loaded",
    "armed",
    "clock",
    "facts-complete",
    "apic",
    "interrupts",
    "frames",
    "stacks",
    "sealed",
    "start-up-code",
    "protected",
    "target",
    "rehearsed",
    "cpus-started",
    "round-trip",
    "cpus-released",
    "plan",
    "workload-chosen",
    "workload-prepared",
    "round-done",
    "verdict",
];

/// Notes that the run has come to `stage`, one of [`STAGES`], for the run after it. A fault that
/// was asked for at this stage strikes.
pub fn stage(stage: &'static str) {
    debug_assert!(STAGES.contains(&stage));
    last_run::stage(stage);
    faults::at_stage(stage);
}

/// Counts a sign of life of the running CPU, from inside a workload. A fault that is due strikes.
pub fn beat() {
    let index = cpus::current_index();
    cpus::all()[index].beats.fetch_add(1, Ordering::Relaxed);
    faults::at_beat(index);
}

/// Counts a sign of life of the running CPU, which has nothing to do. A fault strikes here only
/// when the CPU has had no work for a while.
pub fn idle_beat() {
    let index = cpus::current_index();
    cpus::all()[index].beats.fetch_add(1, Ordering::Relaxed);
    faults::at_idle_beat(index);
}
