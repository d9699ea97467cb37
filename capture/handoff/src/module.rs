//! The capture image as a file: a checksum of the whole file, in a note of its own.
//!
//! The file travels from the build to the machine by ways that check nothing. Its checksum
//! is filled in when it has been built, and the appliance compares it before it loads
//! anything, so that an image damaged on the way is known for one long before it is needed.
//!
//! The note is searched for and not looked up in the ELF headers, because they may be what
//! is damaged. Its first sixteen bytes occur once in the file.

use core::mem::offset_of;

use zerocopy::{Immutable, IntoBytes, KnownLayout};

use crate::crc32_with_hole;

/// Type of the note, among those of its owner.
const KIND: u32 = 0x4550_0100;
/// Its owner, with the zero that ends it.
const OWNER: [u8; 8] = *b"EPITAPH\0";

/// An ELF note (gABI, "Note Section") whose descriptor is a checksum.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChecksumNote {
    owner_bytes: u32,
    desc_bytes: u32,
    kind: u32,
    owner: [u8; 8],
    /// CRC-32 of the file, taken with zeros in this field.
    crc32: u32,
}

const _: () = assert!(size_of::<ChecksumNote>() == 24);
const _: () = assert!(offset_of!(ChecksumNote, crc32) == 20);

/// Why a file is not taken for a capture image as it was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleError {
    /// It has no checksum.
    NoChecksum,
    /// Its checksum was never filled in.
    Unsealed,
    /// It is not what the checksum was taken of: what the note holds, and what the file has.
    Damaged(u32, u32),
}

impl core::fmt::Display for ModuleError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoChecksum => f.write_str("the file has no checksum note of a capture image"),
            Self::Unsealed => f.write_str("the checksum of the capture image was never filled in"),
            Self::Damaged(stored, computed) => write!(
                f,
                "the capture image is damaged: checksum {stored:08x} stored, {computed:08x} computed"
            ),
        }
    }
}

impl core::error::Error for ModuleError {}

impl ChecksumNote {
    /// A note whose checksum is still to be filled in.
    #[must_use]
    pub const fn unsealed() -> Self {
        Self { owner_bytes: 8, desc_bytes: 4, kind: KIND, owner: OWNER, crc32: 0 }
    }

    /// Where the checksum lies in `file`.
    fn place(file: &[u8]) -> Option<usize> {
        let note = Self::unsealed();
        let (head, _) = note.as_bytes().split_at_checked(offset_of!(Self, crc32))?;
        let at = file.windows(size_of::<Self>()).position(|window| window.starts_with(head))?;
        Some(at + head.len())
    }
}

/// Fills in the checksum of the capture image `file`.
///
/// # Errors
/// When it has no note for one.
pub fn seal(file: &mut [u8]) -> Result<u32, ModuleError> {
    let at = ChecksumNote::place(file).ok_or(ModuleError::NoChecksum)?;
    // 0 stands for a checksum that was not filled in.
    let crc32 = crc32_with_hole(file, at).max(1);
    let field = file.get_mut(at..at + 4).ok_or(ModuleError::NoChecksum)?;
    field.copy_from_slice(&crc32.to_le_bytes());
    Ok(crc32)
}

/// Compares the capture image `file` with its checksum, and returns that.
///
/// # Errors
/// When it has none, or is not what it was taken of.
pub fn check(file: &[u8]) -> Result<u32, ModuleError> {
    let at = ChecksumNote::place(file).ok_or(ModuleError::NoChecksum)?;
    let field = file.get(at..at + 4).and_then(|field| field.try_into().ok());
    let noted = u32::from_le_bytes(field.ok_or(ModuleError::NoChecksum)?);
    match crc32_with_hole(file, at).max(1) {
        _ if noted == 0 => Err(ModuleError::Unsealed),
        computed if computed == noted => Ok(noted),
        computed => Err(ModuleError::Damaged(noted, computed)),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn file() -> Vec<u8> {
        let mut file: Vec<u8> = (0..200).collect();
        file.extend(ChecksumNote::unsealed().as_bytes());
        file.extend(0..100);
        file
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut sealed = file();
        assert_eq!(check(&sealed), Err(ModuleError::Unsealed));
        let crc32 = seal(&mut sealed).unwrap();
        assert_eq!(check(&sealed), Ok(crc32));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&damaged).is_err(), "bit {bit}");
        }
        assert!(check(&sealed[..sealed.len() - 1]).is_err());
    }

    #[test]
    fn without_a_note_there_is_nothing_to_check() {
        assert_eq!(seal(&mut [0; 100]), Err(ModuleError::NoChecksum));
        assert_eq!(check(b""), Err(ModuleError::NoChecksum));
        let file = file();
        assert_eq!(check(&file[..210]), Err(ModuleError::NoChecksum));
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        let says = |error: &dyn core::error::Error| std::format!("{error}");
        assert_eq!(
            says(&ModuleError::Damaged(1, 0xabc)),
            "the capture image is damaged: checksum 00000001 stored, 00000abc computed"
        );
        assert_eq!(says(&crate::RecordError::Version(9)), "unknown version 9");
    }
}
