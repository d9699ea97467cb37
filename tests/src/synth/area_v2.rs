//! A dump area of version 2, byte by byte. A dump's ELF file becomes header and chunks.
//!
//! And of version 3: every second chunk that stores anything is in another area. And of version 4:
//! a copy of the header in the last MiB, and open records that name the area.

use super::area::{DATA, SLOT_BYTES, header_bytes};
use super::bytes::{Record, crc32};

/// How the chunks of a stage are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storing {
    /// As memory is.
    Raw,
    /// As LZ4 blocks where that is shorter; zero pages not at all.
    Lz4,
}

/// A stage of a dump. Its file begins with the memory of the stage before.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its ELF file.
    pub elf: Vec<u8>,
    /// Whether it has a seal.
    pub sealed: bool,
    /// Whether the seal says that nothing is missing.
    pub complete: u32,
}

/// A dump in a slot.
#[derive(Clone, Debug)]
pub struct Dump {
    /// Its sequence number.
    pub sequence: u64,
    /// Stages planned.
    pub planned: u32,
    /// Stages written.
    pub stages: Vec<Stage>,
    /// How.
    pub storing: Storing,
    /// Whether somebody has collected it.
    pub collected: bool,
}

impl Dump {
    /// A dump of one sealed stage.
    #[must_use]
    pub fn sealed(sequence: u64, elf: Vec<u8>, storing: Storing) -> Self {
        let stages = vec![Stage { elf, sealed: true, complete: 1 }];
        Self { sequence, planned: 1, stages, storing, collected: false }
    }
}

const NONCE: u64 = 0x0fed_cba9_8765_4321;
/// Bytes of a chunk: small, so that a small dump has several.
const CHUNK: usize = 128 << 10;
const BLOCK: usize = 64 << 10;

/// Identities of two areas.
pub const AREAS: [[u8; 16]; 2] = [[0x22; 16], [0x33; 16]];

/// Two areas of one slot each, which hold one dump together. In the second it has the sequence
/// number 40.
#[must_use]
pub fn build_pair(dump: &Dump) -> [Vec<u8>; 2] {
    let mut first = Record(build(&[None]));
    let mut second = Record(build(&[None]));
    second.put(48, &AREAS[1]).u32(16, 0);
    let crc = crc32(&second.0[..128]);
    second.u32(16, crc);
    let mut other = Half { disk: second, log: DATA as usize, next: false };
    slot(&mut first, (SLOT_BYTES as usize, None), dump, Some(&mut other));
    let mut disk = other.disk;
    let at = SLOT_BYTES as usize;
    let mut open = Record::new(256);
    open.put(0, b"EPIOPEN\x01")
        .u32(8, 3)
        .u32(12, 256)
        .u32(20, 1)
        .u64(24, 40)
        .u64(32, NONCE)
        .u32(52, dump.planned)
        .put(224, &AREAS[0])
        .u64(240, dump.sequence)
        .u32(252, 2)
        .seal(16);
    disk.put(at, &open.0);
    let mut seal = Record::new(256);
    seal.put(0, b"EPISEAL\x01")
        .u32(8, 3)
        .u32(12, 256)
        .u32(20, 2)
        .u64(24, 40)
        .u64(32, NONCE)
        .u64(40, DATA)
        .u64(120, DATA)
        .u64(144, other.log as u64)
        .seal(16);
    disk.put(at + 4096, &seal.0);
    [first.0, disk.0]
}

/// The other area of a dump in two, while it grows.
struct Half {
    disk: Record,
    log: usize,
    /// Whether the next chunk goes there.
    next: bool,
}

/// The area: one slot per entry, empty where there is none.
#[must_use]
pub fn build(slots: &[Option<Dump>]) -> Vec<u8> {
    build_sized(slots, SLOT_BYTES)
}

/// The same with slots of `slot_bytes`, a multiple of 1 MiB.
#[must_use]
pub fn build_sized(slots: &[Option<Dump>], slot_bytes: u64) -> Vec<u8> {
    let bytes = SLOT_BYTES + slot_bytes * slots.len() as u64;
    let mut disk = Record::new(bytes as usize);
    let mut header = Record::new(128);
    header
        .put(0, b"EPIAREA\x01")
        .u32(8, 2)
        .u32(12, 128)
        .u32(20, slots.len() as u32)
        .u64(24, bytes)
        .u64(32, slot_bytes)
        .u64(40, SLOT_BYTES)
        .put(48, &AREAS[0])
        .seal(16);
    disk.put(0, &header.0);
    for (index, dump) in slots.iter().enumerate() {
        if let Some(dump) = dump {
            let at = SLOT_BYTES as usize + slot_bytes as usize * index;
            slot(&mut disk, (at, None), dump, None);
        }
    }
    disk.0
}

