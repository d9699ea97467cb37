//! One bad bit or sector costs one thing at most.

use super::*;
use crate::slot::Content;

const PAGE_USIZE: usize = PAGE as usize;

/// A disk with a sealed dump in each of two slots of three, the second of them collected.
fn two_dumps(mut disk: FakeDisk) -> (FakeDisk, AreaHeader) {
    let first = dump_to(&mut disk, false).unwrap();
    let second = dump_to(&mut disk, false).unwrap();
    let open = SlotOpen::check(&disk.bytes[second.offset() as usize..]).unwrap();
    let at = (second.offset() + COLLECTED_BLOCK * PAGE) as usize;
    disk.bytes[at..at + 64].copy_from_slice(Collected::of(&open, 5).as_bytes());
    note_crash(&mut disk, 1000, 5, 10).unwrap();
    let area = find_area(&mut disk).unwrap().header;
    assert_eq!(first.offset(), area.slot_offset(0).unwrap());
    (disk, area)
}

fn contents(disk: &mut FakeDisk, area: &AreaHeader) -> Vec<Content> {
    let slots = (0..area.slot_count).map(|slot| area.slot_offset(slot).unwrap());
    slots.map(|offset| slot::read(disk, area, offset, &mut |_| ()).unwrap()).collect()
}

/// Byte offset and bytes of every record on the disk, the blocks of two headers whole.
fn records(area: &AreaHeader, open_bytes: usize) -> Vec<(u64, usize)> {
    let mut records = vec![(0, PAGE_USIZE), (LOOP_OFFSET, 192)];
    records.extend(area.copy_offset().map(|copy| (copy, PAGE_USIZE)));
    for slot in 0..2 {
        let slot = area.slot_offset(slot).unwrap();
        records.extend([(slot, open_bytes), (slot + PAGE, 256), (slot + 2 * PAGE, 256)]);
    }
    records.push((area.slot_offset(1).unwrap() + COLLECTED_BLOCK * PAGE, 64));
    records
}

/// Every bit of a record, and every 61st of the rest of its block.
fn bits(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes * 8).filter(|bit| *bit < 320 * 8 || bit % 61 == 0)
}

