//! Builds the header of an ELF core: file header, program headers, notes.
//!
//! The memory itself is not copied through here. The caller plans its segments, lets
//! [`CoreHeader`] lay out the header, writes that, and then the segments' bytes one
//! behind the other in the order given: that is where the program headers point.
//!
//! ```text
//! 0            file header
//! 64           program headers: PT_NOTE, then one PT_LOAD per segment
//! (behind)     section header 0, only when there are 65535 program headers or more
//! (behind)     notes
//! header_bytes first segment (a multiple of 4096), then the others, page by page
//! (behind)     notes of a second PT_NOTE, only after `CoreHeader::notes_behind`
//! ```

use core::mem::size_of;

use zerocopy::{FromBytes, IntoBytes};

use crate::PAGE_BYTES;
use crate::elf::{
    ET_CORE, FILE_HEADER_BYTES, FileHeader, IDENT, NOTE_HEADER_BYTES, NoteHeader, PN_XNUM,
    PROGRAM_HEADER_BYTES, PT_LOAD, PT_NOTE, ProgramHeader, SECTION_HEADER_BYTES, SectionHeader,
};

/// Bit of ELF `p_flags`, of those left to the operating system (gABI, table 5-2): the PT_LOAD is
/// an alias. Its memory and its bytes in the file are those of another one, at a further virtual
/// address.
pub const ALIAS: u32 = 0x0010_0000;

/// A run of memory that becomes one PT_LOAD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadSegment {
    /// Address a debugger shall use for it.
    pub virtual_address: u64,
    /// Physical address.
    pub physical_address: u64,
    /// Bytes that follow in the file; a page multiple.
    pub file_bytes: u64,
    /// Bytes of memory it stands for; the part beyond `file_bytes` was all zero.
    pub memory_bytes: u64,
    /// ELF `p_flags`: 1 execute, 2 write, 4 read, [`ALIAS`].
    pub flags: u32,
}

/// Where everything ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the header, padded to whole pages: the first segment starts here.
    pub header_bytes: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
}

/// Why a header could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreError {
    /// The buffer cannot hold the header; holds the bytes it needs at least.
    BufferTooSmall {
        /// Bytes needed for what was added so far, padding included.
        needed: u64,
    },
    /// More segments than announced to [`CoreHeader::begin`].
    TooManySegments,
    /// A segment's address or size is not a page multiple, it has more bytes in the file
    /// than in memory, or it ends past the last address; holds its physical address.
    BadSegment(u64),
    /// The sizes add up to more than an ELF file can say.
    TooLarge,
}

impl core::fmt::Display for CoreError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BufferTooSmall { needed } => {
                write!(f, "header buffer too small: at least {needed} bytes needed")
            }
            Self::TooManySegments => f.write_str("more segments than program headers reserved"),
            Self::BadSegment(address) => {
                write!(
                    f,
                    "segment at {address:#x} is not made of whole pages, has more bytes in the \
                     file than in memory, or ends past the last address"
                )
            }
            Self::TooLarge => f.write_str("the sizes exceed what an ELF file can hold"),
        }
    }
}

impl core::error::Error for CoreError {}

/// Bytes a note takes, header and padding included.
///
/// `owner_bytes` is the owner's length without its terminating zero.
#[must_use]
pub const fn note_size(owner_bytes: usize, desc_bytes: usize) -> usize {
    NOTE_HEADER_BYTES + (owner_bytes + 1).next_multiple_of(4) + desc_bytes.next_multiple_of(4)
}

/// Bytes of the padded header for `segments` segments and notes that take `notes_bytes`
/// (the sum of [`note_size`]).
#[must_use]
pub const fn header_size(notes_bytes: usize, segments: usize) -> u64 {
    notes_offset(segments)
        .saturating_add(notes_bytes as u64)
        .div_ceil(PAGE_BYTES)
        .saturating_mul(PAGE_BYTES)
}

/// Offset of the notes: behind the program headers and the section header, if any.
const fn notes_offset(segments: usize) -> u64 {
    let programs = (segments as u64).saturating_add(1);
    let section = if programs >= PN_XNUM as u64 { SECTION_HEADER_BYTES } else { 0 };
    programs.saturating_mul(PROGRAM_HEADER_BYTES).saturating_add(FILE_HEADER_BYTES + section)
}

/// A header under construction in the caller's buffer.
#[derive(Debug)]
pub struct CoreHeader<'a> {
    buffer: &'a mut [u8],
    machine: u16,
    /// Segments there is room for.
    reserved: usize,
    /// Segments added.
    segments: usize,
    notes_start: usize,
    notes_end: usize,
    /// Bytes of all segments in the file so far.
    data_bytes: u64,
}

