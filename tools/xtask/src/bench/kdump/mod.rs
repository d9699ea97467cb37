//! `cargo xtask bench kdump`: from the crash to the flushed dump, beside Linux kdump on the
//! same virtual machine.
//!
//! Both guests have the same memory, processors and disk: virtio, a file of the host that was
//! written before, behind the host's page cache, flushed at the end. Both clocks are the
//! host's: they start when the guest's console says that it panics, and stop when it says that all
//! is written and flushed. Boots of both alternate.
//!
//! Linux is Debian's kernel with a busybox around it, so its capture kernel starts nothing but
//! the dump: a distribution's own takes longer.

mod initramfs;
mod linux;
mod ours;
mod packages;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use e2e::harness::{self, parse_size};
use serde::{Deserialize, Serialize};

use self::linux::Linux;
use super::dump::prepare_file;
use super::host::Host;
use super::journal::{Journal, Wanted};
use super::table::Table;
use super::{median, mib, sorted};
use crate::step::step;
use crate::{build, setup};

/// Of the time kdump takes, ours at most.
const WANTED: f64 = 1.0 / 20.0;
/// What is reserved for the capture image, in bytes.
const OURS_RESERVED: u64 = 8 << 20;
/// Room for the dump's headers, in bytes.
const SLACK: u64 = 64 << 20;

/// What is measured.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub struct Arguments {
    /// Boots of every row; every figure is the median over them
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Virtual CPUs
    #[arg(long, default_value_t = 4)]
    cpus: u32,
    /// Memory, as 512M or 2G
    #[arg(long, default_value = "1G", value_parser = parse_size)]
    mem: u64,
    /// What Linux reserves for its capture kernel: Debian's default
    #[arg(long, default_value = "128M", value_parser = parse_size)]
    reserve: u64,
    /// Smaller reservations, to be tried once each
    #[arg(long, value_delimiter = ',', default_value = "80M,72M", value_parser = parse_size)]
    try_reserve: Vec<u64>,
    /// One boot of every row with 512 MiB: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Go on where the last measurement stopped
    #[arg(long)]
    resume: bool,
    /// Where results and packages go [default: target/bench/kdump]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

const HELP: &str = "\
Needs Debian's apt: a kernel, kexec-tools, makedumpfile, busybox and their libraries are
downloaded once, some 35 MB, and unpacked below DIR; nothing is installed.

Every boot's result is appended to DIR/results.jsonl; the table goes to DIR/report.md and all
figures to DIR/figures.json. It wants the host to itself.

Examples:
  cargo xtask bench kdump --quick     some minutes
  cargo xtask bench kdump             five minutes
  cargo xtask bench kdump --mem 4G";

/// What both guests run on.
pub struct Machines {
    /// Virtual CPUs.
    cpus: u32,
    /// Bytes.
    memory: u64,
}

/// What one boot came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// From the panic until the dump begins.
    pub begins_ns: u64,
    /// From the panic until it is flushed.
    pub flushed_ns: u64,
    /// Bytes of memory in it, or for makedumpfile those it chose from.
    pub bytes: u64,
    /// Bytes on the disk for them.
    pub stored_bytes: u64,
    /// By the guest's own clock, from the crash to the last seal.
    pub guest_ns: Option<u64>,
    /// The host's load when it began.
    pub load: f64,
}

/// A way to be dumped.
#[derive(Debug, Clone, Copy)]
enum Way {
    Linux(linux::Way, u64),
    Ours(ours::Way),
}

/// A row: its name, and what is done for it.
struct Row {
    name: String,
    way: Way,
}

/// Everything there is to know of a measurement.
#[derive(Serialize)]
struct Figures<'a> {
    host: &'a Host,
    memory_bytes: u64,
    cpus: u32,
    packages: &'a [String],
    rows: Vec<(String, Vec<Sample>)>,
    reservations: &'a [(u64, Option<Sample>, String)],
}

/// Ours with what nobody asked it to do differently, and as much of memory in use as in Linux.
const OURS_DEFAULT: ours::Way =
    ours::Way { words: "workload=memstamp,repeat=1,percent=60", last: "used" };
