//! What is said when there is no dump: the last words, from whatever was believed.

use core::fmt::{self, Write};

use handoff::Cause;
use handoff::crash::cause_kind;
use handoff::words::{BuildIdLine, CauseLine, CpuLine, PanicLine};
use vmcore_format::last_words::LastWords;

use crate::input::Evidence;

/// The cause in one line: kind, CPU, message.
#[must_use]
pub fn cause_line(cause: &Cause) -> heapless::String<160> {
    let mut line = heapless::String::new();
    // A line that is full is cut, which is what is wanted.
    let _ = write!(line, "{} on CPU {}: ", cause_kind::name(cause.kind), cause.cpu);
    for character in cause.message().chars() {
        if line.push(character).is_err() {
            break;
        }
    }
    line
}

/// Writes the record of last words: `reason` is why there is no dump. Lines that the
/// appliance writes as well read as its own do.
pub fn last_words(writer: impl Write, evidence: &Evidence, reason: fmt::Arguments<'_>) {
    let mut words = LastWords::begin(writer);
    words.line(format_args!("from=capture"));
    words.line(format_args!("reason={reason}"));
    if let Some(handoff) = evidence.handoff {
        words.line(format_args!("{}", CauseLine(&handoff.cause)));
        if handoff.cause.line != 0 {
            words.line(format_args!("{}", PanicLine(&handoff.cause)));
        }
    }
    if let Some(facts) = evidence.facts {
        words.line(format_args!("{}", BuildIdLine(facts.build_id())));
    }
    for record in evidence.cpus.unwrap_or_default() {
        words.line(format_args!("{}", CpuLine(record)));
    }
    words.end();
}

#[cfg(test)]
mod tests {
    use handoff::crash::{set_text, stopped_by};
    use handoff::{BootFacts, CpuRecord, Handoff};
    use vmcore_format::last_words::{self, State};

    use super::*;

    #[test]
    fn everything_known_is_said_and_nothing_else() {
        let mut handoff = Handoff::new();
        handoff.cause.kind = cause_kind::PANIC;
        handoff.cause.cpu = 2;
        handoff.cause.vector = u32::MAX;
        handoff.cause.line = 7;
        set_text(&mut handoff.cause.message, "out of\nluck");
        set_text(&mut handoff.cause.file, "src/main.rs");
        let mut facts = BootFacts::new();
        facts.build_id[..2].copy_from_slice(&[0xab, 0x01]);
        facts.build_id_bytes = 2;
        let mut record = CpuRecord::new();
        record.stopped_by = stopped_by::NMI;
        record.registers.rip = 0x1234;
        let cpus: &'static [CpuRecord] = Box::leak(Box::new([record]));
        let mut text = String::new();
        let evidence = Evidence {
            handoff: Some(Box::leak(Box::new(handoff))),
            facts: Some(Box::leak(Box::new(facts))),
            cpus: Some(cpus),
        };
        last_words(&mut text, &evidence, format_args!("no disk"));
        let record = last_words::find(&text).unwrap();
        assert_eq!(record.state, State::Complete);
        assert_eq!(record.value("reason"), Some("no disk"));
        let lines: Vec<&str> = record.lines().collect();
        assert_eq!(
            lines[2..],
            [
                "cause kind=panic cpu=2 vector=-1 address=0x0 message=out of luck",
                "panic file=src/main.rs line=7",
                "build-id ab01",
                "cpu index=0 apic_id=0 stopped_by=nmi registers_from=none rip=0x1234 rsp=0x0 rbp=0x0",
            ]
        );

        let mut text = String::new();
        last_words(&mut text, &Evidence::default(), format_args!("hand-off: wrong magic"));
        let record = last_words::find(&text).unwrap();
        assert_eq!((record.state, record.lines().count()), (State::Complete, 2));
    }
}
