//! Reads the header of an ELF core back, believing nothing.
//!
//! The reader sees the first bytes of the file and the file's length. Whatever these
//! bytes are, it returns an error or an answer; it never panics and never loops.

use core::mem::size_of;

use zerocopy::FromBytes;

use crate::PAGE_BYTES;
use crate::core::{ALIAS, LoadSegment};
use crate::elf::{
    ET_CORE, FILE_HEADER_BYTES, FileHeader, NOTE_HEADER_BYTES, NoteHeader, PN_XNUM,
    PROGRAM_HEADER_BYTES, PT_LOAD, PT_NOTE, ProgramHeader, SECTION_HEADER_BYTES, SectionHeader,
};

/// Why a file could not be read as a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The file has the bytes, the caller gave fewer; holds how many to give.
    NeedMore(u64),
    /// The file ends before its own headers do; holds the bytes they take.
    CutShort(u64),
    /// Not an ELF file.
    NotElf,
    /// An ELF file of another class, byte order or version.
    Unsupported,
    /// An ELF file, but no core; holds its `e_type`.
    NotCore(u16),
    /// The program header table is not where or what it should be.
    BadTable,
    /// A segment's numbers contradict each other; holds its index in the table.
    BadSegment(u32),
    /// Several segments have the same bytes of the file.
    Shared,
    /// A note runs out of its segment; holds the offset of the note in the file.
    BadNote(u64),
}

impl core::fmt::Display for ReadError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NeedMore(bytes) => write!(f, "{bytes} bytes of the header are needed"),
            Self::CutShort(bytes) => write!(f, "cut short: the headers alone take {bytes} bytes"),
            Self::NotElf => f.write_str("not an ELF file"),
            Self::Unsupported => f.write_str("not a 64-bit little-endian ELF file"),
            Self::NotCore(kind) => write!(f, "an ELF file of type {kind}, not a core (type 4)"),
            Self::BadTable => f.write_str("the program header table is damaged"),
            Self::BadSegment(index) => write!(f, "program header {index} is damaged"),
            Self::Shared => f.write_str("segments share bytes of the file"),
            Self::BadNote(offset) => write!(f, "the note at offset {offset:#x} is damaged"),
        }
    }
}

impl core::error::Error for ReadError {}

/// A note as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    /// Owner without its terminating zero; empty when it is not UTF-8.
    pub owner: &'a str,
    /// Type.
    pub kind: u32,
    /// Descriptor.
    pub desc: &'a [u8],
    /// Offset of the descriptor in the file, in bytes.
    pub offset: u64,
}

/// A segment and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSegment {
    /// What it is.
    pub load: LoadSegment,
    /// Offset of its bytes in the file.
    pub offset: u64,
}

/// The checked header of a core.
#[derive(Clone, Copy, Debug)]
pub struct CoreReader<'a> {
    header: &'a [u8],
    machine: u16,
    table: u64,
    count: u32,
    needed: u64,
    /// Where the first memory is in the file; `u64::MAX` when there is none.
    memory: u64,
}

impl<'a> CoreReader<'a> {
    /// Checks `header`, the first bytes of a file that is `file_bytes` long.
    ///
    /// A file whose memory is cut off is accepted (compare
    /// [`CoreReader::needed_bytes`]); one whose headers or notes are cut off is not. Notes
    /// behind the memory are no part of the header, see [`CoreReader::notes_behind`].
    ///
    /// # Errors
    /// Says what is wrong; on [`ReadError::NeedMore`] call again with that many bytes.
    pub fn new(header: &'a [u8], file_bytes: u64) -> Result<Self, ReadError> {
        let bytes = part(header, file_bytes, 0, FILE_HEADER_BYTES).map_err(|error| {
            let magic = header.len().min(4);
            if header[..magic] == b"\x7fELF"[..magic] && magic == 4 {
                error
            } else {
                ReadError::NotElf
            }
        })?;
        let file = FileHeader::read_from_bytes(bytes).map_err(|_| ReadError::NotElf)?;
        if file.ident[..4] != *b"\x7fELF" {
            return Err(ReadError::NotElf);
        }
        if file.ident[4..7] != [2, 1, 1] {
            return Err(ReadError::Unsupported);
        }
        if file.kind != ET_CORE {
            return Err(ReadError::NotCore(file.kind));
        }
        if u64::from(file.program_entry_bytes) != PROGRAM_HEADER_BYTES {
            return Err(ReadError::BadTable);
        }
        let count = if file.program_count == PN_XNUM {
            let bytes = part(header, file_bytes, file.section_offset, SECTION_HEADER_BYTES)?;
            SectionHeader::read_from_bytes(bytes).map_err(|_| ReadError::BadTable)?.info
        } else {
            u32::from(file.program_count)
        };
        let table_bytes = u64::from(count) * PROGRAM_HEADER_BYTES;
        part(header, file_bytes, file.program_offset, table_bytes)?;
        let mut reader = Self {
            header,
            machine: file.machine,
            table: file.program_offset,
            count,
            needed: 0,
            memory: u64::MAX,
        };
        let loads = reader.programs().filter(|program| program.kind == PT_LOAD);
        reader.memory = loads
            .filter(|program| program.file_bytes > 0)
            .map(|program| program.offset)
            .fold(u64::MAX, u64::min);
        reader.needed = reader.check_programs(file_bytes)?;
        Ok(reader)
    }

