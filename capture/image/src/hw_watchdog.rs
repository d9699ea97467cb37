//! The hardware watchdog, fed while the dump makes progress, and the breadcrumb that says how
//! far it came should the machine be reset all the same.

use core::sync::atomic::{AtomicU64, Ordering};

use handoff::BootFacts;
use machine::breadcrumb::{self, Breadcrumb, RunProgress};
use machine::capture::memory;
use machine::cell::SetOnce;
use machine::hw_watchdog::HwWatchdog;
use machine::rtc::Cmos;

use crate::{clock, rehearsal};

/// Nanoseconds between two feedings: it is a device, and slow.
const INTERVAL_NS: u64 = 100_000_000;
/// The word of the command line that keeps both images off the calendar clock's memory.
const NO_BREADCRUMB: &str = "breadcrumb=off";

static WATCHDOG: SetOnce<HwWatchdog> = SetOnce::new();
static BREADCRUMB: SetOnce<()> = SetOnce::new();
static NEXT_NS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds without a look at the clock, while a disk is waited for, that are a pause of the
/// whole machine: far above what a CPU that polls does between two looks.
const PAUSE_NS: u64 = 1_000_000_000;
/// Pauses that it is fed after: a device that stops the CPU with each look must not keep it
/// fed for ever.
const MAX_PAUSES: u64 = 16;
/// The latest look at the clock, and pauses so far.
static LOOKED_NS: AtomicU64 = AtomicU64::new(u64::MAX);
static PAUSES: AtomicU64 = AtomicU64::new(0);

/// Takes over what the facts name. In the image's own page tables, since registers may have
/// to be mapped. In a rehearsal the breadcrumb is the appliance's.
pub fn take_over(facts: &BootFacts) {
    let wanted = !facts.command_line().split_ascii_whitespace().any(|word| word == NO_BREADCRUMB);
    if wanted && !rehearsal::under_way() {
        BREADCRUMB.set(());
    }
    let Some(watchdog) = HwWatchdog::from_facts(&facts.watchdog) else { return };
    if watchdog.registers().is_none_or(memory::map_device) {
        WATCHDOG.set(watchdog);
    }
}

/// A step is done: the next one has all of the time.
pub fn feed() {
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.feed();
    }
}

/// So many bytes are written. Fed only when they are more than the last time.
pub fn progress(done: u64) {
    let now = clock::now_ns();
    if now >= NEXT_NS.load(Ordering::Relaxed) && DONE.swap(done, Ordering::Relaxed) != done {
        NEXT_NS.store(now.saturating_add(INTERVAL_NS), Ordering::Relaxed);
        feed();
    }
}

/// A disk is being waited for, at `now_ns`. After a pause of the machine, in which no dump could
/// make progress, the step at hand has all of the time once more.
pub fn notice_pause(now_ns: u64) {
    let gap = now_ns.saturating_sub(LOOKED_NS.swap(now_ns, Ordering::Relaxed));
    if gap >= PAUSE_NS && PAUSES.fetch_add(1, Ordering::Relaxed) < MAX_PAUSES {
        feed();
    }
}

/// The machine is to stay as it is.
pub fn disarm() {
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.disarm();
    }
}

/// How many crashes of late this one makes, at `now` in seconds of Unix time, when that is more
/// than the facts allow: by the breadcrumb, for where no disk has counted them.
pub fn is_loop(facts: &BootFacts, now: u64) -> Option<u8> {
    BREADCRUMB.get()?;
    let crashes = Breadcrumb::read(&Cmos)?.crashes.and_one_at(now, facts.crash_loop_minutes);
    let most = facts.crash_loop;
    (most > 0 && u32::from(crashes.count) > most).then_some(crashes.count)
}

/// The run has come so far.
pub fn mark(progress: RunProgress) {
    if BREADCRUMB.get().is_some() {
        breadcrumb::mark(&Cmos, progress);
    }
}
