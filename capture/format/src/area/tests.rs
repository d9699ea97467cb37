extern crate std;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn area() -> AreaHeader {
    let mut header = AreaHeader::plan(64 << 20, 3).unwrap();
    header.uuid = [7; 16];
    header.seal();
    header
}

fn open() -> SlotOpen {
    let mut open = SlotOpen::new();
    open.sequence = 9;
    open.nonce = 0x1234;
    open.stages = 2;
    open.set_build_id(&[0xab; 20]);
    open.set_message("index out of bounds: the length is 4 but the index is 7");
    open.seal();
    open
}

fn seal() -> StageSeal {
    let mut seal = StageSeal::new(&open());
    seal.kind = stage_kind::USED;
    seal.header_offset = DATA_OFFSET;
    seal.table_offset = DATA_OFFSET + 0x2000;
    seal.table_bytes = 3 * ENTRY_BYTES;
    seal.elf_bytes = 0x10_0000;
    seal.header_bytes = 0x2000;
    seal.seal();
    seal
}

fn block(record: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    block[..record.len()].copy_from_slice(record);
    block
}

#[test]
fn slots_lie_inside_the_disk_side_by_side() {
    let area = area();
    let area = AreaHeader::check(area.as_bytes()).unwrap();
    assert_eq!(area.slot_offset(0), Some(1 << 20));
    assert_eq!(area.slot_offset(1), Some((1 << 20) + area.slot_bytes));
    assert_eq!(area.slot_offset(3), None);
    assert!(area.area_bytes <= 64 << 20);
    assert_eq!(AreaHeader::plan(2 << 20, 2).unwrap_err(), AreaError::DiskTooSmall(3 << 20));
    assert_eq!(AreaHeader::plan(2 << 20, 0).unwrap_err(), AreaError::SlotCount(0));
}

#[test]
fn every_flipped_bit_of_a_record_is_found() {
    let area = area();
    let mut crashes = CrashLoop::new();
    crashes.add(77);
    let records = [
        block(area.as_bytes()),
        block(open().as_bytes()),
        block(seal().as_bytes()),
        block(Collected::of(&open(), 5).as_bytes()),
        block(crashes.as_bytes()),
    ];
    for (index, good) in records.iter().enumerate() {
        let bytes = u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
        for bit in 0..bytes * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let refused = match index {
                0 => AreaHeader::check(&bad).is_err(),
                1 => SlotOpen::check(&bad).is_err(),
                2 => StageSeal::check(&bad, &area).is_err(),
                3 => Collected::check(&bad).is_err(),
                _ => CrashLoop::check(&bad).is_err(),
            };
            assert!(refused, "record {index} bit {bit}");
        }
    }
}

#[test]
fn a_seal_counts_only_for_its_own_dump() {
    let old = seal();
    let mut next = open();
    assert!(old.belongs_to(&next));
    next.sequence += 1;
    assert!(!old.belongs_to(&next));
    next.sequence -= 1;
    next.nonce ^= 1;
    assert!(!old.belongs_to(&next));
}

#[test]
fn a_newer_version_is_refused_and_named() {
    let mut newer = area();
    newer.version = 3;
    newer.seal();
    assert_eq!(AreaHeader::check(newer.as_bytes()).unwrap_err(), AreaError::Version(3));
}

#[test]
fn a_seal_that_leads_out_of_its_slot_is_refused() {
    let area = area();
    for change in [
        |seal: &mut StageSeal| seal.header_offset = u64::MAX - 4095,
        |seal: &mut StageSeal| seal.header_bytes = 1 << 40,
        |seal: &mut StageSeal| seal.header_offset = DATA_OFFSET + 1,
        |seal: &mut StageSeal| seal.header_bytes = seal.elf_bytes + 1,
        |seal: &mut StageSeal| seal.header_offset = BLOCK_BYTES,
        |seal: &mut StageSeal| seal.table_offset = DATA_OFFSET + 8,
        |seal: &mut StageSeal| seal.table_bytes = ENTRY_BYTES << 40,
        |seal: &mut StageSeal| seal.table_bytes += 1,
        |seal: &mut StageSeal| seal.log_end = u64::MAX,
    ] {
        let mut seal = seal();
        change(&mut seal);
        seal.seal();
        assert_eq!(StageSeal::check(seal.as_bytes(), &area).unwrap_err(), AreaError::Bounds);
    }
}

