//! A disk with a dump area, byte by byte.

use super::bytes::{Record, crc32};

/// Bytes of a slot; slot 0 begins at the same offset.
pub const SLOT_BYTES: u64 = 1 << 20;
/// Offset of the first ELF file in a slot.
pub const DATA: u64 = 65536;

/// A stage of a dump.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its ELF file.
    pub elf: Vec<u8>,
    /// Bytes of the ELF's header.
    pub header_bytes: u64,
    /// Whether a seal is written, and with what sequence number if not the slot's.
    pub sealed: Option<u64>,
    /// What the seal says of its completeness.
    pub complete: u32,
}

/// A dump in a slot.
#[derive(Clone, Debug)]
pub struct Dump {
    /// Its sequence number.
    pub sequence: u64,
    /// Stages planned.
    pub planned: u32,
    /// Stages written, each with an ELF file of its own.
    pub stages: Vec<Stage>,
}

impl Dump {
    /// A dump of one sealed stage.
    #[must_use]
    pub fn sealed(sequence: u64, elf: Vec<u8>) -> Self {
        let header_bytes = header_bytes(&elf);
        let stage = Stage { elf, header_bytes, sealed: Some(sequence), complete: 1 };
        Self { sequence, planned: 1, stages: vec![stage] }
    }
}

/// Bytes of a core's header: where its first segment begins.
#[must_use]
pub fn header_bytes(elf: &[u8]) -> u64 {
    let at = 64 + 56 + 8;
    elf[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The whole disk: one slot per entry, empty where there is none.
#[must_use]
pub fn build(slots: &[Option<Dump>]) -> Vec<u8> {
    let bytes = SLOT_BYTES * (1 + slots.len() as u64);
    let mut disk = Record::new(bytes as usize);
    let mut header = Record::new(128);
    header
        .put(0, b"EPIAREA\x01")
        .u32(8, 1)
        .u32(12, 128)
        .u32(20, slots.len() as u32)
        .u64(24, bytes)
        .u64(32, SLOT_BYTES)
        .u64(40, SLOT_BYTES)
        .put(48, &[0x11; 16])
        .seal(16);
    disk.put(0, &header.0);
    for (index, dump) in slots.iter().enumerate() {
        if let Some(dump) = dump {
            slot(&mut disk, SLOT_BYTES as usize * (1 + index), dump);
        }
    }
    disk.0
}

fn slot(disk: &mut Record, at: usize, dump: &Dump) {
    const NONCE: u64 = 0x0123_4567_89ab_cdef;
    let mut open = Record::new(256);
    open.put(0, b"EPIOPEN\x01")
        .u32(8, 1)
        .u32(12, 256)
        .u32(20, 1)
        .u64(24, dump.sequence)
        .u64(32, NONCE)
        .u64(40, 1_767_225_600)
        .u32(48, 1)
        .u32(52, dump.planned)
        .u32(56, 20)
        .put(64, &super::image::BUILD_ID)
        .put(96, b"index out of bounds")
        .seal(16);
    disk.put(at, &open.0);
    let mut offset = DATA;
    for (number, stage) in dump.stages.iter().enumerate() {
        disk.put(at + offset as usize, &stage.elf);
        if let Some(sequence) = stage.sealed {
            let mut seal = Record::new(192);
            seal.put(0, b"EPISEAL\x01")
                .u32(8, 1)
                .u32(12, 192)
                .u32(20, 2)
                .u64(24, sequence)
                .u64(32, NONCE)
                .u64(40, offset)
                .u64(48, stage.elf.len() as u64)
                .u64(56, stage.header_bytes)
                .u32(64, crc32(&stage.elf[..stage.header_bytes as usize]))
                .u32(68, stage.complete)
                .u64(72, 2_000_060_000_000)
                .u64(80, 57_000_000)
                .u64(88, 1 << 20)
                .u64(96, 400_000)
                .u64(104, 500_000)
                .u64(112, 600 << 10)
                .seal(16);
            disk.put(at + 4096 * (number + 1), &seal.0);
        }
        offset += (stage.elf.len() as u64).next_multiple_of(4096);
    }
}
