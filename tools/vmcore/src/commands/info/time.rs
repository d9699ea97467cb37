//! When the crash happened, as far as the dump says so.

use std::time::{Duration, UNIX_EPOCH};

use super::TimeInfo;
use crate::Dump;
use crate::json::Hex;

/// Gathers what the dump says about the time of the crash.
pub(super) fn time(dump: &Dump) -> TimeInfo {
    let tsc = dump.handoff.as_ref().map_or(0, |handoff| handoff.cause.tsc);
    let facts = dump.facts.as_ref();
    let since_boot = facts
        .and_then(|facts| dump.nanoseconds(tsc.checked_sub(facts.boot_tsc).filter(|_| tsc > 0)?));
    let boot = facts.map_or(0, |facts| facts.boot_unix_time);
    let unix = since_boot
        .filter(|_| boot > 0)
        .map(|nanoseconds| boot.saturating_add(nanoseconds / 1_000_000_000));
    // Last words say it without the facts.
    let said = dump.handoff.as_ref().map(|handoff| handoff.unix_time).filter(|&time| time > 0);
    let unix = unix.or(said);
    let absent = match (unix, facts) {
        (Some(_), _) => None,
        (None, None) if is_of_last_words(dump) => Some("not-in-last-words"),
        (None, None) => Some("lost"),
        (None, Some(_)) => Some("no-clock"),
    };
    TimeInfo {
        unix_s: unix,
        unix_absent: absent.map(str::to_owned),
        utc: unix.and_then(date),
        uptime_ns: since_boot,
        tsc: Hex(tsc),
        tsc_hz: facts.map_or(0, |facts| facts.tsc_hz),
    }
}

/// Returns true for what `vmcore from-console` writes: the hand-off of a machine says where
/// its CPU records lay, the one that is put together from last words does not.
fn is_of_last_words(dump: &Dump) -> bool {
    dump.metrics.is_none() && dump.handoff.as_ref().is_some_and(|handoff| handoff.cpus == 0)
}

/// A date, as long as it has four digits for the year.
fn date(unix: u64) -> Option<String> {
    const YEAR_10000: u64 = 253_402_300_800;
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix)).filter(|_| unix < YEAR_10000)?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}
