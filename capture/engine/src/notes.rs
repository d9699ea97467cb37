//! The notes of a dump, in the order debuggers like them: the crashing CPU first.

use handoff::crash::{cause_kind, registers_from, stopped_by};
use handoff::facts::MAX_VIRTUAL_SEGMENTS;
use handoff::registers::PRSTATUS_WORDS;
use handoff::{BootFacts, CpuRecord, Range, VirtualSegment, X86Registers};
use vmcore_format::core::{CoreError, CoreHeader, Layout, LoadSegment, header_size, note_size};
use vmcore_format::notes::{self as format, CaptureMetrics, ExcludedRange, ZeroRange};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Appliance;
use crate::stream::Piece;

/// Name of the image in a dump whose facts have none.
const NO_NAME: &str = "unknown";
/// Program headers there may be beside one for each piece of memory: a virtual segment may cut a
/// piece in three.
const MOST_CUTS: usize = 2 * MAX_VIRTUAL_SEGMENTS;
/// Size of an ELF64 file header: the program headers of our linker follow it at once.
const ELF_HEADER_BYTES: u64 = 64;
/// Size of an ELF64 program header.
const PROGRAM_HEADER_BYTES: u64 = 56;
/// Room for the auxiliary vector and for the file note, in bytes.
const SMALL_NOTE_BYTES: usize = 512;

/// ELF `p_flags` of dumped memory: readable, writable, executable. The crashed system's
/// own protections are in its page tables, which are in the dump.
const FLAGS: u32 = 7;

/// The memory a file is about.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// What is in it, in the order of the file.
    pub pieces: &'a [Piece],
    /// What is not.
    pub excluded: &'a [ExcludedRange],
    /// What went wrong in the capture; empty when nothing did.
    pub fault: &'a str,
}

/// Bytes a buffer for [`build`] needs at most, for so many pieces and excluded ranges.
#[must_use]
pub fn bytes_needed(crash: &Appliance, pieces: usize, excluded: usize) -> u64 {
    let count = cpu_count(crash);
    let core = |bytes| note_size(format::CORE_OWNER.len(), bytes);
    let per_cpu = core(format::PRSTATUS_BYTES);
    let once = core(format::PRPSINFO_BYTES)
        + core(format::SIGINFO_BYTES)
        + 2 * core(SMALL_NOTE_BYTES)
        + note_size(format::LINUX_OWNER.len(), 0);
    let own = [
        crash.handoff_bytes.len(),
        crash.facts_bytes.len(),
        crash.handoff.cpus_bytes(),
        crash.stamps.map_or(0, <[u8]>::len),
        crash.locks.map_or(0, <[u8]>::len),
        crash.words.map_or(0, <[u8]>::len),
        excluded.saturating_mul(size_of::<ExcludedRange>()),
        pieces.saturating_mul(size_of::<ZeroRange>()),
        size_of::<CaptureMetrics>(),
        crash.facts.build_id().len(),
        format::FAULT_BYTES,
    ];
    let own: usize = own.iter().map(|&bytes| note_size(format::EPITAPH_OWNER.len(), bytes)).sum();
    header_size(count * per_cpu + once + own, pieces.saturating_add(MOST_CUTS))
}

/// Builds the header of the dump in `buffer`.
///
/// # Errors
/// When the buffer is smaller than [`bytes_needed`] says.
pub fn build(
    buffer: &mut [u8],
    crash: &Appliance,
    contents: Contents<'_>,
    metrics: &CaptureMetrics,
) -> Result<Layout, CoreError> {
    let machine = crash.facts.machine as u16;
    let loads = || contents.pieces.iter().flat_map(|piece| loads(crash.facts, piece));
    let mut header = CoreHeader::begin(buffer, machine, loads().count())?;
    let signal = signal(crash.handoff.cause.kind);
    let crashed = crash.handoff.cause.cpu;
    cpu_notes(&mut header, crash, crashed, signal, true)?;
    for index in 0..cpu_count(crash) as u32 {
        if index != crashed {
            cpu_notes(&mut header, crash, index, signal, false)?;
        }
    }
    own_notes(&mut header, crash, contents, metrics)?;
    for load in loads() {
        header.segment(load)?;
    }
    header.finish()
}

