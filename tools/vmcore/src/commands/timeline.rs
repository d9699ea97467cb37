//! `vmcore timeline`: from the crash to the dump, one line for each thing that happened.

use handoff::crash::StoppedBy;
use handoff::{CpuRecord, Handoff, RungRecord};
use serde::{Deserialize, Serialize};

use crate::json::Hex;
use crate::text::{self, Table};
use crate::{Dump, Error, Result};

/// What happened, in order; the JSON of `vmcore timeline`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The events, the earliest first.
    pub events: Vec<Event>,
}

/// One event. What does not belong to its kind is `null` or empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Since the crash; `null` when the counter was not calibrated.
    pub after_ns: Option<u64>,
    /// The time-stamp counter.
    pub tsc: Hex,
    /// `crash`, `sent`, `acknowledged`, `closed`, `climbed`, `jumped`, `entered`, `writing`.
    pub event: String,
    /// The rung: `irq`, `nmi` or `init`.
    pub rung: Option<String>,
    /// The CPUs it is about: for `closed`, those that had not acknowledged.
    pub cpus: Vec<u32>,
    /// The rung's window; `null` for one without end.
    pub window_ns: Option<u64>,
    /// For `acknowledged`: since the first request to that CPU.
    pub latency_ns: Option<u64>,
}

/// Puts the events of a dump in order.
///
/// # Errors
/// When the dump does not say when anything happened.
pub fn timeline(dump: &Dump) -> Result<Timeline> {
    let handoff = dump.handoff.as_deref().ok_or_else(|| {
        Error::NotInDump("the dump has no timeline: the hand-off that has it was lost".into())
    })?;
    let mut events = Vec::new();
    let mut add = |tsc: u64, event: &str| {
        events.push(Event {
            after_ns: None,
            tsc: Hex(tsc),
            event: event.into(),
            rung: None,
            cpus: Vec::new(),
            window_ns: None,
            latency_ns: None,
        });
        events.len() - 1
    };
    add(handoff.cause.tsc, "crash");
    let mut details = Vec::new();
    for record in handoff.timeline() {
        details.push((add(record.sent_tsc, "sent"), record, targets(record)));
        details.push((add(record.closed_tsc, "closed"), record, missing(dump, handoff, record)));
    }
    let mut answers = Vec::new();
    for cpu in &dump.cpus {
        if let Some(tsc) = acknowledged(dump, handoff, cpu) {
            answers.push((add(tsc, "acknowledged"), cpu));
        }
    }
    let marks = [
        (handoff.stopped_tsc, "climbed"),
        (handoff.jump_tsc, "jumped"),
        (dump.metrics.map_or(0, |metrics| metrics.entered_tsc), "entered"),
        (dump.metrics.map_or(0, |metrics| metrics.write_begin_tsc), "writing"),
    ];
    for (tsc, event) in marks {
        if tsc != 0 {
            add(tsc, event);
        }
    }
    events[0].cpus = vec![handoff.cause.cpu];
    for (index, record, cpus) in details {
        let event = &mut events[index];
        event.rung = Some(record.kind.to_string());
        event.cpus = cpus;
        event.window_ns = (record.window_ns != u64::MAX).then_some(record.window_ns);
    }
    for (index, cpu) in answers {
        events[index].cpus = vec![cpu.index];
        events[index].latency_ns = (cpu.latency_ns != u64::MAX).then_some(cpu.latency_ns);
        events[index].rung = match cpu.stopped_by {
            StoppedBy::IRQ => Some("irq".into()),
            StoppedBy::NMI => Some("nmi".into()),
            _ => None,
        };
    }
    for event in &mut events {
        let ticks = event.tsc.0.checked_sub(handoff.cause.tsc);
        event.after_ns = ticks.and_then(|ticks| dump.nanoseconds(ticks));
    }
    // Of what happened at once, in the order of the kinds above.
    events.sort_by_key(|event| event.tsc.0);
    Ok(Timeline { events })
}

fn targets(record: &RungRecord) -> Vec<u32> {
    let there = |cpu: &u32| record.mask[*cpu as usize / 64] >> (cpu % 64) & 1 == 1;
    (0..handoff::MAX_CPUS as u32).filter(there).collect()
}

/// The targets that had not acknowledged when the rung's window closed.
fn missing(dump: &Dump, handoff: &Handoff, record: &RungRecord) -> Vec<u32> {
    let silent = |cpu: &u32| {
        let answer = dump.cpu(*cpu).ok().and_then(|cpu| acknowledged(dump, handoff, cpu));
        answer.is_none_or(|tsc| tsc > record.closed_tsc)
    };
    targets(record).into_iter().filter(silent).collect()
}

/// When a CPU acknowledged; a dump of version 1 has only how long that took.
fn acknowledged(dump: &Dump, handoff: &Handoff, cpu: &CpuRecord) -> Option<u64> {
    if !matches!(cpu.stopped_by, StoppedBy::IRQ | StoppedBy::NMI | StoppedBy::SELF) {
        return None;
    }
    if cpu.stopped_tsc != 0 {
        return Some(cpu.stopped_tsc);
    }
    let hz = u128::from(dump.facts.as_ref()?.tsc_hz);
    let first = handoff.timeline().first().filter(|_| cpu.latency_ns != u64::MAX)?;
    let ticks = u128::from(cpu.latency_ns) * hz / 1_000_000_000;
    first.sent_tsc.checked_add(u64::try_from(ticks).ok()?)
}

impl Event {
    /// What happened, to whom, and what there is to add.
    fn words(&self) -> [String; 3] {
        let cpus: Vec<String> = self.cpus.iter().map(u32::to_string).collect();
        let cpus = if cpus.is_empty() { String::new() } else { format!("CPU {}", cpus.join(", ")) };
        let rung = self.rung.as_deref().unwrap_or_default();
        let span =
            |span: Option<u64>, none: &str| span.map_or_else(|| none.to_owned(), text::nanoseconds);
        let window = format!("window {}", span(self.window_ns, "without end"));
        match &*self.event {
            "crash" => ["crash".into(), cpus, String::new()],
            "sent" => [format!("{rung} sent"), cpus, window],
            "acknowledged" => {
                let note = match self.latency_ns {
                    Some(latency) => {
                        format!("{} after the first request", text::nanoseconds(latency))
                    }
                    None => "by itself".into(),
                };
                [format!("{rung} acknowledged").trim_start().into(), cpus, note]
            }
            "closed" if self.cpus.is_empty() => {
                [format!("{rung} done"), String::new(), "all have acknowledged".into()]
            }
            "closed" => [format!("{rung} window closed"), cpus, "not acknowledged".into()],
            "climbed" => ["ladder climbed".into(), String::new(), String::new()],
            "jumped" => ["jump to the capture image".into(), String::new(), String::new()],
            "entered" => ["capture image entered".into(), String::new(), String::new()],
            "writing" => ["first byte written".into(), String::new(), String::new()],
            other => [other.to_owned(), cpus, String::new()],
        }
    }
}

impl Timeline {
    /// The table for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut table = Table::new(&["after", "what", "who", ""], &[0]);
        for event in &self.events {
            let after = event.after_ns.map_or("?".into(), text::nanoseconds);
            let [what, who, note] = event.words();
            table.row(vec![after, what, who, note]);
        }
        let mut out = String::new();
        table.write(&mut out, "");
        out
    }
}
