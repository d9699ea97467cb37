//! `vmcore locks`: who holds what, who waits for it, and whether that can ever end.

use std::collections::BTreeMap;

use handoff::crash::StoppedBy;
use handoff::tables::{MAX_LOCKS, NO_OWNER};
use handoff::{CpuRecord, LockRecord};
use serde::{Deserialize, Serialize};

use crate::json::Hex;
use crate::text::{self, Table, clean};
use crate::{Dump, Error, Image, Result};

/// The locks of a dump; the JSON of `vmcore locks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    /// Those that are held or waited for, then others.
    pub locks: Vec<LockInfo>,
    /// Locks there were; more than `locks` has where the record had no room for all.
    pub known: u32,
    /// Circles of CPUs in which each waits for a lock of the next, and the last for one of
    /// the first: a deadlock each.
    pub cycles: Vec<Vec<u32>>,
    /// The same in words, a sentence each.
    pub sentences: Vec<String>,
}

/// One lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockInfo {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: Hex,
    /// Whether it is held.
    pub held: bool,
    /// Index of the CPU that holds it; `null` when nobody does, or nobody known.
    pub owner: Option<u32>,
    /// Where it was acquired last; `null` when it never was.
    pub acquired: Option<Site>,
    /// From its acquisition to the crash; `null` when it is free, was acquired later, or the
    /// counter was not calibrated.
    pub held_ns: Option<u64>,
    /// Indices of the CPUs that wait for it.
    pub waiters: Vec<u32>,
    /// How often someone had to wait for it.
    pub contended: u64,
}

/// A place in the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The address behind the instruction.
    pub address: Hex,
    /// The function; `null` when the image is not at hand or does not know.
    pub function: Option<String>,
    /// Source file; `null` likewise.
    pub file: Option<String>,
    /// Line in it; `null` likewise.
    pub line: Option<u32>,
}

impl Site {
    /// The place in front of `address`. Of functions that were inlined into each other it is
    /// the innermost that is not part of the lock itself.
    pub(crate) fn find(address: u64, image: Option<&Image>) -> Self {
        let places = image.map(|image| image.places(address.wrapping_sub(1))).unwrap_or_default();
        let plumbing = |name: &str| {
            ["machine::lock::", "::identity::", "epitaph_workload::context::Context"]
                .iter()
                .any(|part| name.contains(part))
        };
        let of_caller = |place: &&crate::image::Place| {
            !place.function.as_deref().is_some_and(plumbing) || !place.inlined
        };
        let place = places.iter().find(of_caller);
        Self {
            address: Hex(address),
            function: place.and_then(|place| place.function.clone()),
            file: place.and_then(|place| place.file.clone()),
            line: place.and_then(|place| place.line),
        }
    }

    /// `FUNCTION FILE:LINE`, or the address where nothing is known of it.
    fn text(&self) -> String {
        let Some(function) = &self.function else { return format!("{:#x}", self.address.0) };
        match (&self.file, self.line) {
            (Some(file), Some(line)) => format!("{} {}:{line}", clean(function), clean(file)),
            _ => clean(function),
        }
    }
}

/// The locks of a dump; places are named when the image is at hand.
///
/// # Errors
/// When the dump has no record of them.
pub fn locks(dump: &Dump, image: Option<&Image>) -> Result<Locks> {
    let handoff = dump.handoff.as_deref();
    if dump.locks.is_empty() {
        let why = match handoff {
            Some(handoff) if handoff.version < 2 => "it is of version 1, which had none",
            Some(_) => "the table was lost, or no lock was ever taken",
            None => "the hand-off that vouches for it was lost",
        };
        return Err(Error::NotInDump(format!("the dump has no record of locks: {why}")));
    }
    if dump.locks.len() > MAX_LOCKS {
        let what = format!(
            "the table of locks has {} records, where {MAX_LOCKS} are the most",
            dump.locks.len()
        );
        return Err(Error::damaged(dump.path(), what));
    }
    let crash = handoff.map_or(0, |handoff| handoff.cause.tsc);
    let info = |record: &LockRecord| {
        let held = record.held != 0;
        let since = crash.checked_sub(record.acquired_tsc).filter(|_| held);
        LockInfo {
            name: record.name().into(),
            address: Hex(record.address),
            held,
            owner: Some(record.owner).filter(|&owner| held && owner != NO_OWNER),
            acquired: (record.acquired_at != 0).then(|| Site::find(record.acquired_at, image)),
            held_ns: since.and_then(|ticks| dump.nanoseconds(ticks)),
            waiters: record.waiters().collect(),
            contended: record.contended,
        }
    };
    let locks: Vec<LockInfo> = dump.locks.iter().map(info).collect();
    let cycles = cycles(&locks);
    let sentences = sentences(dump, &locks, &cycles);
    let known = handoff.map_or(0, |handoff| handoff.locks_known).max(locks.len() as u32);
    Ok(Locks { locks, known, cycles, sentences })
}