/// Returns the segments of the file that a piece of memory makes: one, or several where it lies
/// at several virtual addresses.
fn loads<'a>(facts: &'a BootFacts, piece: &Piece) -> impl Iterator<Item = LoadSegment> + use<'a> {
    let filled = Range { start: piece.start, bytes: piece.file_bytes };
    let end = filled.end().saturating_add(piece.zero_bytes);
    let mut at = piece.start;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (virtual_address, next) = virtual_run(facts, at, end);
        let load = LoadSegment {
            virtual_address,
            physical_address: at,
            // Not `clamp`, which panics on bounds the wrong way round.
            file_bytes: filled.end().min(next).saturating_sub(at),
            memory_bytes: next - at,
            flags: FLAGS,
        };
        at = next;
        Some(load)
    })
}

/// Returns the virtual address of the memory at `at`, and how far it goes on from there, up to
/// `end`. Segments that are not whole pages, or that lie at their physical address, are none.
fn virtual_run(facts: &BootFacts, at: u64, end: u64) -> (u64, u64) {
    let pages = |segment: &&VirtualSegment| {
        let all = segment.virtual_start | segment.physical_start | segment.bytes;
        all.is_multiple_of(vmcore_format::PAGE_BYTES)
            && segment.virtual_start != segment.physical_start
    };
    let physical =
        |segment: &VirtualSegment| Range { start: segment.physical_start, bytes: segment.bytes };
    let mut next = end;
    for segment in facts.virtual_segments().iter().filter(pages) {
        let range = physical(segment);
        if range.holds(at, 1) {
            let offset = at - range.start;
            return (segment.virtual_start.wrapping_add(offset), range.end().min(end));
        }
        if range.start > at && range.bytes > 0 {
            next = next.min(range.start);
        }
    }
    (at, next)
}

/// How many CPUs there are to write about.
fn cpu_count(crash: &Appliance) -> usize {
    match crash.cpus {
        Ok(records) => records.len(),
        Err(_) => (crash.facts.cpu_count as usize).clamp(1, handoff::MAX_CPUS),
    }
}

/// The record of the CPU with this index. They are in index order, but that is looked at
/// rather than believed.
fn record(crash: &Appliance, index: u32) -> Option<CpuRecord> {
    let records = crash.cpus.ok()?;
    let direct = records.get(index as usize).filter(|record| record.index == index);
    direct.or_else(|| records.iter().find(|record| record.index == index))
}

fn cpu_notes(
    header: &mut CoreHeader<'_>,
    crash: &Appliance,
    index: u32,
    signal: u16,
    crashed: bool,
) -> Result<(), CoreError> {
    let record = record(crash, index);
    // A CPU that never ran has no state. Every other one is a thread of the dump, if need
    // be with zeros for registers.
    if !crashed
        && record.as_ref().is_some_and(|record| record.stopped_by == stopped_by::NEVER_STARTED)
    {
        return Ok(());
    }
    let known = record.as_ref().filter(|record| record.registers_from != registers_from::NONE);
    let words = known.and_then(CpuRecord::x86).map_or([0; PRSTATUS_WORDS], standard_words);
    let pid = index.saturating_add(1) as i32;
    let core = format::CORE_OWNER;
    header.note(core, format::NT_PRSTATUS, &format::prstatus(pid, signal, &words))?;
    if crashed {
        process_notes(header, crash, signal)?;
    }
    Ok(())
}

/// The registers that have a place in NT_PRSTATUS: the first words of the set.
fn standard_words(registers: &X86Registers) -> [u64; PRSTATUS_WORDS] {
    let words = <[u64; PRSTATUS_WORDS]>::read_from_prefix(registers.as_bytes());
    words.map_or([0; PRSTATUS_WORDS], |(words, _)| words)
}

