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
    assert!(area.slot_offset(2).unwrap() + area.slot_bytes <= area.copy_offset().unwrap());
    assert_eq!(area.copy_offset(), AreaHeader::copy_place(64 << 20));
    assert_eq!(AreaHeader::plan(3 << 20, 2).unwrap_err(), AreaError::DiskTooSmall(4 << 20));
    assert_eq!(AreaHeader::plan(4 << 20, 2).unwrap().slot_bytes, 1 << 20);
    assert_eq!(AreaHeader::plan((4 << 20) + 4095, 2).unwrap().area_bytes, 4 << 20);
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
fn every_bound_of_a_header_is_kept() {
    let good = area();
    let refused = |change: &dyn Fn(&mut AreaHeader)| {
        let mut header = good;
        change(&mut header);
        header.seal();
        AreaHeader::check(&block(header.as_bytes())).err()
    };
    assert_eq!(refused(&|_| ()), None);
    let end = good.slot_offset(2).unwrap() + good.slot_bytes;
    // As tight as can be.
    assert_eq!(refused(&|header| header.area_bytes = end + MARGIN_BYTES), None);
    for change in [
        &(|header: &mut AreaHeader| header.slot_count = 0) as &dyn Fn(&mut AreaHeader),
        &|header| (header.slot_count, header.slot_bytes) = (65, 1 << 20),
        &|header| header.slot_bytes = 0,
        &|header| header.slot_bytes -= BLOCK_BYTES,
        &|header| header.slot_bytes = u64::MAX - SLOT_ALIGN + 1,
        &|header| header.first_slot = 0,
        &|header| header.first_slot += BLOCK_BYTES,
        &|header| header.first_slot += SLOT_ALIGN * 3,
        &|header| header.area_bytes = end + MARGIN_BYTES - BLOCK_BYTES,
        &|header| header.area_bytes += 512,
        &|header| header.area_bytes = 0,
    ] {
        assert_eq!(refused(change), Some(AreaError::Bounds));
    }
    // An older one may reach to its last byte, and its slots begin at any block.
    let old = |change: fn(&mut AreaHeader)| {
        refused(&|header: &mut AreaHeader| {
            header.version = RECORD_VERSION;
            header.area_bytes = end;
            change(header);
        })
    };
    assert_eq!(old(|_| ()), None);
    assert_eq!(old(|header| header.first_slot = BLOCK_BYTES), None);
    assert_eq!(old(|header| header.slot_count = 64), Some(AreaError::Bounds));
    assert_eq!(old(|header| header.area_bytes -= 1), Some(AreaError::Bounds));
    assert_eq!(old(|header| header.first_slot = 512), Some(AreaError::Bounds));
    assert_eq!(old(|header| header.slot_bytes = DATA_OFFSET), Some(AreaError::Bounds));
    assert_eq!(old(|header| header.slot_bytes = DATA_OFFSET + BLOCK_BYTES), None);
}

#[test]
fn the_rest_of_the_block_of_a_header_has_to_be_zero() {
    for at in 128..4096 {
        let mut bad = block(area().as_bytes());
        bad[at] = 1;
        assert_eq!(AreaHeader::check(&bad).unwrap_err(), AreaError::Rest(at as u32));
    }
}

#[test]
fn an_open_record_finds_its_area_again() {
    let area = area();
    let mut open = open();
    open.place(&area, 1);
    open.seal();
    let read = SlotOpen::check(&block(open.record())).unwrap();
    assert_eq!((read.version, read.size, read.geometry.slot), (4, 320, 1));
    let offset = area.slot_offset(1).unwrap();
    assert_eq!(read.geometry.header_at(offset).unwrap().as_bytes(), area.as_bytes());
    assert_eq!(read.geometry.header_at(0).unwrap_err(), AreaError::Bounds);
    // In an older area it stays what it was.
    let (mut old, mut open) = (area, self::open());
    old.version = 2;
    open.place(&old, 1);
    assert_eq!((open.version, open.record().len()), (2, 256));
}

#[test]
fn a_block_is_told_from_what_was_left_there() {
    use look::Verdict::{Damaged, Foreign, Same};
    let area = area();
    let disk = 64 << 20;
    let judged = |bytes: &[(usize, &[u8])], offset| {
        let mut block = vec![0; 4096];
        for (at, bytes) in bytes {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        look::judge(&area, &block, offset, disk)
    };
    assert_eq!(judged(&[], 16384), Same);
    assert_eq!(judged(&[(8, &[1; 8])], 16384), Damaged);
    assert_eq!(judged(&[(7, &[1; 2])], 16384), Foreign("data that is not known"));
    assert_eq!(judged(&[(1, b"CD001")], 32768), Foreign("an ISO 9660 image"));
    assert_eq!(judged(&[(64, b"_BHRfS_M")], 65536), Foreign("a btrfs file system"));
    // Inside of a slot only what names its place counts.
    assert_eq!(judged(&[(0, &[1; 64])], 1 << 20), Same);
    let last = disk - 4096;
    assert_eq!(judged(&[(0, &[1; 64])], last), Foreign("data that is not known"));
    let gpt = (disk / 512 - 1_u64).to_le_bytes();
    let header: [(usize, &[u8]); 2] = [(3584, b"EFI PART"), (3608, &gpt)];
    assert_eq!(judged(&header, last), Foreign("the second header of a GPT partition table"));
    for small in [0, 512, 4096, 100_000, 200_000, u64::MAX] {
        let blocks = look::blocks(small);
        assert!(
            small < 1 << 20
                || blocks.iter().all(|at| at.checked_add(4096).is_some_and(|end| end <= small))
        );
        let _ = look::signature(&[0; 4096], 0, small);
    }
}

#[test]
fn a_crash_record_is_told_from_anything_else() {
    let mut crashes = CrashLoop::new();
    crashes.add(77);
    let good = block(crashes.as_bytes());
    for bit in 0..4096 * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(CrashLoop::owns(&bad), "bit {bit}");
        let mut bad = vec![0; 4096];
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(CrashLoop::owns(&bad), "bit {bit} of a blank one");
    }
    let mut foreign = good.clone();
    foreign[1024..1040].fill(1);
    assert!(!CrashLoop::owns(&foreign));
    assert!(!CrashLoop::owns(&[0x5a; 4096]));
    let mut foreign = vec![0; 4096];
    foreign[..16].fill(1);
    assert!(!CrashLoop::owns(&foreign));
}

#[test]
fn a_newer_version_is_refused_and_named() {
    let mut newer = area();
    for version in [3, 5] {
        newer.version = version;
        newer.seal();
        let found = AreaHeader::check(newer.as_bytes()).unwrap_err();
        assert_eq!(found, AreaError::Version(version));
        assert!(is_whole(newer.as_bytes()));
    }
    newer.version = 4;
    assert!(!is_whole(newer.as_bytes()));
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
        version in 1u32..6,
        fix in any::<bool>(),
    ) {
        // Random bytes alone would never get past the magic and the checksum.
        if fix && bytes.len() >= 20 && magic < 5 {
            let size = [128usize, if version > 3 { 320 } else { 256 }, [192, 256][version as usize % 2], 64, 192][magic];
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
        let _ = (is_whole(&bytes), CrashLoop::owns(&bytes));
        let _ = SlotOpen::check(&bytes).map(|open| open.geometry.header_at(1 << 20).is_ok());
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
