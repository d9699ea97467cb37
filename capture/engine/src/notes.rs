//! The notes of a dump, in the order debuggers like them: the crashing CPU first.

use vmcore_format::core::{CoreError, CoreHeader, Layout, LoadSegment, header_size, note_size};
use vmcore_format::notes::{self as format, CaptureMetrics, ExcludedRange, ZeroRange};
use zerocopy::IntoBytes;

use crate::crash::{
    Cpu, Crash, Image, MAX_VIRTUAL_SEGMENTS, Origin, Range, Registers, Stop, VirtualSegment,
};
use crate::stream::Piece;

/// Name of the image in a dump of a crash that names none.
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
pub fn bytes_needed(crash: &Crash<'_>, pieces: usize, excluded: usize) -> u64 {
    let count = crash.cpu_count();
    let core = |bytes| note_size(format::CORE_OWNER.len(), bytes);
    let per_cpu = core(format::PRSTATUS_BYTES);
    let once = core(format::PRPSINFO_BYTES)
        + core(format::SIGINFO_BYTES)
        + 2 * core(SMALL_NOTE_BYTES)
        + note_size(format::LINUX_OWNER.len(), 0);
    let own = [
        excluded.saturating_mul(size_of::<ExcludedRange>()),
        pieces.saturating_mul(size_of::<ZeroRange>()),
        size_of::<CaptureMetrics>(),
        crash.image.map_or(0, |image| image.build_id.len()),
        format::FAULT_BYTES,
    ];
    let own = own.iter().map(|&bytes| note_size(format::EPITAPH_OWNER.len(), bytes));
    let copied = crash.notes.iter().map(|note| note_size(note.owner.len(), note.bytes.len()));
    let beside = own.chain(copied).fold(once, usize::saturating_add);
    header_size(
        count.saturating_mul(per_cpu).saturating_add(beside),
        pieces.saturating_add(MOST_CUTS),
    )
}

