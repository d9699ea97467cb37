//! `vmcore from-console`: makes a small vmcore of last words, for when there is no dump.
//!
//! What was said is in it and nothing else: the registers of each CPU, the top of its stack,
//! the end of the log. Memory that was not said is not there, which a debugger says as well.
//!
//! Any subset of the lines makes a core that every command opens: a CPU whose line was torn
//! gets a record that says so, and every line that is missing is named.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::Path;

use handoff::crash::{CauseKind, RegistersFrom, StoppedBy, set_text};
use handoff::registers::PRSTATUS_WORDS;
use handoff::{CpuRecord, Handoff, X86Registers};
use object::elf;
use serde::{Deserialize, Serialize};
use vmcore_format::core::note_size;
use vmcore_format::notes::{self, CORE_OWNER, EPITAPH_OWNER};
use zerocopy::{FromBytes, IntoBytes};

use super::last_words::last_words;
use crate::text::{bytes, clean, count};
use crate::{Error, Result};

/// Most memory a console can have said: 65,534 lines of 72 bytes are 4.5 MiB.
const MEMORY_LIMIT: u64 = 64 << 20;
/// Most pieces of memory: `e_phnum` has 16 bits, its highest value is an escape, and one
/// program header is the notes'.
const MOST_PIECES: usize = 0xfffe - 1;
/// Bytes of an ELF file's identification, and of ELF64 headers.
const IDENT: usize = 16;
const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// What was made; the JSON of `vmcore from-console`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromConsole {
    /// CPUs the last words tell of.
    pub cpus: u64,
    /// Those whose registers are whole.
    pub registers: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Whether every line of the last words arrived.
    pub complete: bool,
    /// What is missing.
    pub warnings: Vec<String>,
    /// Whether a CPU below the highest index has no line.
    #[serde(skip)]
    holes: bool,
}

/// What the lines say.
#[derive(Default)]
struct Said {
    handoff: Option<Box<Handoff>>,
    build_id: Vec<u8>,
    cpus: BTreeMap<u32, CpuRecord>,
    /// The register sets as far as they arrived: which bytes.
    registers: BTreeMap<u32, Vec<bool>>,
    memory: BTreeMap<u64, Vec<u8>>,
    /// Bytes in all pieces of `memory`.
    memory_bytes: u64,
    /// Which of the lines that occur once were seen.
    seen: Seen,
}

/// The lines of which a record has one each.
#[derive(Default)]
struct Seen {
    cause: bool,
    build_id: bool,
    log: bool,
}

/// Writes the newest last words in the text of `console` to `out`, as an ELF core file.
///
/// # Errors
/// There are none, they say too little, or the file cannot be written.
pub fn from_console(console: &Path, out: &Path, force: bool) -> Result<FromConsole> {
    let words = last_words(console)?;
    let mut said = Said::default();
    let mut handoff = Box::new(Handoff::new());
    for line in &words.lines {
        said.take(line, &mut handoff);
    }
    if said.cpus.is_empty() && !said.seen.cause {
        let what = format!(
            "{}: the last words name no CPU ({}); {}",
            console.display(),
            words.state,
            words.loss().unwrap_or_else(|| "nothing of them is missing".into()),
        );
        return Err(Error::NotInDump(what));
    }
    let complete = words.state == "complete";
    let mut warnings = Vec::new();
    if !complete {
        let loss = words.loss().map_or(String::new(), |loss| format!(": {loss}"));
        warnings.push(format!("the last words are {}{loss}", words.state));
        said.name_what_is_lost(&mut warnings);
    }
    let named = said.cpus.len() as u64;
    let holes = said.fill_up(&mut handoff, &mut warnings);
    let records: Vec<CpuRecord> = said.cpus.values().copied().collect();
    handoff.seal(&records);
    said.handoff = Some(handoff);
    let whole = |cpu: &&CpuRecord| said.has_registers(cpu.index);
    let registers = records.iter().filter(whole).count() as u64;
    let asked = records.iter().filter(|cpu| cpu.registers_from != RegistersFrom::NONE);
    let parts: Vec<u32> =
        asked.filter(|cpu| !said.has_registers(cpu.index)).map(|cpu| cpu.index).collect();
    if !parts.is_empty() {
        warnings.push(format!("only some registers of {} were said", cpu_list(&parts)));
    }
    crate::output::write(out, &[console], force, &said.build(&records))?;
    let memory_bytes = said.memory_bytes;
    Ok(FromConsole { cpus: named, registers, memory_bytes, complete, warnings, holes })
}

