//! Two ELF files the kernel looks into: the capture image it loads, and itself in memory.

use goblin::elf64::header::{EM_X86_64, ET_DYN, Header};
use goblin::elf64::program_header::{PF_W, PT_INTERP, PT_LOAD, ProgramHeader};
use handoff::{Range, Segment};
use heapless::Vec;

/// PT_LOADs at most.
const MAX_LOADS: usize = 8;
/// `EI_CLASS` for 64 bits and `EI_DATA` for little endian (ELF gABI, figure 4-4).
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// Type of the GNU build-id note.
const NT_GNU_BUILD_ID: u32 = 3;

/// Why an ELF file is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not an ELF file for this machine.
    NotOurs,
    /// Not position independent.
    NotRelocatable,
    /// A header or segment lies outside the file.
    Truncated,
    /// It wants an interpreter or has no code to load.
    NotAnImage,
    /// Segments overlap or are more than there is room for.
    Segments,
    /// Larger than the room for it.
    TooLarge,
}

impl ElfError {
    /// What is wrong with a capture module, and what to do about it.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::NotOurs => {
                "the capture module is no x86_64 ELF file (is module2 in grub.cfg \
                              the capture image?)"
            }
            Self::NotRelocatable => {
                "the capture module is not position independent: build it \
                                     with `cargo xtask build`"
            }
            Self::Truncated => "the capture module is cut short or damaged",
            Self::NotAnImage => "the capture module has nothing to run",
            Self::Segments => "the capture module's segments overlap or are too many",
            Self::TooLarge => "the capture module is larger than its place (2 MiB)",
        }
    }
}

/// One part of the image to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSegment {
    /// Where it is in the file.
    pub file_offset: u64,
    /// How many bytes to copy; the rest is zero.
    pub file_bytes: u64,
    /// Where it goes, from the start of the image.
    pub memory_offset: u64,
    /// How much memory it takes.
    pub memory_bytes: u64,
    /// It can be written.
    pub writable: bool,
}

/// How to load a position-independent image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlan {
    /// The parts, in address order, without overlaps.
    pub segments: Vec<ImageSegment, MAX_LOADS>,
    /// Memory it takes, in whole pages.
    pub memory_bytes: u64,
    /// The entry point, from the start of the image.
    pub entry_offset: u64,
}

/// An ELF file's own view of itself in memory.
#[derive(Clone, Debug)]
pub struct OwnImage {
    /// Entry point.
    pub entry: u64,
    /// Number of program headers.
    pub program_headers: u16,
    /// Its PT_LOADs.
    pub segments: Vec<Segment, MAX_LOADS>,
}

fn header(bytes: &[u8]) -> Result<Header, ElfError> {
    let mut header = Header::default();
    plain::copy_from_bytes(&mut header, bytes).map_err(|_| ElfError::Truncated)?;
    let ours = header.e_ident.starts_with(b"\x7fELF")
        && header.e_ident[4] == CLASS_64
        && header.e_ident[5] == LITTLE_ENDIAN
        && header.e_machine == EM_X86_64
        && usize::from(header.e_phentsize) == size_of::<ProgramHeader>();
    if ours { Ok(header) } else { Err(ElfError::NotOurs) }
}

fn program_headers<'a>(
    bytes: &'a [u8],
    header: &Header,
) -> Result<impl Iterator<Item = ProgramHeader> + use<'a>, ElfError> {
    let start = usize::try_from(header.e_phoff).map_err(|_| ElfError::Truncated)?;
    let table = bytes
        .get(start..)
        .and_then(|rest| rest.get(..usize::from(header.e_phnum) * size_of::<ProgramHeader>()))
        .ok_or(ElfError::Truncated)?;
    Ok(table.chunks_exact(size_of::<ProgramHeader>()).filter_map(|bytes| {
        let mut header = ProgramHeader::default();
        plain::copy_from_bytes(&mut header, bytes).ok().map(|()| header)
    }))
}

