//! A stage that is interrupted for good, anywhere, and closed by whoever comes after.

use vmcore_format::notes::{NT_EPITAPH_EXCLUDED, NT_EPITAPH_FAULT};

use super::*;
use crate::close::InterruptedLists;

/// What went wrong.
pub const FAULT: &str = "exception 14 (page fault) at 0x4012345";

/// The lists as they were left.
pub struct Lists<'a> {
    pub chunks: &'a [ChunkEntry],
    pub pieces: &'a [Piece],
}

impl InterruptedLists for Lists<'_> {
    fn chunk(&self, index: usize) -> Option<ChunkEntry> {
        self.chunks.get(index).copied()
    }

    fn piece(&self, index: usize) -> Option<Piece> {
        self.pieces.get(index).copied()
    }

    fn memory(&self, bytes: usize) -> Option<&'static mut [u8]> {
        Some(zeroed(bytes))
    }
}

/// Whole pages, as the image's own memory comes.
pub fn zeroed(bytes: usize) -> &'static mut [u8] {
    vec![0u64; bytes.next_multiple_of(PAGE) / 8].leak().as_mut_bytes()
}

/// What the header of stage `index` says is left out, with its reasons, and of what fault.
fn header(run: &Run, index: usize) -> (Vec<ExcludedRange>, String) {
    let area = AreaHeader::check(&run.disk.bytes).unwrap();
    let block = run.part((index as u64 + 1) * 4096, 4096);
    let seal = StageSeal::check(block, &area).unwrap();
    let core =
        CoreReader::new(run.part(seal.header_offset, seal.header_bytes), seal.elf_bytes).unwrap();
    let note = |kind| {
        let found = core.notes().map(Result::unwrap).find(|note| note.kind == kind);
        found.map(|note| note.desc).unwrap_or_default()
    };
    let list = note(NT_EPITAPH_EXCLUDED).chunks(size_of::<ExcludedRange>());
    let fault = String::from_utf8(note(NT_EPITAPH_FAULT).to_vec()).unwrap();
    (list.map(|range| ExcludedRange::read_from_bytes(range).unwrap()).collect(), fault)
}

/// Holds the stage that was closed against the memory and the stages before it.
fn check(run: &Run, memory: &FakeMemory, seal: &StageSeal) -> usize {
    let index = run.outcomes.len();
    assert_eq!((seal.complete, seal.incomplete), (0, incomplete::FAULT));
    assert_eq!(seal.kind, planned(stage_kind::ALL)[index]);
    for before in 0..index {
        run.verify(before, memory);
    }
    let before = run.verify(index - 1, memory);
    let mut pages = run.verify(index, memory);
    assert!(before.iter().all(|page| pages.binary_search(page).is_ok()), "one was lost");
    let added = (pages.len() - before.len()) as u64;
    assert_eq!(seal.memory_bytes, added * PAGE_BYTES);
    let (excluded, fault) = header(run, index);
    assert_eq!(fault, FAULT);
    for range in &excluded {
        pages.extend((range.start..range.start + range.bytes).step_by(PAGE));
    }
    pages.sort_unstable();
    let every = (START..START + BYTES).step_by(PAGE);
    assert!(pages.into_iter().eq(every), "a page is nowhere, or at two places");
    added as usize
}

#[test]
fn wherever_it_is_interrupted_what_is_there_is_sealed() {
    let memory = FakeMemory::shrinking();
    // Every point would take minutes; waiting for jobs that are stuck makes most of them.
    for (stuck_every, step) in [(None, 3), (Some(12), 29), (Some(usize::MAX), 5)] {
        let (mut closed, mut partly) = (0, 0);
        for interrupt_at in (1..).step_by(step) {
            let mut crew = stuck_every.map(crew);
            let at = Some(interrupt_at);
            let run = run_with(&memory, 1, u64::MAX, None, crew.as_mut(), None, at);
            let sealed = run.outcomes.len();
            match &run.closed {
                None => break,
                // Nothing is closed before there is something to begin with.
                Some(Err(why)) => {
                    assert_eq!((sealed, *why), (0, CloseError::NotOpen));
                    assert!(run.disk.events.len() > 1 || interrupt_at < 3);
                }
                Some(Ok(seal)) => {
                    closed += 1;
                    partly += usize::from(check(&run, &memory, seal) > 0);
                }
            }
        }
        println!("{stuck_every:?}: {closed} closed");
        assert!(closed > 10 && partly > closed / 2, "{stuck_every:?}: {partly} of {closed}");
    }
}

/// A run that is interrupted where the second stage has come somewhere.
fn interrupted(memory: &FakeMemory) -> Run {
    let run = run_with(memory, 1, u64::MAX, None, None, None, Some(38));
    assert_eq!(run.outcomes.len(), 1, "another stage");
    run
}

#[test]
fn a_chunk_without_its_checksum_is_left_out() {
    let whole = FakeMemory::shrinking();
    let spoil: fn(&mut [ChunkEntry], usize) = |chunks, sealed| {
        let last = chunks[sealed..].iter_mut().rfind(|entry| entry.kind == chunk_kind::RAW);
        last.expect("a chunk").checksum = 0;
    };
    let spoilt = FakeMemory { spoil, ..FakeMemory::shrinking() };
    let added = |memory: &FakeMemory| {
        let run = interrupted(memory);
        check(&run, memory, run.closed.as_ref().unwrap().as_ref().unwrap())
    };
    let (all, less) = (added(&whole), added(&spoilt));
    assert!(less > 0 && less < all, "{less} of {all}");
}

#[test]
fn nothing_is_closed_when_the_sealed_list_was_written_over() {
    let spoil: fn(&mut [ChunkEntry], usize) = |chunks, _| chunks[0].offset ^= 4096;
    let memory = FakeMemory { spoil, ..FakeMemory::shrinking() };
    let run = interrupted(&memory);
    let why = CloseError::Damaged("the list of what was sealed");
    assert_eq!(run.closed.as_ref().unwrap().as_ref().unwrap_err(), &why);
    run.verify(0, &memory);
    let seal = run.part(2 * 4096, 4096);
    assert!(seal.iter().all(|&byte| byte == 0), "the second stage has a seal");
}
