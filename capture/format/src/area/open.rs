//! The open record: a dump begins in this slot, and why.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{
    AREA_MAGIC, AREA_VERSION, AreaError, AreaHeader, CRC_OFFSET, PAIR_VERSION, RECORD_BLOCKS,
    RECORD_VERSION, check, checksum,
};

/// Bytes of the record before version 4, which ended before [`SlotOpen::geometry`].
const OLD_BYTES: usize = 256;

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
    /// [`super::OLDEST_VERSION`] to [`AREA_VERSION`].
    pub version: u32,
    /// Bytes of the record.
    pub size: u32,
    /// CRC32 of the record with this field zero.
    pub crc32: u32,
    /// Kind of the cause, as in `handoff::crash::CauseKind`.
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
    /// The area and its slots, so that they are found without a header; zero before version 4.
    pub geometry: AreaGeometry,
}

/// What the header says of an area, and which slot this is: in every open record from version 4.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AreaGeometry {
    /// [`AreaHeader::uuid`].
    pub uuid: [u8; 16],
    /// [`AreaHeader::area_bytes`].
    pub area_bytes: u64,
    /// [`AreaHeader::slot_bytes`].
    pub slot_bytes: u64,
    /// [`AreaHeader::first_slot`].
    pub first_slot: u64,
    /// [`AreaHeader::slot_count`].
    pub slot_count: u32,
    /// Number of this slot, from 0.
    pub slot: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

impl AreaGeometry {
    /// Returns the geometry of slot `slot` of an area.
    #[must_use]
    pub const fn of(area: &AreaHeader, slot: u32) -> Self {
        Self {
            uuid: area.uuid,
            area_bytes: area.area_bytes,
            slot_bytes: area.slot_bytes,
            first_slot: area.first_slot,
            slot_count: area.slot_count,
            slot,
            reserved: [0; 2],
        }
    }

    /// Returns the header of the area, when the slot that it belongs to lies at byte `offset` of
    /// the area.
    ///
    /// # Errors
    /// When it describes no area, or a slot elsewhere.
    pub fn header_at(&self, offset: u64) -> Result<AreaHeader, AreaError> {
        let mut header = AreaHeader::new_zeroed();
        header.magic = AREA_MAGIC;
        header.version = AREA_VERSION;
        header.size = size_of::<AreaHeader>() as u32;
        header.slot_count = self.slot_count;
        header.area_bytes = self.area_bytes;
        header.slot_bytes = self.slot_bytes;
        header.first_slot = self.first_slot;
        header.uuid = self.uuid;
        header.seal();
        let header = AreaHeader::check(header.as_bytes())?;
        let here = header.slot_offset(self.slot) == Some(offset);
        if here { Ok(header) } else { Err(AreaError::Bounds) }
    }
}

const _: () = {
    assert!(size_of::<SlotOpen>() == 320);
    assert!(offset_of!(SlotOpen, geometry) == OLD_BYTES);
    assert!(offset_of!(AreaGeometry, slot_count) == 40);
    assert!(offset_of!(SlotOpen, build_id) == 64);
    assert!(offset_of!(SlotOpen, message) == 96);
    assert!(offset_of!(SlotOpen, other_area) == 224);
    assert!(offset_of!(SlotOpen, other_sequence) == 240);
    assert!(offset_of!(SlotOpen, part) == 252);
    assert!(offset_of!(SlotOpen, crc32) == CRC_OFFSET);
};

impl SlotOpen {
    /// Returns an empty record of version 2: to be filled, [placed](Self::place) and then
    /// [sealed](Self::seal).
    #[must_use]
    pub fn new() -> Self {
        let mut open = Self::new_zeroed();
        open.magic = OPEN_MAGIC;
        open.version = RECORD_VERSION;
        open.size = OLD_BYTES as u32;
        open
    }

    /// Says in which slot of which area the record stands. In an area of version 4 this makes it
    /// a record of version 4; in an older area it changes nothing.
    pub fn place(&mut self, area: &AreaHeader, slot: u32) {
        if area.has_copy() {
            self.version = AREA_VERSION;
            self.size = size_of::<Self>() as u32;
            self.geometry = AreaGeometry::of(area, slot);
        }
    }

    /// Returns the bytes of the record, as many as its version has.
    #[must_use]
    pub fn record(&self) -> &[u8] {
        let bytes = self.as_bytes();
        bytes.get(..self.size as usize).unwrap_or(bytes)
    }

    /// Makes of two records, of one dump and each with its own sequence number, the two of a
    /// dump in two areas: `self` is where its records are, and `other` where there is only memory. With each its
    /// area's identity and its slot.
    pub fn pair(&mut self, area: ([u8; 16], u32), other: &mut Self, other_area: ([u8; 16], u32)) {
        self.version = self.version.max(PAIR_VERSION);
        other.version = other.version.max(PAIR_VERSION);
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
        self.crc32 = checksum(self.record());
    }

    /// Checks block 0 of a slot and copies the record out of it.
    ///
    /// # Errors
    /// Says what is wrong; [`AreaError::Blank`] is a slot never used.
    pub fn check(block: &[u8]) -> Result<Self, AreaError> {
        let mut open: Self =
            check(block, &OPEN_MAGIC, [OLD_BYTES, OLD_BYTES, OLD_BYTES, size_of::<Self>()])?;
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