impl ImagePlan {
    /// Plans to load `file` into at most `room` bytes.
    ///
    /// # Errors
    /// When it is not a static, position-independent x86_64 ELF file that fits.
    pub fn new(file: &[u8], room: u64) -> Result<Self, ElfError> {
        let header = header(file)?;
        if header.e_type != ET_DYN {
            return Err(ElfError::NotRelocatable);
        }
        let mut plan = Self { segments: Vec::new(), memory_bytes: 0, entry_offset: header.e_entry };
        for load in program_headers(file, &header)? {
            if load.p_type == PT_INTERP {
                return Err(ElfError::NotAnImage);
            }
            if load.p_type != PT_LOAD || load.p_memsz == 0 {
                continue;
            }
            let in_file = Range { start: 0, bytes: file.len() as u64 };
            if !in_file.holds(load.p_offset, load.p_filesz) {
                return Err(ElfError::Truncated);
            }
            let place = Range { start: 0, bytes: room };
            if !place.holds(load.p_vaddr, load.p_memsz) {
                return Err(ElfError::TooLarge);
            }
            if load.p_filesz > load.p_memsz || load.p_vaddr < plan.memory_bytes {
                return Err(ElfError::Segments);
            }
            let segment = ImageSegment {
                file_offset: load.p_offset,
                file_bytes: load.p_filesz,
                memory_offset: load.p_vaddr,
                memory_bytes: load.p_memsz,
                writable: load.p_flags & PF_W != 0,
            };
            plan.segments.push(segment).map_err(|_| ElfError::Segments)?;
            plan.memory_bytes = load.p_vaddr + load.p_memsz;
        }
        if plan.entry_offset >= plan.memory_bytes {
            return Err(ElfError::NotAnImage);
        }
        plan.memory_bytes = plan.memory_bytes.next_multiple_of(4096);
        if plan.memory_bytes > room {
            return Err(ElfError::TooLarge);
        }
        Ok(plan)
    }
}

/// Reads an image's ELF header and program headers where they lie in memory.
///
/// # Errors
/// When they are not those of an x86_64 ELF file.
pub fn describe(bytes: &[u8]) -> Result<OwnImage, ElfError> {
    let header = header(bytes)?;
    let mut own =
        OwnImage { entry: header.e_entry, program_headers: header.e_phnum, segments: Vec::new() };
    for load in program_headers(bytes, &header)?.filter(|load| load.p_type == PT_LOAD) {
        let segment = Segment {
            range: Range { start: load.p_paddr, bytes: load.p_memsz },
            file_offset: load.p_offset,
            file_bytes: load.p_filesz,
            flags: load.p_flags,
            reserved: 0,
        };
        own.segments.push(segment).map_err(|_| ElfError::Segments)?;
    }
    Ok(own)
}