impl<'a> CoreHeader<'a> {
    /// Starts a header for ELF machine `machine` with room for up to `segments` segments.
    ///
    /// # Errors
    /// When `buffer` cannot even hold the program headers.
    pub fn begin(buffer: &'a mut [u8], machine: u16, segments: usize) -> Result<Self, CoreError> {
        // The count ends up in 32 bits of a section header.
        if u32::try_from(segments).map_or(true, |count| count == u32::MAX) {
            return Err(CoreError::TooLarge);
        }
        let start = notes_offset(segments);
        if start > buffer.len() as u64 {
            return Err(CoreError::BufferTooSmall { needed: header_size(0, segments) });
        }
        let start = start as usize;
        buffer.iter_mut().take(start).for_each(|byte| *byte = 0);
        Ok(Self {
            buffer,
            machine,
            reserved: segments,
            segments: 0,
            notes_start: start,
            notes_end: start,
            data_bytes: 0,
        })
    }

    /// Adds a note.
    ///
    /// # Errors
    /// When the buffer is full; the header is then as it was before.
    pub fn note(&mut self, owner: &str, kind: u32, desc: &[u8]) -> Result<(), CoreError> {
        self.note_parts(owner, kind, &[desc])
    }

    /// Adds a note whose descriptor is made of `parts`, one behind the other.
    ///
    /// # Errors
    /// As [`CoreHeader::note`].
    pub fn note_parts(&mut self, owner: &str, kind: u32, parts: &[&[u8]]) -> Result<(), CoreError> {
        let bytes = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.len()));
        self.note_with(owner, kind, bytes.ok_or(CoreError::TooLarge)?, |desc| {
            let mut at = 0;
            for part in parts {
                put(desc, at, part);
                at += part.len();
            }
        })
    }

    /// Adds a note whose descriptor has `desc_bytes` bytes, all zero until `fill` has
    /// written them.
    ///
    /// # Errors
    /// As [`CoreHeader::note`].
    pub fn note_with(
        &mut self,
        owner: &str,
        kind: u32,
        desc_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), CoreError> {
        if desc_bytes >= u32::MAX as usize - 3 {
            return Err(CoreError::TooLarge);
        }
        let end = self.notes_end.saturating_add(note_size(owner.len(), desc_bytes));
        let too_small =
            CoreError::BufferTooSmall { needed: (end as u64).next_multiple_of(PAGE_BYTES) };
        let note = self.buffer.get_mut(self.notes_end..end).ok_or(too_small)?;
        fill_note(note, owner, kind, desc_bytes, fill);
        self.notes_end = end;
        Ok(())
    }

    /// Adds a segment; its bytes follow those of the segments before it.
    ///
    /// # Errors
    /// When it is not made of whole pages or more are added than announced.
    pub fn segment(&mut self, segment: LoadSegment) -> Result<(), CoreError> {
        self.segment_at(segment, self.data_bytes)
    }

    /// Adds a segment whose bytes are `offset` bytes, whole pages, behind the header: the file
    /// may have them in another order than the program headers.
    ///
    /// # Errors
    /// When it is not made of whole pages or more are added than announced.
    pub fn segment_at(&mut self, segment: LoadSegment, offset: u64) -> Result<(), CoreError> {
        let bad = CoreError::BadSegment(segment.physical_address);
        let pages = segment.virtual_address
            | segment.physical_address
            | segment.file_bytes
            | segment.memory_bytes
            | offset;
        if !pages.is_multiple_of(PAGE_BYTES) || segment.file_bytes > segment.memory_bytes {
            return Err(bad);
        }
        segment.physical_address.checked_add(segment.memory_bytes).ok_or(bad)?;
        if self.segments == self.reserved {
            return Err(CoreError::TooManySegments);
        }
        let end = offset.checked_add(segment.file_bytes).ok_or(CoreError::TooLarge)?;
        self.segments += 1;
        self.set_program_header(
            self.segments,
            &ProgramHeader {
                kind: PT_LOAD,
                flags: segment.flags,
                // Relative to the end of the header until `finish` knows where that lies.
                offset,
                virtual_address: segment.virtual_address,
                physical_address: segment.physical_address,
                file_bytes: segment.file_bytes,
                memory_bytes: segment.memory_bytes,
                align: PAGE_BYTES,
            },
        );
        self.data_bytes = self.data_bytes.max(end);
        Ok(())
    }

    /// Adds a second PT_NOTE for `bytes` bytes of notes behind all segments; it takes the place
    /// of a segment. No segment with bytes in the file may follow.
    ///
    /// # Errors
    /// When it takes more program headers than announced.
    pub fn notes_behind(&mut self, bytes: u64) -> Result<(), CoreError> {
        if self.segments == self.reserved {
            return Err(CoreError::TooManySegments);
        }
        let data_bytes = self.data_bytes.checked_add(bytes).ok_or(CoreError::TooLarge)?;
        self.segments += 1;
        self.set_program_header(
            self.segments,
            &ProgramHeader {
                kind: PT_NOTE,
                offset: self.data_bytes,
                file_bytes: bytes,
                align: 4,
                ..ProgramHeader::default()
            },
        );
        self.data_bytes = data_bytes;
        Ok(())
    }

    /// Completes the header: `buffer[..header_bytes]` is then the start of the file.
    ///
    /// # Errors
    /// When the padding does not fit the buffer, or the file would be too large.
    pub fn finish(mut self) -> Result<Layout, CoreError> {
        let header_bytes = (self.notes_end as u64).next_multiple_of(PAGE_BYTES);
        if header_bytes > self.buffer.len() as u64 {
            return Err(CoreError::BufferTooSmall { needed: header_bytes });
        }
        let file_bytes = header_bytes.checked_add(self.data_bytes).ok_or(CoreError::TooLarge)?;
        if let Some(padding) = self.buffer.get_mut(self.notes_end..header_bytes as usize) {
            padding.fill(0);
        }
        for index in 1..=self.segments {
            let mut header = self.program_header(index);
            header.offset += header_bytes;
            self.set_program_header(index, &header);
        }
        self.set_program_header(
            0,
            &ProgramHeader {
                kind: PT_NOTE,
                offset: self.notes_start as u64,
                file_bytes: (self.notes_end - self.notes_start) as u64,
                // Notes are padded to four bytes; 8 here makes gdb read none of them.
                align: 4,
                ..ProgramHeader::default()
            },
        );
        let programs = self.segments + 1;
        let mut header = FileHeader {
            ident: IDENT,
            kind: ET_CORE,
            machine: self.machine,
            version: 1,
            entry: 0,
            program_offset: FILE_HEADER_BYTES,
            section_offset: 0,
            flags: 0,
            header_bytes: FILE_HEADER_BYTES as u16,
            program_entry_bytes: PROGRAM_HEADER_BYTES as u16,
            program_count: programs as u16,
            section_entry_bytes: 0,
            section_count: 0,
            section_names: 0,
        };
        if programs >= PN_XNUM as usize {
            let offset = self.notes_start - size_of::<SectionHeader>();
            let section = SectionHeader { info: programs as u32, ..SectionHeader::default() };
            put(self.buffer, offset, section.as_bytes());
            header.program_count = PN_XNUM;
            header.section_offset = offset as u64;
            header.section_entry_bytes = SECTION_HEADER_BYTES as u16;
            header.section_count = 1;
        }
        put(self.buffer, 0, header.as_bytes());
        Ok(Layout { header_bytes, file_bytes })
    }

    fn program_header(&self, index: usize) -> ProgramHeader {
        let start = program_header_offset(index);
        // `begin` made sure that the whole table lies inside the buffer.
        let bytes = self.buffer.get(start..start + size_of::<ProgramHeader>());
        bytes.and_then(|bytes| ProgramHeader::read_from_bytes(bytes).ok()).unwrap_or_default()
    }

    fn set_program_header(&mut self, index: usize, header: &ProgramHeader) {
        put(self.buffer, program_header_offset(index), header.as_bytes());
    }
}

