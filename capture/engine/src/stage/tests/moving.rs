//! Memory that a device may write while it is dumped.

use super::*;

/// In the middle of what is in use, and not whole chunks.
const MOVING: Range = Range { start: START + 0x21_4000, bytes: 0x5000 };

#[test]
fn memory_that_a_device_may_write_is_copied_and_the_rest_compressed() {
    let memory = FakeMemory { moving: &[MOVING], ..FakeMemory::shrinking() };
    let mut crew = crew(usize::MAX);
    let run = run_with(&memory, 1, u64::MAX, None, Some(&mut crew), None, None);
    let area = AreaHeader::check(&run.disk.bytes).unwrap();
    let seal = StageSeal::check(run.part(3 * 4096, 4096), &area).unwrap();
    assert_eq!(seal.complete, 1);
    let table = run.part(seal.table_offset, seal.table_bytes);
    let mut copied = 0;
    for entry in table.chunks(size_of::<ChunkEntry>()) {
        let entry = ChunkEntry::read_from_bytes(entry).unwrap();
        let range = Range { start: entry.address, bytes: entry.memory_bytes.into() };
        if entry.kind == chunk_kind::ZERO || !range.overlaps(&MOVING) {
            continue;
        }
        copied += range.bytes;
        assert!(range.bytes <= MAX_CHUNK_BYTES);
        assert_eq!((entry.kind, u64::from(entry.stored_bytes)), (chunk_kind::RAW, range.bytes));
        // The checksum is of what the disk was sent, which is no memory that it knows.
        let bytes = &memory.words.as_bytes()[(range.start - START) as usize..];
        let hash = ChunkEntry::hash(&bytes[..range.bytes as usize]);
        assert_eq!(entry.bind(hash, &run.open), entry.checksum);
        let sent = run.part(entry.offset, range.bytes);
        assert!(sent.iter().all(|&byte| byte == 0xcc), "{entry:?}");
    }
    assert!(copied > 0 && run.outcome(1).counts.compressed > 0, "{copied}");
}

#[test]
fn everything_or_some_parts_may_be_written() {
    let range = |start| Range { start, bytes: 0x1000 };
    let some = Moving { all: false, ranges: &[range(0x3000), range(0x8000)] };
    assert!(some.touches(range(0x2001)) && some.touches(range(0x8fff)));
    assert!(!some.touches(range(0x2000)) && !some.touches(range(0x9000)));
    assert!(Moving { all: true, ranges: &[] }.touches(range(0)));
    assert!(!Moving::default().touches(range(0)));
}
