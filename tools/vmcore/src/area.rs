//! Finds the header of a dump area on the host: in block 0, in its copy, or in an open record.
//!
//! For reading, the header only has to be found. Whether the disk is still a dump area, so that
//! it may be written, is decided by more blocks ([`claims`]).

use std::io;

use vmcore_format::area::look::{self, Verdict};
use vmcore_format::area::{
    AREA_MAGIC, AreaError, AreaHeader, BLOCK_BYTES, CrashLoop, LOOP_OFFSET, SLOT_ALIGN, SlotOpen,
};
use zerocopy::IntoBytes;

use crate::file::Part;
use crate::kind::{SIGNATURE_BYTES, recognise};
use crate::source::{Slot, Source};

/// Places that are searched for an open record when both headers are gone, one each MiB.
const SEARCHED: u64 = 1024;

/// Bytes that every record begins with: what is shorter is no disk.
const SHORTEST: u64 = 20;

/// A header that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundHeader {
    pub(crate) header: AreaHeader,
    /// What is damaged, in words.
    pub(crate) damage: Option<&'static str>,
}

/// Reads a block, zeros behind the end of the part; `None` where it cannot be read.
pub(crate) fn block(part: &Part, offset: u64) -> Option<Vec<u8>> {
    let mut block = part.read_up_to(offset, BLOCK_BYTES).ok()?;
    block.resize(BLOCK_BYTES as usize, 0);
    Some(block)
}

/// Finds the header of the area that `part` is.
///
/// # Errors
/// Says what is wrong with block 0, when there is no header elsewhere either.
pub(crate) fn find(part: &Part) -> Result<FoundHeader, AreaError> {
    if part.bytes() < SHORTEST {
        return Err(AreaError::TooShort);
    }
    let front = block(part, 0);
    let why = match front.as_deref().map(AreaHeader::check) {
        Some(Ok(header)) => return Ok(FoundHeader { header, damage: copy_damage(part, &header) }),
        Some(Err(AreaError::Rest(_))) => {
            // The record itself is good; the rest of the block is for `claims`.
            let record = front.as_deref().and_then(|front| front.get(..size_of::<AreaHeader>()));
            if let Some(Ok(header)) = record.map(AreaHeader::check) {
                let damage = Some("something else was written behind the header of the dump area");
                return Ok(FoundHeader { header, damage });
            }
            AreaError::Foreign
        }
        Some(Err(why)) => why,
        None => AreaError::TooShort,
    };
    let copy = AreaHeader::copy_place(part.bytes()).and_then(|at| Some((at, block(part, at)?)));
    if let Some((at, copy)) = copy
        && let Ok(header) = AreaHeader::check(&copy)
        && header.copy_offset() == Some(at)
    {
        let damage = Some("the header of the dump area is damaged, its copy was used");
        return Ok(FoundHeader { header, damage });
    }
    let start = part.read_up_to(0, SIGNATURE_BYTES).unwrap_or_default();
    let foreign = recognise(&start).is_some_and(|_| !start.starts_with(&AREA_MAGIC));
    if foreign { Err(why) } else { search(part).ok_or(why) }
}

impl Source {
    /// Names the first slot with a dump that was not collected, or that cannot be read.
    pub(crate) fn waits(&self) -> Option<String> {
        let slots = self.disk().map(|disk| disk.slots.as_slice()).unwrap_or_default();
        let waits = |slot: &&Slot| match slot {
            Slot::Empty => false,
            Slot::Begun { seals, collected, .. } => !seals.is_empty() && collected.is_none(),
            _ => true,
        };
        let (number, slot) = slots.iter().enumerate().find(|(_, slot)| waits(slot))?;
        Some(format!("slot {number}: {} (run: vmcore collect)", slot.describe()))
    }

    /// Returns true if something else is on the disk, so that nothing may be written to it.
    pub(crate) fn is_claimed(&self) -> bool {
        self.disk().is_some_and(|disk| disk.claimed.is_some())
    }
}

/// Says what is wrong with the copy of a good header.
fn copy_damage(part: &Part, header: &AreaHeader) -> Option<&'static str> {
    let at = header.copy_offset()?;
    let same = block(part, at).is_some_and(|copy| look::odd_words(&copy, header.as_bytes()) == 0);
    // An image that was cut short says so elsewhere.
    let there = at.saturating_add(BLOCK_BYTES) <= part.bytes();
    (there && !same).then_some("the copy of the header of the dump area is damaged")
}

/// Makes the header of the first open record that says where it lies.
fn search(part: &Part) -> Option<FoundHeader> {
    let places = (1..=SEARCHED).map(|number| number * SLOT_ALIGN);
    let header = places.take_while(|at| *at < part.bytes()).find_map(|at| {
        let open = SlotOpen::check(&block(part, at)?).ok()?;
        open.geometry.header_at(at).ok()
    })?;
    let damage = "both headers of the dump area are damaged; it was found by an open record";
    Some(FoundHeader { header, damage: Some(damage) })
}

/// What else claims a disk with a dump area: where, and what it is.
///
/// # Errors
/// When one of the blocks cannot be read that would say so.
pub(crate) fn claims(part: &Part, header: &AreaHeader) -> io::Result<Option<(u64, &'static str)>> {
    let read = |offset| {
        let mut block = part.read_up_to(offset, BLOCK_BYTES)?;
        block.resize(BLOCK_BYTES as usize, 0);
        Ok(Some(block))
    };
    claims_by(part.bytes(), header, read)
}

/// The same for a disk that is only read: a block that cannot be read claims nothing.
pub(crate) fn readable_claims(part: &Part, header: &AreaHeader) -> Option<(u64, &'static str)> {
    claims_by(part.bytes(), header, |offset| Ok(block(part, offset))).ok().flatten()
}

/// Looks for what claims a disk of `disk` bytes; `read` returns `None` for a block to pass over.
fn claims_by(
    disk: u64,
    header: &AreaHeader,
    read: impl Fn(u64) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<Option<(u64, &'static str)>> {
    if let Some(front) = read(0)?
        && let Verdict::Foreign(what) = look::compare(&front, header.as_bytes(), 0, disk)
    {
        return Ok(Some((0, what)));
    }
    if let Some(crashes) = read(LOOP_OFFSET)? {
        if let Some(what) = look::signature(&crashes, LOOP_OFFSET, disk) {
            return Ok(Some((LOOP_OFFSET, what)));
        }
        if !CrashLoop::owns(&crashes) {
            return Ok(Some((LOOP_OFFSET, "data that is not known")));
        }
    }
    for offset in look::blocks(disk) {
        if offset == 0 || offset >= disk {
            continue;
        }
        if let Some(found) = read(offset)?
            && let Verdict::Foreign(what) = look::judge(header, &found, offset, disk)
        {
            return Ok(Some((offset, what)));
        }
    }
    Ok(None)
}
