//! The three ELF64 structures of a core file (System V gABI 4.1, chapters 4 and 5).

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `e_ident` of a 64-bit, little-endian, version 1, System V file.
pub const IDENT: [u8; 16] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// `e_type` of a core.
pub const ET_CORE: u16 = 4;
/// `p_type` of loaded memory.
pub const PT_LOAD: u32 = 1;
/// `p_type` of notes.
pub const PT_NOTE: u32 = 4;
/// `e_phnum` that says "the count is in `sh_info` of section 0".
pub const PN_XNUM: u16 = 0xffff;

/// Elf64_Ehdr.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileHeader {
    pub ident: [u8; 16],
    pub kind: u16,
    pub machine: u16,
    pub version: u32,
    pub entry: u64,
    pub program_offset: u64,
    pub section_offset: u64,
    pub flags: u32,
    pub header_bytes: u16,
    pub program_entry_bytes: u16,
    pub program_count: u16,
    pub section_entry_bytes: u16,
    pub section_count: u16,
    pub section_names: u16,
}

/// Elf64_Phdr.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProgramHeader {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
    pub align: u64,
}

/// Elf64_Shdr; a core has one only to hold a large program header count.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SectionHeader {
    pub name: u32,
    pub kind: u32,
    pub flags: u64,
    pub address: u64,
    pub offset: u64,
    pub bytes: u64,
    pub link: u32,
    pub info: u32,
    pub align: u64,
    pub entry_bytes: u64,
}

/// Elf64_Nhdr; the owner and the descriptor follow, each padded to four bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NoteHeader {
    pub owner_bytes: u32,
    pub desc_bytes: u32,
    pub kind: u32,
}

/// Size of [`FileHeader`] as `u64`, for offsets.
pub const FILE_HEADER_BYTES: u64 = size_of::<FileHeader>() as u64;
/// Size of [`ProgramHeader`] as `u64`.
pub const PROGRAM_HEADER_BYTES: u64 = size_of::<ProgramHeader>() as u64;
/// Size of [`SectionHeader`] as `u64`.
pub const SECTION_HEADER_BYTES: u64 = size_of::<SectionHeader>() as u64;
/// Size of [`NoteHeader`].
pub const NOTE_HEADER_BYTES: usize = size_of::<NoteHeader>();

const _: () = {
    assert!(FILE_HEADER_BYTES == 64);
    assert!(PROGRAM_HEADER_BYTES == 56);
    assert!(SECTION_HEADER_BYTES == 64);
    assert!(NOTE_HEADER_BYTES == 12);
};
