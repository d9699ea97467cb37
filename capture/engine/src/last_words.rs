//! What is said when there is no dump: the last words, from whatever was believed.

use core::fmt::{self, Write};

use handoff::crash::{LogRange, RegistersFrom};
use handoff::last_words::{BuildIdLine, CauseLine, CpuLine, PanicLine};
use handoff::registers::PRSTATUS_WORDS;
use handoff::{Cause, CpuRecords, Range};
use vmcore_format::PAGE_BYTES;
use vmcore_format::last_words::LastWords;
use zerocopy::IntoBytes;

use crate::input::{Evidence, OldMemory};

/// The cause in one line: kind, CPU, message.
#[must_use]
pub fn cause_line(cause: &Cause) -> heapless::String<160> {
    let mut line = heapless::String::new();
    // A line that is full is cut, which is what is wanted.
    let _ = write!(line, "{} on CPU {}: ", cause.kind, cause.cpu);
    for character in cause.message().chars() {
        if line.push(character).is_err() {
            break;
        }
    }
    line
}

/// Writes the record of last words: `reason` is why there is no dump. Lines that the
/// appliance writes as well read as its own do.
///
/// Behind them comes what a small dump can be made of: the registers, the top of each
/// stack and the end of the log, as far as `memory` can read them.
pub fn last_words(
    writer: impl Write,
    evidence: &Evidence,
    reason: fmt::Arguments<'_>,
    memory: &dyn OldMemory,
) {
    let mut words = LastWords::begin(writer);
    words.line(format_args!("from=capture"));
    words.line(format_args!("reason={reason}"));
    if let Some(handoff) = evidence.handoff {
        let line = CauseLine { cause: &handoff.cause, unix_time: handoff.unix_time };
        words.line(format_args!("{line}"));
        if handoff.cause.line != 0 {
            words.line(format_args!("{}", PanicLine(&handoff.cause)));
        }
    }
    if let Some(facts) = evidence.facts {
        words.line(format_args!("{}", BuildIdLine(facts.build_id())));
    }
    for record in evidence.cpus.iter().flat_map(CpuRecords::iter) {
        words.line(format_args!("{}", CpuLine(&record)));
    }
    if let Some(cpus) = evidence.cpus {
        let crashed = evidence.handoff.map_or(0, |handoff| handoff.cause.cpu);
        say_stacks(&mut words, cpus, crashed, memory);
    }
    if let Some(handoff) = evidence.handoff {
        say_log(&mut words, &handoff.log, memory);
    }
    words.end();
}

/// CPUs whose registers and stacks are said: a console is slow.
const MOST_STACKS: usize = 32;
/// Bytes of a stack, from where it stands upwards.
const STACK_BYTES: u64 = 1024;
/// The same of the CPU that crashed, whose own crash path stands on it first.
const CRASHED_STACK_BYTES: u64 = 4096;
/// A frame pointer further away than this is none.
const LARGEST_FRAME: u64 = 64 << 10;
/// Bytes of the log, up to its end.
const LOG_BYTES: u64 = 4096;

/// Registers and stacks, those of the crashing CPU first.
fn say_stacks<W: Write>(
    words: &mut LastWords<W>,
    cpus: CpuRecords<'_>,
    crashed: u32,
    memory: &dyn OldMemory,
) {
    let first = cpus.iter().filter(|cpu| cpu.index == crashed);
    let others = cpus.iter().filter(|cpu| cpu.index != crashed);
    let known = first.chain(others).filter(|cpu| cpu.registers_from != RegistersFrom::NONE);
    for cpu in known.take(MOST_STACKS) {
        let standard = size_of::<[u64; PRSTATUS_WORDS]>();
        let Some(set) = cpu.x86() else { continue };
        let registers = set.as_bytes().get(..standard).unwrap_or_default();
        words.bytes(format_args!("registers cpu={}", cpu.index), 0, registers);
        let most = if cpu.index == crashed { CRASHED_STACK_BYTES } else { STACK_BYTES };
        let (top, frame) = (set.rsp & !7, set.rbp & !7);
        // A function may keep more on the stack than is said of it: then its caller is found
        // where its frame pointer leads.
        let beyond = frame > top.saturating_add(most) && frame - top < LARGEST_FRAME;
        if beyond {
            say_memory(words, top, most / 2, memory);
            say_memory(words, frame, most / 2, memory);
        } else {
            say_memory(words, top, most, memory);
        }
    }
}

/// Says `bytes` bytes from `start` page by page, up to a page that cannot be read: what is
/// further up a stack may be memory of nobody.
fn say_memory<W: Write>(
    words: &mut LastWords<W>,
    mut start: u64,
    bytes: u64,
    memory: &dyn OldMemory,
) {
    let end = start.saturating_add(bytes);
    while start < end {
        let bytes = (PAGE_BYTES - start % PAGE_BYTES).min(end - start);
        let Some(stack) = memory.snapshot(Range { start, bytes }) else { break };
        words.bytes(format_args!("memory"), start, stack);
        start = start.saturating_add(bytes);
    }
}

