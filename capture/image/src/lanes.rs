//! Where the bytes of a dump go: the log of a slot on a disk.

use block::{Accepted, BlockDevice, Error, Source, drain};
use place::area::{Place, Problem};
use vmcore_format::area::{BLOCK_BYTES, DATA_OFFSET, SlotOpen, StageSeal};

/// The log of a slot on a disk, while it grows.
pub struct Lane<'a> {
    /// The disk.
    pub device: &'a mut dyn BlockDevice,
    /// The slot.
    pub place: Place,
    /// The record that opened it.
    pub open: SlotOpen,
    /// Offset in the slot of what comes next.
    pub at: u64,
}

impl<'a> Lane<'a> {
    /// The log of a slot that was just opened.
    #[must_use]
    pub fn new(device: &'a mut dyn BlockDevice, place: Place, open: SlotOpen) -> Self {
        Self { device, place, open, at: DATA_OFFSET }
    }

    /// Bytes of the slot that are left.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.place.bytes().saturating_sub(self.at)
    }

    /// Appends `bytes`, padded to whole blocks, through memory of the driver, and returns
    /// their offset in the slot.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, Problem> {
        let (slot, offset) = (self.place.offset(), self.at);
        let whole = bytes.len() / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
        let (blocks, rest) = bytes.split_at_checked(whole).unwrap_or_default();
        if !blocks.is_empty() {
            self.device.write(slot + offset, blocks)?;
        }
        if !rest.is_empty() {
            let mut block = [0; BLOCK_BYTES as usize];
            block.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            self.device.write(slot + offset + whole as u64, &block)?;
        }
        self.at += (bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
        Ok(offset)
    }

    /// Seals stage `index`, from 0: what was flushed before is complete from now on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn seal(&mut self, index: u32, seal: &mut StageSeal) -> Result<(), Problem> {
        self.place.seal(self.device, index, seal)
    }

    /// Offers the part of `bytes` from `done` on, as much as goes into one request, to
    /// `offset` of the slot; returns how many bytes were taken.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn submit(&mut self, offset: u64, bytes: &[u8], done: usize) -> Result<usize, Error> {
        let most = (self.device.identity().max_write_bytes as usize).max(1);
        let rest = bytes.get(done..).unwrap_or_default();
        let part = rest.get(..most).unwrap_or(rest);
        let to = self.place.offset() + offset + done as u64;
        Ok(match self.device.submit_write(to, source(part))? {
            Accepted::Yes => part.len(),
            Accepted::Full => 0,
        })
    }
}

/// The disks of a dump.
pub struct Lanes<'a> {
    /// The one with the records.
    pub main: Lane<'a>,
    /// Bytes of its slot that are kept for the table and the header of the stage.
    pub kept: u64,
}

impl<'a> Lanes<'a> {
    /// A dump on one disk.
    #[must_use]
    pub const fn one(main: Lane<'a>) -> Self {
        Self { main, kept: 0 }
    }

    /// Whether there is room for `bytes` more of memory, in chunks of whatever size.
    #[must_use]
    pub fn fit(&self, bytes: u64) -> bool {
        bytes.saturating_add(self.kept) <= self.main.room()
    }

    /// Takes room for `bytes` of memory out of a log; returns where that is.
    ///
    /// # Errors
    /// When there is no such room left.
    pub fn take(&mut self, bytes: u64) -> Result<u64, Problem> {
        let offset = self.main.at;
        if !self.fit(bytes) {
            return Err(Problem::SlotTooSmall(self.main.place.bytes()));
        }
        self.main.at += bytes.next_multiple_of(BLOCK_BYTES);
        Ok(offset)
    }

    /// Takes notice of what the disks have done.
    ///
    /// # Errors
    /// When a disk fails.
    pub fn poll(&mut self) -> Result<(), Problem> {
        self.main.device.poll()?;
        Ok(())
    }

    /// Waits until nothing is on its way any more.
    ///
    /// # Errors
    /// When a disk fails.
    pub fn drain(&mut self) -> Result<(), Problem> {
        drain(self.main.device)?;
        Ok(())
    }

    /// Whether a disk still fetches from some of `bytes`, so that nothing may be written there.
    #[must_use]
    pub fn are_reading(&self, bytes: &[u8]) -> bool {
        self.main.device.is_reading(source(bytes))
    }
}

/// Where a device finds bytes: memory is mapped one to one.
fn source(bytes: &[u8]) -> Source {
    Source { address: bytes.as_ptr() as u64, bytes: bytes.len() as u64 }
}
