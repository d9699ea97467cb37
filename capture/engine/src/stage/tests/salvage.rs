//! A disk that fails behind the first seal: nothing that it has kept is thrown away.

use super::*;

fn disk(memory: &FakeMemory, slots: u32) -> FakeDisk {
    let mut disk = FakeDisk::prepared(slots);
    disk.memory.push(Rc::clone(&memory.words));
    disk
}

/// All three stages on a disk whose bytes in `bad`, counted from its slot, cannot be written.
fn run_bad(memory: &FakeMemory, bad: core::ops::Range<u64>) -> Run {
    let mut disk = disk(memory, 1);
    let slot = find_place(&mut disk, false).unwrap().offset();
    disk.unwritable = std::iter::once(slot + bad.start..slot + bad.end).collect();
    run_on(memory, disk, None, u64::MAX, None, None, None)
}

#[test]
fn one_bad_sector_of_the_log_costs_one_chunk_and_what_comes_behind() {
    let memory = FakeMemory::new();
    let whole = run(&memory, 1, u64::MAX, None);
    let first_end = whole.outcome(0).seal.log_end;
    let end = whole.outcome(2).seal.log_end;
    for at in (first_end..end).step_by(0x5_d000) {
        let at = at / 512 * 512;
        let run = run_bad(&memory, at..at + 512);
        let index = run.outcomes.len() - 1;
        assert!(run.outcomes[index].is_err(), "{at:#x}");
        let seal = run.salvaged.as_ref().expect("closed").as_ref().expect("closed");
        assert_eq!((seal.complete, seal.incomplete), (0, incomplete::DISK), "{at:#x}");
        // What was sealed stands, and what is closed holds no less.
        let before = run.verify(index - 1, &memory);
        let pages = run.verify(index, &memory);
        assert!(before.iter().all(|page| pages.binary_search(page).is_ok()), "{at:#x}");
        // All that lies before the bad sector is in it.
        let stored = seal.stored_bytes + whole.outcome(index - 1).seal.log_end;
        assert!(stored + (2 << 20) > at, "{at:#x}: {stored:#x}");
    }
}

#[test]
fn a_full_disk_closes_the_stage_like_a_full_slot() {
    let memory = FakeMemory::new();
    let whole = run(&memory, 1, u64::MAX, None);
    let second = whole.outcome(0).seal.log_end;
    // No byte behind this one is kept: a thin volume when its pool is full.
    for room in [1 << 20, 2 << 20, 3 << 20] {
        let run = run_bad(&memory, second + room..30 << 20);
        let seal = run.salvaged.as_ref().unwrap().as_ref().unwrap();
        assert_eq!((seal.complete, seal.incomplete), (0, incomplete::DISK));
        assert_eq!(run.verify(0, &memory).len(), 4);
        run.verify(1, &memory);
        assert!(seal.stored_bytes + (2 << 20) > room, "{room}: {}", seal.stored_bytes);
    }
}

#[test]
fn a_seal_that_cannot_be_written_goes_into_the_next_block() {
    let memory = FakeMemory::new();
    let run = run_bad(&memory, 2 * 4096..2 * 4096 + 512);
    assert_eq!(run.outcomes.len(), 3);
    let area = AreaHeader::check(&run.disk.bytes).unwrap();
    let seal = |block: u64| StageSeal::check(run.part(block * 4096, 4096), &area);
    assert!(seal(2).is_err());
    assert_eq!(seal(3).unwrap().kind, stage_kind::USED);
    assert_eq!(seal(4).unwrap().kind, stage_kind::ALL);
    assert_eq!(run.verify(3, &memory).len() as u64, BYTES / PAGE_BYTES);
    // The slot is not free, of course.
    let content = storage::slot::read(&mut { run.disk }, &area, run.slot, &mut |_| ()).unwrap();
    assert_eq!(content, storage::slot::Content::Sealed(1));
}

#[test]
fn without_the_first_seal_the_slot_is_left() {
    let memory = FakeMemory::new();
    let run = run_bad(&memory, 4096..4096 + 512);
    let Some(Err(StorageError::Disk(error))) = run.outcomes.last() else { panic!() };
    assert!(run.salvaged.is_none() && storage::area::is_local(error));
    assert_eq!(run.outcomes.len(), 1);
}