/// Builds the header of the dump in `buffer`.
///
/// # Errors
/// When the buffer is smaller than [`bytes_needed`] says.
pub fn build(
    buffer: &mut [u8],
    crash: &Crash<'_>,
    contents: Contents<'_>,
    metrics: &CaptureMetrics,
) -> Result<Layout, CoreError> {
    let loads = || contents.pieces.iter().flat_map(|piece| loads(crash, piece));
    let mut header = CoreHeader::begin(buffer, crash.machine, loads().count())?;
    let crashed = crash.cause.cpu;
    cpu_notes(&mut header, crash, crashed, true)?;
    for index in 0..crash.cpu_count() as u32 {
        if index != crashed {
            cpu_notes(&mut header, crash, index, false)?;
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
fn loads<'a>(crash: &'a Crash<'_>, piece: &Piece) -> impl Iterator<Item = LoadSegment> + use<'a> {
    let filled = Range { start: piece.start, bytes: piece.file_bytes };
    let end = filled.end().saturating_add(piece.zero_bytes);
    let mut at = piece.start;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (virtual_address, next) = virtual_run(crash, at, end);
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

/// Virtual address of memory that has none: QEMU and Linux write the same.
const NO_ADDRESS: u64 = 0;

/// Returns the virtual address of the memory at `at`, and how far it goes on from there, up to
/// `end`. Segments that are not whole pages, or that lie at their physical address, are none.
fn virtual_run(crash: &Crash<'_>, at: u64, end: u64) -> (u64, u64) {
    let pages = |segment: &&VirtualSegment| {
        let all = segment.virtual_start | segment.range.start | segment.range.bytes;
        all.is_multiple_of(vmcore_format::PAGE_BYTES)
            && (segment.virtual_start != segment.range.start || !crash.identity)
    };
    let mut next = end;
    for VirtualSegment { virtual_start, range } in crash.virtual_segments.iter().filter(pages) {
        if range.holds(at, 1) {
            let offset = at - range.start;
            return (virtual_start.wrapping_add(offset), range.end().min(end));
        }
        if range.start > at && range.bytes > 0 {
            next = next.min(range.start);
        }
    }
    (if crash.identity { at } else { NO_ADDRESS }, next)
}

fn cpu_notes(
    header: &mut CoreHeader<'_>,
    crash: &Crash<'_>,
    index: u32,
    crashed: bool,
) -> Result<(), CoreError> {
    let cpu = crash.cpu(index);
    // A CPU that never ran has no state. Every other one is a thread of the dump, if need
    // be with zeros for registers.
    if !crashed && cpu.as_ref().is_some_and(|cpu| cpu.stop == Stop::NeverRan) {
        return Ok(());
    }
    let words = match cpu.filter(|cpu| cpu.origin != Origin::Nowhere) {
        Some(Cpu { registers: Registers::X86 { general, .. }, .. }) => general,
        _ => [0; 27],
    };
    let pid = index.saturating_add(1) as i32;
    let core = format::CORE_OWNER;
    let status = format::prstatus(pid, crash.cause.signal, &words);
    header.note(core, format::NT_PRSTATUS, &status)?;
    if crashed {
        process_notes(header, crash)?;
    }
    Ok(())
}

/// What describes the crash and the image as a whole.
fn process_notes(header: &mut CoreHeader<'_>, crash: &Crash<'_>) -> Result<(), CoreError> {
    let core = format::CORE_OWNER;
    let cause = &crash.cause;
    let name = match crash.image.map_or("", |image| image.name) {
        "" => NO_NAME,
        name => name,
    };
    header.note(core, format::NT_PRPSINFO, &format::prpsinfo(name, cause.line))?;
    header.note(core, format::NT_SIGINFO, &format::siginfo(cause.signal, cause.address))?;
    if let Some(image) = &crash.image {
        image_notes(header, crash, image, name)?;
    }
    header.note(format::LINUX_OWNER, format::NT_LINUX, &[])
}

/// What tells a debugger where the image lies.
fn image_notes(
    header: &mut CoreHeader<'_>,
    crash: &Crash<'_>,
    image: &Image<'_>,
    name: &str,
) -> Result<(), CoreError> {
    let core = format::CORE_OWNER;
    let mut buffer = [0; SMALL_NOTE_BYTES];
    let behind = image.elf_header.saturating_add(ELF_HEADER_BYTES);
    let (header_at, _) = virtual_run(crash, image.elf_header, behind);
    let auxv = [
        (format::AT_PHDR, header_at.wrapping_add(ELF_HEADER_BYTES)),
        (format::AT_PHENT, PROGRAM_HEADER_BYTES),
        (format::AT_PHNUM, u64::from(image.program_headers)),
        (format::AT_PAGESZ, vmcore_format::PAGE_BYTES),
        (format::AT_ENTRY, image.entry),
    ];
    let bytes = format::write_auxv(&mut buffer, &auxv);
    header.note(core, format::NT_AUXV, buffer.get(..bytes).unwrap_or_default())?;
    let files = image.segments.iter().map(|segment| {
        let page = segment.file_offset / vmcore_format::PAGE_BYTES;
        let (start, _) = virtual_run(crash, segment.range.start, segment.range.end());
        (start, start.wrapping_add(segment.range.bytes), page)
    });
    let bytes = format::write_file_note(&mut buffer, files, name);
    header.note(core, format::NT_FILE, buffer.get(..bytes).unwrap_or_default())
}

/// What no standard note holds.
fn own_notes(
    header: &mut CoreHeader<'_>,
    crash: &Crash<'_>,
    contents: Contents<'_>,
    metrics: &CaptureMetrics,
) -> Result<(), CoreError> {
    for note in crash.notes {
        header.note(note.owner, note.kind, note.bytes)?;
    }
    let mut own = |kind, desc: &[u8]| header.note(format::EPITAPH_OWNER, kind, desc);
    own(format::NT_EPITAPH_EXCLUDED, contents.excluded.as_bytes())?;
    own(format::NT_EPITAPH_CAPTURE, metrics.as_bytes())?;
    if let Some(image) = &crash.image {
        own(format::NT_EPITAPH_BUILD_ID, image.build_id)?;
    }
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

#[cfg(test)]
mod tests;
