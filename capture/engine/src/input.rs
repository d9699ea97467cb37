//! Receiving the crash: nothing is believed before it was checked.
//!
//! The order of the checks is the order of trust. The hand-off's own checksum comes first;
//! it names the sealed facts, which must lie in the region they describe, must describe
//! this very image, and must hold a sane memory map; only then do the addresses in the
//! hand-off have a map to be checked against.
//!
//! A hand-off of a later version is longer: what this build knows of it is checked and used,
//! and all of it goes into the dump.
//!
//! Everything is copied out of the crashed memory before it is looked at: a CPU that
//! nothing could stop may still be writing there.

use core::fmt;

use handoff::entry::{KIND_HANDOFF, KIND_REHEARSAL};
use handoff::facts::MemoryKind;
use handoff::{
    BootFacts, CpuRecords, Handoff, LockRecord, MemoryRange, Range, RecordError, Table,
    WorkloadTable, WorkloadWords,
};

pub use appliance::ApplianceLists;

mod appliance;

/// What the image was given to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The physical address of a [`Handoff`].
    Handoff(u64),
}

impl Input {
    /// From the two arguments of the entry.
    ///
    /// # Errors
    /// When this build does not know the kind.
    pub const fn from_entry(argument: u64, kind: u64) -> Result<Self, InputError> {
        match kind {
            KIND_HANDOFF | KIND_REHEARSAL => Ok(Self::Handoff(argument)),
            other => Err(InputError::Kind(other)),
        }
    }
}

/// Where the crashed memory is copied from.
pub trait OldMemory {
    /// A copy of `range` that nobody changes any more, 8-byte aligned; `None` when the
    /// range is not all memory, or there is no room for the copy.
    fn snapshot(&self, range: Range) -> Option<&'static [u8]>;

    /// The facts have passed their checks: from now on copies go into the memory that
    /// they set aside.
    fn trust(&self, facts: &BootFacts);
}

/// What passed its checks so far. Kept apart from the result, since last words are made
/// of it when a later check fails.
#[derive(Clone, Copy, Default)]
pub struct Evidence {
    /// The hand-off, checksum right.
    pub handoff: Option<&'static Handoff>,
    /// The facts, checksum right.
    pub facts: Option<&'static BootFacts>,
    /// The CPU records, checksum right.
    pub cpus: Option<CpuRecords<'static>>,
}

/// A crashed memory and its description. Everything in it was checked.
#[derive(Clone, Copy)]
pub enum CrashedMemory {
    /// Our own appliance's.
    Appliance(Appliance),
}

/// The description an appliance hands over.
#[derive(Clone, Copy)]
pub struct Appliance {
    /// What happened.
    pub handoff: &'static Handoff,
    /// All bytes of the hand-off, for the dump.
    pub handoff_bytes: &'static [u8],
    /// What was known before.
    pub facts: &'static BootFacts,
    /// All bytes of the facts, for the dump.
    pub facts_bytes: &'static [u8],
    /// One record per CPU, or what is wrong with them. Memory is dumped all the same.
    pub cpus: Result<CpuRecords<'static>, InputError>,
    /// Bytes of the workload's table, when there is one.
    pub workload_table: Option<&'static [u8]>,
    /// The lock table's bytes, when there is one and its checksum is right.
    pub locks: Option<&'static [u8]>,
    /// What workloads said, likewise.
    pub words: Option<&'static [u8]>,
}

/// Why something in the hand-off is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputError {
    /// The entry's second argument is unknown.
    Kind(u64),
    /// A record's address is no memory: what, and where.
    Address(&'static str, u64),
    /// A record fails its own check: which, and how.
    Record(&'static str, RecordError),
    /// The facts describe another image than the one running; holds their address of it.
    OtherImage(u64),
    /// This entry of the memory map is empty, wraps around, or is not behind the one
    /// before it.
    MemoryMap(usize),
    /// The reserved region's parts are not where they can be.
    Region(&'static str),
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "entered with an unknown kind of input, {kind}"),
            Self::Address(what, at) => write!(f, "{what} at {at:#x}: no memory of the machine"),
            Self::Record(what, distrust) => write!(f, "{what}: {distrust}"),
            Self::OtherImage(start) => {
                write!(f, "boot facts: they describe another capture image, at {start:#x}")
            }
            Self::MemoryMap(index) => {
                write!(f, "memory map: entry {index} is empty, wraps or is out of order")
            }
            Self::Region(what) => write!(f, "reserved region: {what}"),
        }
    }
}

