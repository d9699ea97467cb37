//! The records of a dump area: which slot takes the dump, and its opening and sealing.
//!
//! The order on the disk is what makes a dump believable: the slot is opened and flushed
//! before the first byte of the dump, and a stage is sealed only after its last byte has
//! been flushed. Cut off anywhere, a reader sees the stages sealed so far, or none.

use core::fmt;

use block::BlockDevice;
use vmcore_format::area::{
    AreaError, AreaHeader, BLOCK_BYTES, COLLECTED_BLOCK, CrashLoop, LOOP_OFFSET, MAX_SLOTS,
    MAX_STAGES, NEWEST_VERSION, SlotOpen, StageSeal,
};
use vmcore_format::core::CoreError;
use zerocopy::IntoBytes;

use crate::amount::Mib;
use crate::slot::{self, Choice, Content};

/// A block of the dump area.
pub type Block = [u8; BLOCK_BYTES as usize];

/// Why a disk did not take the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageError {
    /// Its first block is not a dump area's.
    NoArea(AreaError),
    /// The area claims to be larger than the disk: bytes of both.
    AreaTooLarge(u64, u64),
    /// Every slot holds a dump that nobody has collected; holds how many slots.
    AllSealed(u32),
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
            Self::AreaTooLarge(area, disk) => {
                write!(f, "the dump area has {area} bytes, the disk or partition only {disk}")
            }
            Self::AllSealed(slots) => write!(
                f,
                "{slots} slots, and in each a dump that nobody has collected (run: vmcore \
                 collect; or allow slots=overwrite-oldest)"
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

/// Where on a disk a dump goes: a slot of its dump area.
#[derive(Clone, Copy, Debug)]
pub struct SlotLocation {
    choice: Choice,
    /// Identity of the area.
    area: [u8; 16],
    /// Byte offset of the slot.
    offset: u64,
    /// Bytes of the slot.
    bytes: u64,
}

/// Looks for a dump area on `device`.
///
/// # Errors
/// When there is none that can be used, or the disk cannot be read.
pub fn find_area(device: &mut dyn BlockDevice) -> Result<AreaHeader, StorageError> {
    let capacity = device.identity().capacity;
    let mut block: Block = [0; BLOCK_BYTES as usize];
    device.read(0, &mut block)?;
    let area = AreaHeader::check(&block).map_err(StorageError::NoArea)?;
    if area.area_bytes > capacity {
        return Err(StorageError::AreaTooLarge(area.area_bytes, capacity));
    }
    Ok(area)
}

/// Notes in the dump area on `device` that the machine crashed at `now`, in seconds of Unix
/// time, 0 when that is unknown. More than `most` crashes within `minutes` are a loop; 0 is
/// no limit. A record that does not verify is begun anew. It is durable with the next flush,
/// which opening a slot makes; when it is a loop, already.
///
/// # Errors
/// When it is a loop, or the disk fails.
pub fn note_crash(
    device: &mut dyn BlockDevice,
    now: u64,
    most: u32,
    minutes: u32,
) -> Result<(), StorageError> {
    let mut block: Block = [0; BLOCK_BYTES as usize];
    device.read(LOOP_OFFSET, &mut block)?;
    let mut crashes = CrashLoop::check(&block).unwrap_or_default();
    crashes.add(now);
    block.fill(0);
    block[..size_of::<CrashLoop>()].copy_from_slice(crashes.as_bytes());
    device.write(LOOP_OFFSET, &block)?;
    // Without a clock nobody can tell what was lately.
    let lately = if now == 0 { 0 } else { crashes.within(now, u64::from(minutes) * 60) };
    if most > 0 && lately > most as usize {
        device.flush()?;
        return Err(StorageError::CrashLoop(lately as u32, minutes));
    }
    Ok(())
}

/// A dump that was found in a slot.
#[derive(Clone, Copy, Debug)]
pub struct FoundDump<'a> {
    /// What it is, and when it was.
    pub open: &'a SlotOpen,
    /// Nobody has it in safety elsewhere.
    pub uncollected: bool,
    /// Bytes of memory in its sealed stages.
    pub memory_bytes: u64,
    /// How long it took to write them, in nanoseconds, flushes included.
    pub write_ns: u64,
}