/// What describes the crash and the image as a whole.
fn process_notes(
    header: &mut CoreHeader<'_>,
    crash: &Appliance,
    signal: u16,
) -> Result<(), CoreError> {
    let core = format::CORE_OWNER;
    let (facts, cause) = (crash.facts, &crash.handoff.cause);
    let line = crate::last_words::cause_line(cause);
    let name = match facts.image_name() {
        "" => NO_NAME,
        name => name,
    };
    header.note(core, format::NT_PRPSINFO, &format::prpsinfo(name, &line))?;
    header.note(core, format::NT_SIGINFO, &format::siginfo(signal, cause.address))?;

    let mut buffer = [0; SMALL_NOTE_BYTES];
    let auxv = [
        (format::AT_PHDR, facts.elf_header.wrapping_add(ELF_HEADER_BYTES)),
        (format::AT_PHENT, PROGRAM_HEADER_BYTES),
        (format::AT_PHNUM, u64::from(facts.elf_program_headers)),
        (format::AT_PAGESZ, vmcore_format::PAGE_BYTES),
        (format::AT_ENTRY, facts.elf_entry),
    ];
    let bytes = format::write_auxv(&mut buffer, &auxv);
    header.note(core, format::NT_AUXV, buffer.get(..bytes).unwrap_or_default())?;
    let files = facts.segments().iter().map(|segment| {
        let page = segment.file_offset / vmcore_format::PAGE_BYTES;
        let (start, _) = virtual_run(facts, segment.range.start, segment.range.end());
        (start, start.wrapping_add(segment.range.bytes), page)
    });
    let bytes = format::write_file_note(&mut buffer, files, name);
    header.note(core, format::NT_FILE, buffer.get(..bytes).unwrap_or_default())?;
    header.note(format::LINUX_OWNER, format::NT_LINUX, &[])
}

/// What no standard note holds.
fn own_notes(
    header: &mut CoreHeader<'_>,
    crash: &Appliance,
    contents: Contents<'_>,
    metrics: &CaptureMetrics,
) -> Result<(), CoreError> {
    let mut own = |kind, desc: &[u8]| header.note(format::EPITAPH_OWNER, kind, desc);
    own(format::NT_EPITAPH_HANDOFF, crash.handoff_bytes)?;
    own(format::NT_EPITAPH_FACTS, crash.facts_bytes)?;
    if let Ok(records) = crash.cpus {
        own(format::NT_EPITAPH_CPUS, records.as_bytes())?;
    }
    let tables = [
        (format::NT_EPITAPH_STAMPS, crash.stamps),
        (format::NT_EPITAPH_LOCKS, crash.locks),
        (format::NT_EPITAPH_WORDS, crash.words),
    ];
    for (kind, table) in tables {
        if let Some(table) = table {
            own(kind, table)?;
        }
    }
    own(format::NT_EPITAPH_EXCLUDED, contents.excluded.as_bytes())?;
    own(format::NT_EPITAPH_CAPTURE, metrics.as_bytes())?;
    own(format::NT_EPITAPH_BUILD_ID, crash.facts.build_id())?;
    if !contents.fault.is_empty() {
        let line = contents.fault.as_bytes();
        own(format::NT_EPITAPH_FAULT, line.get(..format::FAULT_BYTES).unwrap_or(line))?;
    }
    zero_note(header, contents.pieces)
}

/// The list of memory that was all zero and takes no room.
fn zero_note(header: &mut CoreHeader<'_>, pieces: &[Piece]) -> Result<(), CoreError> {
    let zeros = || pieces.iter().filter(|piece| piece.zero_bytes > 0);
    let bytes = zeros().count() * size_of::<ZeroRange>();
    header.note_with(format::EPITAPH_OWNER, format::NT_EPITAPH_ZERO, bytes, |desc| {
        for (place, piece) in desc.chunks_mut(size_of::<ZeroRange>()).zip(zeros()) {
            let start = piece.start.saturating_add(piece.file_bytes);
            let entry = ZeroRange { start, bytes: piece.zero_bytes };
            place.iter_mut().zip(entry.as_bytes()).for_each(|(to, from)| *to = *from);
        }
    })
}

/// The signal every thread of the dump died of; debuggers want the same one everywhere.
const fn signal(kind: u32) -> u16 {
    match kind {
        cause_kind::EXCEPTION => format::SIGNAL_FAULT,
        _ => format::SIGNAL_PANIC,
    }
}

#[cfg(test)]
mod tests;
