//! Memory for what must be in no dump: keys, and whatever else is worth more than a finding.
//!
//! It is set aside before the boot facts are sealed, and the facts name all of it, so that
//! nothing has to be unsealed when a workload asks for some later. The capture image leaves
//! it out, and writes over it before it touches any disk.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use handoff::crash::set_text;
use handoff::{NeverDump, Range};
use machine::cell::SetOnce;
use machine::paging::PAGE;

use crate::base::memory;
use crate::log;

/// Pages set aside.
const PAGES: u64 = 16;
/// Words that a piece begins at a multiple of: a cache line, so that pieces share none.
const LINE_WORDS: usize = 8;

static ARENA: SetOnce<&'static [AtomicU64]> = SetOnce::new();
static USED: AtomicUsize = AtomicUsize::new(0);

/// Sets the memory aside.
pub fn reserve() {
    match memory::allocate_words(PAGES) {
        Some(words) => {
            ARENA.set(words);
        }
        None => log!("keys: no memory for what must be in no dump"),
    }
}

/// The memory, for the boot facts.
pub fn never_dump() -> Option<NeverDump> {
    let start = ARENA.get()?.as_ptr() as u64;
    let mut record = NeverDump { range: Range { start, bytes: PAGES * PAGE }, name: [0; 16] };
    set_text(&mut record.name, "keys");
    Some(record)
}

/// A piece of `words` words, zero, for whoever asks; never given back. `None` when there is
/// not so much left.
pub fn take(words: usize) -> Option<&'static [AtomicU64]> {
    let arena = ARENA.get()?;
    let room = words.checked_next_multiple_of(LINE_WORDS)?;
    let start = USED
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(room).filter(|&end| end <= arena.len())
        })
        .ok()?;
    arena.get(start..start + words)
}