/// Chooses the slot for a dump in `area` of `device`; with `overwrite`, a dump that nobody
/// collected may have to go. Every dump with a sealed stage that is found on the way is
/// `told`, also when there is no slot to take.
///
/// # Errors
/// When there is no slot to take, or the disk cannot be read.
pub fn choose_place(
    device: &mut dyn BlockDevice,
    area: &AreaHeader,
    overwrite: bool,
    told: &mut dyn FnMut(FoundDump<'_>),
) -> Result<SlotLocation, StorageError> {
    let mut contents: heapless::Vec<Content, { MAX_SLOTS as usize }> = heapless::Vec::new();
    let nothing = StorageError::NoArea(AreaError::Bounds);
    let offset = |slot| area.slot_offset(slot);
    for slot in 0..area.slot_count {
        let offset = offset(slot).ok_or(nothing)?;
        // The check of the area allows no more slots than there are places.
        let _ = contents.push(read_content(device, area, offset, told)?);
    }
    // Only now: what it holds was told, and can be collected.
    if device.identity().read_only {
        return Err(StorageError::Disk(block::Error::ReadOnly));
    }
    let choice =
        slot::choose(&contents, overwrite).ok_or(StorageError::AllSealed(area.slot_count))?;
    let offset = offset(choice.slot).ok_or(nothing)?;
    Ok(SlotLocation { choice, area: area.uuid, offset, bytes: area.slot_bytes })
}

fn read_content(
    device: &mut dyn BlockDevice,
    area: &AreaHeader,
    offset: u64,
    told: &mut dyn FnMut(FoundDump<'_>),
) -> Result<Content, StorageError> {
    let mut open: Block = [0; BLOCK_BYTES as usize];
    device.read(offset, &mut open)?;
    let record = match SlotOpen::check(&open) {
        Ok(record) => record,
        Err(AreaError::Version(version)) if version > NEWEST_VERSION => return Ok(Content::Newer),
        Err(_) => return Ok(Content::Nothing),
    };
    let mut collected: Block = [0; BLOCK_BYTES as usize];
    device.read(offset + COLLECTED_BLOCK * BLOCK_BYTES, &mut collected)?;
    let mut content = Content::Abandoned(record.sequence);
    let (mut memory_bytes, mut write_ns) = (0_u64, 0_u64);
    for stage in 1..=(record.stages as usize).min(MAX_STAGES) as u64 {
        let mut seal: Block = [0; BLOCK_BYTES as usize];
        device.read(offset + stage * BLOCK_BYTES, &mut seal)?;
        let of_stage = slot::content(area, &open, &seal, &collected);
        if !matches!(of_stage, Content::Abandoned(_) | Content::Nothing) {
            content = of_stage;
            if let Ok(seal) = StageSeal::check(&seal, area) {
                memory_bytes = memory_bytes.saturating_add(seal.memory_bytes);
                write_ns = write_ns.saturating_add(seal.write_ns);
            }
        }
    }
    if let Content::Sealed(_) | Content::Collected(_) = content {
        let uncollected = matches!(content, Content::Sealed(_));
        told(FoundDump { open: &record, uncollected, memory_bytes, write_ns });
    }
    Ok(content)
}

/// How many crashes the area on `device` remembers within `minutes` before `now`, in seconds
/// of Unix time; 0 when that is unknown, and where nothing was noted that can be believed.
///
/// # Errors
/// When the disk fails.
pub fn lately(device: &mut dyn BlockDevice, now: u64, minutes: u32) -> Result<usize, StorageError> {
    let mut block: Block = [0; BLOCK_BYTES as usize];
    device.read(LOOP_OFFSET, &mut block)?;
    // Without a clock nobody can tell what was lately.
    if now == 0 {
        return Ok(0);
    }
    Ok(CrashLoop::check(&block).map_or(0, |crashes| crashes.within(now, u64::from(minutes) * 60)))
}

impl SlotLocation {
    /// The slot, its new sequence number, and what it replaces.
    #[must_use]
    pub const fn choice(&self) -> &Choice {
        &self.choice
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
        open.seal();
        self.write_record(device, 0, open.as_bytes())?;
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
        let place = |place: &Self| (place.area, place.choice.slot);
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
        self.bytes
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
