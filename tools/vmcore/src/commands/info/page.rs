//! The page that `vmcore info` shows on a terminal.

use super::{Info, RungInfo};
use crate::text::{self, clean, count, field};

impl Info {
    /// What happened, in one sentence.
    #[must_use]
    pub fn headline(&self) -> String {
        let Some(cause) = &self.cause else {
            return "What happened is not known: the record of it was lost.".into();
        };
        let who = format!("CPU {}", cause.cpu);
        let message = clean(&cause.message);
        let what = match (&*cause.kind, cause.vector) {
            ("panic", _) if cause.file.is_empty() => format!("panicked: {message}"),
            ("panic", _) => {
                format!("panicked at {}:{}: {message}", clean(&cause.file), cause.line)
            }
            ("exception", Some(vector)) if message.is_empty() => {
                format!("took a {} (vector {vector})", exception_name(vector))
            }
            ("exception", Some(vector)) => {
                format!("took an exception (vector {vector}): {message}")
            }
            ("mce", _) => format!("reported a machine check: {message}"),
            ("nmi", _) => format!("got an NMI that nobody had asked for: {message}"),
            ("hard-lockup", _) => format!("noticed a hard lockup: {message}"),
            ("soft-lockup", _) => format!("noticed a soft lockup: {message}"),
            ("oom", _) => format!("found no more memory: {message}"),
            (kind, _) => format!("stopped the machine ({kind}): {message}"),
        };
        format!("{who} {what}").trim_end().trim_end_matches(':').to_owned()
    }

