//! `vmcore trace`: what every CPU did last, by the flight recorder.

use handoff::crash::{CauseKind, RungSignal, StoppedBy};
use handoff::trace::{EventKind, RING_MAGIC};
use handoff::{RingHeader, TraceEvent};
use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use super::locks::Site;
use crate::dump::{Memory, MemoryFault};
use crate::json::Hex;
use crate::text::{self, Table, clean};
use crate::{Dump, Error, Image, Result};

/// Largest ring believed, in bytes.
const RING_LIMIT: u32 = 64 << 20;

/// Most events answered with: those of 512 CPUs with rings of 64 KiB.
const MOST_EVENTS: usize = 1 << 20;

/// What to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// Only this CPU.
    pub cpu: Option<u32>,
    /// Only so many of the latest events.
    pub last: Option<usize>,
}

/// The events of all CPUs; the JSON of `vmcore trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The events, the earliest first.
    pub events: Vec<TraceLine>,
    /// The rings they are from.
    pub rings: Vec<RingInfo>,
}

/// A CPU's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingInfo {
    /// Index of the CPU.
    pub cpu: u32,
    /// Events it has ever begun; 0 where its memory is damaged.
    pub begun: u64,
    /// Of the ones that should still be there, those that were being written.
    pub unfinished: u32,
    /// Whether its memory is damaged: none of its events are shown.
    pub damaged: bool,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceLine {
    /// The time-stamp counter.
    pub tsc: Hex,
    /// Nanoseconds before the crash, or behind it where `after` is true; `null` when the
    /// counter was not calibrated.
    pub from_crash_ns: Option<u64>,
    /// Whether it was behind the crash.
    pub after: bool,
    /// Index of the CPU.
    pub cpu: u32,
    /// What happened.
    pub event: String,
    /// First word; what it is, depends on the event.
    pub first: Hex,
    /// Second word, likewise.
    pub second: Hex,
    /// The two words in words.
    pub text: String,
}

/// Reads the rings and merges them by time. Functions are named when the image is at hand.
///
/// # Errors
/// When nothing was recorded, or the dump does not hold it.
pub fn trace(dump: &Dump, image: Option<&Image>, selection: Selection) -> Result<Trace> {
    let lacks = |what: &str| Error::NotInDump(format!("the dump has no trace: {what}"));
    let facts = dump.facts.as_ref();
    let facts = facts.ok_or_else(|| lacks("the boot facts that say where it is were lost"))?;
    let range = facts.trace;
    if range.address == 0 || range.slots() == 0 {
        return Err(lacks("nothing was recorded (trace=off, or a dump of version 1)"));
    }
    if range.ring_bytes > RING_LIMIT || range.rings as usize > handoff::MAX_CPUS {
        return Err(lacks("its size is not believable"));
    }
    if let Some(cpu) = selection.cpu {
        dump.cpu(cpu)?;
    }
    let crash = dump.handoff.as_ref().map_or(0, |handoff| handoff.cause.tsc);
    let mut found = Vec::new();
    let mut rings = Vec::new();
    let wanted = |cpu: &u32| selection.cpu.is_none_or(|only| only == *cpu);
    for cpu in (0..range.rings).filter(wanted) {
        let mut bytes = vec![0; range.ring_bytes as usize];
        let address = range.address.saturating_add(u64::from(cpu) * u64::from(range.ring_bytes));
        match dump.read(address, &mut bytes) {
            Ok(()) => {}
            Err(MemoryFault::NotInDump(_)) => {
                return Err(lacks("the memory it was in is not in this dump"));
            }
            Err(MemoryFault::Damaged(_) | MemoryFault::Unreadable(_)) => {
                rings.push(RingInfo { cpu, begun: 0, unfinished: 0, damaged: true });
                continue;
            }
        }
        let (header, rest) =
            RingHeader::read_from_prefix(&bytes).map_err(|_| lacks("its rings are too small"))?;
        if header.magic != RING_MAGIC {
            return Err(lacks(&format!("the ring of CPU {cpu} was overwritten")));
        }
        let slots = range.slots();
        let mut unfinished = 0;
        for number in header.begun.saturating_sub(slots)..header.begun {
            let at = (number % slots) as usize * size_of::<TraceEvent>();
            let Some((event, _)) =
                rest.get(at..).and_then(|rest| TraceEvent::read_from_prefix(rest).ok())
            else {
                break;
            };
            if u64::from(event.lap) == (number / slots + 1) & 0xffff_ffff && event.kind.0 != 0 {
                found.push((cpu, event));
            } else {
                unfinished += 1;
            }
        }
        if found.len() > 2 * MOST_EVENTS {
            keep_newest(&mut found);
        }
        rings.push(RingInfo { cpu, begun: header.begun, unfinished, damaged: false });
    }
    keep_newest(&mut found);
    let skip = selection.last.map_or(0, |last| found.len().saturating_sub(last));
    let line = |(cpu, event): &(u32, TraceEvent)| {
        let after = event.tsc > crash;
        TraceLine {
            tsc: Hex(event.tsc),
            from_crash_ns: dump.nanoseconds(event.tsc.abs_diff(crash)),
            after,
            cpu: *cpu,
            event: event.kind.to_string(),
            first: Hex(event.first),
            second: Hex(event.second),
            text: words(dump, image, event),
        }
    };
    Ok(Trace { events: found[skip..].iter().map(line).collect(), rings })
}