#[test]
fn every_bit_of_every_record_costs_one_thing_at_most() {
    let (mut disk, area) = two_dumps(FakeDisk::prepared(3));
    let good = contents(&mut disk, &area);
    assert_eq!(good, [Content::Sealed(1), Content::Collected(2), Content::Nothing]);
    for (offset, bytes) in records(&area, 320) {
        for bit in bits(bytes) {
            let at = offset as usize + bit / 8;
            disk.bytes[at] ^= 1 << (bit % 8);
            // No slot is looked at for the area.
            let in_slot = offset >= area.first_slot && Some(offset) != area.copy_offset();
            if !in_slot || bit == 0 {
                let found = find_area(&mut disk).unwrap();
                assert_eq!(found.header.as_bytes(), area.as_bytes(), "{offset} bit {bit}");
                let expected = match offset {
                    0 => Some(AreaDamage::Header),
                    LOOP_OFFSET => Some(AreaDamage::Block(LOOP_OFFSET)),
                    _ if Some(offset) == area.copy_offset() => Some(AreaDamage::Copy),
                    _ => None,
                };
                assert_eq!(found.damage, expected, "{offset} bit {bit}");
            }
            if offset == 0 || Some(offset) == area.copy_offset() {
                disk.bytes[at] ^= 1 << (bit % 8);
                continue;
            }
            let now = contents(&mut disk, &area);
            // A dump that waits is never free, and no number is given out twice.
            assert!(matches!(now[0], Content::Sealed(1) | Content::Unknown(1)), "{now:?}");
            assert!(now[1] == good[1] || matches!(now[1], Content::Sealed(2)), "{now:?}");
            let changed = now.iter().zip(&good).filter(|(now, good)| now != good).count();
            assert!(changed <= 1, "{offset} bit {bit}: {now:?}");
            let choice = slot::choose(&now, false).unwrap();
            assert_eq!((choice.slot, choice.sequence), (2, 3), "{offset} bit {bit}");
            disk.bytes[at] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn every_record_of_an_old_area_costs_one_thing_at_most() {
    let (mut disk, area) = two_dumps(FakeDisk::prepared_before(3));
    assert!(!area.has_copy());
    let open = SlotOpen::check(&disk.bytes[area.slot_offset(0).unwrap() as usize..]).unwrap();
    assert_eq!((open.version, open.record().len()), (2, 256));
    let good = contents(&mut disk, &area);
    // Without a copy of the header an area goes with it.
    for (offset, bytes) in records(&area, 256).into_iter().filter(|(offset, _)| *offset > 0) {
        for bit in 0..bytes * 8 {
            let at = offset as usize + bit / 8;
            disk.bytes[at] ^= 1 << (bit % 8);
            if offset == LOOP_OFFSET {
                assert!(find_area(&mut disk).is_ok());
            }
            let now = contents(&mut disk, &area);
            assert!(matches!(now[0], Content::Sealed(1) | Content::Unknown(1)), "{now:?}");
            let changed = now.iter().zip(&good).filter(|(now, good)| now != good).count();
            assert!(changed <= 1, "{offset} bit {bit}: {now:?}");
            assert_eq!(slot::choose(&now, false).unwrap().slot, 2);
            disk.bytes[at] ^= 1 << (bit % 8);
        }
    }
    for bit in bits(PAGE_USIZE) {
        disk.bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(find_area(&mut disk).is_err(), "bit {bit} of block 0");
        disk.bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn an_unreadable_block_costs_one_thing_at_most() {
    let (mut disk, area) = two_dumps(FakeDisk::prepared(3));
    let mut blocks: Vec<u64> = records(&area, 320).into_iter().map(|(at, _)| at).collect();
    blocks.extend(vmcore_format::area::look::blocks(DISK_BYTES));
    for offset in blocks {
        disk.unreadable = std::iter::once(offset..offset + 512).collect();
        let found = find_area(&mut disk).unwrap();
        assert_eq!(found.header.as_bytes(), area.as_bytes());
        assert_eq!(
            found.damage.is_some(),
            offset < area.first_slot || offset >= DISK_BYTES - (1 << 20)
        );
        let now = contents(&mut disk, &area);
        assert!(matches!(now[0], Content::Sealed(1) | Content::Unknown(1)), "{offset}: {now:?}");
        assert_eq!(find_place(&mut disk, false).unwrap().choice().slot, 2, "{offset}");
        // The crash counts, or it is said that it does not.
        let noted = note_crash(&mut disk, 0, 0, 10).unwrap();
        assert_eq!(noted.is_some(), offset == LOOP_OFFSET);
    }
}

#[test]
fn a_lost_record_leaves_no_slot_free() {
    let (mut disk, area) = two_dumps(FakeDisk::prepared(2));
    let slot = area.slot_offset(0).unwrap() as usize;
    disk.bytes[slot..slot + PAGE_USIZE].fill(0);
    assert_eq!(contents(&mut disk, &area)[0], Content::Unknown(1));
    // Nor does a seal that is damaged make of a dump one that was never sealed.
    let (mut disk, area) = two_dumps(FakeDisk::prepared(2));
    for stage in 1..=2 {
        disk.bytes[slot + stage * PAGE_USIZE + 30] ^= 1;
    }
    assert_eq!(contents(&mut disk, &area)[0], Content::Unknown(1));
    let choice = *find_place(&mut disk, false).unwrap().choice();
    assert_eq!((choice.slot, choice.sequence), (1, 3));
}

#[test]
fn a_collected_dump_with_a_damaged_open_record_may_go() {
    let (mut disk, area) = two_dumps(FakeDisk::prepared(2));
    let slot = area.slot_offset(1).unwrap() as usize;
    disk.bytes[slot + 30] ^= 1;
    assert_eq!(contents(&mut disk, &area)[1], Content::Collected(2));
    // Not where a seal belongs to another dump.
    disk.bytes.copy_within(
        area.slot_offset(0).unwrap() as usize + 2 * PAGE_USIZE
            ..area.slot_offset(0).unwrap() as usize + 3 * PAGE_USIZE,
        slot + 2 * PAGE_USIZE,
    );
    assert_eq!(contents(&mut disk, &area)[1], Content::Unknown(2));
}

#[test]
fn an_unwritable_record_moves_the_dump_to_the_next_slot() {
    let mut disk = FakeDisk::prepared(2);
    let place = find_place(&mut disk, false).unwrap();
    disk.unwritable = std::iter::once(place.offset()..place.offset() + 512).collect();
    let problem = place.open(&mut disk, SlotOpen::new()).unwrap_err();
    assert!(matches!(problem, StorageError::Disk(error) if is_local(&error)));
    let place = place.another(&mut disk).unwrap();
    assert_eq!((place.choice().slot, place.choice().sequence), (1, 1));
    place.open(&mut disk, SlotOpen::new()).unwrap();
    assert_eq!(place.another(&mut disk).unwrap_err(), StorageError::AllTaken(2, 2));
    // The counter of crashes does not stand in the way either.
    disk.unwritable = std::iter::once(LOOP_OFFSET..LOOP_OFFSET + 512).collect();
    assert_eq!(note_crash(&mut disk, 7, 1, 1), Ok(Some(block::Error::Io(LOOP_OFFSET))));
}

#[test]
fn the_header_can_be_made_of_any_open_record() {
    let (disk, area) = two_dumps(FakeDisk::prepared(3));
    for slot in 0..2 {
        let offset = area.slot_offset(slot).unwrap();
        let open = SlotOpen::check(&disk.bytes[offset as usize..]).unwrap();
        assert_eq!((open.version, open.geometry.slot), (4, slot));
        assert_eq!(open.geometry.header_at(offset).unwrap().as_bytes(), area.as_bytes());
        assert_eq!(open.geometry.header_at(offset + (1 << 20)).unwrap_err(), AreaError::Bounds);
    }
}
