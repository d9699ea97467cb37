//! The layout of an extracted core: which memory it has, in which program headers, and its
//! notes.
//!
//! PT_LOADs are sorted by virtual address and do not overlap there: elfutils looks for them by a
//! binary search and finds no module otherwise. Behind those that are in the dump there are the
//! aliases (`aliases.rs`), which point to the same bytes. One begins where the crashed image does, since elfutils
//! looks for an image at the start of a PT_LOAD only; its bytes are the first in the file, so
//! that those of the next segment do not follow it: where all of an image follows, elfutils takes
//! it from the core, without its symbols, and not from the file that it was given. Memory that is zero is a hole in the file, since drgn
//! and lldb cannot read a PT_LOAD with fewer bytes in the file than in memory; `--elide-zero`
//! asks for that form.

use std::path::Path;

use handoff::Range;
use vmcore_format::PAGE_BYTES;
use vmcore_format::core::{CoreError, CoreHeader, LoadSegment, header_size, note_size, write_note};
use vmcore_format::notes::{
    self, CORE_OWNER, EPITAPH_OWNER, ExcludedRange, LINUX_OWNER, ZeroRange, excluded_reason,
};
use vmcore_format::reader::{CoreReader, FileSegment, Note};
use zerocopy::IntoBytes;

use super::{CHUNK, LeftOut, Sparse, aliases, is_zero};
use crate::checksums::{ChunkTable, header_crc32};
use crate::dump::{bad_chunk, header_error, read_header};
use crate::{Dump, Error, Result};

/// Shortest run of zero pages worth a program header of its own.
const RUN_PAGES: u64 = 8;

/// What to write.
pub(super) struct Form<'a> {
    /// Zero memory has no bytes in the file.
    pub(super) elide_zero: bool,
    /// Memory that is left out since it is damaged, by address and without overlaps.
    pub(super) left_out: &'a [LeftOut],
}

/// Memory whose bytes come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Physical address.
    address: u64,
    bytes: u64,
    /// Offset of the bytes in the dump's file; `None` for zeros.
    offset: Option<u64>,
    /// Virtual address of the memory at physical address 0, modulo 2^64.
    virtual_base: u64,
    /// ELF `p_flags`.
    flags: u32,
    /// It begins a program header, although it may be adjacent to the run before.
    first: bool,
}

/// Copies the core of `dump`, which was read from `source`, to `sink`.
///
/// # Errors
/// When the dump cannot be read, which is said of `source`, or the file cannot be written.
pub(super) fn copy(
    source: &Path,
    dump: &Dump,
    form: &Form<'_>,
    sink: &mut Sparse<'_, '_>,
) -> Result<()> {
    let part = dump.part();
    let header = read_header(source, part)?;
    let reader = CoreReader::new(&header, part.bytes())
        .map_err(|error| header_error(source, part.bytes(), error))?;
    let damaged = |what| Error::damaged(source, what);
    let stored = dump.segments().iter().map(|segment| segment.load.file_bytes);
    if stored.fold(0, u64::saturating_add) > reader.needed_bytes() {
        // Every one of them would be written once more.
        return Err(damaged("its program headers share bytes of the file".into()));
    }
    let facts = dump.facts.iter().flat_map(|facts| facts.segments());
    let images: Vec<u64> = facts.map(|segment| segment.range.start).collect();
    let range = |left: &LeftOut| Range { start: left.address.0, bytes: left.bytes };
    let left_out: Vec<Range> = form.left_out.iter().map(range).collect();
    let mut runs = plan(dump.segments(), &images, &left_out).map_err(damaged)?;
    if form.elide_zero {
        runs = find_zeros(dump, &runs).map_err(|error| read_error(source, dump, error))?;
    }
    let loads = loads(&runs, form.elide_zero, images.iter().min().copied());
    let mut table = match (dump.checksums(), dump.stage_file()) {
        (Some(table), _) => Some(table.clone()),
        (None, Some(file)) => Some(ChunkTable::of_stage(file, dump.segments()).map_err(damaged)?),
        // Memory that was never under a checksum gets none that it might pass for good with.
        (None, None) => None,
    };
    if let Some(table) = &mut table {
        table.leave_out(&left_out);
    }
    let notes = Notes::new(&reader, dump, &runs, &left_out);
    let cannot = |error: CoreError| damaged(format!("cannot be rewritten: {error}"));
    let (new_header, behind) =
        build(reader.machine(), &notes, program_headers(dump, &loads), table.as_ref())
            .map_err(cannot)?;
    sink.total = new_header.len() as u64
        + loads.iter().map(|load| load.segment.file_bytes).sum::<u64>()
        + behind.len() as u64;
    sink.write(&new_header)?;
    let mut in_file: Vec<&Load> = loads.iter().collect();
    in_file.sort_by_key(|load| load.offset);
    let mut buffer = vec![0; CHUNK];
    for run in in_file.iter().flat_map(|load| &runs[load.runs.clone()]) {
        let Some(offset) = run.offset else {
            if !form.elide_zero {
                sink.skip(run.bytes);
            }
            continue;
        };
        let mut done = 0;
        while done < run.bytes {
            let left = run.bytes - done;
            let zeros = zeros_at(dump, offset + done).min(left);
            if zeros > 0 {
                sink.skip(zeros);
                done += zeros;
                continue;
            }
            let take = left.min(CHUNK as u64) as usize;
            part.read(offset + done, &mut buffer[..take])
                .map_err(|error| read_error(source, dump, error))?;
            sink.write(&buffer[..take])?;
            done += take as u64;
        }
    }
    if !behind.is_empty() {
        sink.write(&behind)?;
    }
    Ok(())
}

