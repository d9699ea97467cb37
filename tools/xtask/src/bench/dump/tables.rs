//! What was measured, as tables.

use std::fmt::Write;

use super::case::Medium;
use super::targets::{judge, own_cost};
use super::{Row, ms, of_raw, over, sealed};
use crate::bench::host::Host;
use crate::bench::table::Table;
use crate::bench::{mib, rate};

/// All of it.
pub fn report(rows: &[Row], host: &Host, runs: u32) -> String {
    let loads = rows.iter().flat_map(|row| row.samples.iter().map(|sample| sample.load));
    let (least, most) =
        loads.fold((f64::MAX, 0.0), |(low, high), load| (load.min(low), f64::max(load, high)));
    let mut text = format!(
        "{}.\nMedians of {runs} boots of each row; load of the host {least:.1} to {most:.1}. \
         Times in ms from the crash.\n`fill`: what LZ4 makes of 90 % of memory. `swallows`: a \
         disk that keeps nothing.\n`counted`: on a machine whose clock counts instructions, one a \
         nanosecond.\n\n",
        host.describe()
    );
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}", captures(rows));
    let _ = writeln!(text, "{}", beside_host(rows));
    let _ = writeln!(text, "{}", costs(rows));
    let _ = write!(text, "{}", targets(rows));
    let skipped = rows.iter().filter(|row| row.samples.is_empty());
    for row in skipped {
        let _ =
            writeln!(text, "\nnot measured, for want of memory on the host: {}", row.case.name());
    }
    text
}

fn measured(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| !row.samples.is_empty())
}

fn captures(rows: &[Row]) -> Table {
    let head = [
        "disk",
        "dump=",
        "fill",
        "MiB",
        "CPUs",
        "mini",
        "used",
        "all",
        "memory, MiB",
        "stored, MiB",
        "MiB/s",
        "raw MiB/s",
        "stored / raw rate",
        "checksums, MiB/s",
        "region, MiB",
    ];
    let mut table = Table::new(3, &head);
    for row in measured(rows) {
        let if_raw = |text: String| if row.case.storing == "raw" { text } else { String::new() };
        let memory = |text: f64| format!("{text:.0}");
        table.row(vec![
            row.case.medium.name(),
            row.case.storing.to_owned(),
            row.case.fill.name().to_owned(),
            (row.case.memory >> 20).to_string(),
            row.case.cpus.to_string(),
            format!("{:.1}", over(row, |sample| sealed(sample, "mini"))),
            memory(over(row, |sample| sealed(sample, "used"))),
            memory(over(row, |sample| sealed(sample, "all"))),
            memory(over(row, |sample| mib(sample.memory_bytes()))),
            memory(over(row, |sample| mib(sample.stored_bytes()))),
            memory(over(row, |sample| rate(sample.memory_bytes(), sample.write_ns()))),
            if_raw(memory(over(row, |sample| rate(sample.raw_bytes, sample.raw_ns)))),
            if_raw(format!("{:.2}", over(row, of_raw))),
            memory(over(row, |sample| sample.checksums)),
            format!("{:.1}", over(row, |sample| mib(sample.region_bytes))),
        ]);
    }
    table
}

fn beside_host(rows: &[Row]) -> Table {
    let head = [
        "dump=",
        "fill",
        "MiB",
        "CPUs",
        "crash to `all`",
        "dump-guest-memory",
        "of it",
        "migrate, mapped-ram",
        "of it",
    ];
    let mut table = Table::new(2, &head);
    for row in measured(rows).filter(|row| row.case.medium == Medium::Host) {
        let core = |sample: &super::Sample| sample.core_ns.map_or(f64::NAN, ms);
        let mapped = |sample: &super::Sample| sample.mapped_ns.map_or(f64::NAN, ms);
        let of = |host: &dyn Fn(&super::Sample) -> f64| {
            format!("{:.2}", over(row, |sample| ms(sample.sealed_ns()) / host(sample)))
        };
        table.row(vec![
            row.case.storing.to_owned(),
            row.case.fill.name().to_owned(),
            (row.case.memory >> 20).to_string(),
            row.case.cpus.to_string(),
            format!("{:.0}", over(row, |sample| ms(sample.sealed_ns()))),
            format!("{:.0}", over(row, core)),
            of(&core),
            format!("{:.0}", over(row, mapped)),
            of(&mapped),
        ]);
    }
    table
}

fn costs(rows: &[Row]) -> Table {
    let head =
        ["disk", "dump=", "MiB", "CPUs", "own cost, ms per GiB", "of it sending, ms per GiB"];
    let mut table = Table::new(2, &head);
    for row in measured(rows).filter(|row| row.case.medium == Medium::Swallow) {
        let sending = over(row, |sample| ms(sample.raw_ns) / (mib(sample.raw_bytes) / 1024.0));
        table.row(vec![
            row.case.medium.name(),
            row.case.storing.to_owned(),
            (row.case.memory >> 20).to_string(),
            row.case.cpus.to_string(),
            format!("{:.1}", own_cost(row)),
            format!("{sending:.1}"),
        ]);
    }
    table
}

fn targets(rows: &[Row]) -> Table {
    let mut table = Table::new(4, &["target", "found", "wanted", ""]);
    for judged in judge(rows) {
        let met = if judged.met { "met" } else { "MISSED" };
        table.row(vec![judged.what, judged.found, judged.wanted, met.to_owned()]);
    }
    table
}