/// Where the log is, and its end: one stretch of the ring, or two.
fn say_log<W: Write>(words: &mut LastWords<W>, log: &LogRange, memory: &dyn OldMemory) {
    let LogRange { address, capacity, written } = *log;
    if capacity == 0 || address == 0 {
        return;
    }
    words.line(format_args!("log address={address:#x} capacity={capacity} written={written}"));
    for range in log.tail(LOG_BYTES).into_iter().filter(|range| range.bytes > 0) {
        if let Some(text) = memory.snapshot(range) {
            words.bytes(format_args!("memory"), range.start, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use handoff::crash::{CauseKind, StoppedBy, set_text};
    use handoff::{BootFacts, CpuRecord, Handoff, X86Registers};
    use vmcore_format::last_words::{self, State};

    use super::*;

    /// No memory can be read.
    struct Nothing;

    impl OldMemory for Nothing {
        fn snapshot(&self, _: Range) -> Option<&'static [u8]> {
            None
        }
        fn trust(&self, _: &BootFacts) {}
    }

    /// Every byte of memory is the lowest one of its address.
    struct Pattern;

    impl OldMemory for Pattern {
        fn snapshot(&self, range: Range) -> Option<&'static [u8]> {
            let bytes = (range.start..range.end()).map(|address| address as u8);
            Some(Vec::leak(bytes.collect()))
        }
        fn trust(&self, _: &BootFacts) {}
    }

    #[test]
    fn stacks_and_the_end_of_the_log_are_said() {
        let mut handoff = Handoff::new();
        handoff.cause.cpu = 1;
        handoff.log = LogRange { address: 0x9000, capacity: 8192, written: 8192 + 100 };
        let cpu = |index: u32| {
            let mut record = CpuRecord::new();
            record.index = index;
            record.registers_from = RegistersFrom::INTERRUPTED;
            let registers =
                X86Registers { rsp: 0x5001 + u64::from(index) * 0x2000, ..X86Registers::default() };
            record.set_x86(&registers);
            record
        };
        let cpus = CpuRecords::of(Vec::leak(vec![cpu(0), cpu(1)]));
        let handoff: &'static Handoff = Box::leak(Box::new(handoff));
        let evidence = Evidence { handoff: Some(handoff), facts: None, cpus: Some(cpus) };
        let mut text = String::new();
        last_words(&mut text, &evidence, format_args!("no disk"), &Pattern);
        let record = last_words::find(&text).unwrap();
        assert_eq!(record.state, State::Complete);
        let begin = |word: &str| record.lines().find(|line| line.starts_with(word)).unwrap();
        assert!(begin("registers").starts_with("registers cpu=1 at=0x0 hex=00"));
        let memory: Vec<_> = record.lines().filter(|line| line.starts_with("memory")).collect();
        assert!(memory[0].starts_with("memory at=0x7000 hex=000102"), "{}", memory[0]);
        // The stacks are 57 and 15 lines; the log's end stands first in the ring, and before
        // it the rest.
        assert!(memory[57].starts_with("memory at=0x5000 "));
        assert!(memory[72].starts_with(&format!("memory at={:#x} ", 0x9000 + 8192 - 3996)));
        let last = memory.last().unwrap();
        assert!(last.starts_with("memory at=0x9048 hex=") && last.len() < 80, "{last}");
        assert_eq!(begin("log"), "log address=0x9000 capacity=8192 written=8292");
    }

    #[test]
    fn everything_known_is_said_and_nothing_else() {
        let mut handoff = Handoff::new();
        handoff.cause.kind = CauseKind::PANIC;
        handoff.cause.cpu = 2;
        handoff.cause.vector = u32::MAX;
        handoff.cause.line = 7;
        handoff.unix_time = 1_767_225_600;
        set_text(&mut handoff.cause.message, "out of\nluck");
        set_text(&mut handoff.cause.file, "src/main.rs");
        let mut facts = BootFacts::new();
        facts.build_id[..2].copy_from_slice(&[0xab, 0x01]);
        facts.build_id_bytes = 2;
        let mut record = CpuRecord::new();
        record.stopped_by = StoppedBy::NMI;
        record.hardware_id = 1 << 40;
        record.set_x86(&X86Registers { rip: 0x1234, ..X86Registers::default() });
        let cpus = CpuRecords::of(Vec::leak(vec![record]));
        let mut text = String::new();
        let evidence = Evidence {
            handoff: Some(Box::leak(Box::new(handoff))),
            facts: Some(Box::leak(Box::new(facts))),
            cpus: Some(cpus),
        };
        last_words(&mut text, &evidence, format_args!("no disk"), &Nothing);
        let record = last_words::find(&text).unwrap();
        assert_eq!(record.state, State::Complete);
        assert_eq!(record.value("reason"), Some("no disk"));
        let lines: Vec<&str> = record.lines().collect();
        assert_eq!(
            lines[2..],
            [
                "cause kind=panic cpu=2 vector=-1 address=0x0 time=1767225600 message=out of luck",
                "panic file=src/main.rs line=7",
                "build-id ab01",
                "cpu index=0 hardware_id=1099511627776 stopped_by=nmi registers_from=none rip=0x1234 \
                 rsp=0x0 rbp=0x0",
            ]
        );

        let mut text = String::new();
        last_words(
            &mut text,
            &Evidence::default(),
            format_args!("hand-off: wrong magic"),
            &Nothing,
        );
        let record = last_words::find(&text).unwrap();
        assert_eq!((record.state, record.lines().count()), (State::Complete, 2));
    }
}
