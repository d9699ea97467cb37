//! Time since boot, from the time-stamp counter.

use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_firmware::clock::{Rate, nanoseconds};
use machine::cpu::rdtsc;
use machine::rtc;

use crate::firmware::calendar;
use crate::log;

static HZ: AtomicU64 = AtomicU64::new(0);
static START: AtomicU64 = AtomicU64::new(0);
static BOOT_UNIX: AtomicU64 = AtomicU64::new(0);

/// Sets where time begins: at entry.
pub fn start() {
    START.store(rdtsc(), Ordering::Relaxed);
}

/// Sets the counter's rate.
pub fn set_rate(rate: Rate) {
    HZ.store(rate.hz, Ordering::Relaxed);
}

/// The counter's rate in Hz; 0 until it is known.
#[must_use]
pub fn hz() -> u64 {
    HZ.load(Ordering::Relaxed)
}

/// The counter at entry.
#[must_use]
pub fn start_tsc() -> u64 {
    START.load(Ordering::Relaxed)
}

/// Reads the date, for the dump; after the rate is known.
pub fn read_calendar() {
    match calendar::unix_time(rtc::read) {
        Some(now) => BOOT_UNIX.store(now - now_ns() / 1_000_000_000, Ordering::Relaxed),
        None => log!("warning: clock: the calendar clock says no date that can be"),
    }
}

/// Unix time at entry in seconds; 0 when it is not known.
#[must_use]
pub fn boot_unix_time() -> u64 {
    BOOT_UNIX.load(Ordering::Relaxed)
}

/// Unix time in seconds; 0 when it is not known.
#[must_use]
pub fn unix_time() -> u64 {
    match boot_unix_time() {
        0 => 0,
        boot => boot + now_ns() / 1_000_000_000,
    }
}

/// Returns the Unix time in seconds when the counter stood at `tsc`; 0 when it is not known.
#[must_use]
pub fn unix_time_at(tsc: u64) -> u64 {
    match boot_unix_time() {
        0 => 0,
        boot => boot.saturating_add(ns(tsc.saturating_sub(start_tsc())) / 1_000_000_000),
    }
}

/// Nanoseconds since entry; 0 until the rate is known.
#[must_use]
pub fn now_ns() -> u64 {
    ns(rdtsc().wrapping_sub(start_tsc()))
}

/// Ticks of the counter in nanoseconds; 0 until the rate is known.
#[must_use]
pub fn ns(ticks: u64) -> u64 {
    nanoseconds(ticks, hz())
}

/// Waits `microseconds`, at least; without a known rate, about as long.
pub fn wait_us(microseconds: u64) {
    let hz = if hz() == 0 { 2_000_000_000 } else { hz() };
    let ticks = microseconds * (hz / 1_000_000);
    let start = rdtsc();
    while rdtsc().wrapping_sub(start) < ticks {
        machine::cpu::pause();
    }
}