    /// Checks every program header; returns where the furthest segment ends.
    ///
    /// Segments that share bytes of the file are refused, unless they say that they are aliases:
    /// with a thousand of them, to read all memory once would be to read the file a thousand
    /// times.
    fn check_programs(&self, file_bytes: u64) -> Result<u64, ReadError> {
        let mut needed = 0;
        let mut loaded = 0_u64;
        for index in 0..self.count {
            let program = self.program(index).ok_or(ReadError::BadTable)?;
            let bad = ReadError::BadSegment(index);
            let end = program.offset.checked_add(program.file_bytes).ok_or(bad)?;
            match program.kind {
                PT_NOTE if self.is_behind(index, &program) => {}
                PT_NOTE => {
                    part(self.header, file_bytes, program.offset, program.file_bytes)?;
                }
                PT_LOAD => {
                    if program.file_bytes > program.memory_bytes
                        || program.physical_address.checked_add(program.memory_bytes).is_none()
                        || program.virtual_address.checked_add(program.memory_bytes).is_none()
                    {
                        return Err(bad);
                    }
                    if program.flags & ALIAS == 0 {
                        loaded = loaded.saturating_add(program.file_bytes);
                    }
                }
                _ => continue,
            }
            needed = needed.max(end);
        }
        if loaded > needed {
            return Err(ReadError::Shared);
        }
        Ok(needed)
    }

    /// Returns true for the notes of a segment that is not the first of the table and begins
    /// where memory does or behind that.
    const fn is_behind(&self, index: u32, program: &ProgramHeader) -> bool {
        program.kind == PT_NOTE && index > 0 && program.offset >= self.memory
    }

    /// Offset and bytes of the notes that stand behind memory, in file order.
    pub fn notes_behind(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let program = |index| Some((index, self.program(index)?));
        (0..self.count)
            .filter_map(program)
            .filter(|(index, program)| self.is_behind(*index, program))
            .map(|(_, program)| (program.offset, program.file_bytes))
    }

    /// ELF `e_machine`.
    #[must_use]
    pub const fn machine(&self) -> u16 {
        self.machine
    }

    /// Bytes the file must have for all its memory to be there.
    #[must_use]
    pub const fn needed_bytes(&self) -> u64 {
        self.needed
    }

