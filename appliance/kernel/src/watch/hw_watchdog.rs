//! The hardware watchdog: what no neighbour can see, a machine whose CPUs are all stuck.
//!
//! CPUs watch each other (see [`lockup`](crate::watch::lockup)), so it is fed as long as they can:
//! by whichever of them ticks, while every CPU that is to tick does so. One stuck CPU ends the
//! feeding on real hardware, but its neighbour crashes on its behalf long before the time is up.
//! A virtual CPU may only wait for the host; see [`progress`](crate::watch::progress). A crash claims the time for itself: for the ladder, then for the dump. The
//! capture image feeds it while the dump makes progress.
//!
//! An emulator's debugger stops its clock with the CPUs. On real hardware it runs on: use
//! `watchdog=off` there.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::SLOWEST_REQUEST_MS;
use handoff::{MAX_CPUS, Range, WatchdogFacts};
use machine::cell::SetOnce;
use machine::cpu;
use machine::hw_watchdog::{HwWatchdog, MAX_MS, MIN_MS};

use crate::base::{clock, cpus};
use crate::crash::stop;
use crate::firmware::cmdline::HardwareWatchdog;
use crate::watch::lockup;
use crate::watch::progress::Activity;
use crate::{log, options};

/// Time without feeding when nothing is said, in milliseconds: the thresholds of the
/// neighbours' watch come first, with room for a slow machine.
const AUTO_MS: u64 = 30_000;
/// The least during a dump, whatever was asked for: nothing moves while a disk takes the
/// longest that its driver allows.
const DUMP_MS: u64 = SLOWEST_REQUEST_MS + 30_000;

static WATCHDOG: SetOnce<HwWatchdog> = SetOnce::new();
static ARMED: AtomicBool = AtomicBool::new(false);
/// Nanoseconds between two looks at all CPUs.
const LOOK_EVERY_NS: u64 = 500_000_000;
/// When they were looked at last; 0 for never.
static LOOKED_NS: AtomicU64 = AtomicU64::new(0);

/// What was seen of a CPU.
struct Seen {
    /// Its ticks at the latest look.
    ticks: AtomicU64,
    /// When that number was seen to change last, in nanoseconds; 0 before it was looked at.
    since_ns: AtomicU64,
}

static SEEN: [Seen; MAX_CPUS] =
    [const { Seen { ticks: AtomicU64::new(0), since_ns: AtomicU64::new(0) } }; MAX_CPUS];

fn asked() -> HardwareWatchdog {
    options().map_or(HardwareWatchdog::Off, |options| options.watchdog)
}

/// The time for the dump, in milliseconds. Seconds that the operator asked for are for the work:
/// shorter than a disk's slowest request they would reset a machine that is saving its memory.
fn dump_ms() -> u64 {
    time_ms(DUMP_MS).max(DUMP_MS)
}

/// The time for the work, in milliseconds.
fn time_ms(auto: u64) -> u64 {
    match asked() {
        HardwareWatchdog::Seconds(seconds) => seconds.saturating_mul(1000).clamp(MIN_MS, MAX_MS),
        _ => auto,
    }
}

/// Looks for one. Returns its name if it was the one that reset the machine.
pub fn find() -> Option<&'static str> {
    if asked() == HardwareWatchdog::Off {
        return None;
    }
    let (watchdog, fired) = HwWatchdog::find()?;
    WATCHDOG.set(watchdog);
    fired.then(|| watchdog.name())
}

/// Starts it: from now on it has to be fed. The CPUs' ticks run.
pub fn arm() {
    let Some(watchdog) = WATCHDOG.get() else { return };
    if !lockup::ticks() {
        log!("warning: watchdog: no tick to feed the {} with: it stays off", watchdog.name());
        return;
    }
    let ms = time_ms(AUTO_MS);
    watchdog.arm(ms);
    ARMED.store(true, Ordering::Relaxed);
    log!("watchdog: {}, resets the machine after {} s without a tick", watchdog.name(), ms / 1000);
}

fn armed() -> Option<&'static HwWatchdog> {
    WATCHDOG.get().filter(|_| ARMED.load(Ordering::Relaxed))
}

/// Registers in memory, to be mapped.
pub fn registers() -> Option<Range> {
    WATCHDOG.get().and_then(HwWatchdog::registers)
}

/// What the capture image is told; all zero when there is none. It is running by then: see
/// [`before_dump`].
pub fn facts() -> WatchdogFacts {
    WATCHDOG.get().map_or_else(WatchdogFacts::default, |watchdog| watchdog.facts(dump_ms()))
}

/// A CPU that is not to be left alone has ticked: every so often one of them looks at all, and
/// feeds as [`Activity`] says.
pub fn on_tick() {
    let Some(watchdog) = armed() else { return };
    let now = clock::now_ns();
    let last = LOOKED_NS.load(Ordering::Relaxed);
    let due = last == 0 || now.saturating_sub(last) >= LOOK_EVERY_NS;
    // The others leave it to the one that takes this look.
    if !due || LOOKED_NS.compare_exchange(last, now, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return;
    }
    let counts = |cpu: &cpus::Cpu| {
        cpu.started.load(Ordering::Acquire) && !cpu.left_alone.load(Ordering::Acquire)
    };
    let mut activity = Activity::default();
    for (cpu, seen) in cpus::all().iter().zip(&SEEN).filter(|(cpu, _)| counts(cpu)) {
        let ticks = cpu.ticks.load(Ordering::Relaxed);
        if seen.ticks.swap(ticks, Ordering::Relaxed) != ticks {
            seen.since_ns.store(now, Ordering::Relaxed);
        }
        // One that has just started is about to tick.
        match seen.since_ns.load(Ordering::Relaxed) {
            0 => seen.since_ns.store(now, Ordering::Relaxed),
            since => activity.add(now.saturating_sub(since)),
        }
    }
    if activity.feeds(time_ms(AUTO_MS), cpu::is_virtual()) {
        watchdog.feed();
    }
}

/// A crash begins: time enough for every rung of the ladder, and none when it may wait for
/// ever.
pub fn at_crash() {
    let Some(watchdog) = armed() else { return };
    if options().is_some_and(|options| options.stop_wait_forever) {
        watchdog.disarm();
        return;
    }
    let windows: u64 = stop::windows_ns().iter().map(|ns| ns / 1_000_000).sum();
    watchdog.arm(time_ms(AUTO_MS).saturating_add(windows));
}

/// The dump begins: it is guarded even after a crash so early that nobody ticked.
pub fn before_dump() {
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.arm(dump_ms());
    }
}

/// The machine is to stay as it is.
pub fn disarm() {
    if let Some(watchdog) = armed() {
        watchdog.disarm();
    }
}
