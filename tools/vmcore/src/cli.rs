//! Options in, library calls, text or JSON out.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use vmcore::commands::trace::Selection;
use vmcore::commands::{bt, cpus, regs};
use vmcore::json::Versioned;
use vmcore::{
    Dump, Error, Layout, OpenOptions, Pages, SlotPlan, Source, Watch, Which, WipeOptions,
};

use image_args::ImageArgs;
use meter::metered;
use reading::{Answer, List, about};
use values::{leaves, text_to_bytes};

mod disks;
mod image_args;
mod meter;
mod reading;
mod values;

/// Says what happened: reads the vmcore of an Epitaph appliance.
#[derive(Parser)]
#[command(name = "vmcore", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a disk, a disk image or a partition a dump area, or say how large it has to be
    ///
    /// Without --force a place that holds anything is refused, as far as a short look can tell:
    /// the first and the last MiB, the records of each slot (64 KiB) and 64 blocks spread over
    /// the whole have to be zero, and no signature of a known format may be there. Data that lies
    /// between those blocks is not seen.
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
        /// Overwrite whatever is on it, without a look
        #[arg(long, requires = "disk")]
        force: bool,
        /// Make a dump area of an older version one of the newest: as many slots, the same
        /// identity, the crash record kept. Refused while a slot holds a dump that nobody has
        /// collected, or one that cannot be read; dumps that were collected are gone after it
        #[arg(long, requires = "disk", conflicts_with_all = ["force", "slots", "memory"])]
        upgrade: bool,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a dump area from a disk or a partition: headers, records and seals
    ///
    /// The memory in the dumps stays where it is, unless --all is given. wipefs does not know
    /// dump areas. Refused while a slot holds a dump that was not collected.
    Wipe {
        /// The disk, or its image
        disk: PathBuf,
        /// The area in this partition of it: its number or its own GUID
        #[arg(long, value_name = "GUID|NUMBER")]
        partition: Option<Which>,
        /// Overwrite all of the area with zeros, the memory in the dumps included
        #[arg(long)]
        all: bool,
        /// Remove dumps that were not collected as well, and with --all whatever else is there
        #[arg(long)]
        force: bool,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Turn a dump on a disk into an ELF core file
    ///
    /// The file is readable by its owner only. With --partial, memory that is damaged or cut off
    /// is left out and listed; the rest is written.
    ///
    /// Exit codes: 0 the dump is written; 1 it is not; 2 the question was wrong; 3 it is written,
    /// and lacks what is damaged.
    #[command(verbatim_doc_comment)]
    Extract {
        #[command(flatten)]
        from: From,
        /// The file to write
        #[arg(short, default_value = "vmcore")]
        out: PathBuf,
        /// Leave all-zero memory out of the file rather than as holes in it: a shorter file,
        /// which gdb reads and drgn and lldb do not
        #[arg(long)]
        elide_zero: bool,
        /// Replace the output if there is one; a link is replaced, not followed
        #[arg(long)]
        force: bool,
    },
    /// Compute every checksum of a dump
    ///
    /// A core file that `extract` or `collect` has made carries the checksums of its memory.
    ///
    /// Exit codes: 0 everything is as it was sealed, 1 there is no dump, or it has no checksums
    /// and cannot be verified, 2 the question was wrong, 3 something does not match, 4 nothing is
    /// damaged and half of the dump is on a disk that was not given (--with).
    #[command(verbatim_doc_comment)]
    Verify {
        #[command(flatten)]
        from: From,
    },
    /// Take every dump off disks that nobody has taken yet
    ///
    /// Each is verified, written to DIR as YYYYMMDDTHHMMSSZ-BUILDID8.core, readable by its
    /// owner only, and marked as collected: its slot may be used again. A disk that a machine
    /// holds is refused, and does not stop the others. A dump that two disks shared is taken
    /// when both are given.
    ///
    /// A damaged dump is left and keeps its slot. With --salvage, what is good of it is written
    /// to a file that ends in .salvaged.core, and its slot may be used again.
    ///
    /// Exit codes: 0 all there was is taken, none included; 1 a disk cannot be read or is in
    /// use, the others are done; 2 the question was wrong; 3 a dump is damaged, or half of it
    /// is missing, or it is not known whether there is one.
    #[command(verbatim_doc_comment)]
    Collect {
        /// The disks, or their images
        #[arg(required = true)]
        disks: Vec<PathBuf>,
        /// Where the cores go
        #[arg(short, value_name = "DIR")]
        out: PathBuf,
        /// Take what is good of damaged dumps as well, and free their slots
        #[arg(long)]
        salvage: bool,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait for a machine to crash, then take its dump
    ///
    /// The machine needs `-device pvpanic` and a QMP socket of its own for this, such as
    /// `-qmp unix:PATH,server=on,wait=off`. A dump is taken when it is sealed, and marked as
    /// collected when the machine has ended.
    ///
    /// Exit codes: as for collect; 3 also when a crash left no dump, or a hook failed.
    #[command(verbatim_doc_comment)]
    Watch {
        /// The machine's QMP socket
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// A disk of the machine; repeatable [default: those that QEMU names]
        #[arg(long)]
        disk: Vec<PathBuf>,
        /// Where the cores go
        #[arg(short, value_name = "DIR")]
        out: PathBuf,
        /// A shell command for each core: its path is in EPITAPH_CORE, what is known of it
        /// as JSON in EPITAPH_SUMMARY
        #[arg(long, value_name = "COMMAND")]
        hook: Option<String>,
        /// End after the first crash instead of with the machine
        #[arg(long)]
        once: bool,
        /// Seconds a dump may take before what is sealed of it is taken
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        patience: u64,
        /// Answer in JSON at the end; until then, what happens is said on stderr
        #[arg(long)]
        json: bool,
    },
    /// What happened
    Info {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        image: ImageArgs,
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
    /// What every CPU did last: interrupts, locks, units of work, the stop
    Trace {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        image: ImageArgs,
        /// Only this CPU
        #[arg(long)]
        cpu: Option<u32>,
        /// Only so many of the latest events [default: all there are]
        #[arg(long)]
        last: Option<usize>,
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
    ///
    /// Lines that a terminal has wrapped or a logger has prefixed are joined again.
    ///
    /// Exit codes: 0 all of them arrived; 1 there are none; 2 the question was wrong; 3 lines
    /// are missing, and are named.
    #[command(verbatim_doc_comment)]
    LastWords {
        /// What the console showed: a file, a pipe, or - for standard input
        console: PathBuf,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a small vmcore of the last words in the text of a console
    ///
    /// Exit codes: 0 all of them arrived; 1 there are none, or they name no CPU; 2 the
    /// question was wrong; 3 lines are missing, and the core holds what arrived.
    #[command(verbatim_doc_comment)]
    FromConsole {
        /// What the console showed: a file, a pipe, or - for standard input
        console: PathBuf,
        /// The file to write
        #[arg(short, default_value = "vmcore")]
        out: PathBuf,
        /// Overwrite the output
        #[arg(long)]
        force: bool,
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
    /// The other disk of a dump that two disks shared
    #[arg(long, value_name = "DISK")]
    with: Vec<PathBuf>,
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

/// Parses the command line and carries it out.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match answer(cli.command) {
        Ok(code) => code,
        // Who closed the pipe has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says on stderr why there is no answer, and what to do about it.
fn complain(error: &anyhow::Error) {
    match error.downcast_ref::<Error>() {
        // Says all there is to say, its source included.
        Some(error) => tell(&error.to_string(), error.hint()),
        None => say(&format!("{error:#}")),
    }
}

/// Says on stderr what went wrong, and what to do about it.
fn tell(what: &str, hint: Option<&str>) {
    say(what);
    if let Some(hint) = hint {
        eprintln!("  hint: {hint}");
    }
}

/// Says a line on stderr; what files have in it cannot steer the terminal.
fn say(line: &str) {
    eprintln!("vmcore: {}", vmcore::printable(line));
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::BrokenPipe)
}

fn answer(command: Command) -> Result<ExitCode> {
    match command {
        Command::Prepare { disk: Some(disk), partition, upgrade: true, json, .. } => {
            let upgraded = metered(|meter| vmcore::upgrade(&disk, partition, meter))?;
            print(json, &upgraded, || upgraded.render())
        }
        Command::Wipe { disk, partition, all, force, json } => {
            let options = WipeOptions { partition, all, force };
            let wiped = metered(|meter| vmcore::wipe(&disk, options, meter))?;
            print(json, &wiped, || wiped.render())
        }
        Command::Prepare { disk, partition, memory, pages, slots, force, json, upgrade: _ } => {
            let plan = memory.map(|memory| {
                SlotPlan::new(memory, pages, slots).context("--for: no disk is that large")
            });
            let plan = plan.transpose()?;
            let Some(disk) = disk else {
                let plan = plan.context("--for: how much memory?")?;
                return print(json, &plan, || plan.render());
            };
            let slot_bytes = plan.map_or(0, |plan| plan.slot_bytes);
            let layout = Layout { slots, partition, slot_bytes, force };
            let prepared = metered(|meter| vmcore::prepare_with(&disk, layout, meter))?;
            print(json, &prepared, || prepared.render())
        }
        Command::Extract { from, out, elide_zero, force } => {
            disks::extract(&from, &out, elide_zero, force)
        }
        Command::Verify { from } => disks::verify(&from),
        Command::Collect { disks, out, salvage, json } => {
            disks::collect(&disks, &out, salvage, json)
        }
        Command::Watch { qmp, disk, out, hook, once, patience, json } => {
            let patience = Duration::from_secs(patience);
            let watch = Watch { qmp, disks: disk, folder: out, hook, once, patience };
            let mut said = |line: &str| say(line);
            let watched = metered(|meter| vmcore::watch(&watch, &mut said, meter))?;
            print(json, &watched, || watched.render())?;
            Ok(verdict(watched.is_good()))
        }
        Command::Info { from, image } => about(&from, |dump| {
            image.warn_of_another(dump);
            let info = vmcore::info(dump);
            let text = info.render();
            Ok(Answer::new(info, text))
        }),
        Command::Cpus { from, image } => about(&from, |dump| {
            let states = vmcore::cpus(dump, image.find_if_any(dump)?.as_ref());
            let text = cpus::render(&states);
            Ok(Answer::new(List { cpus: states }, text))
        }),
        Command::Locks { from, image } => about(&from, |dump| {
            let locks = vmcore::locks(dump, image.find_if_any(dump)?.as_ref())?;
            let text = locks.render();
            Ok(Answer::new(locks, text))
        }),
        Command::Timeline { from } => about(&from, |dump| {
            let timeline = vmcore::timeline(dump)?;
            let text = timeline.render();
            Ok(Answer::new(timeline, text))
        }),
        Command::Trace { from, image, cpu, last } => about(&from, |dump| {
            let image = image.find_if_any(dump)?;
            let trace = vmcore::trace(dump, image.as_ref(), Selection { cpu, last })?;
            let text = trace.render();
            Ok(Answer::new(trace, text))
        }),
        Command::Regs { from, cpu } => about(&from, |dump| {
            let cpus = vmcore::registers(dump, cpu)?;
            Ok(Answer::new(List { cpus }, regs::render(dump, cpu)?))
        }),
        Command::Bt { from, image, cpu } => about(&from, |dump| {
            let image = image.find(dump)?;
            let cpus = bt::select(dump, &image, cpu)?;
            let text = bt::render(dump, &cpus)?;
            Ok(Answer::new(List { cpus }, text))
        }),
        Command::Stamps { from } => about(&from, |dump| {
            let report = vmcore::stamps(dump)?;
            let (text, good) = (report.render(), report.is_good());
            Ok(Answer { value: report, text, good })
        }),
        Command::Hashtree { seed, leaves, json } => {
            let tree = vmcore::hashtree(seed, leaves);
            print(json, &tree, || tree.render())
        }
        Command::LastWords { console, json } => {
            let words = vmcore::last_words(&console)?;
            print(json, &words, || words.render())?;
            Ok(verdict(words.is_good()))
        }
        Command::FromConsole { console, out, force, json } => {
            let made = vmcore::from_console(&console, &out, force)?;
            print(json, &made, || made.render(&out))?;
            Ok(verdict(made.is_good()))
        }
        Command::Log { from } => about(&from, |dump| {
            let log = vmcore::log(dump)?;
            let text = log.render();
            Ok(Answer::new(log, text))
        }),
    }
}

impl From {
    const fn options(&self) -> OpenOptions {
        OpenOptions { slot: self.slot, partial: self.partial }
    }

    /// Opens the dump and says on stderr what is wrong with it, so that no answer stands
    /// without it.
    fn open(&self) -> Result<Dump> {
        let dump = Source::open_with(&self.dump, &self.with)?.dump(self.options())?;
        for warning in &dump.warnings {
            say(&format!("warning: {warning}"));
        }
        Ok(dump)
    }
}

/// Good, or given and bad.
fn verdict(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::from(3) }
}

/// Writes the answer in one piece; what files have in it cannot steer the terminal.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<ExitCode> {
    let text = if json {
        let text = serde_json::to_string_pretty(&Versioned::new(value)).context("write JSON")?;
        vmcore::printable_json(&text) + "\n"
    } else {
        vmcore::printable(&text())
    };
    io::stdout().write_all(text.as_bytes()).context("write the answer")?;
    Ok(ExitCode::SUCCESS)
}
