//! What a capture is to reach, and whether it did.

use super::case::{Case, Medium};
use super::{Row, ms, of_raw, over, sealed};
use crate::bench::{median, mib, sorted};

/// Milliseconds from the crash to the first seal.
const FIRST_SEAL_MS: f64 = 20.0;
/// Of the raw rate, checksums included, on a disk that is slower than memory.
const OF_SLOW: f64 = 0.9;
/// The same where the disk is nearly as fast.
const OF_FAST: f64 = 0.6;
/// Of the time QEMU takes from outside.
const OF_HOST: f64 = 1.0;
/// Times the rate of one CPU, on two cores of the host.
const SECOND_CPU: f64 = 1.6;
/// Of the better choice's rate.
const OF_BETTER: f64 = 0.9;
/// MiB of memory a second, checksums alone: 3 GB.
const CHECKSUMS: f64 = 3e9 / (1 << 20) as f64;
/// MiB of the reserved region, everything in it.
const REGION_MIB: f64 = 8.0;
/// Times the least time per GiB: about what one boot differs from the next.
const FLAT: f64 = 1.25;
/// The limit at which [`OF_SLOW`] is asked for, in bytes a second.
const LIMIT: u64 = 500_000_000;

/// One line of the judgement.
pub struct Judged {
    /// What was looked at.
    pub what: String,
    /// What it came to, in words.
    pub found: String,
    /// What it was to come to, in words.
    pub wanted: String,
    /// Whether it did.
    pub met: bool,
}

fn most(what: String, found: f64, wanted: f64, unit: &str) -> Judged {
    let met = found <= wanted;
    Judged { what, found: format!("{found:.3}{unit}"), wanted: format!("≤ {wanted}{unit}"), met }
}

fn least(what: String, found: f64, wanted: f64) -> Judged {
    let met = found >= wanted;
    Judged { what, found: format!("{found:.3}"), wanted: format!("≥ {wanted}"), met }
}

/// Holds the rows that were measured against every target that they say something about.
pub fn judge(rows: &[Row]) -> Vec<Judged> {
    let rows: Vec<&Row> = rows.iter().filter(|row| !row.samples.is_empty()).collect();
    let mut judged = first_seal(&rows);
    for row in rows.iter().filter(|row| row.case.storing == "raw") {
        let wanted = match row.case.medium {
            Medium::Host => OF_FAST,
            Medium::Fixed(LIMIT) => OF_SLOW,
            _ => continue,
        };
        let what = format!("{}: rate with checksums / raw rate", row.case.name());
        judged.push(least(what, over(row, of_raw), wanted));
    }
    for row in &rows {
        let Case { medium, cpus, storing, .. } = row.case;
        if medium == Medium::Host && cpus > 1 && storing != "lz4" {
            let ratio = over(row, |sample| {
                sample.core_ns.map_or(f64::NAN, |ns| sample.sealed_ns() as f64 / ns as f64)
            });
            let what = format!("{}: crash to `all` / dump-guest-memory", row.case.name());
            judged.push(most(what, ratio, OF_HOST, ""));
        }
    }
    judged.extend(second_cpu(&rows));
    judged.extend(chosen(&rows));
    judged.extend(flat(&rows));
    let emulated = rows.iter().filter(|row| row.case.medium != Medium::Counted);
    let rates = emulated.map(|row| over(row, |sample| sample.checksums));
    if let Some(slowest) = rates.reduce(f64::min) {
        let what = "checksums alone, MiB/s, slowest row".to_owned();
        judged.push(least(what, slowest.round(), CHECKSUMS.round()));
    }
    let region = rows
        .iter()
        .map(|row| row.samples.iter().map(|sample| mib(sample.region_bytes)).fold(0.0, f64::max));
    let what = "reserved region, high-water mark of all boots".to_owned();
    judged.push(most(what, region.fold(0.0, f64::max), REGION_MIB, " MiB"));
    judged
}

/// The slowest row of each medium.
fn first_seal(rows: &[&Row]) -> Vec<Judged> {
    let mut media: Vec<Medium> = Vec::new();
    for row in rows {
        if !media.contains(&row.case.medium) {
            media.push(row.case.medium);
        }
    }
    let worst = |medium: Medium| {
        let of = rows.iter().filter(|row| row.case.medium == medium);
        of.map(|row| over(row, |sample| sealed(sample, "mini"))).fold(0.0, f64::max)
    };
    let line = |medium: Medium| {
        let how = match medium {
            Medium::Counted => "at one instruction a nanosecond".to_owned(),
            _ => format!("disk: {}", medium.name()),
        };
        let what = format!("crash to the first seal, slowest row, {how}");
        most(what, worst(medium), FIRST_SEAL_MS, " ms")
    };
    media.into_iter().map(line).collect()
}

fn write_ms(row: &Row) -> f64 {
    over(row, |sample| ms(sample.write_ns()))
}

/// How many times as fast as `other` a row is: the median over runs, in each of which both were
/// booted close to each other. What the host has to give changes from one run to the next.
fn times(row: &Row, other: &Row) -> f64 {
    let both = row.samples.iter().zip(&other.samples);
    let ratios = both.map(|(ours, theirs)| theirs.write_ns() as f64 / ours.write_ns() as f64);
    median(&sorted(ratios.collect()))
}

fn second_cpu(rows: &[&Row]) -> Vec<Judged> {
    let line = |many: &&Row| {
        let one = Case { cpus: 1, ..many.case };
        let one = rows.iter().find(|row| many.case.cpus > 1 && row.case == one)?;
        let what = format!("{}: times the rate of one CPU", many.case.name());
        Some(least(what, times(many, one), SECOND_CPU))
    };
    rows.iter().filter_map(line).collect()
}

fn chosen(rows: &[&Row]) -> Vec<Judged> {
    let auto = rows.iter().filter(|row| row.case.storing == "auto");
    auto.filter_map(|auto| {
        let same = |storing| rows.iter().find(|row| row.case == Case { storing, ..auto.case });
        let (raw, lz4) = (same("raw")?, same("lz4")?);
        let better = if write_ms(raw) < write_ms(lz4) { raw } else { lz4 };
        let what = format!("{}: of the better choice's rate", auto.case.name());
        Some(least(what, times(auto, better), OF_BETTER))
    })
    .collect()
}

/// Milliseconds per GiB of memory that the capture itself takes.
pub fn own_cost(row: &Row) -> f64 {
    over(row, |sample| ms(sample.write_ns()) / (mib(sample.memory_bytes()) / 1024.0))
}

fn flat(rows: &[&Row]) -> Option<Judged> {
    let swallowed = |row: &&&Row| (row.case.medium, row.case.storing) == (Medium::Swallow, "raw");
    let costs: Vec<f64> = rows.iter().filter(swallowed).map(|row| own_cost(row)).collect();
    if costs.len() < 2 {
        return None;
    }
    let (lowest, highest) =
        costs.iter().fold((f64::MAX, 0.0), |(low, high), &cost| (cost.min(low), cost.max(high)));
    let what = "own cost per GiB, a disk that swallows: most / least of all sizes".to_owned();
    Some(most(what, highest / lowest, FLAT, ""))
}