/// Returns how many bytes from `offset` of the dump's file on are known to be zero without being
/// read.
fn zeros_at(dump: &Dump, offset: u64) -> u64 {
    dump.stage_file().map_or(0, |stage| stage.zeros_at(offset))
}

/// An error of reading the dump: damage where it is that.
fn read_error(source: &Path, dump: &Dump, error: std::io::Error) -> Error {
    match (bad_chunk(&error), &dump.stored) {
        (Some(bad), Some(stored)) => Error::damaged(source, format!("slot {}: {bad}", stored.slot)),
        (Some(bad), None) => Error::damaged(source, bad.to_string()),
        (None, _) => Error::io(source, "read the dump")(error),
    }
}

/// The memory of `segments`, by address, without the ranges that are left out. Program headers
/// begin where `segments` do, and at the addresses in `images`.
fn plan(segments: &[FileSegment], images: &[u64], left_out: &[Range]) -> Result<Vec<Run>, String> {
    let mut runs = Vec::new();
    let mut end = 0;
    for segment in segments {
        let load = &segment.load;
        if load.physical_address < end {
            let at = load.physical_address;
            return Err(format!("two of its segments have the memory at {at:#x}"));
        }
        end = load.physical_address + load.memory_bytes;
        let whole = Run {
            address: load.physical_address,
            bytes: load.file_bytes,
            offset: Some(segment.offset),
            virtual_base: load.virtual_address.wrapping_sub(load.physical_address),
            flags: load.flags,
            first: true,
        };
        let zeros = Run {
            address: whole.address + load.file_bytes,
            bytes: load.memory_bytes - load.file_bytes,
            offset: None,
            first: load.file_bytes == 0,
            ..whole
        };
        for run in [whole, zeros] {
            cut(run, left_out, &mut runs);
        }
    }
    for image in images {
        let inside = |run: &Run| *image > run.address && *image - run.address < run.bytes;
        if let Some(at) = runs.iter().position(inside) {
            let before = *image - runs[at].address;
            let behind = runs[at].behind(before, true);
            runs[at].bytes = before;
            runs.insert(at + 1, behind);
        }
    }
    Ok(runs)
}

impl Run {
    /// What is left behind the first `bytes` bytes.
    fn behind(self, bytes: u64, first: bool) -> Self {
        Self {
            address: self.address + bytes,
            bytes: self.bytes - bytes,
            offset: self.offset.map(|offset| offset + bytes),
            first,
            ..self
        }
    }
}

/// Appends what is left of a run without the ranges that are left out.
fn cut(mut run: Run, left_out: &[Range], runs: &mut Vec<Run>) {
    let first = left_out.partition_point(|range| range.end() <= run.address);
    for range in left_out.get(first..).unwrap_or_default() {
        let (start, end) = (run.address, run.address + run.bytes);
        if range.start >= end {
            break;
        }
        if range.start > start {
            runs.push(Run { bytes: range.start - start, ..run });
        }
        run = run.behind(range.end().min(end) - start, true);
    }
    if run.bytes > 0 {
        runs.push(run);
    }
}

