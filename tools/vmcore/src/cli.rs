//! Options in, library calls, text or JSON out.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use vmcore::commands::{bt, cpus, regs};
use vmcore::{
    Dump, Error, ExtractOptions, Image, Layout, OpenOptions, Pages, SlotPlan, Source, Which,
};

/// Says what happened: reads the vmcore of an Epitaph appliance.
#[derive(Parser)]
#[command(name = "vmcore", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// As many leaves as the workload takes.
fn leaves() -> RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=hashtree::MOST_LEAVES)
}

/// Bytes from `512M`, `4G`, `1T`, or a plain number of bytes.
fn text_to_bytes(text: &str) -> Result<u64, String> {
    let shift = match text.bytes().last().map(|byte| byte.to_ascii_uppercase()) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        _ => 0,
    };
    let digits = &text[..text.len() - usize::from(shift > 0)];
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| "a size, as 512M or 4G".into())
}

#[derive(Subcommand)]
enum Command {
    /// Make a disk, a disk image or a partition a dump area, or say how large it has to be
    Prepare {
        /// The whole disk; without it, only the plan that --for asks for is printed
        #[arg(required_unless_present = "memory")]
        disk: Option<PathBuf>,
        /// This partition of it: its number or its own GUID. Its type has to be that for
        /// dumps, 7408c5f2-1103-4e04-9ea7-9a7d2a17cc31
        #[arg(long, value_name = "GUID|NUMBER")]
        partition: Option<Which>,
        /// Memory of the machine, as 512M or 4G: every slot has to have room for its dump
        #[arg(long = "for", value_name = "MEM", value_parser = text_to_bytes)]
        memory: Option<u64>,
        /// How far its dumps go
        #[arg(long, value_enum, default_value = "used", requires = "memory")]
        pages: Pages,
        /// How many dumps it holds
        #[arg(long, default_value_t = 1)]
        slots: u32,
        /// Overwrite whatever is on it
        #[arg(long, requires = "disk")]
        force: bool,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Turn a dump on a disk into an ELF core file
    Extract {
        #[command(flatten)]
        from: From,
        /// The file to write
        #[arg(short, default_value = "vmcore")]
        out: PathBuf,
        /// Leave all-zero memory out of the file; it still reads as zero
        #[arg(long)]
        elide_zero: bool,
        /// Overwrite the output
        #[arg(long)]
        force: bool,
    },
    /// What happened
    Info {
        #[command(flatten)]
        from: From,
    },
    /// Every CPU: how it was stopped, where it stood
    Cpus {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Locks: who holds which, who waits for it, and who waits for ever
    Locks {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        image: ImageArgs,
    },
    /// From the crash to the dump: every rung of the stop, every CPU's answer
    Timeline {
        #[command(flatten)]
        from: From,
    },
    /// Registers
    Regs {
        #[command(flatten)]
        from: From,
        /// Only this CPU
        #[arg(long)]
        cpu: Option<u32>,
    },
    /// Backtraces: what every CPU was doing
    Bt {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        image: ImageArgs,
        /// Only this CPU
        #[arg(long)]
        cpu: Option<u32>,
    },
    /// Hold every page of the memstamp workload against what it must be
    Stamps {
        #[command(flatten)]
        from: From,
    },
    /// The Merkle root that the hashtree workload must come to
    Hashtree {
        /// What the leaves are generated from
        #[arg(long, default_value_t = hashtree::DEFAULT_SEED)]
        seed: u64,
        /// How many leaves there are
        #[arg(long, default_value_t = hashtree::DEFAULT_LEAVES, value_parser = leaves())]
        leaves: u64,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// The last words in the text of a console, for when there is no dump
    LastWords {
        /// What the console showed
        console: PathBuf,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// The appliance's own log
    Log {
        #[command(flatten)]
        from: From,
    },
}

#[derive(Args)]
struct From {
    /// A vmcore, or a disk (image) with a dump area
    dump: PathBuf,
    /// Slot of the dump area [default: the newest sealed dump]
    #[arg(long)]
    slot: Option<u32>,
    /// Read what is good in a damaged or truncated dump
    #[arg(long)]
    partial: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ImageArgs {
    /// The crashed appliance's ELF file [default: looked for by its build-id]
    #[arg(long)]
    image: Option<PathBuf>,
}

/// Parses the command line and carries it out.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match answer(cli.command) {
        Ok(code) => code,
        // Who closed the pipe has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<Error>() {
                // Says all there is to say, its source included.
                Some(error) => {
                    eprintln!("vmcore: {error}");
                    if let Some(hint) = error.hint() {
                        eprintln!("  hint: {hint}");
                    }
                }
                None => eprintln!("vmcore: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::BrokenPipe)
}

fn answer(command: Command) -> Result<ExitCode> {
    match command {
        Command::Prepare { disk, partition, memory, pages, slots, force, json } => {
            let plan = memory.map(|memory| {
                SlotPlan::new(memory, pages, slots).context("--for: no disk is that large")
            });
            let plan = plan.transpose()?;
            let Some(disk) = disk else {
                let plan = plan.context("--for: how much memory?")?;
                return print(json, &plan, || plan.render());
            };
            let slot_bytes = plan.map_or(0, |plan| plan.slot_bytes.0);
            let layout = Layout { slots, partition, slot_bytes, force };
            let prepared = vmcore::prepare(&disk, layout)?;
            print(json, &prepared, || prepared.render())
        }
        Command::Extract { from, out, elide_zero, force } => {
            let extracted = extract(&from, &out, elide_zero, force)?;
            print(from.json, &extracted, || extracted.render(&out))
        }
        Command::Info { from } => {
            let info = vmcore::info(&from.open()?);
            print(from.json, &info, || info.render())
        }
        Command::Cpus { from, image } => {
            let dump = from.open()?;
            let states = vmcore::cpus(&dump, image.find_if_any(&dump)?.as_ref());
            print(from.json, &List { cpus: &states }, || cpus::render(&states))
        }
        Command::Locks { from, image } => {
            let dump = from.open()?;
            let locks = vmcore::locks(&dump, image.find_if_any(&dump)?.as_ref())?;
            print(from.json, &locks, || locks.render())
        }
        Command::Timeline { from } => {
            let timeline = vmcore::timeline(&from.open()?)?;
            print(from.json, &timeline, || timeline.render())
        }
        Command::Regs { from, cpu } => {
            let dump = from.open()?;
            let registers = vmcore::registers(&dump, cpu)?;
            let text = regs::render(&dump, cpu)?;
            print(from.json, &List { cpus: &registers }, || text)
        }
        Command::Bt { from, image, cpu } => {
            let dump = from.open()?;
            let image = vmcore::find_image(&dump, image.image.as_deref())?;
            let backtraces = bt::select(&dump, &image, cpu)?;
            let text = bt::render(&dump, &backtraces)?;
            print(from.json, &List { cpus: &backtraces }, || text)
        }
        Command::Stamps { from } => {
            let report = vmcore::stamps(&from.open()?)?;
            print(from.json, &report, || report.render())?;
            Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::from(3) })
        }
        Command::Hashtree { seed, leaves, json } => {
            let tree = vmcore::hashtree(seed, leaves);
            print(json, &tree, || tree.render())
        }
        Command::LastWords { console, json } => {
            let words = vmcore::last_words(&console)?;
            print(json, &words, || words.render())
        }
        Command::Log { from } => {
            let log = vmcore::log(&from.open()?)?;
            print(from.json, &log, || log.render())
        }
    }
}

impl From {
    const fn options(&self) -> OpenOptions {
        OpenOptions { slot: self.slot, partial: self.partial }
    }

    /// Opens the dump and says on stderr what is wrong with it, so that no answer stands
    /// without it.
    fn open(&self) -> Result<Dump> {
        let dump = Source::open(&self.dump)?.dump(self.options())?;
        for warning in &dump.warnings {
            eprintln!("vmcore: warning: {warning}");
        }
        Ok(dump)
    }
}

impl ImageArgs {
    /// The image, for commands that do without it; one that was named has to be right.
    fn find_if_any(&self, dump: &Dump) -> Result<Option<Image>> {
        match vmcore::find_image(dump, self.image.as_deref()) {
            Ok(image) => Ok(Some(image)),
            Err(_) if self.image.is_none() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The JSON of commands that answer for every CPU.
#[derive(Serialize)]
struct List<'a, T> {
    cpus: &'a [T],
}

fn extract(from: &From, out: &Path, elide_zero: bool, force: bool) -> Result<vmcore::Extracted> {
    /// Work shorter than this needs no progress.
    const PATIENCE: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    let mut shown = None;
    let mut progress = |done: u64, total: u64| {
        let percent = done.saturating_mul(100) / total.max(1);
        if begun.elapsed() > PATIENCE && shown != Some(percent) {
            eprint!("\r{percent:3} % of {} MiB", total >> 20);
            shown = Some(percent);
        }
    };
    let progress: Option<&mut dyn FnMut(u64, u64)> =
        if io::stderr().is_terminal() { Some(&mut progress) } else { None };
    let options = ExtractOptions { open: from.options(), elide_zero, force, progress };
    let extracted = vmcore::extract(&from.dump, out, options);
    if shown.is_some() {
        eprintln!();
    }
    Ok(extracted?)
}

/// Writes the answer in one piece.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<ExitCode> {
    let text = if json {
        serde_json::to_string_pretty(value).context("write JSON")? + "\n"
    } else {
        text()
    };
    io::stdout().write_all(text.as_bytes()).context("write the answer")?;
    Ok(ExitCode::SUCCESS)
}