/// An area of version 4, with a MiB in front of the slots and one behind them.
#[must_use]
pub fn build_v4(slots: &[Option<Dump>]) -> Vec<u8> {
    let count = slots.len() as u64;
    let bytes = SLOT_BYTES * count + (2 << 20);
    let mut disk = Record::new(bytes as usize);
    let mut header = Record::new(128);
    header
        .put(0, b"EPIAREA\x01")
        .u32(8, 4)
        .u32(12, 128)
        .u32(20, count as u32)
        .u64(24, bytes)
        .u64(32, SLOT_BYTES)
        .u64(40, 1 << 20)
        .put(48, &AREAS[0])
        .seal(16);
    disk.put(0, &header.0);
    disk.put(bytes as usize - (1 << 20), &header.0);
    for (index, dump) in slots.iter().enumerate() {
        if let Some(dump) = dump {
            let geometry = (count, index as u32);
            let at = (1 << 20) + SLOT_BYTES as usize * index;
            slot(&mut disk, (at, Some(geometry)), dump, None);
        }
    }
    disk.0
}

/// With the slots of its area and its number, a slot of version 4.
fn slot(
    disk: &mut Record,
    (at, geometry): (usize, Option<(u64, u32)>),
    dump: &Dump,
    mut other: Option<&mut Half>,
) {
    let version = match geometry {
        Some(_) => 4,
        None if other.is_some() => 3,
        None => 2,
    };
    let open_bytes = if geometry.is_some() { 320 } else { 256 };
    let mut open = Record::new(open_bytes as usize);
    open.put(0, b"EPIOPEN\x01")
        .u32(8, version)
        .u32(12, open_bytes)
        .u32(20, 1)
        .u64(24, dump.sequence)
        .u64(32, NONCE)
        .u64(40, 1_767_225_600)
        .u32(48, 1)
        .u32(52, dump.planned)
        .u32(56, 20)
        .u32(60, if dump.storing == Storing::Raw { 1 } else { 2 })
        .put(64, &super::image::BUILD_ID)
        .put(96, b"index out of bounds");
    if other.is_some() {
        open.put(224, &AREAS[1]).u64(240, 40).u32(252, 1);
    }
    if let Some((count, number)) = geometry {
        open.put(256, &AREAS[0])
            .u64(272, SLOT_BYTES * count + (2 << 20))
            .u64(280, SLOT_BYTES)
            .u64(288, 1 << 20)
            .u32(296, count as u32)
            .u32(300, number);
    }
    open.seal(16);
    disk.put(at, &open.0);
    let mut log = DATA as usize;
    let mut table = Vec::new();
    let mut written = 0;
    for (number, stage) in dump.stages.iter().enumerate() {
        let header = header_bytes(&stage.elf) as usize;
        let memory = &stage.elf[header..];
        // A chunk never reaches over the end of a segment.
        let mut place = 0;
        for (address, bytes) in segments(&stage.elf) {
            for start in (0..bytes).step_by(CHUNK) {
                let end = (start + CHUNK).min(bytes);
                let content = &memory[place + start..place + end];
                if place + start >= written {
                    let memory = (address + start as u64, content);
                    let other = other.as_deref_mut();
                    chunk((disk, at, &mut log), other, &mut table, dump, memory);
                }
            }
            place += bytes;
        }
        written = place;
        let table_at = log;
        disk.put(at + log, &table);
        log = (log + table.len()).next_multiple_of(4096);
        let header_at = log;
        disk.put(at + log, &stage.elf[..header]);
        log = (log + header).next_multiple_of(4096);
        if stage.sealed {
            let mut seal = Record::new(256);
            seal.put(0, b"EPISEAL\x01")
                .u32(8, version)
                .u32(12, 256)
                .u32(20, number as u32 + 1)
                .u64(24, dump.sequence)
                .u64(32, NONCE)
                .u64(40, header_at as u64)
                .u64(48, stage.elf.len() as u64)
                .u64(56, header as u64)
                .u32(64, crc32(&stage.elf[..header]))
                .u32(68, stage.complete)
                .u64(72, 2_000_060_000_000)
                .u64(80, 57_000_000)
                .u64(104, 500_000)
                .u64(112, 600 << 10)
                .u64(120, table_at as u64)
                .u64(128, table.len() as u64)
                .u32(136, crc32(&table))
                .u32(140, if stage.complete == 1 { 0 } else { 1 })
                .u64(144, log as u64)
                .u64(152, memory.len() as u64)
                .u64(160, memory.len() as u64)
                .u64(184, 60_000_000)
                .seal(16);
            disk.put(at + 4096 * (number + 1), &seal.0);
        }
    }
    if dump.collected {
        let mut collected = Record::new(64);
        collected
            .put(0, b"EPICOLL\x01")
            .u32(8, 2)
            .u32(12, 64)
            .u64(24, dump.sequence)
            .u64(32, NONCE)
            .u64(40, 1_767_300_000)
            .seal(16);
        disk.put(at + 15 * 4096, &collected.0);
    }
}

