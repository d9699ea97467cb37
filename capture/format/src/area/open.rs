//! The open record: a dump begins in this slot, and why.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{AREA_VERSION, AreaError, CRC_OFFSET, PAIR_VERSION, RECORD_BLOCKS, check, checksum};

/// First eight bytes of a [`SlotOpen`].
pub const OPEN_MAGIC: [u8; 8] = *b"EPIOPEN\x01";

/// Values of [`SlotOpen::part`].
pub mod part {
    /// All of the dump: it is in one area.
    pub const WHOLE: u32 = 0;
    /// Records, tables, headers and some of the chunks; the rest are in the other area.
    pub const RECORDS: u32 = 1;
    /// Chunks only, of the dump whose records are in the other area.
    pub const MEMORY: u32 = 2;
}

/// Block 0 of a slot: a dump was begun here.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlotOpen {
    /// [`OPEN_MAGIC`].
    pub magic: [u8; 8],
    /// [`super::OLDEST_VERSION`] to [`PAIR_VERSION`], which a dump in two areas has.
    pub version: u32,
    /// `size_of::<SlotOpen>()`.
    pub size: u32,
    /// CRC32 of the record with this field zero.
    pub crc32: u32,
    /// Kind of the cause, as in `handoff::crash::cause_kind`.
    pub cause_kind: u32,
    /// One more than the highest in the area before; from 1.
    pub sequence: u64,
    /// Time-stamp counter when it was opened: tells two dumps with one sequence number
    /// apart.
    pub nonce: u64,
    /// Unix time in seconds, 0 when unknown.
    pub unix_time: u64,
    /// Index of the crashing CPU.
    pub cpu: u32,
    /// Stages this dump is planned to have.
    pub stages: u32,
    /// Bytes of `build_id` in use.
    pub build_id_bytes: u32,
    /// How memory is stored where there is a choice, one of [`super::storing`]; 0 in version 1.
    pub storing: u32,
    /// GNU build-id of the crashed image.
    pub build_id: [u8; 32],
    /// The cause in one line, UTF-8, zero padded.
    pub message: [u8; 128],
    /// [`super::AreaHeader::uuid`] of the other area of a dump in two; zero otherwise.
    pub other_area: [u8; 16],
    /// [`SlotOpen::sequence`] of the other open record of a dump in two areas; their nonces
    /// are the same.
    pub other_sequence: u64,
    /// Slot of the other area.
    pub other_slot: u32,
    /// What of the dump is here, one of [`part`].
    pub part: u32,
}

const _: () = {
    assert!(size_of::<SlotOpen>() == 256);
    assert!(offset_of!(SlotOpen, build_id) == 64);
    assert!(offset_of!(SlotOpen, message) == 96);
    assert!(offset_of!(SlotOpen, other_area) == 224);
    assert!(offset_of!(SlotOpen, other_sequence) == 240);
    assert!(offset_of!(SlotOpen, part) == 252);
    assert!(offset_of!(SlotOpen, crc32) == CRC_OFFSET);
};

impl SlotOpen {
    /// An empty record: to be filled and then [sealed](Self::seal).
    #[must_use]
    pub fn new() -> Self {
        let mut open = Self::new_zeroed();
        open.magic = OPEN_MAGIC;
        open.version = AREA_VERSION;
        open.size = size_of::<Self>() as u32;
        open
    }

    /// Makes of two records, of one dump and each with its own sequence number, the two of a
    /// dump in two areas: `self` is where its records are, and `other` where there is only memory. With each its
    /// area's identity and its slot.
    pub fn pair(&mut self, area: ([u8; 16], u32), other: &mut Self, other_area: ([u8; 16], u32)) {
        (self.version, other.version) = (PAIR_VERSION, PAIR_VERSION);
        (self.part, other.part) = (part::RECORDS, part::MEMORY);
        other.nonce = self.nonce;
        (self.other_area, self.other_slot) = other_area;
        (other.other_area, other.other_slot) = area;
        (self.other_sequence, other.other_sequence) = (other.sequence, self.sequence);
    }

    /// Whether `other`, found in the area it names, is the other record of this dump.
    #[must_use]
    pub fn is_pair_with(&self, other: &Self) -> bool {
        self.part != part::WHOLE
            && self.part + other.part == part::RECORDS + part::MEMORY
            && self.nonce == other.nonce
            && self.other_sequence == other.sequence
            && other.other_sequence == self.sequence
    }

    /// Sets the message, cut at a character boundary.
    pub fn set_message(&mut self, message: &str) {
        self.message.fill(0);
        crate::notes::put_text(&mut self.message, message);
    }

    /// Sets the build-id; what is longer than the field is cut.
    pub fn set_build_id(&mut self, build_id: &[u8]) {
        let bytes = build_id.len().min(self.build_id.len());
        self.build_id.fill(0);
        self.build_id[..bytes].copy_from_slice(&build_id[..bytes]);
        self.build_id_bytes = bytes as u32;
    }

    /// The message without its padding; what is not UTF-8 is cut off.
    #[must_use]
    pub fn message(&self) -> &str {
        let text = self.message.split(|&byte| byte == 0).next().unwrap_or_default();
        match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default(),
        }
    }

    /// The build-id's bytes.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id[..(self.build_id_bytes as usize).min(self.build_id.len())]
    }

    /// Writes the checksum over what stands in the record now.
    pub fn seal(&mut self) {
        self.crc32 = checksum(self.as_bytes());
    }

    /// Checks block 0 of a slot and copies the record out of it.
    ///
    /// # Errors
    /// Says what is wrong; [`AreaError::Blank`] is a slot never used.
    pub fn check(block: &[u8]) -> Result<Self, AreaError> {
        let mut open: Self = check(block, &OPEN_MAGIC, [size_of::<Self>(); 3])?;
        if open.version < PAIR_VERSION {
            // Zero in every record ever written; what it means here came with version 3.
            open.as_mut_bytes()[offset_of!(Self, other_area)..].fill(0);
        }
        // Version 1 had room for one stage more.
        if open.stages > RECORD_BLOCKS as u32 - 1
            || open.build_id_bytes as usize > open.build_id.len()
            || open.part > part::MEMORY
        {
            return Err(AreaError::Bounds);
        }
        Ok(open)
    }
}

impl Default for SlotOpen {
    fn default() -> Self {
        Self::new()
    }
}