    /// The page for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = self.headline() + "\n\n";
        for warning in &self.warnings {
            field(&mut out, "warning", &clean(warning));
        }
        field(&mut out, "when", &self.when());
        field(&mut out, "dump", &self.dump_line());
        if let Some(fault) = self.capture.as_ref().and_then(|capture| capture.fault.as_ref()) {
            let ended = format!("ended by a fault in the capture image: {}", clean(fault));
            field(&mut out, "fault", &ended);
        }
        field(&mut out, "memory", &self.memory_lines());
        field(&mut out, "image", &format!("build-id {}", self.build_id));
        field(&mut out, "command", &clean(&self.command_line));
        for words in &self.words {
            field(&mut out, "said", &format!("{}: {}", clean(&words.workload), clean(&words.text)));
        }
        if let Some(capture) = self.capture_line() {
            field(&mut out, "capture", &capture);
        }
        if let Some(rate) = self.rate_line() {
            field(&mut out, "rate", &rate);
        }
        if !self.timeline.is_empty() {
            field(&mut out, "ladder", &self.ladder_lines());
        }
        out.push('\n');
        crate::commands::cpus::table(&self.cpus).write(&mut out, "");
        out
    }

    fn when(&self) -> String {
        let date = match (self.time.utc.as_deref(), self.time.unix_absent.as_deref()) {
            (Some(date), _) => date,
            (None, Some("not-in-last-words")) => "at an unknown time (not in last words)",
            (None, Some("lost")) => "at an unknown time (the record that says when was lost)",
            (None, _) => "at an unknown time (the machine had no clock)",
        };
        match self.time.uptime_ns {
            Some(uptime) => format!("{date}, {} after boot", text::nanoseconds(uptime)),
            None => date.to_owned(),
        }
    }

    fn dump_line(&self) -> String {
        let whole = if self.complete { "complete" } else { "INCOMPLETE" };
        let read = self.stages.iter().find(|stage| stage.read);
        let stage = read.map_or("stage not known".into(), |stage| {
            format!("pages={}, stage {} of {}", stage.kind, stage.stage, self.stages_planned)
        });
        let mut line = format!("{whole}, {stage}, {}", text::bytes(self.memory.file_bytes));
        if let Some(slot) = &self.slot {
            line += &format!(", slot {}, dump number {}", slot.slot, slot.sequence);
            if let Some(other) = &slot.other {
                let here = if other.here { "" } else { ", which is not at hand" };
                line += &format!(
                    "; {} of it in slot {} of the dump area {}{here}",
                    text::bytes(other.stored_bytes),
                    other.slot,
                    other.area,
                );
            }
        }
        line
    }

    fn memory_lines(&self) -> String {
        let memory = &self.memory;
        let mut lines = format!("{} in the dump", text::bytes(memory.dumped_bytes));
        if memory.ram_bytes > 0 {
            lines += &format!(" of {} RAM", text::bytes(memory.ram_bytes));
        }
        if memory.zero_bytes > 0 {
            lines += &format!(", {} of it zero and not stored", text::bytes(memory.zero_bytes));
        }
        for range in &memory.ranges {
            let end = range.start.0.saturating_add(range.bytes);
            lines +=
                &format!("\n{:#018x} - {end:#018x}  {}", range.start.0, text::bytes(range.bytes));
        }
        for range in self.excluded.iter().filter(|range| range.reason != "not-ram") {
            let end = range.start.0.saturating_add(range.bytes);
            lines += &format!(
                "\n{:#018x} - {end:#018x}  {}, left out: {}",
                range.start.0,
                text::bytes(range.bytes),
                range.reason
            );
        }
        lines
    }

    fn capture_line(&self) -> Option<String> {
        let capture = self.capture.as_ref()?;
        let mut parts = Vec::new();
        if let Some(time) = capture.crash_to_jump_ns {
            parts.push(format!("jumped {} after the crash", text::nanoseconds(time)));
        }
        if let Some(time) = capture.jump_to_write_ns {
            parts.push(format!("writing {} later", text::nanoseconds(time)));
        }
        let read = self.stages.iter().find(|stage| stage.read);
        if let Some(time) = read.and_then(|stage| stage.sealed_after_ns) {
            parts.push(format!("sealed {} after the jump", text::nanoseconds(time)));
        }
        parts.push(format!("used {} of its region", text::bytes(capture.region_bytes_used)));
        if let (waiting @ 1.., answered) = (capture.cpus_waiting, capture.cpus_answered) {
            parts.push(format!("{answered} of {waiting} waiting CPUs answered"));
        }
        if let Some(working) = capture.cpus_working {
            parts.push(format!("{} worked on it", count(u64::from(working), "CPU")));
        }
        let mut lines = parts.join(", ");
        let steps = [
            ("entered", capture.jump_to_entered_ns),
            ("own page tables", capture.jump_to_settled_ns),
            ("planned", capture.jump_to_planned_ns),
            ("disk up", capture.jump_to_disk_ns),
            ("writing", capture.jump_to_write_ns),
        ];
        if capture.jump_to_settled_ns.is_some() {
            let step = |(name, time): (&str, Option<u64>)| {
                time.map(|time| format!("{name} {}", text::nanoseconds(time)))
            };
            let steps: Vec<_> = steps.into_iter().filter_map(step).collect();
            lines += &format!("\nafter the jump: {}", steps.join(", "));
        }
        Some(lines)
    }

    /// How fast the dump was written, beside the medium itself.
    fn rate_line(&self) -> Option<String> {
        let read = self.stages.iter().find(|stage| stage.read)?;
        let rate = |bytes: u64, time: u64| {
            let per_second = u128::from(bytes) * 1_000_000_000 / u128::from(time.max(1));
            format!("{}/s", text::bytes(u64::try_from(per_second).unwrap_or(u64::MAX)))
        };
        let bytes = read.added.as_ref().map_or(read.bytes, |added| added.memory_bytes);
        let mut line = format!("written at {}", rate(bytes, read.write_ns?));
        if let (Some(bytes), Some(time)) = (read.raw_bytes, read.raw_ns) {
            let size = text::bytes(bytes);
            line += &format!(", the raw medium took {size} at {}", rate(bytes, time));
        }
        Some(line)
    }

    fn ladder_lines(&self) -> String {
        let line = |rung: &RungInfo| {
            let targets = count(rung.targets.len() as u64, "CPU");
            let time =
                |value: Option<u64>| value.map_or("an unknown time".into(), text::nanoseconds);
            format!(
                "{:<4} to {targets} after {}, waited {}",
                rung.rung,
                time(rung.sent_after_ns),
                time(rung.waited_ns)
            )
        };
        self.timeline.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// What the processor manual calls a vector (Intel SDM volume 3A, table 6-1).
fn exception_name(vector: u32) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exception",
        6 => "invalid opcode",
        7 => "device-not-available exception",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment-not-present fault",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD exception",
        20 => "virtualization exception",
        21 => "control protection exception",
        _ => "exception",
    }
}
