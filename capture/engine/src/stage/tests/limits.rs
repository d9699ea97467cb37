//! Where a dump ends early, and what does not end it: a pause, and the end of its lists.

use super::*;

#[test]
fn when_the_time_is_up_what_is_there_is_sealed() {
    let memory = FakeMemory::new();
    // The clock goes on by 10 ms whenever it is looked at: that is in the second stage.
    let run = run(&memory, 1, 300_000_000, None);
    let last = run.outcomes.len() - 1;
    let Outcome { seal, end, .. } = run.outcome(last);
    assert_eq!(
        (*end, seal.complete, seal.incomplete),
        (Some(End::Deadline), 0, incomplete::DEADLINE)
    );
    let pages = run.verify(last, &memory).len();
    assert!(pages > 4 && (pages as u64) < BYTES / PAGE_BYTES, "{pages}");
}

#[test]
fn a_pause_of_the_machine_does_not_end_the_dump() {
    // Looked at fewer than a thousand times, the clock comes to less than 20 s.
    let memory = FakeMemory { pause: Some((12, 1_000_000_000_000)), ..FakeMemory::new() };
    let run = run(&memory, 1, 20_000_000_000, None);
    assert_eq!(run.outcomes.len(), 3);
    for index in 0..3 {
        assert_eq!(run.outcome(index).end, None);
    }
    assert_eq!(run.verify(2, &memory).len() as u64, BYTES / PAGE_BYTES);
}

/// A list with room for half of the memory compressed: the rest is stored as it is, in larger
/// chunks, and the dump is complete.
#[test]
fn what_finds_no_room_compressed_is_stored_as_it_is() {
    let sizes = ChunkSizes { chunks: 120, raw_bytes: 2 << 20, packed_bytes: 64 << 10 };
    let memory = FakeMemory { sizes: (sizes, 64), ..FakeMemory::shrinking() };
    let mut crew = crew(usize::MAX);
    let run = run_with(&memory, 1, u64::MAX, None, Some(&mut crew), None, None);
    assert_eq!(run.outcomes.len(), 3);
    let compressed: Vec<u64> = (0..3).map(|index| run.outcome(index).counts.compressed).collect();
    assert_eq!(run.outcome(2).end, None);
    assert_eq!(run.verify(2, &memory).len() as u64, BYTES / PAGE_BYTES);
    let all = compressed.iter().sum::<u64>();
    assert!((1 << 20..5 << 20).contains(&all), "{compressed:?}");
}
