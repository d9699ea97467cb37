//! Rewrites a core so that memory that is all zero takes no space in it.

use std::path::Path;

use vmcore_format::PAGE_BYTES;
use vmcore_format::core::{CoreError, CoreHeader, LoadSegment, header_size, note_size};
use vmcore_format::notes::{EPITAPH_OWNER, NT_EPITAPH_ZERO, ZeroRange};
use zerocopy::IntoBytes;

use super::{CHUNK, CoreReader, Error, Part, Result, Sparse, header_error, is_zero, read_header};
use crate::Dump;

/// Shortest run of zero pages worth a program header of its own.
const RUN_PAGES: u64 = 8;

/// A new segment: bytes of an old one, and zero memory behind them.
struct Piece {
    load: LoadSegment,
    offset: u64,
}

/// Copies the core in `part` to `sink`. All notes stay as they are, but for the one that
/// lists zero memory, which is written anew.
pub(super) fn copy(path: &Path, dump: &Dump, part: &Part, sink: &mut Sparse<'_>) -> Result<()> {
    let header = read_header(path, part)?;
    let reader = CoreReader::new(&header, part.bytes())
        .map_err(|error| header_error(path, part.bytes(), error))?;
    let mut pieces = Vec::new();
    for segment in dump.segments() {
        split(part, &segment.load, segment.offset, &mut pieces)
            .map_err(Error::io(path, "read the dump"))?;
    }
    let zero: Vec<ZeroRange> = pieces
        .iter()
        .map(|piece| ZeroRange {
            start: piece.load.physical_address + piece.load.file_bytes,
            bytes: piece.load.memory_bytes - piece.load.file_bytes,
        })
        .filter(|range| range.bytes > 0)
        .collect();
    let new_header = rebuild(&reader, &pieces, &zero)
        .map_err(|error| Error::damaged(path, format!("cannot be rewritten: {error}")))?;
    let io = |doing| Error::io(path, doing);
    sink.total =
        new_header.len() as u64 + pieces.iter().map(|piece| piece.load.file_bytes).sum::<u64>();
    sink.write(&new_header).map_err(io("write the dump"))?;
    let mut buffer = vec![0; CHUNK];
    for piece in &pieces {
        let mut done = 0;
        while done < piece.load.file_bytes {
            let take = (piece.load.file_bytes - done).min(CHUNK as u64) as usize;
            part.read(piece.offset + done, &mut buffer[..take]).map_err(io("read the dump"))?;
            sink.write(&buffer[..take]).map_err(io("write the dump"))?;
            done += take as u64;
        }
    }
    Ok(())
}

/// Cuts a segment behind every long run of zero pages.
fn split(
    part: &Part,
    load: &LoadSegment,
    offset: u64,
    pieces: &mut Vec<Piece>,
) -> std::io::Result<()> {
    let mut piece = Piece { load: LoadSegment { file_bytes: 0, memory_bytes: 0, ..*load }, offset };
    let mut zeros = 0;
    let mut at = 0;
    while at < load.file_bytes {
        let take = (load.file_bytes - at).min(CHUNK as u64);
        let chunk = part.read_up_to(offset + at, take)?;
        for page in chunk.chunks(PAGE_BYTES as usize) {
            if is_zero(page) {
                zeros += PAGE_BYTES;
                continue;
            }
            if zeros >= RUN_PAGES * PAGE_BYTES {
                piece.load.memory_bytes = piece.load.file_bytes + zeros;
                let behind = piece.load.memory_bytes;
                let next = Piece {
                    load: LoadSegment {
                        virtual_address: piece.load.virtual_address + behind,
                        physical_address: piece.load.physical_address + behind,
                        file_bytes: 0,
                        memory_bytes: 0,
                        flags: load.flags,
                    },
                    offset: piece.offset + behind,
                };
                pieces.push(std::mem::replace(&mut piece, next));
            } else {
                piece.load.file_bytes += zeros;
            }
            zeros = 0;
            piece.load.file_bytes += PAGE_BYTES;
        }
        at += take;
    }
    let rest = load.physical_address + load.memory_bytes - piece.load.physical_address;
    piece.load.memory_bytes = rest;
    pieces.push(piece);
    Ok(())
}

fn rebuild(
    reader: &CoreReader<'_>,
    pieces: &[Piece],
    zero: &[ZeroRange],
) -> Result<Vec<u8>, CoreError> {
    let is_zero_note = |owner: &str, kind: u32| owner == EPITAPH_OWNER && kind == NT_EPITAPH_ZERO;
    let kept: Vec<_> = reader
        .notes()
        .map_while(Result::ok)
        .filter(|note| !is_zero_note(note.owner, note.kind))
        .collect();
    let mut notes: usize =
        kept.iter().map(|note| note_size(note.owner.len(), note.desc.len())).sum();
    notes += note_size(EPITAPH_OWNER.len(), zero.as_bytes().len());
    let mut buffer = vec![0; header_size(notes, pieces.len()) as usize];
    let mut header = CoreHeader::begin(&mut buffer, reader.machine(), pieces.len())?;
    for note in kept {
        header.note(note.owner, note.kind, note.desc)?;
    }
    header.note(EPITAPH_OWNER, NT_EPITAPH_ZERO, zero.as_bytes())?;
    for piece in pieces {
        header.segment(piece.load)?;
    }
    let layout = header.finish()?;
    buffer.truncate(layout.header_bytes as usize);
    Ok(buffer)
}