/// The GNU build-id among `notes`, which are padded to four bytes.
#[must_use]
pub fn build_id(notes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        notes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    };
    let mut at = 0;
    loop {
        let (name_bytes, bytes, kind) = (word(at)? as usize, word(at + 4)? as usize, word(at + 8)?);
        let name_at = at + 12;
        let value_at = name_at.checked_add(name_bytes.checked_next_multiple_of(4)?)?;
        let name = notes.get(name_at..name_at.checked_add(name_bytes)?)?;
        let value = notes.get(value_at..value_at.checked_add(bytes)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(value);
        }
        at = value_at.checked_add(bytes.checked_next_multiple_of(4)?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with the given loads: (p_offset, p_vaddr, p_filesz, p_memsz).
    fn file(kind: u16, entry: u64, loads: &[[u64; 4]]) -> std::vec::Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        for half in [kind, 62] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(1u32.to_le_bytes());
        for word in [entry, 64, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(0u32.to_le_bytes());
        for half in [64, 56, loads.len() as u16, 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for [offset, address, in_file, in_memory] in loads {
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(5u32.to_le_bytes());
            for word in [offset, address, address, in_file, in_memory, &4096] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.resize(0x3000, 0xcc);
        bytes
    }

    const ROOM: u64 = 1 << 21;

    #[test]
    fn an_image_is_planned_as_its_headers_say() {
        let file = file(3, 0x1010, &[[0, 0, 0x800, 0x800], [0x1000, 0x1000, 0x1234, 0x9000]]);
        let plan = ImagePlan::new(&file, ROOM).unwrap();
        assert_eq!((plan.memory_bytes, plan.entry_offset), (0xa000, 0x1010));
        assert_eq!(plan.segments[1].memory_bytes, 0x9000);
        assert_eq!(plan.segments[1].file_bytes, 0x1234);
    }

    #[test]
    fn what_cannot_be_an_image_is_refused() {
        let refused = |file: &[u8]| ImagePlan::new(file, ROOM).unwrap_err();
        let good = [[0, 0, 0x800, 0x800]];
        assert_eq!(refused(b"#!/bin/sh"), ElfError::Truncated);
        assert_eq!(refused(&[0; 4096]), ElfError::NotOurs);
        assert_eq!(refused(&file(2, 0, &good)), ElfError::NotRelocatable);
        assert_eq!(refused(&file(3, 0, &[[0, 0, 0x4000, 0x4000]])), ElfError::Truncated);
        assert_eq!(refused(&file(3, 0, &[[u64::MAX, 0, 2, 2]])), ElfError::Truncated);
        assert_eq!(refused(&file(3, 0, &[[0, ROOM, 1, 1]])), ElfError::TooLarge);
        assert_eq!(refused(&file(3, 0, &[[0, u64::MAX, 1, 1]])), ElfError::TooLarge);
        assert_eq!(refused(&file(3, 0, &[[0, 0, 0x20, 0x10]])), ElfError::Segments);
        let overlap = [[0, 0, 0x800, 0x2000], [0, 0x1000, 0x10, 0x10]];
        assert_eq!(refused(&file(3, 0, &overlap)), ElfError::Segments);
        assert_eq!(refused(&file(3, 0x9000, &good)), ElfError::NotAnImage);
        assert_eq!(refused(&file(3, 0, &[])), ElfError::NotAnImage);
        let mut with_interpreter = file(3, 0, &[good[0], good[0]]);
        with_interpreter[64] = 3;
        assert_eq!(refused(&with_interpreter), ElfError::NotAnImage);
        // It is loaded in whole pages.
        assert_eq!(ImagePlan::new(&file(3, 0, &good), 0xfff), Err(ElfError::TooLarge));
        assert!(ImagePlan::new(&file(3, 0, &good), 0x1000).is_ok());
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let whole = file(3, 0x1010, &[[0, 0, 0x800, 0x800], [0x1000, 0x1000, 0x1234, 0x9000]]);
        for length in 0..0x100 {
            let _ = ImagePlan::new(&whole[..length], ROOM);
            let _ = describe(&whole[..length]);
            let _ = build_id(&whole[..length]);
        }
        for at in 0..176 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = ImagePlan::new(&damaged, ROOM);
                let _ = describe(&damaged);
            }
        }
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let mut notes = std::vec::Vec::new();
        for (kind, name, value) in [
            (18u32, &b"Xen\0"[..], &[1u8; 8][..]),
            (5, b"GNU\0", &[2; 16]),
            (3, b"GNU\0", &[0xab; 20]),
        ] {
            for word in [name.len() as u32, value.len() as u32, kind] {
                notes.extend(word.to_le_bytes());
            }
            notes.extend(name);
            notes.extend(value);
        }
        assert_eq!(build_id(&notes), Some(&[0xab; 20][..]));
        assert_eq!(build_id(&notes[..40]), None);
        assert_eq!(build_id(&[0xff; 64]), None);
    }
}
