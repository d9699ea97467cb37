//! Faults in an image that is built without the feature `faults`: there are none.
//!
//! Each function has the signature of its namesake in `inject` and does nothing; the compiler
//! leaves out the calls. What asks for a fault all the same, on the command line or on the
//! console, is answered.

use machine::apic;

use crate::firmware::cmdline::Options;
use crate::log;

/// Names each fault on the command line as ignored.
pub fn plan(options: &Options) {
    let crash = options.crash.iter().map(|crash| ("crash", &crash.name));
    let wedges = options.wedges.iter().map(|wedge| ("wedge", &wedge.kind));
    for (key, name) in crash.chain(wedges) {
        log!(
            "warning: built without faults: {key}={name} is ignored; boot an image that is built \
             with the feature `faults`"
        );
    }
}

/// Refuses every fault that is asked for on the console.
///
/// # Errors
/// Always; says which images have faults.
pub fn request(_what: &str) -> Result<(&'static str, usize), &'static str> {
    Err("built without faults: `crash` without a name takes a dump; the other faults are in an \
         image that is built with the feature `faults`")
}

/// Returns false: the capture image stays as it was loaded.
pub const fn damages_image(_options: &Options) -> bool {
    false
}

/// Returns false: workloads end when their rounds are done.
pub const fn planned() -> bool {
    false
}

/// Does nothing when every workload has done a full round.
pub const fn warm() {}

/// Does nothing at a stage of the boot.
pub const fn at_stage(_stage: &str) {}

/// Does nothing at a sign of life inside a workload.
pub const fn at_beat(_index: usize) {}

/// Does nothing at a sign of life of an idle CPU.
pub const fn at_idle_beat(_index: usize) {}

/// Does nothing inside the NMI handler.
pub const fn on_nmi() {}

/// Does nothing between the save of a stopped CPU and its acknowledgement.
pub const fn in_funnel(_index: usize) {}

/// Does nothing in the crash path.
pub const fn in_crash_path() {}

/// Does nothing where a workload is asked for its last words.
pub const fn in_last_words() {}

/// Does nothing in the block driver.
pub const fn mid_submit(_reads: usize) {}

/// Handles the interrupt of the vector that faults use: nothing sends it.
pub fn on_interrupt() {
    apic::end_of_interrupt();
}