#[test]
fn version_1_is_read_and_its_stages_are_plain() {
    let mut old = area();
    old.version = 1;
    old.seal();
    assert_eq!(AreaHeader::check(old.as_bytes()).unwrap().version, 1);
    let mut old = seal();
    old.version = 1;
    old.size = 192;
    let bytes = &mut block(old.as_bytes())[..192];
    bytes[120..].fill(0);
    let crc = checksum(bytes);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    let read = StageSeal::check(&block(bytes), &area()).unwrap();
    assert!(read.is_plain() && read.belongs_to(&open()));
    assert_eq!((read.header_offset, read.chunks()), (DATA_OFFSET, 0));
    // There the whole file had to be in the slot.
    bytes[48..56].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let crc = checksum(bytes);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(StageSeal::check(&block(bytes), &area()).unwrap_err(), AreaError::Bounds);
}

#[test]
fn crashes_are_counted_within_a_time() {
    let mut crashes = CrashLoop::new();
    for time in [100, 0, 200, 300] {
        crashes.add(time);
    }
    let crashes = CrashLoop::check(&block(crashes.as_bytes())).unwrap();
    assert_eq!((crashes.count, crashes.within(300, 150), crashes.within(300, 500)), (4, 2, 3));
    let mut many = CrashLoop::new();
    (1..40).for_each(|time| many.add(time));
    assert_eq!((many.count, many.within(39, 100), many.times[0]), (39, LOOP_TIMES, 39));
}

