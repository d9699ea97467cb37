//! The records of a dump area: which slot takes the dump, and its opening and sealing.
//!
//! The order on the disk is what makes a dump believable: the slot is opened and flushed
//! before the first byte of the dump, and a stage is sealed only after its last byte has
//! been flushed. Cut off anywhere, a reader sees the stages sealed so far, or none.

use core::fmt;

use block::BlockDevice;
use vmcore_format::area::{
    AreaError, AreaHeader, BLOCK_BYTES, CrashLoop, LOOP_OFFSET, MAX_SLOTS, SlotOpen, StageSeal,
};
use vmcore_format::core::CoreError;
use zerocopy::IntoBytes;

use crate::amount::Mib;
use crate::slot::{self, Choice, Content, FoundDump};

mod find;

pub(crate) use find::is_blank;
pub use find::{Area, AreaDamage, LOOKED_AT, find_area};

/// A block of the dump area.
pub type Block = [u8; BLOCK_BYTES as usize];

/// Why a disk did not take the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageError {
    /// Its first block is not a dump area's.
    NoArea(AreaError),
    /// The area claims to be larger than the disk: bytes of both.
    AreaTooLarge(u64, u64),
    /// Something else was written where a dump area has zeros or records of its own: the byte
    /// offset of the block, and what it is.
    Claimed(u64, &'static str),
    /// Every slot holds a dump that nobody has collected; holds how many slots.
    AllSealed(u32),
    /// No slot can be taken: how many there are, and how many of them hold something unknown.
    AllTaken(u32, u32),
    /// A slot has no room for the first stage: its bytes.
    SlotTooSmall(u64),
    /// The header does not fit the memory there is for it.
    Header(CoreError),
    /// It has partitions, and not the one that is meant.
    NoPartition,
    /// Neither copy of its partition table is whole.
    PartitionTable,
    /// The machine crashes again and again: so often within so many minutes.
    CrashLoop(u32, u32),
    /// The disk failed.
    Disk(block::Error),
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoArea(AreaError::Blank | AreaError::Foreign) => {
                f.write_str("no dump area (run: vmcore prepare)")
            }
            Self::NoArea(why) => write!(f, "dump area damaged: {why} (run: vmcore prepare)"),
            Self::Claimed(offset, what) => write!(
                f,
                "not a dump area any more: {what} at byte {offset} (to give the disk to dumps \
                 again: vmcore prepare --force)"
            ),
            Self::AreaTooLarge(area, disk) => {
                write!(f, "the dump area has {area} bytes, the disk or partition only {disk}")
            }
            Self::AllSealed(slots) => write!(
                f,
                "{slots} slots, and in each a dump that nobody has collected (run: vmcore \
                 collect; or allow slots=overwrite-oldest)"
            ),
            Self::AllTaken(slots, unknown) => write!(
                f,
                "{slots} slots, and none that may be taken: {unknown} with a damaged record, the \
                 rest with dumps that nobody has collected (run: vmcore collect)"
            ),
            Self::SlotTooSmall(slot) => {
                write!(f, "a slot takes {}, too little for any stage", Mib(*slot))
            }
            Self::Header(error) => error.fmt(f),
            Self::NoPartition => f.write_str("no partition for dumps, or not the one named"),
            Self::PartitionTable => f.write_str("both copies of the partition table damaged"),
            Self::CrashLoop(crashes, minutes) => {
                write!(f, "crash loop: {crashes} crashes within {minutes} minutes, no dump")
            }
            Self::Disk(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StorageError {}

impl From<block::Error> for StorageError {
    fn from(error: block::Error) -> Self {
        Self::Disk(error)
    }
}

/// Returns true if an error is that of one request, so that others may still succeed: the device
/// answers, and said no.
#[must_use]
pub const fn is_local(error: &block::Error) -> bool {
    matches!(error, block::Error::Io(_))
}

/// Reads a block into `block`; `None` where the device reports an error for it. The stack that
/// this runs on is short: one buffer serves for one block after the other.
pub(crate) fn read_block<'a>(
    device: &mut dyn BlockDevice,
    offset: u64,
    block: &'a mut Block,
) -> Result<Option<&'a mut Block>, block::Error> {
    match device.read(offset, block) {
        Ok(()) => Ok(Some(block)),
        Err(error) if is_local(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A block of zeros.
pub(crate) const BLANK: Block = [0; BLOCK_BYTES as usize];

/// Where on a disk a dump goes: a slot of its dump area.
#[derive(Clone, Copy, Debug)]
pub struct SlotLocation {
    choice: Choice,
    area: AreaHeader,
    /// Byte offset of the slot.
    offset: u64,
    /// Slots that must not be chosen, one bit each: the disk has failed there.
    refused: u64,
    /// A sealed dump that nobody has collected may be overwritten.
    overwrite: bool,
}

/// Notes in the dump area on `device` that the machine crashed at `now`, in seconds of Unix
/// time, 0 when that is unknown. More than `most` crashes within `minutes` are a loop; 0 is
/// no limit. A record that does not verify is begun anew. It is durable with the next flush,
/// which opening a slot makes; when it is a loop, already. Returns the error of the device where
/// the record cannot be read or written: then this crash is not counted, and the dump can be
/// written all the same.
///
/// # Errors
/// When it is a loop, the record is of something else, or the disk fails as a whole.
pub fn note_crash(
    device: &mut dyn BlockDevice,
    now: u64,
    most: u32,
    minutes: u32,
) -> Result<Option<block::Error>, StorageError> {
    let mut block = BLANK;
    let Some(block) = read_block(device, LOOP_OFFSET, &mut block)? else {
        return Ok(Some(block::Error::Io(LOOP_OFFSET)));
    };
    if !CrashLoop::owns(block) {
        return Err(StorageError::Claimed(LOOP_OFFSET, "data that is not known"));
    }
    let mut crashes = CrashLoop::check(block).unwrap_or_default();
    crashes.add(now);
    block.fill(0);
    block.iter_mut().zip(crashes.as_bytes()).for_each(|(to, from)| *to = *from);
    let unwritten = match device.write(LOOP_OFFSET, block) {
        Err(error) if is_local(&error) => Some(error),
        written => written.map(|()| None)?,
    };
    // Without a clock nobody can tell what was lately.
    let lately = if now == 0 { 0 } else { crashes.within(now, u64::from(minutes) * 60) };
    if most > 0 && lately > most as usize {
        device.flush()?;
        return Err(StorageError::CrashLoop(lately as u32, minutes));
    }
    Ok(unwritten)
}

/// Chooses the slot for a dump in `area` of `device`; with `overwrite`, a dump that nobody
/// collected may have to go. Every dump with a sealed stage that is found on the way is
/// `told`, also when there is no slot to take. A slot whose records cannot be read is passed
/// over.
///
/// # Errors
/// When there is no slot to take, or the disk fails as a whole.
pub fn choose_place(
    device: &mut dyn BlockDevice,
    area: &AreaHeader,
    overwrite: bool,
    told: &mut dyn FnMut(FoundDump<'_>),
) -> Result<SlotLocation, StorageError> {
    choose_among(device, area, overwrite, 0, told)
}

/// Chooses among the slots without a bit in `refused`.
fn choose_among(
    device: &mut dyn BlockDevice,
    area: &AreaHeader,
    overwrite: bool,
    refused: u64,
    told: &mut dyn FnMut(FoundDump<'_>),
) -> Result<SlotLocation, StorageError> {
    let mut contents: heapless::Vec<Content, { MAX_SLOTS as usize }> = heapless::Vec::new();
    let nothing = StorageError::NoArea(AreaError::Bounds);
    let offset = |slot| area.slot_offset(slot);
    for slot in 0..area.slot_count {
        let offset = offset(slot).ok_or(nothing)?;
        let content = slot::read(device, area, offset, told)?;
        let refused = refused.checked_shr(slot).is_some_and(|bits| bits & 1 == 1);
        // The check of the area allows no more slots than there are places.
        let _ = contents.push(if refused { Content::Refused(content.sequence()) } else { content });
    }
    // Only now: what it holds was told, and can be collected.
    if device.identity().read_only {
        return Err(StorageError::Disk(block::Error::ReadOnly));
    }
    let of_kind = |wanted: fn(&Content) -> bool| contents.iter().filter(|one| wanted(one)).count();
    let unknown = of_kind(|content| !matches!(content, Content::Sealed(_)));
    let choice = slot::choose(&contents, overwrite).ok_or(match unknown {
        0 => StorageError::AllSealed(area.slot_count),
        unknown => StorageError::AllTaken(area.slot_count, unknown as u32),
    })?;
    let offset = offset(choice.slot).ok_or(nothing)?;
    Ok(SlotLocation { choice, area: *area, offset, refused, overwrite })
}

/// How many crashes the area on `device` remembers within `minutes` before `now`, in seconds
/// of Unix time; 0 when that is unknown, and where nothing was noted that can be believed.
///
/// # Errors
/// When the disk fails as a whole.
pub fn lately(device: &mut dyn BlockDevice, now: u64, minutes: u32) -> Result<usize, StorageError> {
    let mut block = BLANK;
    let block = read_block(device, LOOP_OFFSET, &mut block)?;
    // Without a clock nobody can tell what was lately.
    let Some(block) = block.filter(|_| now != 0) else { return Ok(0) };
    Ok(CrashLoop::check(block).map_or(0, |crashes| crashes.within(now, u64::from(minutes) * 60)))
}

impl SlotLocation {
    /// The slot, its new sequence number, and what it replaces.
    #[must_use]
    pub const fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Chooses another slot, after the disk has failed in this one.
    ///
    /// # Errors
    /// When there is no other slot to take, or the disk fails as a whole.
    pub fn another(&self, device: &mut dyn BlockDevice) -> Result<Self, StorageError> {
        let refused = self.refused | 1_u64.checked_shl(self.choice.slot).unwrap_or(0);
        choose_among(device, &self.area, self.overwrite, refused, &mut |_| ())
    }

    /// Opens the slot: whatever it held before is gone from now on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(
        &self,
        device: &mut dyn BlockDevice,
        mut open: SlotOpen,
    ) -> Result<SlotOpen, StorageError> {
        open.sequence = self.choice.sequence;
        open.place(&self.area, self.choice.slot);
        open.seal();
        self.write_record(device, 0, open.record())?;
        Ok(open)
    }

    /// Opens a slot on each of two disks for one dump, whose records will be in this one.
    /// Returns both open records, or only this one when the other disk fails: the dump is in
    /// one area then.
    ///
    /// # Errors
    /// When this disk fails.
    pub fn open_with(
        &self,
        device: &mut dyn BlockDevice,
        (other, other_device): (&Self, &mut dyn BlockDevice),
        open: SlotOpen,
    ) -> Result<(SlotOpen, Result<SlotOpen, StorageError>), StorageError> {
        let (mut records, mut memory) = (open, open);
        records.sequence = self.choice.sequence;
        memory.sequence = other.choice.sequence;
        let place = |place: &Self| (place.area.uuid, place.choice.slot);
        records.pair(place(self), &mut memory, place(other));
        match other.open(other_device, memory) {
            Ok(memory) => Ok((self.open(device, records)?, Ok(memory))),
            Err(problem) => Ok((self.open(device, open)?, Err(problem))),
        }
    }

    /// Byte offset of the slot on the disk.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the slot.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.area.slot_bytes
    }

    /// Seals stage `index`, from 0: what was flushed before is complete from now on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn seal(
        &self,
        device: &mut dyn BlockDevice,
        index: u32,
        seal: &mut StageSeal,
    ) -> Result<(), StorageError> {
        seal.seal();
        self.write_record(device, u64::from(index) + 1, seal.as_bytes())
    }

    /// Writes and flushes one record block of the slot.
    fn write_record(
        &self,
        device: &mut dyn BlockDevice,
        index: u64,
        record: &[u8],
    ) -> Result<(), StorageError> {
        let mut block: Block = [0; BLOCK_BYTES as usize];
        // A record is smaller than a block.
        block.iter_mut().zip(record).for_each(|(to, from)| *to = *from);
        device.write(self.offset + index * BLOCK_BYTES, &block)?;
        device.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
