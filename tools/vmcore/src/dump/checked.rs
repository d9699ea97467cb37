//! A core file with checksums: no memory is handed out before its chunk was verified.

use std::sync::Mutex;

use vmcore_format::notes::{EPITAPH_OWNER, NT_EPITAPH_CHECKSUMS, chunk_state};
use vmcore_format::reader::{CoreReader, parse_note};

use super::{Dump, HEADER_LIMIT, Unchecked};
use crate::checksums::{ChunkTable, header_crc32};
use crate::stage::{BadChunk, ChunkFault};
use crate::{Error, Result};

/// The checksums of a core file, and the chunks that were verified already.
pub(super) struct Checks {
    table: ChunkTable,
    /// Of each chunk that was read: whether it is good, or what is wrong.
    known: Mutex<Vec<Option<Result<(), ChunkFault>>>>,
}

impl Checks {
    pub(super) fn table(&self) -> &ChunkTable {
        &self.table
    }

    /// Whether chunks were left out when the core was extracted.
    pub(super) fn lack_chunks(&self) -> bool {
        self.table.chunks().iter().any(|chunk| chunk.state == chunk_state::LEFT_OUT)
    }

    /// Verifies the chunks with memory from `address` to `end`, those that were not read before.
    pub(super) fn check(
        &self,
        address: u64,
        end: u64,
        memory: &Unchecked<'_>,
    ) -> Result<(), BadChunk> {
        let mut address = address;
        while let Some(index) = self.table.find(address).filter(|_| address < end) {
            let chunk = &self.table.chunks()[index];
            self.chunk(index, memory)?;
            let Some(behind) = chunk.address.checked_add(chunk.bytes) else { break };
            address = behind;
        }
        Ok(())
    }

    fn chunk(&self, index: usize, memory: &Unchecked<'_>) -> Result<(), BadChunk> {
        let known = || self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let chunk = &self.table.chunks()[index];
        let bad = |fault| BadChunk::of_core(index, chunk, fault);
        if chunk.state != chunk_state::PRESENT {
            return Err(bad(ChunkFault::LeftOut));
        }
        if let Some(outcome) = known()[index] {
            return outcome.map_err(bad);
        }
        let outcome = self.table.check(index, memory);
        known()[index] = Some(outcome.map_err(|bad| bad.fault));
        outcome
    }
}

impl Dump {
    /// Takes the checksums of a core file, holds its header against them, and its memory
    /// against their list.
    pub(super) fn take_checksums(&mut self, reader: &CoreReader<'_>, partial: bool) -> Result<()> {
        // A stage on a disk has a table and seals of its own.
        if self.stored.is_some() {
            return Ok(());
        }
        let inside = reader
            .notes()
            .map_while(Result::ok)
            .find(|note| note.owner == EPITAPH_OWNER && note.kind == NT_EPITAPH_CHECKSUMS);
        let behind = match inside {
            Some(_) => None,
            None => self.note_behind(reader)?,
        };
        let (desc, place) = match (&inside, &behind) {
            (Some(note), _) => {
                let start = note.offset as usize;
                (note.desc, Some(start..start + note.desc.len()))
            }
            (None, Some(desc)) => (desc.as_slice(), None),
            (None, None) => return Ok(()),
        };
        let (table, noted) = match ChunkTable::parse(desc) {
            Ok(parsed) => parsed,
            Err(why) => return self.complain(partial, format!("table of checksums: {why}")),
        };
        let bytes = reader.header_bytes();
        let padded = self.part.read_up_to(0, bytes).map_err(Error::io(&self.path, "read it"))?;
        let found = header_crc32(&padded, place);
        if found != noted {
            let what = format!(
                "the headers (bytes 0 to {bytes:#x} of the file) do not match their checksum: \
                 {noted:08x} noted, {found:08x} found"
            );
            self.complain(partial, what)?;
        }
        if let Err(why) = table.covers(&self.segments) {
            self.complain(partial, format!("table of checksums: {why}"))?;
        }
        let known = Mutex::new(vec![None; table.chunks().len()]);
        self.checks = Some(Checks { table, known });
        Ok(())
    }

    /// Reads the table of checksums behind the memory; `None` when there is none.
    fn note_behind(&self, reader: &CoreReader<'_>) -> Result<Option<Vec<u8>>> {
        for (offset, bytes) in reader.notes_behind() {
            if bytes > HEADER_LIMIT {
                continue;
            }
            let read = self.part.read_up_to(offset, bytes);
            let notes = read.map_err(Error::io(&self.path, "read its checksums"))?;
            if let Some((note, _)) = parse_note(&notes)
                && note.owner == EPITAPH_OWNER
                && note.kind == NT_EPITAPH_CHECKSUMS
            {
                return Ok(Some(note.desc.to_vec()));
            }
        }
        Ok(None)
    }
}
