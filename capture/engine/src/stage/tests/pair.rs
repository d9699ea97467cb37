//! Two disks that share a dump.

use std::cell::Cell;

use storage::fake::Deed;

use super::*;

fn disk(memory: &FakeMemory, slots: u32) -> FakeDisk {
    let mut disk = FakeDisk::prepared(slots);
    disk.memory.push(Rc::clone(&memory.words));
    disk
}

/// All three stages on two disks, each of which may fail.
fn run_pair(memory: &FakeMemory, slots: [u32; 2], fail_at: [Option<usize>; 2]) -> Run {
    let [mut first, mut second] = slots.map(|slots| disk(memory, slots));
    [first.fail_at, second.fail_at] = fail_at;
    run_on(memory, first, Some(second), u64::MAX, None, None, None)
}

/// Bytes of memory that were sent to a disk.
fn sent(disk: &FakeDisk) -> u64 {
    let sizes = disk.events.iter().map(|event| match event {
        Event::Sent(_, bytes) => *bytes,
        _ => 0,
    });
    sizes.sum()
}

#[test]
fn both_have_part_in_it_and_the_dump_is_the_same() {
    let memory = FakeMemory::new();
    let alone = run(&memory, 1, u64::MAX, None);
    let both = run_pair(&memory, [1, 3], [None; 2]);
    for index in 0..3 {
        assert_eq!(both.verify(index, &memory), alone.verify(index, &memory));
        let (one, other) = (both.outcome(index), alone.outcome(index));
        assert_eq!(one.counts, other.counts);
        assert_eq!((one.seal.complete, one.seal.version), (1, 4));
        // The first stage is on the first disk alone.
        assert_eq!(one.seal.other_bytes > 0, index > 0);
    }
    let (first, second) = (sent(&both.disk), sent(both.other.as_ref().unwrap()));
    assert_eq!(first + second, sent(&alone.disk));
    assert!(first > second / 2 && second > first / 2, "{first} and {second}");
    // One disk by itself is the first stage, and nothing that leads to the other.
    let bytes = &both.disk.bytes;
    assert!(both.verify_on(bytes, None, 0, &memory).is_some());
}

#[test]
fn with_a_crew_it_is_the_same_too() {
    let memory = FakeMemory::shrinking();
    let plain = run(&memory, 1, u64::MAX, None);
    for (packing, stuck_every) in [(false, usize::MAX), (true, usize::MAX), (true, 12)] {
        let mut crew = crew(stuck_every);
        let other = Some(disk(&memory, 1));
        let auto = packing.then(|| Auto::new(4));
        let run = run_on(&memory, disk(&memory, 1), other, u64::MAX, Some(&mut crew), auto, None);
        for index in 0..3 {
            assert_eq!(run.verify(index, &memory), plain.verify(index, &memory));
        }
    }
}

#[test]
fn wherever_the_second_disk_fails_the_dump_goes_on_with_the_first() {
    let memory = FakeMemory::new();
    let whole = run_pair(&memory, [1, 1], [None; 2]);
    let pages = [0, 1, 2].map(|index| whole.verify(index, &memory));
    let events = whole.other.as_ref().unwrap().events.len();
    for fail_at in 1..=events {
        let run = run_pair(&memory, [1, 1], [None, Some(fail_at)]);
        assert_eq!(run.outcomes.len(), 3, "{fail_at}");
        for (index, pages) in pages.iter().enumerate() {
            assert_eq!(run.verify(index, &memory), *pages, "{fail_at}");
            assert_eq!(run.outcome(index).seal.complete, 1);
        }
        // The last stage can be read without the disk that failed.
        assert!(run.verify_on(&run.disk.bytes, None, 2, &memory).is_some(), "{fail_at}");
    }
}

#[test]
fn wherever_the_first_disk_fails_only_whole_stages_are_sealed() {
    let memory = FakeMemory::new();
    let events = run_pair(&memory, [1, 1], [None; 2]).disk.events.len();
    for fail_at in 1..=events {
        let run = run_pair(&memory, [1, 1], [Some(fail_at), None]);
        assert!(run.outcomes.last().unwrap().is_err());
        for index in 0..run.outcomes.len() - 1 {
            run.verify(index, &memory);
        }
    }
}

