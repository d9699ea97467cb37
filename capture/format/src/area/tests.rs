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
    seal.elf_offset = DATA_OFFSET;
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
    let records = [block(area.as_bytes()), block(open().as_bytes()), block(seal().as_bytes())];
    for (index, good) in records.iter().enumerate() {
        let bytes = [size_of::<AreaHeader>(), size_of::<SlotOpen>(), size_of::<StageSeal>()];
        for bit in 0..bytes[index] * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let refused = match index {
                0 => AreaHeader::check(&bad).is_err(),
                1 => SlotOpen::check(&bad).is_err(),
                _ => StageSeal::check(&bad, &area).is_err(),
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
    newer.version = 2;
    newer.seal();
    assert_eq!(AreaHeader::check(newer.as_bytes()).unwrap_err(), AreaError::Version(2));
}

#[test]
fn a_seal_that_leads_out_of_its_slot_is_refused() {
    let area = area();
    for change in [
        |seal: &mut StageSeal| seal.elf_offset = u64::MAX - 4095,
        |seal: &mut StageSeal| seal.elf_bytes = 1 << 40,
        |seal: &mut StageSeal| seal.elf_offset = DATA_OFFSET + 1,
        |seal: &mut StageSeal| seal.header_bytes = seal.elf_bytes + 1,
        |seal: &mut StageSeal| seal.elf_offset = BLOCK_BYTES,
    ] {
        let mut seal = seal();
        change(&mut seal);
        seal.seal();
        assert_eq!(StageSeal::check(seal.as_bytes(), &area).unwrap_err(), AreaError::Bounds);
    }
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
        magic in 0usize..4,
        fix in any::<bool>(),
    ) {
        // Random bytes alone would never get past the magic and the checksum.
        if fix && bytes.len() >= 20 && magic < 3 {
            let size = [128usize, 256, 192][magic];
            bytes[..8].copy_from_slice(&[AREA_MAGIC, OPEN_MAGIC, SEAL_MAGIC][magic]);
            bytes[8..12].copy_from_slice(&AREA_VERSION.to_le_bytes());
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
    }
}