/// `CPU 3` or `CPUs 0, 2, 5`; of many only the first are listed.
fn cpu_list(cpus: &[u32]) -> String {
    const LISTED: usize = 16;
    let shown: Vec<String> = cpus.iter().take(LISTED).map(u32::to_string).collect();
    let more = cpus.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let noun = if cpus.len() == 1 { "CPU" } else { "CPUs" };
    format!("{noun} {}{more}", shown.join(", "))
}

/// The value of `key=` in a line of pairs; `message` and `file` go on to the next key that
/// is known, or to the end.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let found = line.split_once(&format!(" {key}="))?.1;
    match key {
        "message" => Some(found),
        "file" => Some(found.rsplit_once(" line=").map_or(found, |(file, _)| file)),
        _ => found.split(' ').next(),
    }
}

fn number(line: &str, key: &str) -> Option<u64> {
    let text = value(line, key)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn index(line: &str, key: &str) -> Option<u32> {
    number(line, key)
        .and_then(|index| u32::try_from(index).ok())
        .filter(|&index| (index as usize) < handoff::MAX_CPUS)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect()
}

impl Said {
    /// Takes a line in, if it is one of those that matter here.
    fn take(&mut self, line: &str, handoff: &mut Handoff) -> Option<()> {
        let (word, _) = line.split_once(' ')?;
        let cause = &mut handoff.cause;
        match word {
            "cause" => {
                let (cpu, address) = (index(line, "cpu")?, number(line, "address")?);
                let vector = value(line, "vector")?.parse::<i64>().ok()?;
                cause.kind = value(line, "kind")
                    .and_then(CauseKind::from_word)
                    .unwrap_or(CauseKind(u32::MAX));
                cause.cpu = cpu;
                cause.address = address;
                cause.vector = u32::try_from(vector).unwrap_or(u32::MAX);
                // A machine without a clock did not say it; the message may.
                let said = line.split_once(" message=").map_or(line, |(said, _)| said);
                handoff.unix_time = number(said, "time").unwrap_or(0);
                set_text(&mut cause.message, value(line, "message").unwrap_or_default());
                self.seen.cause = true;
            }
            "panic" => {
                cause.line = u32::try_from(number(line, "line")?).ok()?;
                set_text(&mut cause.file, value(line, "file")?);
            }
            "build-id" => {
                self.build_id = from_hex(line.split_once(' ')?.1)?;
                self.seen.build_id = true;
            }
            "cpu" => {
                let mut record = CpuRecord::new();
                record.index = index(line, "index")?;
                // Before version 5 it was the APIC ID.
                record.hardware_id =
                    number(line, "hardware_id").or_else(|| number(line, "apic_id"))?;
                record.stopped_by = value(line, "stopped_by")
                    .and_then(StoppedBy::from_word)
                    .unwrap_or(StoppedBy(u32::MAX));
                record.registers_from = value(line, "registers_from")
                    .and_then(RegistersFrom::from_word)
                    .unwrap_or(RegistersFrom(u32::MAX));
                record.latency_ns = u64::MAX;
                record.set_x86(&X86Registers {
                    rip: number(line, "rip")?,
                    rsp: number(line, "rsp")?,
                    rbp: number(line, "rbp")?,
                    ..X86Registers::default()
                });
                self.cpus.insert(record.index, record);
            }
            "registers" => {
                let cpu = index(line, "cpu")?;
                let (at, data) = (number(line, "at")?, from_hex(value(line, "hex")?)?);
                let standard = size_of::<[u64; PRSTATUS_WORDS]>();
                let at = usize::try_from(at).ok()?;
                let range = at..at.checked_add(data.len()).filter(|&end| end <= standard)?;
                // A CPU of which only registers arrived: its own line was torn.
                let record = self.cpus.entry(cpu).or_insert_with(|| unknown_cpu(cpu));
                if record.registers_from == RegistersFrom::NONE {
                    return None;
                }
                let place = record.x86_mut()?.as_mut_bytes().get_mut(range.clone())?;
                place.copy_from_slice(&data);
                let known = self.registers.entry(cpu).or_insert_with(|| vec![false; standard]);
                known.get_mut(range)?.fill(true);
            }
            "memory" => self.memory(number(line, "at")?, &from_hex(value(line, "hex")?)?),
            "log" => {
                handoff.log.address = number(line, "address")?;
                handoff.log.capacity = number(line, "capacity")?;
                handoff.log.written = number(line, "written")?;
                self.seen.log = true;
            }
            _ => {}
        }
        Some(())
    }

    /// Says which of the lines that a record has one of did not arrive.
    fn name_what_is_lost(&self, warnings: &mut Vec<String>) {
        for (seen, what) in [
            (self.seen.cause, "why the machine stopped"),
            (self.seen.build_id, "the build-id of the image"),
            (self.seen.log, "where the log is"),
        ] {
            if !seen {
                warnings.push(format!("not in what arrived: {what}"));
            }
        }
    }

    /// Returns true if the register lines of a CPU that arrived hold its RIP and RSP.
    fn knows_pointers(&self, cpu: u32) -> bool {
        let place = |offset: usize| {
            let bytes = self.registers.get(&cpu)?.get(offset..offset + 8)?;
            bytes.iter().all(|&known| known).then_some(())
        };
        place(offset_of!(X86Registers, rip)).and(place(offset_of!(X86Registers, rsp))).is_some()
    }

    /// Gives a record to every CPU below the highest index, since the records of a core are
    /// an array, and settles which CPU crashed when the line with the cause was torn. Returns
    /// true if a CPU had no line.
    fn fill_up(&mut self, handoff: &mut Handoff, warnings: &mut Vec<String>) -> bool {
        if !self.seen.cause
            && let Some(crashed) = self.cpus.values().find(|cpu| cpu.stopped_by == StoppedBy::CRASH)
        {
            handoff.cause.cpu = crashed.index;
        }
        if !self.seen.cause {
            handoff.cause.kind = CauseKind(u32::MAX);
            handoff.cause.vector = u32::MAX;
        }
        let last = self.cpus.keys().last().copied().unwrap_or(0).max(handoff.cause.cpu);
        let mut torn = Vec::new();
        for cpu in 0..=last {
            let pointers = self.knows_pointers(cpu);
            let record = self.cpus.entry(cpu).or_insert_with(|| unknown_cpu(cpu));
            if record.hardware_id == u64::from(u32::MAX) {
                torn.push(cpu);
                // Zeros in place of RIP or RSP would pass for measured ones.
                if !pointers {
                    record.registers_from = RegistersFrom::NONE;
                }
            }
        }
        if !torn.is_empty() {
            warnings.push(format!("the line of {} did not arrive", cpu_list(&torn)));
        }
        !torn.is_empty()
    }

    fn has_registers(&self, cpu: u32) -> bool {
        self.registers.get(&cpu).is_some_and(|known| known.iter().all(|&known| known))
    }

    /// Adds memory; what two lines tell of the same byte is the same, and the first counts.
    /// What goes beyond the limits is left out.
    fn memory(&mut self, at: u64, data: &[u8]) {
        let (mut at, mut rest) = (at, data);
        if at.checked_add(rest.len() as u64).is_none() {
            return;
        }
        while !rest.is_empty() && self.memory_bytes + rest.len() as u64 <= MEMORY_LIMIT {
            // Up to the next piece, or as many bytes as the piece before already has.
            let room = self.memory.range(at..).next().map_or(u64::MAX, |(&next, _)| next - at);
            let full = self.memory.len() >= MOST_PIECES;
            let before = self.memory.range_mut(..=at).next_back();
            let (known, joined) = before.map_or((0, None), |(&start, piece)| {
                let end = start + piece.len() as u64;
                (end.saturating_sub(at), (end == at).then_some(piece))
            });
            let part = if known > 0 { known } else { room }.min(rest.len() as u64);
            let (now, later) = rest.split_at(part as usize);
            if known == 0 {
                match joined {
                    Some(piece) => piece.extend_from_slice(now),
                    None if full => return,
                    None => {
                        self.memory.insert(at, now.to_vec());
                    }
                }
                self.memory_bytes += part;
            }
            at += part;
            rest = later;
        }
    }

    /// The ELF file: notes, then every piece of memory.
    fn build(&self, records: &[CpuRecord]) -> Vec<u8> {
        let notes = self.notes(records);
        let programs = 1 + self.memory.len();
        let notes_at = FILE_HEADER + programs * PROGRAM_HEADER;
        let mut file = Vec::new();
        file.extend(elf::ELFMAG);
        file.extend([elf::ELFCLASS64.0, elf::ELFDATA2LSB.0, elf::EV_CURRENT.0, 0]);
        file.resize(IDENT, 0);
        for half in [elf::ET_CORE.0, elf::EM_X86_64.0] {
            file.extend(half.to_le_bytes());
        }
        file.extend(u32::from(elf::EV_CURRENT.0).to_le_bytes());
        for word in [0, FILE_HEADER as u64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [FILE_HEADER, PROGRAM_HEADER, programs, 0, 0, 0] {
            file.extend((half as u16).to_le_bytes());
        }
        let mut program = |kind: elf::ProgramType, offset: usize, address: u64, bytes: usize| {
            file.extend(kind.0.to_le_bytes());
            file.extend((elf::PF_R | elf::PF_W).0.to_le_bytes());
            let words = [offset as u64, address, address, bytes as u64, bytes as u64];
            // A note segment takes no memory.
            let memory = if kind == elf::PT_NOTE { 0 } else { words[4] };
            for word in [words[0], words[1], words[2], words[3], memory, 1] {
                file.extend(word.to_le_bytes());
            }
        };
        program(elf::PT_NOTE, notes_at, 0, notes.len());
        let mut offset = notes_at + notes.len();
        for (&address, piece) in &self.memory {
            program(elf::PT_LOAD, offset, address, piece.len());
            offset += piece.len();
        }
        file.extend(notes);
        file.extend(self.memory.values().flatten());
        file
    }

    /// Standard registers, the crashing CPU first, then our own records.
    fn notes(&self, records: &[CpuRecord]) -> Vec<u8> {
        let mut all = Vec::new();
        let mut note = |owner: &str, kind: u32, desc: &[u8]| {
            let begin = all.len();
            for word in [owner.len() as u32 + 1, desc.len() as u32, kind] {
                all.extend(word.to_le_bytes());
            }
            all.extend(owner.as_bytes());
            all.resize(begin + 12 + (owner.len() + 1).next_multiple_of(4), 0);
            all.extend(desc);
            all.resize(begin + note_size(owner.len(), desc.len()), 0);
        };
        let Some(handoff) = &self.handoff else { return Vec::new() };
        let crashed = handoff.cause.cpu;
        let first = records.iter().filter(|cpu| cpu.index == crashed);
        let others = records.iter().filter(|cpu| cpu.index != crashed);
        for cpu in first.chain(others) {
            if cpu.stopped_by == StoppedBy::NEVER_STARTED {
                continue;
            }
            let words = cpu.x86().and_then(|set| FromBytes::read_from_prefix(set.as_bytes()).ok());
            let words = words.map_or([0; PRSTATUS_WORDS], |(words, _)| words);
            let pid = cpu.index as i32 + 1;
            note(CORE_OWNER, notes::NT_PRSTATUS, &notes::prstatus(pid, SIGABRT, &words));
        }
        note(EPITAPH_OWNER, notes::NT_EPITAPH_HANDOFF, handoff.as_bytes());
        note(EPITAPH_OWNER, notes::NT_EPITAPH_CPUS, records.as_bytes());
        if !self.build_id.is_empty() {
            note(EPITAPH_OWNER, notes::NT_EPITAPH_BUILD_ID, &self.build_id);
        }
        all
    }
}

/// The record of a CPU whose own line did not arrive.
fn unknown_cpu(index: u32) -> CpuRecord {
    let mut record = CpuRecord::new();
    record.index = index;
    record.hardware_id = u64::from(u32::MAX);
    record.stopped_by = StoppedBy(u32::MAX);
    record.registers_from = RegistersFrom(u32::MAX);
    record.latency_ns = u64::MAX;
    record
}

/// The signal that debuggers show for a program that gave up.
const SIGABRT: u16 = 6;

impl FromConsole {
    /// Returns true if every line arrived, and every CPU has one.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.complete && !self.holes
    }

    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self, out: &Path) -> String {
        let mut text = format!(
            "{}: {} with registers of {}, {} of memory.\n",
            out.display(),
            count(self.cpus, "CPU"),
            self.registers,
            bytes(self.memory_bytes)
        );
        for warning in &self.warnings {
            text += &format!("warning: {}\n", clean(warning));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_joined_and_never_told_twice() {
        let mut said = Said::default();
        said.memory(0x1000, &[1; 8]);
        said.memory(0x1010, &[3; 8]);
        said.memory(0x1008, &[2; 16]);
        said.memory(0x1004, &[9; 4]);
        said.memory(u64::MAX, &[1; 2]);
        let pieces: Vec<_> = said.memory.into_iter().collect();
        let mut joined = vec![1; 8];
        joined.extend([2; 8]);
        assert_eq!(pieces, [(0x1000, joined), (0x1010, vec![3; 8])]);
    }

    #[test]
    fn values_end_where_the_next_begins() {
        let line = "panic file=a b.rs line=7";
        assert_eq!((value(line, "file"), number(line, "line")), (Some("a b.rs"), Some(7)));
        let line = "cause kind=panic cpu=2 vector=-1 address=0x10 message=a cpu=3 b";
        assert_eq!((index(line, "cpu"), number(line, "address")), (Some(2), Some(16)));
        assert_eq!(value(line, "message"), Some("a cpu=3 b"));
        assert_eq!(value(line, "kind").and_then(CauseKind::from_word), Some(CauseKind::PANIC));
        assert_eq!(from_hex("0aff"), Some(vec![10, 255]));
        assert_eq!(from_hex("0af"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