#[test]
fn room_is_what_both_have() {
    let memory = FakeMemory::new();
    // Slots of 3 and of 31 MiB, then of 3 and of 3.
    let run = run_pair(&memory, [20, 2], [None; 2]);
    assert_eq!(run.outcomes.len(), 3);
    assert_eq!(run.verify(2, &memory).len() as u64, BYTES / PAGE_BYTES);
    let run = run_pair(&memory, [20, 20], [None; 2]);
    let last = run.outcomes.len() - 1;
    assert_eq!(run.outcome(last).end, Some(End::SlotFull));
    assert!(run.verify(last, &memory).len() > 1000);
    for disk in [&run.disk, run.other.as_ref().unwrap()] {
        assert!(
            disk.bytes[(run.slot + (3 << 20)) as usize..63 << 20].iter().all(|&byte| byte == 0)
        );
    }
    // The second fails, and the first has no room for what it had: the stage is closed with what
    // the first has.
    let events = run_pair(&memory, [20, 2], [None; 2]).other.unwrap().events.len();
    let run = run_pair(&memory, [20, 2], [None, Some(events)]);
    assert!(matches!(run.outcomes.last(), Some(Err(StorageError::SlotTooSmall(_)))));
    assert_eq!(run.verify(0, &memory).len(), 4);
    let seal = run.salvaged.as_ref().unwrap().as_ref().unwrap();
    assert_eq!((seal.complete, seal.incomplete), (0, incomplete::DISK));
    let index = run.outcomes.len() - 1;
    assert!(run.verify(index, &memory).len() > 100);
    assert!(
        run.disk.bytes[(run.slot + (3 << 20)) as usize..63 << 20].iter().all(|&byte| byte == 0)
    );
}

#[test]
fn a_slot_that_holds_half_of_a_dump_is_kept() {
    let memory = FakeMemory::new();
    let run = run_pair(&memory, [1, 1], [None; 2]);
    let mut other = run.other.unwrap();
    assert_eq!(find_place(&mut other, false).unwrap_err(), StorageError::AllSealed(1));
    assert_eq!(find_place(&mut other, true).unwrap().choice().sequence, 2);
    // As long as no stage needs it, it is free.
    let first = 4096 + usize::try_from(run.slot).unwrap();
    for stage in 0..3 {
        other.bytes[first + stage * 4096..][..4096].fill(0);
    }
    assert!(find_place(&mut other, false).is_ok());
}

/// After a power cut at any moment, with everything that was not flushed lost on one disk and
/// there on the other: what is sealed is whole.
#[test]
fn no_power_cut_leaves_a_false_seal() {
    let memory = FakeMemory::new();
    let clock = Rc::new(Cell::new(0));
    let [mut first, mut second] = [0; 2].map(|_| disk(&memory, 1));
    for disk in [&mut first, &mut second] {
        disk.clock = Some(Rc::clone(&clock));
    }
    let before = first.bytes.clone();
    let run = run_on(&memory, first, Some(second), u64::MAX, None, None, None);
    let other = run.other.as_ref().unwrap();
    let mut sealed = [0; 3];
    for moment in 0..=clock.get() {
        // What is sealed can only change with a record on the first disk, or a flush of it.
        let counts = |deed: &Deed| !matches!(deed, Deed::Wrote(_, bytes) if bytes.len() != 4096);
        if !run.disk.deeds.iter().any(|(at, deed)| *at == moment && counts(deed)) {
            continue;
        }
        for all in [[true, false], [false, true], [false, false]] {
            let disk = run.disk.after_cut(&before, moment, all[0]);
            if SlotOpen::check(&disk[run.slot as usize..]).is_err() {
                continue;
            }
            let other = other.after_cut(&before, moment, all[1]);
            for (index, times) in sealed.iter_mut().enumerate() {
                *times += u32::from(run.verify_on(&disk, Some(&other), index, &memory).is_some());
            }
        }
    }
    assert!(sealed.iter().all(|&times| times > 0), "{sealed:?}");
}