#[test]
fn a_checksum_binds_memory_to_its_place_and_its_dump() {
    let memory: Vec<u8> = (0..70_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let entry = ChunkEntry { address: 0x5000, memory_bytes: 4096, kind: 1, ..<_>::default() };
    let (hash, open) = (ChunkEntry::hash(&memory), open());
    let good = entry.bind(hash, &open);
    let mut flipped = memory.clone();
    flipped[31_337] ^= 4;
    assert_ne!(ChunkEntry::hash(&flipped), hash);
    assert_ne!(ChunkEntry { address: 0x6000, ..entry }.bind(hash, &open), good);
    assert_ne!(ChunkEntry { memory_bytes: 8192, ..entry }.bind(hash, &open), good);
    assert_ne!(entry.bind(hash, &SlotOpen { nonce: 1, ..open }), good);
    assert_ne!(entry.bind(hash, &SlotOpen { sequence: 1, ..open }), good);
    // On a disk for ever: these bytes must never change.
    assert_eq!(ChunkEntry::hash(b"epitaph"), 6_186_622_499_132_471_534);
}

#[test]
fn an_unsound_chunk_is_refused() {
    let good = ChunkEntry {
        offset: DATA_OFFSET,
        address: 0x10_0000,
        stored_bytes: 8192,
        memory_bytes: 8192,
        kind: chunk_kind::RAW,
        ..<_>::default()
    };
    assert!(good.is_sound(1 << 20));
    let zero = ChunkEntry { kind: chunk_kind::ZERO, stored_bytes: 0, offset: 0, ..good };
    assert!(zero.is_sound(1 << 20));
    for bad in [
        ChunkEntry { offset: 4096, ..good },
        ChunkEntry { offset: DATA_OFFSET + 1, ..good },
        ChunkEntry { offset: (1 << 20) - 4096, ..good },
        ChunkEntry { offset: u64::MAX - 4095, ..good },
        ChunkEntry { address: u64::MAX - 4095, ..good },
        ChunkEntry { stored_bytes: 4096, ..good },
        ChunkEntry { memory_bytes: 0, stored_bytes: 0, ..good },
        ChunkEntry { memory_bytes: 8191, stored_bytes: 8191, ..good },
        ChunkEntry { kind: chunk_kind::LZ4, ..good },
        ChunkEntry { kind: chunk_kind::ZERO, ..good },
        ChunkEntry { kind: 9, ..good },
    ] {
        assert!(!bad.is_sound(1 << 20), "{bad:?}");
    }
}

#[test]
fn lz4_blocks_lie_behind_their_sizes() {
    let mut stored = Vec::new();
    stored.extend(lz4_block_size(3, false).to_le_bytes());
    stored.extend(lz4_block_size(4096, true).to_le_bytes());
    stored.extend([1, 2, 3]);
    stored.extend([7; 4096]);
    let memory = LZ4_BLOCK_BYTES + 4096;
    assert_eq!(lz4_table_bytes(memory), 8);
    let blocks: Vec<_> = lz4_blocks(&stored, memory).map(Option::unwrap).collect();
    assert_eq!((blocks[0].stored, blocks[0].memory_bytes), (&[1u8, 2, 3][..], 65536));
    assert_eq!((blocks[1].plain, blocks[1].memory_bytes), (true, 4096));
    assert!(lz4_blocks(&stored[..stored.len() - 1], memory).any(|block| block.is_none()));
    assert!(lz4_blocks(&[0xff; 64], 1 << 20).any(|block| block.is_none()));
}

#[test]
fn a_blank_and_a_foreign_block_are_told_apart() {
    assert_eq!(AreaHeader::check(&[0; 4096]).unwrap_err(), AreaError::Blank);
    assert_eq!(AreaHeader::check(&[1; 4096]).unwrap_err(), AreaError::Foreign);
    assert_eq!(AreaHeader::check(&[0; 12]).unwrap_err(), AreaError::TooShort);
}

proptest! {
    #[test]
    fn no_bytes_make_a_check_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        magic in 0usize..6,
        version in 1u32..4,
        fix in any::<bool>(),
    ) {
        // Random bytes alone would never get past the magic and the checksum.
        if fix && bytes.len() >= 20 && magic < 5 {
            let size = [128usize, 256, [192, 256][version as usize % 2], 64, 192][magic];
            bytes[..8].copy_from_slice(
                &[AREA_MAGIC, OPEN_MAGIC, SEAL_MAGIC, COLLECTED_MAGIC, LOOP_MAGIC][magic],
            );
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            bytes[12..16].copy_from_slice(&(size as u32).to_le_bytes());
            if bytes.len() >= size {
                let crc = checksum(&bytes[..size]);
                bytes[16..20].copy_from_slice(&crc.to_le_bytes());
            }
        }
        if let Ok(area) = AreaHeader::check(&bytes) {
            prop_assert!(area.slot_offset(area.slot_count - 1).is_some());
        }
        let _ = SlotOpen::check(&bytes).map(|open| (open.message().len(), open.build_id().len()));
        let _ = StageSeal::check(&bytes, &area());
        let _ = Collected::check(&bytes);
        let _ = CrashLoop::check(&bytes).map(|crashes| crashes.within(5, 5));
    }
}

#[test]
fn a_raw_chunk_has_a_largest_size() {
    let entry = |memory: u64| ChunkEntry {
        offset: DATA_OFFSET,
        stored_bytes: memory as u32,
        memory_bytes: memory as u32,
        kind: chunk_kind::RAW,
        ..ChunkEntry::default()
    };
    assert!(entry(MAX_RAW_BYTES).is_sound(8 << 30));
    assert!(!entry(MAX_RAW_BYTES + 4096).is_sound(8 << 30));
    assert!(!entry(3 << 29).is_sound(8 << 30));
}