impl core::error::Error for InputError {}

/// Checks `input` and everything it leads to. `image` is where this image runs.
///
/// # Errors
/// The first thing that cannot be believed; `evidence` then holds what came before it.
pub fn receive(
    input: Input,
    image: Range,
    old: &dyn OldMemory,
    evidence: &mut Evidence,
) -> Result<CrashedMemory, InputError> {
    let Input::Handoff(address) = input;
    let known = size_of::<Handoff>();
    let handoff_bytes = record(old, "hand-off", address, known, Handoff::length)?;
    let handoff =
        Handoff::check(handoff_bytes).map_err(|why| InputError::Record("hand-off", why))?;
    evidence.handoff = Some(handoff);

    let known = size_of::<BootFacts>();
    let facts_bytes = record(old, "boot facts", handoff.facts, known, BootFacts::length)?;
    let facts =
        BootFacts::check(facts_bytes).map_err(|why| InputError::Record("boot facts", why))?;
    evidence.facts = Some(facts);
    check_map(facts.memory())?;
    check_region(facts, Range { start: handoff.facts, bytes: facts_bytes.len() as u64 }, image)?;
    if !outside_region(facts, address, handoff_bytes.len() as u64) {
        return Err(InputError::Address("hand-off", address));
    }

    old.trust(facts);
    let cpus = receive_cpus(handoff, facts, old);
    evidence.cpus = cpus.ok();
    Ok(CrashedMemory::Appliance(Appliance {
        handoff,
        handoff_bytes,
        facts,
        facts_bytes,
        cpus,
        workload_table: receive_workload_table(handoff.workload_table, facts, old),
        locks: receive_table::<LockRecord>("locks", handoff.locks, facts, old),
        words: receive_table::<WorkloadWords>("words", handoff.words, facts, old),
    }))
}

/// Copies a record, of which `known` bytes are known here, and all of it when its head says by
/// `length` that it is longer.
fn record(
    old: &dyn OldMemory,
    what: &'static str,
    start: u64,
    known: usize,
    length: fn(&[u8]) -> Option<usize>,
) -> Result<&'static [u8], InputError> {
    let bytes = snapshot(old, what, start, known)?;
    match length(bytes) {
        Some(all) if all > known => snapshot(old, what, start, all),
        _ => Ok(bytes),
    }
}

fn snapshot(
    old: &dyn OldMemory,
    what: &'static str,
    start: u64,
    bytes: usize,
) -> Result<&'static [u8], InputError> {
    let refusal = InputError::Address(what, start);
    // Every record starts on a word, and none at 0.
    if start == 0 || !start.is_multiple_of(8) {
        return Err(refusal);
    }
    old.snapshot(Range { start, bytes: bytes as u64 }).ok_or(refusal)
}

/// Every entry is not empty, does not wrap, and begins where the one before it ended or
/// later.
fn check_map(memory: &[MemoryRange]) -> Result<(), InputError> {
    let mut end = 0;
    for (index, entry) in memory.iter().enumerate() {
        let next = entry.range.start.checked_add(entry.range.bytes);
        match next {
            Some(next) if entry.range.bytes > 0 && entry.range.start >= end => end = next,
            _ => return Err(InputError::MemoryMap(index)),
        }
    }
    if end == 0 { Err(InputError::MemoryMap(0)) } else { Ok(()) }
}

