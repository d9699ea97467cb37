//! Rewrites a core with other program headers: memory that is all zero takes no space in it, and
//! memory that is not to be had is in none.

use std::path::Path;

use vmcore_format::PAGE_BYTES;
use vmcore_format::core::{CoreError, CoreHeader, LoadSegment, header_size, note_size};
use vmcore_format::notes::{
    EPITAPH_OWNER, ExcludedRange, NT_EPITAPH_EXCLUDED, NT_EPITAPH_ZERO, ZeroRange, excluded_reason,
};
use vmcore_format::reader::FileSegment;
use zerocopy::IntoBytes;

use super::{CHUNK, CoreReader, Error, LeftOut, Part, Result, Sparse, header_error, is_zero};
use crate::Dump;
use crate::dump::read_header;
use crate::json::Hex;
use crate::stage::{Gap, StageFile};

/// Shortest run of zero pages worth a program header of its own.
const RUN_PAGES: u64 = 8;

/// The core that is rewritten.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a> {
    /// All of its file.
    pub(super) part: &'a Part,
    /// The chunks it is put together from; `None` for a plain file.
    pub(super) stage: Option<&'a StageFile>,
}

impl Memory<'_> {
    /// Returns how many bytes from `offset` on are known to be zero without being read.
    fn zeros_at(self, offset: u64) -> u64 {
        self.stage.map_or(0, |stage| stage.zeros_at(offset))
    }
}

/// A new segment: bytes of an old one, and zero memory behind them.
struct Piece {
    load: LoadSegment,
    offset: u64,
}

/// The new program headers, and the memory that is in none.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    left_out: Vec<LeftOut>,
}

/// Copies the core in `memory` to `sink` without the memory in `gaps`, which are sorted, and with
/// `elide` without long runs of zeros. All notes stay as they are, but for the ones that list
/// such memory, which are written anew. Returns what was left out.
pub(super) fn copy(
    path: &Path,
    dump: &Dump,
    memory: Memory<'_>,
    gaps: &[Gap],
    elide: bool,
    sink: &mut Sparse<'_, '_>,
) -> Result<Vec<LeftOut>> {
    let part = memory.part;
    let header = read_header(path, part)?;
    let reader = CoreReader::new(&header, part.bytes())
        .map_err(|error| header_error(path, part.bytes(), error))?;
    let stored: u64 = dump.segments().iter().map(|segment| segment.load.file_bytes).sum();
    if stored > reader.needed_bytes() {
        // Every one of them would be written once more.
        return Err(Error::damaged(path, "its program headers share bytes of the file"));
    }
    let mut plan = Plan::default();
    for segment in dump.segments() {
        plan.split(memory, segment, gaps, elide).map_err(Error::io(path, "read the dump"))?;
    }
    let new_header = plan
        .rebuild(&reader, dump)
        .map_err(|error| Error::damaged(path, format!("cannot be rewritten: {error}")))?;
    sink.total = plan.pieces.iter().map(|piece| piece.load.file_bytes).sum::<u64>()
        + new_header.len() as u64;
    sink.write(&new_header)?;
    let mut buffer = vec![0; CHUNK];
    for piece in &plan.pieces {
        let mut done = 0;
        while done < piece.load.file_bytes {
            let left = piece.load.file_bytes - done;
            let zeros = memory.zeros_at(piece.offset + done).min(left);
            if zeros > 0 {
                sink.skip(zeros);
                done += zeros;
                continue;
            }
            let take = left.min(CHUNK as u64) as usize;
            part.read(piece.offset + done, &mut buffer[..take])
                .map_err(Error::io(path, "read the dump"))?;
            sink.write(&buffer[..take])?;
            done += take as u64;
        }
    }
    Ok(plan.left_out)
}

impl Plan {
    /// Makes pieces of a segment: what is between the gaps, each with the zero memory behind it.
    fn split(
        &mut self,
        memory: Memory<'_>,
        segment: &FileSegment,
        gaps: &[Gap],
        elide: bool,
    ) -> std::io::Result<()> {
        let load = &segment.load;
        let end = segment.offset.saturating_add(load.file_bytes);
        let mut at = segment.offset;
        let before = self.pieces.len();
        let first = gaps.partition_point(|gap| gap.end <= at);
        for gap in gaps.get(first..).unwrap_or_default() {
            if gap.start >= end {
                break;
            }
            self.add(memory, segment, (at, gap.start.max(at)), elide)?;
            let (start, behind) = (gap.start.max(at), gap.end.min(end));
            self.left_out.push(LeftOut {
                address: Hex(load.physical_address + (start - segment.offset)),
                bytes: Hex(behind - start),
                reason: gap.fault.to_string(),
            });
            at = behind;
        }
        self.add(memory, segment, (at, end), elide)?;
        let zeros = load.memory_bytes - load.file_bytes;
        let behind = load.physical_address + load.file_bytes;
        match self.pieces.get_mut(before..).and_then(<[Piece]>::last_mut) {
            Some(last) if last.load.physical_address + last.load.memory_bytes == behind => {
                last.load.memory_bytes += zeros;
            }
            _ if zeros > 0 => self.pieces.push(piece(segment, end, 0, zeros)),
            _ => {}
        }
        Ok(())
    }