/// Address and bytes in the file of each PT_LOAD, in order.
fn segments(elf: &[u8]) -> Vec<(u64, usize)> {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("eight bytes"));
    let count = usize::from(elf[56]) + 256 * usize::from(elf[57]);
    (1..count)
        .map(|index| 64 + 56 * index)
        .map(|at| (word(at + 24), word(at + 32) as usize))
        .collect()
}

/// Appends a chunk to a log and its entry to the table.
fn chunk(
    (disk, slot, log): (&mut Record, usize, &mut usize),
    other: Option<&mut Half>,
    table: &mut Vec<u8>,
    dump: &Dump,
    (address, memory): (u64, &[u8]),
) {
    let packed = lz4_chunk(memory);
    let (kind, stored) = match dump.storing {
        Storing::Raw => (1u32, memory),
        Storing::Lz4 if memory.iter().all(|&byte| byte == 0) => (3, &[][..]),
        Storing::Lz4 if packed.len() < memory.len() => (2, &packed[..]),
        Storing::Lz4 => (1, memory),
    };
    let (mut home, mut area) = ((disk, slot, log), 0);
    if let Some(other) = other.filter(|_| kind != 3) {
        other.next = !other.next;
        if other.next {
            (home, area) = ((&mut other.disk, SLOT_BYTES as usize, &mut other.log), 1);
        }
    }
    let (disk, slot, log) = home;
    disk.put(slot + *log, stored);
    let words = [hash(memory), dump.sequence, NONCE, address, memory.len() as u64, u64::from(kind)];
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    table.extend((*log as u64).to_le_bytes());
    table.extend(address.to_le_bytes());
    for word in [stored.len() as u32, memory.len() as u32, kind, area] {
        table.extend(word.to_le_bytes());
    }
    table.extend(if kind == 3 { 0 } else { hash(&bytes) }.to_le_bytes());
    *log = (*log + stored.len()).next_multiple_of(4096);
}

/// rapidhash V3, protected, seed 0.
fn hash(bytes: &[u8]) -> u64 {
    use rapidhash::v3::{DEFAULT_RAPID_SECRETS, rapidhash_v3_inline};
    rapidhash_v3_inline::<true, false, true>(bytes, &DEFAULT_RAPID_SECRETS)
}

/// A table of sizes, then the blocks.
fn lz4_chunk(memory: &[u8]) -> Vec<u8> {
    let (mut sizes, mut blocks) = (Vec::new(), Vec::new());
    for block in memory.chunks(BLOCK) {
        let packed = lz4_block(block);
        if packed.len() < block.len() {
            sizes.extend((packed.len() as u32).to_le_bytes());
            blocks.extend(packed);
        } else {
            sizes.extend((block.len() as u32 | 1 << 31).to_le_bytes());
            blocks.extend(block);
        }
    }
    sizes.extend(blocks);
    sizes
}

/// An LZ4 block by hand: the bytes up to the last that is not zero, one zero, a match that
/// repeats it, and five zeros, since a block has to end in literals.
fn lz4_block(block: &[u8]) -> Vec<u8> {
    let data = block.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
    if block.len() - data < 64 {
        return block.to_vec();
    }
    let length = |mut rest: usize| {
        let mut bytes = Vec::new();
        while rest >= 255 {
            bytes.push(255);
            rest -= 255;
        }
        bytes.push(rest as u8);
        bytes
    };
    let literals = data + 1;
    let matched = block.len() - literals - 5 - 4;
    let mut packed = vec![((literals.min(15) << 4) | 15) as u8];
    if literals >= 15 {
        packed.extend(length(literals - 15));
    }
    packed.extend(&block[..literals]);
    packed.extend([1, 0]);
    packed.extend(length(matched - 15));
    packed.push(5 << 4);
    packed.extend([0; 5]);
    packed
}
