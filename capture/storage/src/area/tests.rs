use vmcore_format::area::{COLLECTED_BLOCK, Collected, DATA_OFFSET, NEWEST_VERSION};

use super::*;
use crate::fake::{DISK_BYTES, Event, FakeDisk};

/// The slot for the next dump.
fn find_place(device: &mut dyn BlockDevice, overwrite: bool) -> Result<SlotLocation, StorageError> {
    let area = find_area(device)?.header;
    choose_place(device, &area, overwrite, &mut |_| ())
}

const PAGE: u64 = 4096;

fn dump_to(disk: &mut FakeDisk, overwrite: bool) -> Result<SlotLocation, StorageError> {
    let place = find_place(disk, overwrite)?;
    let mut open = SlotOpen::new();
    open.stages = 2;
    let open = place.open(disk, open)?;
    for index in 0..2 {
        let mut seal = StageSeal::new(&open);
        seal.header_offset = DATA_OFFSET;
        seal.table_offset = DATA_OFFSET;
        place.seal(disk, index, &mut seal)?;
    }
    Ok(place)
}

#[test]
fn every_record_is_flushed_before_the_next() {
    let mut disk = FakeDisk::prepared(2);
    let place = dump_to(&mut disk, false).unwrap();
    let record = |index| Event::Wrote(place.offset() + index * PAGE, PAGE);
    let flushed = || Event::Flushed;
    assert_eq!(disk.events, [record(0), flushed(), record(1), flushed(), record(2), flushed()]);
    let again = find_place(&mut disk, false).unwrap();
    assert_eq!((again.choice().slot, again.choice().sequence), (1, 2));
}

#[test]
fn only_a_dump_area_is_written() {
    let mut disk = FakeDisk::blank();
    let problem = find_place(&mut disk, true).unwrap_err();
    assert_eq!(problem.to_string(), "no dump area (run: vmcore prepare)");
    disk.bytes[..8].copy_from_slice(b"\xeb\x63\x90GRUB\0");
    let problem = find_place(&mut disk, true).unwrap_err();
    assert_eq!(problem.to_string(), "no dump area (run: vmcore prepare)");

    let mut disk = FakeDisk::prepared_before(1);
    disk.bytes[40] ^= 1;
    let problem = find_place(&mut disk, true).unwrap_err();
    assert!(matches!(problem, StorageError::NoArea(AreaError::Checksum(..))), "{problem}");
    assert!(disk.events.is_empty());
}

#[test]
fn an_area_that_does_not_fit_is_refused() {
    let mut disk = FakeDisk::prepared(4);
    assert!(find_place(&mut disk, false).is_ok());
    disk.identity.capacity = DISK_BYTES / 2;
    assert!(matches!(find_place(&mut disk, false), Err(StorageError::AreaTooLarge(..))));
}

#[test]
fn when_every_slot_is_sealed_nothing_is_lost_unless_that_was_allowed() {
    let mut disk = FakeDisk::prepared(2);
    for _ in 0..2 {
        dump_to(&mut disk, false).unwrap();
    }
    let events = disk.events.len();
    let problem = dump_to(&mut disk, false).unwrap_err();
    assert_eq!(problem, StorageError::AllSealed(2));
    assert_eq!(disk.events.len(), events, "it was written all the same");
    let place = dump_to(&mut disk, true).unwrap();
    assert_eq!(place.choice().replaces, Content::Sealed(1));
    assert_eq!((place.choice().slot, place.choice().sequence), (0, 3));
    // The other one is in safety now.
    let slot = AreaHeader::plan(DISK_BYTES, 2).unwrap().slot_offset(1).unwrap() as usize;
    let old = SlotOpen::check(&disk.bytes[slot..]).unwrap();
    let collected = Collected::of(&old, 5);
    let at = slot + (COLLECTED_BLOCK * BLOCK_BYTES) as usize;
    disk.bytes[at..at + 64].copy_from_slice(collected.as_bytes());
    let place = find_place(&mut disk, false).unwrap();
    assert_eq!(place.choice().replaces, Content::Collected(2));
}