/// The same with as much of memory in use as can be.
const OURS_MOST: ours::Way = ours::Way { words: "workload=memstamp,repeat=1", last: "used" };
/// The same with a workload that takes little memory.
const OURS_LITTLE: ours::Way = ours::Way { words: "workload=sieve", last: "used" };
/// The second with nothing of the workload's own: what makedumpfile leaves out as well.
const OURS_MINI: ours::Way =
    ours::Way { words: "workload=memstamp,repeat=1 pages=mini", last: "mini" };
/// Ours with all memory as it is.
const OURS_FULL: ours::Way =
    ours::Way { words: "workload=memstamp,repeat=1 pages=all dump=raw", last: "all" };

/// Measures and prints.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.runs == 0 {
        bail!("--runs: at least one");
    }
    setup::ensure()?;
    step("build the images", build::quiet)?;
    let host = Host::look()?;
    let folder = arguments.out.clone();
    let folder = folder.unwrap_or_else(|| harness::target_dir().join("bench").join("kdump"));
    let packages = step("Linux and its tools", || packages::fetch(&folder))?;
    let default = Linux::make(&packages, linux::Way::Default, &folder)?;
    let full = Linux::make(&packages, linux::Way::Full, &folder)?;
    let (memory, runs) =
        if arguments.quick { (512 << 20, 1) } else { (arguments.mem, arguments.runs) };
    let machines = Machines { cpus: arguments.cpus, memory };
    let row = |name: &str, way| Row { name: name.to_owned(), way };
    let rows = [
        row("kdump, default", Way::Linux(linux::Way::Default, arguments.reserve)),
        row("Epitaph, default", Way::Ours(OURS_DEFAULT)),
        row("Epitaph, default, 90 % of memory in use", Way::Ours(OURS_MOST)),
        row("Epitaph, default, little in use", Way::Ours(OURS_LITTLE)),
        row("Epitaph, pages=mini, 90 % of memory in use", Way::Ours(OURS_MINI)),
        row("kdump, full", Way::Linux(linux::Way::Full, arguments.reserve)),
        row("Epitaph, full", Way::Ours(OURS_FULL)),
    ];
    let settings = format!(
        "{} virtual CPUs, {} MiB, {} MiB reserved\n{}\n{}\n",
        machines.cpus,
        memory >> 20,
        arguments.reserve >> 20,
        host.describe(),
        packages.list.join("\n"),
    );
    let mut journal = Journal::<Sample>::open(folder.clone(), &settings, arguments.resume)?;
    let wanted: Vec<Wanted> = (1..=runs)
        .flat_map(|run| rows.iter().map(move |row| Wanted::new(&row.name, run)))
        .collect();
    let disk = folder.join("disk.img");
    journal.fill(&wanted, |wanted| {
        let found = rows.iter().find(|row| row.name == wanted.row);
        let Some(row) = found else { bail!("no row is named {}", wanted.row) };
        match row.way {
            Way::Ours(way) => ours::measure(&machines, way),
            Way::Linux(way, reserved) => {
                prepare_file(&disk, memory + SLACK)?;
                let linux = if way == linux::Way::Full { &full } else { &default };
                linux.measure(&machines, reserved, &disk)
            }
        }
    })?;
    let mut reservations = Vec::new();
    for &reserved in &arguments.try_reserve {
        let name = format!("kdump with {} MiB reserved", reserved >> 20);
        reservations.push(step(&name, || attempt(&default, &machines, reserved, &disk))?);
    }
    // Linux leaves it; there is none when everything was measured before.
    if disk.is_file() {
        std::fs::remove_file(&disk)?;
    }
    let samples =
        |row: &Row| -> Vec<Sample> { journal.of(&row.name).into_iter().cloned().collect() };
    let rows: Vec<_> = rows.iter().map(|row| (row.name.clone(), samples(row))).collect();
    let figures = Figures {
        host: &host,
        memory_bytes: memory,
        cpus: machines.cpus,
        packages: &packages.list,
        rows,
        reservations: &reservations,
    };
    let text = report(&figures, arguments.reserve, [&default, &full]);
    journal.report(&text, &figures)?;
    Ok(ExitCode::SUCCESS)
}

