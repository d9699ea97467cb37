//! Two ELF files that a kernel has to read: the capture image, which it loads, and itself, as it
//! lies in memory.

use crate::facts::{MAX_SEGMENTS, MAX_VIRTUAL_SEGMENTS};
use crate::module::{self, ModuleError};
use crate::{BootFacts, Range, Segment, VirtualSegment};

/// Bytes of an ELF64 file header and of a program header.
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// First bytes of a 64-bit little-endian ELF file.
const MAGIC: [u8; 6] = *b"\x7fELF\x02\x01";
/// `e_type` of a position-independent file.
const ET_DYN: u16 = 3;
/// `p_type` of memory, of an interpreter's name and of notes.
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// Type of the note with the build-id, whose owner is `GNU`.
const NT_GNU_BUILD_ID: u32 = 3;
const PAGE: u64 = 4096;

/// Why an ELF file is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The file's checksum is missing or wrong.
    Checksum(ModuleError),
    /// Not a 64-bit little-endian ELF file, or not one that can be loaded at any address.
    NotAnImage,
    /// A header or segment lies outside of the file, or segments overlap.
    Damaged,
    /// More memory or segments than there is room for.
    TooLarge,
}

impl core::fmt::Display for ImageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Checksum(ModuleError::NoChecksum | ModuleError::Unsealed) => "no checksum",
            Self::Checksum(ModuleError::Damaged(..)) => "wrong checksum",
            Self::NotAnImage => "not an image of the kind that is expected",
            Self::Damaged => "headers or segments are damaged",
            Self::TooLarge => "too large",
        })
    }
}

impl core::error::Error for ImageError {}

/// The capture image in memory, for [`BootFacts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    /// Bytes of memory it takes, whole pages: those of [`BootFacts::image`].
    pub bytes: u64,
    /// Where to jump, from its start.
    pub entry_offset: u64,
    /// Checksum of the bytes: [`BootFacts::image_crc32`].
    pub crc32: u32,
}

/// Loads the capture image `file` to the start of `room`, which begins on a page boundary; 2 MiB
/// are enough. All of the image's memory is written, zeros included.
///
/// # Errors
/// Says why the file is not loaded; `room` may have been written to.
pub fn load(file: &[u8], room: &mut [u8]) -> Result<LoadedImage, ImageError> {
    module::check(file).map_err(ImageError::Checksum)?;
    let elf = Elf::new(file)?;
    if elf.half(16) != Some(ET_DYN) || elf.loads(PT_INTERP).next().is_some() {
        return Err(ImageError::NotAnImage);
    }
    let mut end = 0;
    for load in elf.loads(PT_LOAD) {
        let (from, to) = (load.offset as usize, load.virtual_address as usize);
        if load.virtual_address < end || load.file_bytes > load.memory_bytes {
            return Err(ImageError::Damaged);
        }
        let source = from.checked_add(load.file_bytes as usize).and_then(|end| file.get(from..end));
        let source = source.ok_or(ImageError::Damaged)?;
        let behind = load.virtual_address.checked_add(load.memory_bytes);
        let behind = behind.ok_or(ImageError::TooLarge)?;
        // From the end of the segment before it: gaps are zeros as well.
        let place = room.get_mut(end as usize..behind as usize).ok_or(ImageError::TooLarge)?;
        place.fill(0);
        let place = place.get_mut(to - end as usize..).ok_or(ImageError::Damaged)?;
        place.iter_mut().zip(source).for_each(|(to, from)| *to = *from);
        end = behind;
    }
    let bytes = end.next_multiple_of(PAGE);
    let tail = room.get_mut(end as usize..bytes as usize).ok_or(ImageError::TooLarge)?;
    tail.fill(0);
    let entry_offset = elf.word(24).filter(|&entry| entry < end).ok_or(ImageError::NotAnImage)?;
    let loaded = room.get(..bytes as usize).ok_or(ImageError::TooLarge)?;
    Ok(LoadedImage { bytes, entry_offset, crc32: crate::crc32(loaded) })
}