/// Cuts the runs where they have long runs of zero pages.
fn find_zeros(dump: &Dump, runs: &[Run]) -> std::io::Result<Vec<Run>> {
    let mut found = Vec::new();
    for run in runs {
        let Some(offset) = run.offset else {
            found.push(*run);
            continue;
        };
        // Of this run: where the memory begins that is in no new run yet, and the zero pages
        // at its end.
        let (mut start, mut zeros) = (0, 0);
        let piece = |from: u64, to: u64, zero: bool| Run {
            address: run.address + from,
            bytes: to - from,
            offset: (!zero).then_some(offset + from),
            first: run.first && from == 0,
            ..*run
        };
        let mut at = 0;
        while at < run.bytes {
            let left = run.bytes - at;
            let known = zeros_at(dump, offset + at).min(left);
            if known > 0 {
                zeros += known;
                at += known;
                continue;
            }
            let chunk = dump.part().read_up_to(offset + at, left.min(CHUNK as u64))?;
            if chunk.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            for page in chunk.chunks(PAGE_BYTES as usize) {
                if !is_zero(page) {
                    if zeros >= RUN_PAGES * PAGE_BYTES {
                        found.extend((at - zeros > start).then(|| piece(start, at - zeros, false)));
                        found.push(piece(at - zeros, at, true));
                        start = at;
                    }
                    zeros = 0;
                } else {
                    zeros += page.len() as u64;
                }
                at += page.len() as u64;
            }
        }
        let data = run.bytes - zeros;
        found.extend((data > start).then(|| piece(start, data, false)));
        found.extend((zeros > 0).then(|| piece(data, run.bytes, true)));
    }
    Ok(found)
}

/// A program header.
pub(super) struct Load {
    pub(super) segment: LoadSegment,
    /// Where its bytes are behind the header.
    pub(super) offset: u64,
    /// The runs that it is made of.
    runs: std::ops::Range<usize>,
}

/// The program headers of runs, by address: one for adjacent runs, unless the next is to begin
/// its own. The bytes of the one that begins at `head` are the first in the file.
fn loads(runs: &[Run], elide_zero: bool, head: Option<u64>) -> Vec<Load> {
    let mut loads: Vec<Load> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let file_bytes = if elide_zero && run.offset.is_none() { 0 } else { run.bytes };
        if let Some(Load { segment: last, runs, .. }) = loads.last_mut()
            && !run.first
            && last.physical_address + last.memory_bytes == run.address
            && (last.file_bytes == last.memory_bytes || file_bytes == 0)
        {
            last.file_bytes += file_bytes;
            last.memory_bytes += run.bytes;
            runs.end = index + 1;
            continue;
        }
        let segment = LoadSegment {
            virtual_address: run.address.wrapping_add(run.virtual_base),
            physical_address: run.address,
            file_bytes,
            memory_bytes: run.bytes,
            flags: run.flags,
        };
        loads.push(Load { segment, offset: 0, runs: index..index + 1 });
    }
    let is_head = |load: &Load| Some(load.segment.physical_address) == head;
    let mut offset: u64 =
        loads.iter().filter(|load| is_head(load)).map(|load| load.segment.file_bytes).sum();
    for load in loads.iter_mut().filter(|load| !is_head(load)) {
        load.offset = offset;
        offset += load.segment.file_bytes;
    }
    loads
}

/// The notes of the new file but for its checksums.
struct Notes<'a> {
    kept: Vec<Note<'a>>,
    excluded: Vec<ExcludedRange>,
    zero: Vec<ZeroRange>,
}

impl<'a> Notes<'a> {
    fn new(reader: &CoreReader<'a>, dump: &Dump, runs: &[Run], left_out: &[Range]) -> Self {
        let mut kept: Vec<_> =
            reader.notes().map_while(Result::ok).filter(|note| is_kept(note)).collect();
        if kept.iter().all(|note| note.owner != LINUX_OWNER) {
            kept.push(Note { owner: LINUX_OWNER, kind: notes::NT_LINUX, desc: &[], offset: 0 });
        }
        let mut excluded = dump.excluded.clone();
        excluded.extend(left_out.iter().map(|range| ExcludedRange {
            start: range.start,
            bytes: range.bytes,
            reason: excluded_reason::DAMAGED,
        }));
        let noted = dump.zero.iter().map(|range| (range.start, range.bytes));
        let found = runs.iter().filter(|run| run.offset.is_none());
        let mut ranges: Vec<_> = noted.chain(found.map(|run| (run.address, run.bytes))).collect();
        ranges.sort_unstable();
        let mut zero: Vec<ZeroRange> = Vec::new();
        for (start, bytes) in ranges {
            match zero.last_mut() {
                Some(last) if last.start.saturating_add(last.bytes) >= start => {
                    let end =
                        start.saturating_add(bytes).max(last.start.saturating_add(last.bytes));
                    last.bytes = end - last.start;
                }
                _ => zero.push(ZeroRange { start, bytes }),
            }
        }
        Self { kept, excluded, zero }
    }