/// One boot whose capture kernel may fail, and how it ended in a few words.
fn attempt(
    linux: &Linux,
    machines: &Machines,
    reserved: u64,
    disk: &Path,
) -> Result<(u64, Option<Sample>, String)> {
    prepare_file(disk, machines.memory + SLACK)?;
    Ok(match linux.measure(machines, reserved, disk) {
        Ok(sample) => (reserved, Some(sample), "dumped".to_owned()),
        // Why there is nothing is on the console: the last thing the capture kernel said.
        Err(error) => match linux::why_no_dump()? {
            Some(why) => (reserved, None, format!("no dump: {why}")),
            None => return Err(error),
        },
    })
}

fn report(figures: &Figures<'_>, reserved: u64, linux: [&Linux; 2]) -> String {
    let all = || figures.rows.iter().flat_map(|(_, samples)| samples);
    let (least, most) = all().fold((f64::MAX, 0.0), |(low, high): (f64, f64), sample| {
        (low.min(sample.load), high.max(sample.load))
    });
    let seconds = |name: &str, value: &dyn Fn(&Sample) -> f64| {
        let samples = figures.rows.iter().find(|(row, _)| row == name).map(|(_, samples)| samples);
        let values = samples.map(|samples| samples.iter().map(value).collect());
        values.map_or(f64::NAN, |values| median(&sorted(values)))
    };
    let flushed = |name: &str| seconds(name, &|sample| sample.flushed_ns as f64 / 1e9);
    let head = [
        "",
        "reserved, MiB",
        "dump begins, s",
        "flushed, s",
        "memory, MiB",
        "stored, MiB",
        "of kdump",
        "wanted",
    ];
    let mut table = Table::new(1, &head);
    for (name, samples) in &figures.rows {
        let full = name.ends_with("full");
        let theirs = flushed(if full { "kdump, full" } else { "kdump, default" });
        let ours = !name.starts_with("kdump");
        let ratio = flushed(name) / theirs;
        let met = if ratio <= WANTED { "met" } else { "MISSED" };
        let if_ours = |text: String| if ours { text } else { String::new() };
        let (bytes, stored) =
            samples.first().map_or((0, 0), |sample| (sample.bytes, sample.stored_bytes));
        table.row(vec![
            name.clone(),
            (if ours { OURS_RESERVED } else { reserved } >> 20).to_string(),
            format!("{:.3}", seconds(name, &|sample| sample.begins_ns as f64 / 1e9)),
            format!("{:.3}", flushed(name)),
            format!("{:.0}", mib(bytes)),
            format!("{:.0}", mib(stored)),
            if_ours(format!("1/{:.0}", 1.0 / ratio)),
            if_ours(format!("≤ 1/{:.0}: {met}", 1.0 / WANTED)),
        ]);
    }
    let mut text = format!(
        "{}.\n{} virtual CPUs, {} MiB; medians of {} boots of each row; load of the host \
         {least:.1} to {most:.1}.\nSeconds from the panic on the console, by the host's \
         clock. `kdump, default` is makedumpfile -l -d 31, which chooses from so much memory;\n\
         `kdump, full` is dd from /proc/vmcore past the page cache. The initramfs of its capture \
         kernel: {} and {} KiB.\n\n{table}\n",
        figures.host.describe(),
        figures.cpus,
        figures.memory_bytes >> 20,
        figures.rows.first().map_or(0, |(_, samples)| samples.len()),
        linux[0].capture_bytes >> 10,
        linux[1].capture_bytes >> 10,
    );
    let mut tried = Table::new(2, &["kdump, default, with so much reserved", "how it ended", "s"]);
    for (reserved, sample, how) in figures.reservations {
        let time = sample.as_ref().map(|sample| format!("{:.2}", sample.flushed_ns as f64 / 1e9));
        let reserved = format!("{} MiB", reserved >> 20);
        tried.row(vec![reserved, how.clone(), time.unwrap_or_default()]);
    }
    text.push_str(&tried.to_string());
    text
}