impl BootFacts {
    /// Describes the kernel by its own ELF headers, which lie in memory at the physical address
    /// `physical`; `bytes` are the memory from there on, as far as its notes. Fills in the ELF
    /// fields, `segments`, `build_id`, and one virtual segment for each PT_LOAD behind those that
    /// are there.
    ///
    /// # Errors
    /// Says what is wrong with the headers; what was filled in so far stays.
    pub fn describe_image(&mut self, bytes: &[u8], physical: u64) -> Result<(), ImageError> {
        let elf = Elf::new(bytes)?;
        self.machine = elf.half(18).unwrap_or(0).into();
        self.elf_header = physical;
        self.elf_entry = elf.word(24).unwrap_or(0);
        self.elf_program_headers = elf.count as u32;
        self.segment_count = 0;
        for load in elf.loads(PT_LOAD).filter(|load| load.memory_bytes > 0) {
            let range = Range { start: load.physical_address, bytes: load.memory_bytes };
            let segment = self.segments.get_mut(self.segment_count as usize);
            *segment.ok_or(ImageError::TooLarge)? = Segment {
                range,
                file_offset: load.offset,
                file_bytes: load.file_bytes,
                flags: load.flags,
                reserved: 0,
            };
            self.segment_count += 1;
            self.add_virtual_segment(load.virtual_address, range, load.flags)?;
        }
        for note in elf.loads(PT_NOTE) {
            let start = note.physical_address.wrapping_sub(physical) as usize;
            let end = start.saturating_add(note.file_bytes as usize);
            if let Some(id) = bytes.get(start..end).and_then(build_id) {
                self.build_id_bytes = id.len().min(self.build_id.len()) as u32;
                crate::copy(&mut self.build_id, id);
            }
        }
        Ok(())
    }

    /// Adds memory that is mapped at `virtual_start`, rounded up to whole pages. Ranges are added
    /// in the order of their physical addresses and share no byte: memory that is mapped twice, as
    /// the image and in a linear map, is added once, at the address that its code uses.
    ///
    /// # Errors
    /// There is no room left.
    pub fn add_virtual_segment(
        &mut self,
        virtual_start: u64,
        range: Range,
        flags: u32,
    ) -> Result<(), ImageError> {
        const _: () = assert!(MAX_VIRTUAL_SEGMENTS >= MAX_SEGMENTS);
        let place = self.virtual_segments.get_mut(self.virtual_segment_count as usize);
        *place.ok_or(ImageError::TooLarge)? = VirtualSegment {
            virtual_start,
            physical_start: range.start,
            bytes: range.bytes.checked_next_multiple_of(PAGE).ok_or(ImageError::TooLarge)?,
            flags,
            reserved: 0,
        };
        self.virtual_segment_count += 1;
        Ok(())
    }
}

/// Returns the GNU build-id among `notes`, which are padded to four bytes.
fn build_id(notes: &[u8]) -> Option<&[u8]> {
    let mut rest = notes;
    loop {
        let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (name_bytes, bytes, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let value_at = 12_usize.checked_add(name_bytes.checked_next_multiple_of(4)?)?;
        let value = rest.get(value_at..value_at.checked_add(bytes)?)?;
        if kind == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") && name_bytes == 4 {
            return Some(value);
        }
        rest = rest.get(value_at.checked_add(bytes.checked_next_multiple_of(4)?)?..)?;
    }
}

/// A program header.
struct Load {
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// A file whose headers are there.
struct Elf<'a> {
    bytes: &'a [u8],
    table: &'a [u8],
    count: u16,
}

impl<'a> Elf<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let mut elf = Self { bytes, table: &[], count: 0 };
        let (offset, entry_bytes) = (elf.word(32), elf.half(54));
        if !bytes.starts_with(&MAGIC) || entry_bytes != Some(PROGRAM_HEADER_BYTES as u16) {
            return Err(ImageError::NotAnImage);
        }
        elf.count = elf.half(56).ok_or(ImageError::Damaged)?;
        let at = offset.filter(|&at| at >= HEADER_BYTES as u64).ok_or(ImageError::Damaged)?;
        let table = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
        let table =
            table.and_then(|rest| rest.get(..usize::from(elf.count) * PROGRAM_HEADER_BYTES));
        elf.table = table.ok_or(ImageError::Damaged)?;
        Ok(elf)
    }

    fn half(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes.get(at..at + 2)?.try_into().ok()?))
    }

    fn word(&self, at: usize) -> Option<u64> {
        word(self.bytes, at)
    }

    /// Returns the program headers of type `kind`.
    fn loads(&self, kind: u32) -> impl Iterator<Item = Load> + use<'a> {
        self.table.chunks_exact(PROGRAM_HEADER_BYTES).filter_map(move |header| {
            let head = word(header, 0)?;
            let load = Load {
                flags: (head >> 32) as u32,
                offset: word(header, 8)?,
                virtual_address: word(header, 16)?,
                physical_address: word(header, 24)?,
                file_bytes: word(header, 32)?,
                memory_bytes: word(header, 40)?,
            };
            (head as u32 == kind).then_some(load)
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