fn check_region(facts: &BootFacts, own: Range, image: Range) -> Result<(), InputError> {
    let parts = [facts.image, facts.park, facts.scratch, own];
    if !in_ram(facts, facts.region) {
        return Err(InputError::Region("it is not RAM"));
    }
    if !facts.region.holds(own.start, own.bytes) {
        return Err(InputError::Region("the boot facts lie outside"));
    }
    if facts.image.start != image.start || facts.image.bytes < image.bytes {
        return Err(InputError::OtherImage(facts.image.start));
    }
    let clash = |(index, part): (usize, &Range)| {
        parts.iter().skip(index + 1).any(|other| other.bytes > 0 && part.overlaps(other))
    };
    if parts.iter().enumerate().any(clash) {
        return Err(InputError::Region("its parts overlap"));
    }
    if facts.scratch.bytes == 0 {
        return Err(InputError::Region("there is no scratch memory"));
    }
    Ok(())
}

/// The ranges never to be dumped that may be written over: whole pages of RAM outside the
/// region. Others are left out of the dump all the same.
pub fn wipeable(facts: &BootFacts) -> impl Iterator<Item = Range> {
    let pages = |range: &Range| {
        range.start > 0
            && range.start.is_multiple_of(vmcore_format::PAGE_BYTES)
            && range.bytes.is_multiple_of(vmcore_format::PAGE_BYTES)
    };
    let ranges = facts.never_dump().iter().map(|never| never.range);
    ranges.filter(move |range| pages(range) && outside_region(facts, range.start, range.bytes))
}

/// Whether a range lies within one RAM entry of the map.
fn in_ram(facts: &BootFacts, range: Range) -> bool {
    facts
        .memory()
        .iter()
        .any(|entry| entry.kind == MemoryKind::RAM && entry.range.holds(range.start, range.bytes))
}

/// Whether `[start, start + bytes)` is RAM that the crashed system may have written.
fn outside_region(facts: &BootFacts, start: u64, bytes: u64) -> bool {
    let range = Range { start, bytes };
    in_ram(facts, range) && !range.overlaps(&facts.region)
}

fn receive_cpus(
    handoff: &Handoff,
    facts: &BootFacts,
    old: &dyn OldMemory,
) -> Result<CpuRecords<'static>, InputError> {
    let bytes = handoff.cpus_bytes();
    if bytes == 0 || !outside_region(facts, handoff.cpus, bytes as u64) {
        return Err(InputError::Address("CPU records", handoff.cpus));
    }
    let records = snapshot(old, "CPU records", handoff.cpus, bytes)?;
    handoff.check_cpus(records).map_err(|why| InputError::Record("CPU records", why))
}

/// Returns the bytes of the workload's table. It has no checksum: the bytes go into the dump as
/// they are. `None` for no table, one that is too large, or one that is not memory.
fn receive_workload_table(
    table: WorkloadTable,
    facts: &BootFacts,
    old: &dyn OldMemory,
) -> Option<&'static [u8]> {
    /// 64 Ki entries of the default size, a choice: the bytes go into the header of the dump.
    const MOST_BYTES: u64 = (WorkloadTable::DEFAULT_ENTRY_BYTES as u64) << 16;
    let bytes = table.bytes();
    if bytes == 0 || bytes > MOST_BYTES || !bytes.is_multiple_of(8) {
        return None;
    }
    if !outside_region(facts, table.address, bytes) {
        return None;
    }
    snapshot(old, "workload table", table.address, bytes as usize).ok()
}

/// A table's bytes. The dump does without one that is not as it should be: everything in it
/// can be found in memory as well.
fn receive_table<T>(
    what: &'static str,
    table: Table,
    facts: &BootFacts,
    old: &dyn OldMemory,
) -> Option<&'static [u8]> {
    let bytes = table.bytes::<T>();
    if bytes == 0 || !outside_region(facts, table.address, bytes) {
        return None;
    }
    let records = snapshot(old, what, table.address, bytes as usize).ok()?;
    table.check(records).ok().map(|()| records)
}

#[cfg(test)]
mod tests;
