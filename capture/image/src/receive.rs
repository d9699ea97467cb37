//! Receiving the crash on the real machine, and moving into an address space of its own.

use capture_engine::input::{
    self, Appliance, CrashedMemory, Evidence, Input, InputError, OldMemory,
};
use handoff::facts::{MAX_NEVER_DUMP, MemoryKind};
use handoff::{BootFacts, Handoff, Range};
use machine::capture::{self, memory, presence};
use machine::paging::OutOfFramesError;

use crate::console::{self, say};
use crate::physical::Old;
use crate::{clock, finish, rehearsal};

/// Why the image cannot go on before there is anything to write.
pub enum SettleError {
    /// No memory for page tables.
    Tables(OutOfFramesError),
    /// The page at address 0 is to be dumped and there is no memory for a copy of it.
    ZeroPage,
}

impl core::fmt::Display for SettleError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Tables(error) => error.fmt(f),
            Self::ZeroPage => f.write_str("the page at address 0 cannot be copied"),
        }
    }
}

/// Checks what the entry was given, and sets the console and the clock by it.
pub fn receive(argument: u64, kind: u64) -> Result<Appliance, InputError> {
    // Said at once, and as short as can be: it is the one line that nothing can keep.
    say!("capture: entered");
    let image = capture::layout().image;
    if !capture::relocated() {
        finish::without_dump(format_args!(
            "a relocation of unknown kind: the image was not linked for this"
        ));
    }
    let mut evidence = Evidence::default();
    let received = Input::from_entry(argument, kind)
        .and_then(|input| input::receive(input, image, &Old, &mut evidence));
    finish::remember(evidence);
    if let Some(facts) = evidence.facts {
        console::set_port(facts.serial_port);
        clock::set_rate(facts.tsc_hz);
    }
    let CrashedMemory::Appliance(crash) = received?;
    console::keep();
    let Handoff { log, log_held, .. } = crash.handoff;
    for range in log.tail(u64::from(*log_held)).into_iter().filter(|range| range.bytes > 0) {
        if let Some(text) = Old.snapshot(range) {
            console::keep_for_the_appliance(text);
        }
    }
    say!("capture: image at {:#x}, {} KiB", image.start, image.bytes >> 10);
    if let Err(refusal) = crash.cpus {
        say!("capture: {refusal}; the dump will have no registers");
    }
    Ok(crash)
}

/// Moves into page tables of the image's own: old memory for reading, the scratch memory
/// for writing. Returns a copy of the page at address 0 when that page is RAM.
pub fn settle(crash: &Appliance) -> Result<Option<&'static [u8]>, SettleError> {
    let facts = crash.facts;
    let ram = facts.memory().iter().filter(|entry| entry.kind == MemoryKind::RAM);
    let mut writable = heapless::Vec::<Range, { MAX_NEVER_DUMP + 1 }>::new();
    // In a rehearsal all of it is still needed.
    let wiped = input::wipeable(facts).filter(|_| !rehearsal::under_way());
    for range in wiped.chain([facts.scratch]) {
        // As many places as there can be ranges.
        let _ = writable.push(range);
    }
    let left_out =
        memory::enter(&writable, ram.map(|entry| entry.range)).map_err(SettleError::Tables)?;
    if left_out > 0 {
        say!("capture: {left_out} bytes of memory are not mapped, but can be written");
    }
    wipe(facts);
    let zero = Range { start: 0, bytes: vmcore_format::PAGE_BYTES };
    let zero_page = presence::mapped(zero).then(|| Old.snapshot(zero));
    if !memory::hide_zero_page() {
        say!("capture: the page at address 0 stays mapped");
    }
    match zero_page {
        Some(None) => Err(SettleError::ZeroPage),
        Some(copy) => Ok(copy),
        None => Ok(None),
    }
}

/// Writes over what must be in no dump, before there is any disk to find it on.
fn wipe(facts: &BootFacts) {
    let wiped: u64 =
        input::wipeable(facts).filter(|range| Old::wipe(*range)).map(|range| range.bytes).sum();
    let asked: u64 = facts.never_dump().iter().map(|never| never.range.bytes).sum();
    if asked > 0 {
        say!("capture: {} of {} KiB never to be dumped written over", wiped >> 10, asked >> 10);
    }
}