    /// Makes pieces of the bytes from `from` to `to` of the file, cut behind every long run of zero
    /// pages.
    fn add(
        &mut self,
        memory: Memory<'_>,
        segment: &FileSegment,
        (from, to): (u64, u64),
        elide: bool,
    ) -> std::io::Result<()> {
        let mut begin = from;
        let (mut at, mut zeros) = (from, 0);
        while at < to && elide {
            let known = memory.zeros_at(at).min(to - at);
            if known > 0 {
                zeros += known;
                at += known;
                continue;
            }
            let chunk = memory.part.read_up_to(at, (to - at).min(CHUNK as u64))?;
            if chunk.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            for page in chunk.chunks(PAGE_BYTES as usize) {
                if is_zero(page) {
                    zeros += page.len() as u64;
                } else {
                    if zeros >= RUN_PAGES * PAGE_BYTES {
                        self.pieces.push(piece(segment, begin, at - zeros - begin, zeros));
                        begin = at;
                    }
                    zeros = 0;
                }
                at += page.len() as u64;
            }
        }
        if begin < to {
            self.pieces.push(piece(segment, begin, to - zeros - begin, zeros));
        }
        Ok(())
    }

    /// The new header: the old notes, the two lists anew, and a program header for each piece.
    fn rebuild(&self, reader: &CoreReader<'_>, dump: &Dump) -> Result<Vec<u8>, CoreError> {
        let zero: Vec<ZeroRange> = self
            .pieces
            .iter()
            .map(|piece| ZeroRange {
                start: piece.load.physical_address + piece.load.file_bytes,
                bytes: piece.load.memory_bytes - piece.load.file_bytes,
            })
            .filter(|range| range.bytes > 0)
            .collect();
        let mut excluded = dump.excluded.clone();
        excluded.extend(self.left_out.iter().map(|left_out| ExcludedRange {
            start: left_out.address.0,
            bytes: left_out.bytes.0,
            reason: excluded_reason::DAMAGED,
        }));
        let ours: [(u32, &[u8]); 2] =
            [(NT_EPITAPH_ZERO, zero.as_bytes()), (NT_EPITAPH_EXCLUDED, excluded.as_bytes())];
        let kept: Vec<_> = reader
            .notes()
            .map_while(std::result::Result::ok)
            .filter(|note| {
                note.owner != EPITAPH_OWNER || ours.iter().all(|&(kind, _)| kind != note.kind)
            })
            .collect();
        let mut notes: usize =
            kept.iter().map(|note| note_size(note.owner.len(), note.desc.len())).sum();
        for (_, list) in ours {
            notes += note_size(EPITAPH_OWNER.len(), list.len());
        }
        let mut buffer = vec![0; header_size(notes, self.pieces.len()) as usize];
        let mut header = CoreHeader::begin(&mut buffer, reader.machine(), self.pieces.len())?;
        for note in kept {
            header.note(note.owner, note.kind, note.desc)?;
        }
        for (kind, list) in ours {
            header.note(EPITAPH_OWNER, kind, list)?;
        }
        for piece in &self.pieces {
            header.segment(piece.load)?;
        }
        let layout = header.finish()?;
        buffer.truncate(layout.header_bytes as usize);
        Ok(buffer)
    }
}

/// A piece of a segment: the bytes from `offset` of the file on, and zero memory behind them.
fn piece(segment: &FileSegment, offset: u64, file_bytes: u64, zeros: u64) -> Piece {
    let inside = offset - segment.offset;
    let load = LoadSegment {
        virtual_address: segment.load.virtual_address + inside,
        physical_address: segment.load.physical_address + inside,
        file_bytes,
        memory_bytes: file_bytes + zeros,
        flags: segment.load.flags,
    };
    Piece { load, offset }
}