    /// Bytes of the header, rounded up to whole pages: program headers and notes.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        let table = self.table + u64::from(self.count) * PROGRAM_HEADER_BYTES;
        (0..self.count)
            .filter_map(|index| Some((index, self.program(index)?)))
            .filter(|(index, program)| program.kind == PT_NOTE && !self.is_behind(*index, program))
            .map(|(_, program)| program.offset + program.file_bytes)
            .fold(table, u64::max)
            .next_multiple_of(PAGE_BYTES)
    }

    /// All segments in file order, without aliases.
    pub fn segments(&self) -> impl Iterator<Item = FileSegment> + '_ {
        self.loads().filter(|segment| segment.load.flags & ALIAS == 0)
    }

    /// Returns the aliases: memory of the segments at further virtual addresses.
    pub fn aliases(&self) -> impl Iterator<Item = FileSegment> + '_ {
        self.loads().filter(|segment| segment.load.flags & ALIAS != 0)
    }

    fn loads(&self) -> impl Iterator<Item = FileSegment> + '_ {
        self.programs().filter(|program| program.kind == PT_LOAD).map(|program| FileSegment {
            load: LoadSegment {
                virtual_address: program.virtual_address,
                physical_address: program.physical_address,
                file_bytes: program.file_bytes,
                memory_bytes: program.memory_bytes,
                flags: program.flags,
            },
            offset: program.offset,
        })
    }

    /// All notes of the header in file order; ends behind the first one that is damaged.
    #[must_use]
    pub const fn notes(&self) -> Notes<'a> {
        Notes { reader: *self, program: 0, at: 0, end: 0 }
    }

    /// The descriptor of the first note of this owner and type.
    ///
    /// # Errors
    /// When a note before it is damaged.
    pub fn note(&self, owner: &str, kind: u32) -> Result<Option<&'a [u8]>, ReadError> {
        for note in self.notes() {
            let note = note?;
            if note.owner == owner && note.kind == kind {
                return Ok(Some(note.desc));
            }
        }
        Ok(None)
    }

    fn programs(&self) -> impl Iterator<Item = ProgramHeader> + '_ {
        (0..self.count).filter_map(|index| self.program(index))
    }

    fn program(&self, index: u32) -> Option<ProgramHeader> {
        let start = usize::try_from(self.table).ok()? + index as usize * size_of::<ProgramHeader>();
        let bytes = self.header.get(start..start + size_of::<ProgramHeader>())?;
        ProgramHeader::read_from_bytes(bytes).ok()
    }
}

/// `[offset, offset + bytes)` of the file, out of the bytes at hand.
fn part(header: &[u8], file_bytes: u64, offset: u64, bytes: u64) -> Result<&[u8], ReadError> {
    let end = offset.checked_add(bytes).ok_or(ReadError::BadTable)?;
    if end > file_bytes {
        return Err(ReadError::CutShort(end));
    }
    let (Ok(start), Ok(stop)) = (usize::try_from(offset), usize::try_from(end)) else {
        return Err(ReadError::BadTable);
    };
    header.get(start..stop).ok_or(ReadError::NeedMore(end))
}

/// Iterator over the notes of all PT_NOTEs.
#[derive(Clone, Debug)]
pub struct Notes<'a> {
    reader: CoreReader<'a>,
    program: u32,
    at: usize,
    end: usize,
}

impl<'a> Iterator for Notes<'a> {
    type Item = Result<Note<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at >= self.end {
            if self.program == self.reader.count {
                return None;
            }
            let index = self.program;
            let program = self.reader.program(index)?;
            self.program += 1;
            if program.kind == PT_NOTE && !self.reader.is_behind(index, &program) {
                // `new` made sure that both lie inside the header.
                self.at = program.offset as usize;
                self.end = (program.offset + program.file_bytes) as usize;
            }
        }
        let start = self.at;
        let bytes = self.reader.header.get(start..self.end)?;
        match parse_note(bytes) {
            Some((note, taken)) => {
                self.at = start + taken;
                Some(Ok(Note { offset: start as u64 + note.offset, ..note }))
            }
            None => {
                self.program = self.reader.count;
                self.at = self.end;
                Some(Err(ReadError::BadNote(start as u64)))
            }
        }
    }
}

/// Returns the note at the start of `bytes`, its offset counted from there, and the bytes it
/// takes; `None` when it runs out of them.
#[must_use]
pub fn parse_note(bytes: &[u8]) -> Option<(Note<'_>, usize)> {
    let header = NoteHeader::read_from_bytes(bytes.get(..NOTE_HEADER_BYTES)?).ok()?;
    let rest = &bytes[NOTE_HEADER_BYTES..];
    let owner_bytes = header.owner_bytes as usize;
    let desc_bytes = header.desc_bytes as usize;
    let owner = rest.get(..owner_bytes)?;
    let desc_start = owner_bytes.checked_next_multiple_of(4)?;
    let desc = rest.get(desc_start..desc_start.checked_add(desc_bytes)?)?;
    // The padding behind the last note may be missing.
    let taken = (desc_start + desc_bytes.checked_next_multiple_of(4)?).min(rest.len());
    let owner = owner.split(|&byte| byte == 0).next().unwrap_or_default();
    let note = Note {
        owner: core::str::from_utf8(owner).unwrap_or_default(),
        kind: header.kind,
        desc,
        offset: (NOTE_HEADER_BYTES + desc_start) as u64,
    };
    Some((note, NOTE_HEADER_BYTES + taken))
}