/// Writes a note to the start of `buffer`, for a PT_NOTE that stands behind the memory. Returns
/// the bytes it takes, 0 when the buffer is too small.
#[must_use]
pub fn write_note(buffer: &mut [u8], owner: &str, kind: u32, desc: &[u8]) -> usize {
    let bytes = note_size(owner.len(), desc.len());
    let Some(note) = buffer.get_mut(..bytes).filter(|_| desc.len() < u32::MAX as usize - 3) else {
        return 0;
    };
    fill_note(note, owner, kind, desc.len(), |place| put(place, 0, desc));
    bytes
}

/// Fills `note`, which has the size of the note, and lets `fill` write its descriptor.
fn fill_note(
    note: &mut [u8],
    owner: &str,
    kind: u32,
    desc_bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    note.fill(0);
    let header =
        NoteHeader { owner_bytes: owner.len() as u32 + 1, desc_bytes: desc_bytes as u32, kind };
    put(note, 0, header.as_bytes());
    put(note, NOTE_HEADER_BYTES, owner.as_bytes());
    let at = NOTE_HEADER_BYTES + (owner.len() + 1).next_multiple_of(4);
    // The note is as long as all this together.
    if let Some(desc) = note.get_mut(at..).and_then(|rest| rest.get_mut(..desc_bytes)) {
        fill(desc);
    }
}

/// Copies `bytes` to offset `at` of `buffer`, where there is room for them: the callers have
/// looked. Were there none after all, they would be left out.
fn put(buffer: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = buffer.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

const fn program_header_offset(index: usize) -> usize {
    size_of::<FileHeader>() + index * size_of::<ProgramHeader>()
}