/// The lock that each CPU waits for; of several in a damaged table the first.
fn all_awaited(locks: &[LockInfo]) -> BTreeMap<u32, &LockInfo> {
    let waits = locks.iter().flat_map(|lock| lock.waiters.iter().map(move |&cpu| (cpu, lock)));
    // Of equal keys the last one stays.
    waits.collect::<Vec<_>>().into_iter().rev().collect()
}

/// Every circle of waits, once, beginning with its lowest CPU.
fn cycles(locks: &[LockInfo]) -> Vec<Vec<u32>> {
    let mut found: Vec<Vec<u32>> = Vec::new();
    let awaited = all_awaited(locks);
    for &start in awaited.keys() {
        let mut path = vec![start];
        let mut at = start;
        // A CPU waits for one lock and a lock has one owner: the way on is never a choice.
        while let Some(next) = awaited.get(&at).and_then(|lock| lock.owner) {
            if next == start {
                let lowest = path.iter().min().copied();
                let place = path.iter().position(|cpu| Some(*cpu) == lowest);
                path.rotate_left(place.unwrap_or(0));
                if !found.contains(&path) {
                    found.push(path);
                }
                break;
            }
            if path.contains(&next) {
                break;
            }
            path.push(next);
            at = next;
        }
    }
    found
}

/// What became of a CPU, as the end of a sentence about it.
fn fate(record: &CpuRecord) -> String {
    let after = match record.latency_ns {
        u64::MAX => String::new(),
        latency => format!(" after {}", text::nanoseconds(latency)),
    };
    match record.stopped_by {
        StoppedBy::CRASH => "which crashed".into(),
        StoppedBy::IRQ => format!("stopped by interrupt{after}"),
        StoppedBy::NMI => format!("stopped by NMI{after}"),
        StoppedBy::INIT => format!("stopped by INIT{after}"),
        StoppedBy::SELF => "which stopped itself".into(),
        StoppedBy::NOT_STOPPED => "which could not be stopped".into(),
        _ => "of which no more is known".into(),
    }
}

fn sentences(dump: &Dump, locks: &[LockInfo], cycles: &[Vec<u32>]) -> Vec<String> {
    let mut sentences = Vec::new();
    let awaited = all_awaited(locks);
    for cycle in cycles {
        let step = |(place, &cpu): (usize, &u32)| {
            let lock = awaited.get(&cpu).map_or("?".into(), |lock| clean(&lock.name));
            let owner = cycle[(place + 1) % cycle.len()];
            format!("waits for `{lock}`, held by CPU {owner}")
        };
        let steps: Vec<String> = cycle.iter().enumerate().map(step).collect();
        sentences.push(format!("deadlock: CPU {} {}", cycle[0], steps.join(", which ")));
    }
    for lock in locks.iter().filter(|lock| lock.held || !lock.waiters.is_empty()) {
        let name = clean(&lock.name);
        let holder = lock.owner.map(|owner| {
            let site = lock.acquired.as_ref().map_or(String::new(), Site::text);
            let fate = dump.cpu(owner).map_or_else(|_| "which has no record".into(), fate);
            format!("held by CPU {owner} (acquired at {site}), {fate}")
        });
        let held = match (&holder, lock.held) {
            (Some(holder), _) => holder.clone(),
            (None, true) => "held by an unknown CPU".into(),
            (None, false) => "which is free".into(),
        };
        if lock.waiters.is_empty() {
            sentences.push(format!("`{name}` is {held}; nobody waits for it"));
        }
        for cpu in &lock.waiters {
            sentences.push(format!("CPU {cpu} waits for `{name}`, {held}"));
        }
    }
    sentences
}

impl Locks {
    /// Sentences and table for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for sentence in &self.sentences {
            out += sentence;
            out.push('\n');
        }
        if self.sentences.is_empty() {
            out += "No lock is held, and nobody waits for one.\n";
        }
        out.push('\n');
        let headings = ["lock", "address", "holder", "for", "waiting", "waits", "acquired last at"];
        let mut table = Table::new(&headings, &[3, 5]);
        for lock in &self.locks {
            let waiters: Vec<String> = lock.waiters.iter().map(u32::to_string).collect();
            table.row(vec![
                clean(&lock.name),
                format!("{:#018x}", lock.address.0),
                match (lock.owner, lock.held) {
                    (Some(owner), _) => format!("CPU {owner}"),
                    (None, true) => "?".into(),
                    (None, false) => "free".into(),
                },
                lock.held_ns.map_or("-".into(), text::nanoseconds),
                if waiters.is_empty() { "-".into() } else { format!("CPU {}", waiters.join(", ")) },
                lock.contended.to_string(),
                lock.acquired.as_ref().map_or("-".into(), Site::text),
            ]);
        }
        table.write(&mut out, "");
        let left = self.known as usize - self.locks.len();
        if left > 0 {
            out += &format!("{} more, neither held nor waited for\n", left);
        }
        out
    }
}