/// Sorts events by their time and drops the oldest of more than [`MOST_EVENTS`].
fn keep_newest(events: &mut Vec<(u32, TraceEvent)>) {
    // Stable: what one CPU did at once, stays in its order.
    events.sort_by_key(|(_, event)| event.tsc);
    events.drain(..events.len().saturating_sub(MOST_EVENTS));
}

/// Returns the word for `value`, a number of an open enumeration in a word of an event.
fn value<T: std::fmt::Display>(value: u64, open: impl Fn(u32) -> T) -> String {
    u32::try_from(value)
        .map_or_else(|_| format!("unknown({value})"), |value| open(value).to_string())
}

/// What the two words of an event mean.
fn words(dump: &Dump, image: Option<&Image>, event: &TraceEvent) -> String {
    let place = |address: u64| {
        let places = image.map(|image| image.places(address)).unwrap_or_default();
        let name = places.into_iter().find_map(|place| place.function);
        name.map_or_else(|| format!("{address:#x}"), |name| clean(&name))
    };
    let lock = |address: u64| {
        let record = dump.locks.iter().find(|lock| lock.address == address);
        record.map_or_else(|| format!("{address:#x}"), |lock| clean(lock.name()))
    };
    let (first, second) = (event.first, event.second);
    match event.kind {
        EventKind::INTERRUPT => format!("vector {first:#x} in {}", place(second)),
        EventKind::INTERRUPT_END => format!("vector {first:#x}"),
        EventKind::LOCK | EventKind::LOCK_WAIT => {
            let site = Site::find(second, image);
            let name = site.function.map_or_else(|| format!("{second:#x}"), |name| clean(&name));
            format!("{} at {name}", lock(first))
        }
        EventKind::UNLOCK => lock(first),
        EventKind::UNIT | EventKind::UNIT_END => format!("unit {first} of workload {second}"),
        EventKind::ALLOCATE | EventKind::FREE => format!("{} at {first:#x}", text::bytes(second)),
        EventKind::CRASH => value(first, CauseKind),
        EventKind::STOP_SENT => {
            format!("{} to {}", value(first, RungSignal), text::count(second, "CPU"))
        }
        EventKind::STOPPED => {
            format!("{} in {}", value(first, StoppedBy), place(second))
        }
        EventKind::NMI => format!("in {}", place(second)),
        _ => format!("{first:#x} {second:#x}"),
    }
}

impl Trace {
    /// The table for the terminal: times before the crash have a minus.
    #[must_use]
    pub fn render(&self) -> String {
        let mut table = Table::new(&["time", "CPU", "event", ""], &[0, 1]);
        for line in &self.events {
            let sign = if line.after { '+' } else { '-' };
            let time = line.from_crash_ns;
            table.row(vec![
                time.map_or("?".into(), |time| format!("{sign}{}", text::nanoseconds(time))),
                line.cpu.to_string(),
                line.event.clone(),
                line.text.clone(),
            ]);
        }
        let mut out = String::new();
        if self.events.len() == MOST_EVENTS {
            out += &format!("only the latest {MOST_EVENTS} events are shown\n");
        }
        table.write(&mut out, "");
        for ring in &self.rings {
            if ring.damaged {
                out += &format!("CPU {}: DAMAGED, its events cannot be read\n", ring.cpu);
            } else if ring.unfinished > 0 {
                let count = text::count(u64::from(ring.unfinished), "event");
                out += &format!("CPU {}: {count} unfinished when it stopped\n", ring.cpu);
            }
        }
        out
    }
}