#[test]
fn too_many_crashes_within_the_time_are_a_loop() {
    let mut disk = FakeDisk::prepared(1);
    let mut crash = |now| note_crash(&mut disk, now, 3, 10);
    for now in [1000, 1100, 1200] {
        crash(now).unwrap();
    }
    assert_eq!(crash(1300), Err(StorageError::CrashLoop(4, 10)));
    // An hour later it is none, and without a clock nobody can tell.
    crash(5000).unwrap();
    crash(0).unwrap();
    let block = &disk.bytes[LOOP_OFFSET as usize..][..4096];
    assert_eq!(CrashLoop::check(block).unwrap().count, 6);
    // Damaged, it is begun anew; and 0 is no limit.
    disk.bytes[LOOP_OFFSET as usize + 40] ^= 1;
    note_crash(&mut disk, 5001, 0, 10).unwrap();
    let block = &disk.bytes[LOOP_OFFSET as usize..][..4096];
    assert_eq!(CrashLoop::check(block).unwrap().count, 1);
}

#[test]
fn dumps_that_are_there_are_told_of_even_when_there_is_no_slot() {
    let mut disk = FakeDisk::prepared(2);
    let look = |disk: &mut FakeDisk| {
        let mut found = Vec::new();
        let area = find_area(disk).unwrap().header;
        let place = choose_place(disk, &area, false, &mut |dump| {
            found.push((dump.open.sequence, dump.uncollected));
        });
        (place.is_ok(), found)
    };
    assert_eq!(look(&mut disk), (true, vec![]));
    dump_to(&mut disk, false).unwrap();
    assert_eq!(look(&mut disk), (true, vec![(1, true)]));
    dump_to(&mut disk, false).unwrap();
    assert_eq!(look(&mut disk), (false, vec![(1, true), (2, true)]));
}

#[test]
fn crashes_of_late_are_counted_without_adding_one() {
    let mut disk = FakeDisk::prepared(1);
    assert_eq!(lately(&mut disk, 1000, 10), Ok(0));
    note_crash(&mut disk, 1000, 5, 10).unwrap();
    note_crash(&mut disk, 1200, 5, 10).unwrap();
    assert_eq!(lately(&mut disk, 1300, 10), Ok(2));
    assert_eq!((lately(&mut disk, 1700, 10), lately(&mut disk, 0, 10)), (Ok(1), Ok(0)));
}

#[test]
fn a_dump_of_a_newer_build_is_never_overwritten() {
    let mut disk = FakeDisk::prepared(2);
    let place = dump_to(&mut disk, false).unwrap();
    // Behind the magic: the version of its open record, and the checksum.
    let open = place.offset() as usize;
    disk.bytes[open + 8..open + 12].copy_from_slice(&(NEWEST_VERSION + 1).to_le_bytes());
    disk.bytes[open + 16..open + 20].fill(0);
    let crc = crc32fast::hash(&disk.bytes[open..open + 320]);
    disk.bytes[open + 16..open + 20].copy_from_slice(&crc.to_le_bytes());
    for _ in 0..2 {
        let place = dump_to(&mut disk, true).unwrap();
        assert_eq!(place.choice().slot, 1);
    }
    assert!(matches!(dump_to(&mut disk, false), Err(StorageError::AllTaken(2, 1))));
}

#[test]
fn a_read_only_disk_takes_no_dump_and_its_dumps_are_told() {
    let mut disk = FakeDisk::prepared(2);
    dump_to(&mut disk, false).unwrap();
    disk.identity.read_only = true;
    let area = find_area(&mut disk).unwrap();
    let mut told = 0;
    let place = choose_place(&mut disk, &area.header, false, &mut |_| told += 1);
    assert_eq!(place.map(|_| ()), Err(StorageError::Disk(block::Error::ReadOnly)));
    assert_eq!(told, 1);
}

mod damage;
mod foreign;