    fn all(&self) -> impl Iterator<Item = Note<'_>> {
        let own = |kind, desc| Note { owner: EPITAPH_OWNER, kind, desc, offset: 0 };
        let excluded = own(notes::NT_EPITAPH_EXCLUDED, self.excluded.as_bytes());
        let zero = own(notes::NT_EPITAPH_ZERO, self.zero.as_bytes());
        self.kept.iter().copied().chain([excluded, zero])
    }
}

/// Returns true for notes that are taken over as they are.
fn is_kept(note: &Note<'_>) -> bool {
    let no_floating_point = |zeros: &[&[u8]]| {
        // Older dumps have zeros where nothing had been saved.
        !zeros.iter().all(|part| part.iter().all(|&byte| byte == 0))
    };
    match (note.owner, note.kind) {
        (
            EPITAPH_OWNER,
            notes::NT_EPITAPH_ZERO | notes::NT_EPITAPH_EXCLUDED | notes::NT_EPITAPH_CHECKSUMS,
        ) => false,
        (CORE_OWNER, notes::NT_FPREGSET) => no_floating_point(&[note.desc]),
        (LINUX_OWNER, notes::NT_X86_XSTATE) => {
            let (xcr0, bytes) = (notes::XSTATE_XCR0.min(note.desc.len()), note.desc.len());
            no_floating_point(&[&note.desc[..xcr0], &note.desc[(xcr0 + 8).min(bytes)..]])
        }
        _ => true,
    }
}

/// Returns all program headers in the order of their virtual addresses, and where the bytes of
/// each are behind the header of the file.
fn program_headers(dump: &Dump, loads: &[Load]) -> Vec<(LoadSegment, u64)> {
    let mut all: Vec<_> = loads.iter().map(|load| (load.segment, load.offset)).collect();
    all.extend(aliases::find(dump, loads));
    all.sort_by_key(|(segment, _)| (segment.virtual_address, segment.physical_address));
    all
}

/// The new header, and the note that stands behind the memory.
fn build(
    machine: u16,
    notes: &Notes<'_>,
    loads: Vec<(LoadSegment, u64)>,
    table: Option<&ChunkTable>,
) -> Result<(Vec<u8>, Vec<u8>), CoreError> {
    let mut bytes: usize =
        notes.all().map(|note| note_size(note.owner.len(), note.desc.len())).sum();
    let inside = table.filter(|table| table.in_header());
    let behind = table.filter(|table| !table.in_header());
    bytes += inside.map_or(0, ChunkTable::note_size);
    let programs = loads.len() + usize::from(behind.is_some());
    let mut buffer = vec![0; header_size(bytes, programs) as usize];
    let mut header = CoreHeader::begin(&mut buffer, machine, programs)?;
    for note in notes.all() {
        header.note(note.owner, note.kind, note.desc)?;
    }
    if let Some(table) = inside {
        header.note_with(EPITAPH_OWNER, notes::NT_EPITAPH_CHECKSUMS, table.note_bytes(), |_| ())?;
    }
    for (segment, offset) in loads {
        header.segment_at(segment, offset)?;
    }
    if let Some(table) = behind {
        header.notes_behind(table.note_size() as u64)?;
    }
    let layout = header.finish()?;
    buffer.truncate(layout.header_bytes as usize);
    // Now that all the rest of the header is there, its checksum can be taken.
    if let Some(table) = inside {
        let reader = CoreReader::new(&buffer, layout.file_bytes).ok();
        let note = reader.and_then(|reader| {
            reader.notes().flatten().find(|note| note.kind == notes::NT_EPITAPH_CHECKSUMS)
        });
        let start = note.map_or(0, |note| note.offset as usize);
        let place = start..start + table.note_bytes();
        let desc = table.note(header_crc32(&buffer, Some(place.clone())));
        buffer[place].copy_from_slice(&desc);
    }
    let mut note = Vec::new();
    if let Some(table) = behind {
        let desc = table.note(header_crc32(&buffer, None));
        note = vec![0; table.note_size()];
        if write_note(&mut note, EPITAPH_OWNER, notes::NT_EPITAPH_CHECKSUMS, &desc) == 0 {
            return Err(CoreError::TooLarge);
        }
    }
    Ok((buffer, note))
}
