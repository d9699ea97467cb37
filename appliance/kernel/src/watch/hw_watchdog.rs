//! The hardware watchdog: what no neighbour can see, a machine whose CPUs are all stuck.
//!
//! CPUs watch each other (see [`lockup`](crate::watch::lockup)), so it is fed as long as they can:
//! by one of them, at its ticks, when every CPU that is to tick has ticked since the last time.
//! One stuck CPU ends the feeding, but its neighbour crashes on its behalf long before the
//! time is up. A crash claims the time for itself: for the ladder, then for the dump. The
//! capture image feeds it while the dump makes progress.
//!
//! An emulator's debugger stops its clock with the CPUs. On real hardware it runs on: use
//! `watchdog=off` there.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use handoff::{MAX_CPUS, Range, WatchdogFacts};
use machine::cell::SetOnce;
use machine::hw_watchdog::{HwWatchdog, MAX_MS, MIN_MS};

use crate::base::cpus;
use crate::crash::stop;
use crate::firmware::cmdline::HardwareWatchdog;
use crate::watch::lockup;
use crate::{log, options};

/// Time without feeding when nothing is said, in milliseconds: the thresholds of the
/// neighbours' watch come first, with room for a slow machine.
const AUTO_MS: u64 = 30_000;
/// The same during a dump: the drivers allow a disk two minutes for a flush, and nothing
/// moves meanwhile.
const AUTO_DUMP_MS: u64 = 150_000;

static WATCHDOG: SetOnce<HwWatchdog> = SetOnce::new();
static ARMED: AtomicBool = AtomicBool::new(false);
/// Each CPU's ticks when it was fed last.
static SEEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn asked() -> HardwareWatchdog {
    options().map_or(HardwareWatchdog::Off, |options| options.watchdog)
}

/// The time for the work, or for the dump, in milliseconds.
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
    WATCHDOG
        .get()
        .map_or_else(WatchdogFacts::default, |watchdog| watchdog.facts(time_ms(AUTO_DUMP_MS)))
}

/// CPU `me`, which is not to be left alone, has ticked: feeds when it is the one that does,
/// and all the others have ticked as well.
pub fn on_tick(me: usize) {
    let Some(watchdog) = armed() else { return };
    let counts = |cpu: &cpus::Cpu| {
        cpu.started.load(Ordering::Acquire) && !cpu.left_alone.load(Ordering::Acquire)
    };
    let all = || cpus::all().iter().zip(&SEEN).filter(|(cpu, _)| counts(cpu));
    if cpus::all().iter().position(counts) != Some(me) {
        return;
    }
    let alive =
        all().all(|(cpu, seen)| cpu.ticks.load(Ordering::Relaxed) != seen.load(Ordering::Relaxed));
    if alive {
        all().for_each(|(cpu, seen)| {
            seen.store(cpu.ticks.load(Ordering::Relaxed), Ordering::Relaxed)
        });
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
        watchdog.arm(time_ms(AUTO_DUMP_MS));
    }
}

/// The machine is to stay as it is.
pub fn disarm() {
    if let Some(watchdog) = armed() {
        watchdog.disarm();
    }
}
