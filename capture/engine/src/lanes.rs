//! Where the bytes of a dump go: the log of a slot on a disk, or on two that share the work.
//!
//! Records, tables and headers stand in the log of the first alone. Memory goes to whichever
//! has room in its queue, so that the faster one takes more. The second may fail at any
//! moment: what it had is then written to the first once more, before the next seal.

use block::{Accepted, BlockDevice, Error, Source, drain};
use storage::area::{SlotLocation, StorageError};
use vmcore_format::area::{BLOCK_BYTES, DATA_OFFSET, SlotOpen, StageSeal, chunk_area};

/// Bytes of memory a disk gets before it is asked to put away what it has. A disk that does so
/// only when it has to would do it behind the last byte, with nobody else at work.
const UNFLUSHED_BYTES: u64 = 128 << 20;

/// The log of a slot on a disk, while it grows.
pub struct Lane<'a> {
    /// The disk.
    pub device: &'a mut dyn BlockDevice,
    /// The slot.
    pub place: SlotLocation,
    /// The record that opened it.
    pub open: SlotOpen,
    /// Offset in the slot of what comes next.
    pub at: u64,
    /// Bytes of memory sent since a flush was started.
    unflushed: u64,
}

impl<'a> Lane<'a> {
    /// The log of a slot that was just opened.
    #[must_use]
    pub fn new(device: &'a mut dyn BlockDevice, place: SlotLocation, open: SlotOpen) -> Self {
        Self { device, place, open, at: DATA_OFFSET, unflushed: 0 }
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
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, StorageError> {
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
    pub fn seal(&mut self, index: u32, seal: &mut StageSeal) -> Result<(), StorageError> {
        self.place.seal(self.device, index, seal)
    }

    /// Offers the part of `bytes` from `done` on, as much as goes into one request, to
    /// `offset` of the slot; returns how many bytes were taken.
    fn submit(&mut self, offset: u64, bytes: &[u8], done: usize) -> Result<usize, Error> {
        let most = (self.device.identity().max_write_bytes as usize).max(1);
        let rest = bytes.get(done..).unwrap_or_default();
        let part = rest.get(..most).unwrap_or(rest);
        let to = self.place.offset() + offset + done as u64;
        if self.device.submit_write(to, source(part))? == Accepted::Full {
            return Ok(0);
        }
        self.unflushed += part.len() as u64;
        if self.unflushed >= UNFLUSHED_BYTES && self.device.start_flush()? == Accepted::Yes {
            self.unflushed = 0;
        }
        Ok(part.len())
    }
}

/// A place in one of the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Which log, one of [`chunk_area`].
    pub area: u32,
    /// Offset in its slot.
    pub offset: u64,
}

/// Memory on its way.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Where to.
    pub spot: Spot,
    /// Bytes of it that a disk was asked for.
    pub done: usize,
}

/// The disks of a dump.
pub struct Lanes<'a> {
    /// The one with the records.
    pub main: Lane<'a>,
    /// The one that shares the work.
    other: Option<Lane<'a>>,
    /// Why there is no other one any more.
    lost: Option<Error>,
    /// Bytes of the first slot that are kept for the table and the header of the stage.
    pub kept: u64,
    /// Whether memory goes to the other as well: not in the first stage, which so can be read
    /// without it and is sealed without waiting for it.
    pub sharing: bool,
    /// Of the present stage's memory, bytes that the other stores.
    pub other_bytes: u64,
    /// Who was last where both have as much to do.
    last: u32,
}

impl<'a> Lanes<'a> {
    /// A dump on `main`, and on `other` where two disks share the work.
    #[must_use]
    pub const fn new(main: Lane<'a>, other: Option<Lane<'a>>) -> Self {
        let (lost, last) = (None, chunk_area::OTHER);
        Self { main, other, lost, kept: 0, sharing: false, other_bytes: 0, last }
    }

    /// Why the other disk is not there any more, when there was one.
    #[must_use]
    pub const fn lost(&self) -> Option<Error> {
        self.lost
    }

    /// Whether there is, and was, only one disk.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.other.is_none() && self.lost.is_none()
    }

    /// Bytes of memory there is room for in a log.
    fn room(&self, area: u32) -> u64 {
        match &self.other {
            _ if area == chunk_area::OWN => self.main.room().saturating_sub(self.kept),
            Some(other) if self.sharing => other.room(),
            _ => 0,
        }
    }

    /// Whether there is room for `bytes` more of memory, in chunks of whatever size: one log
    /// could take all of them.
    #[must_use]
    pub fn fit(&self, bytes: u64) -> bool {
        bytes <= self.room(chunk_area::OWN).max(self.room(chunk_area::OTHER))
    }

    /// Sends the start of `bytes` to the log whose disk has the least to do. `None` while all
    /// of them are busy.
    ///
    /// # Errors
    /// When the first disk fails, or no log has room.
    pub fn begin(&mut self, bytes: &[u8]) -> Result<Option<Sending>, StorageError> {
        let length = (bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
        if !self.fit(length) {
            return Err(StorageError::SlotTooSmall(self.main.place.bytes()));
        }
        let waiting = self.other.as_ref().map_or(0, |other| other.device.in_flight());
        let mine = self.main.device.in_flight();
        let other_first = waiting < mine || (waiting == mine && self.last == chunk_area::OWN);
        let order = match other_first {
            true => [chunk_area::OTHER, chunk_area::OWN],
            false => [chunk_area::OWN, chunk_area::OTHER],
        };
        for area in order {
            if self.room(area) < length {
                continue;
            }
            let offset = if area == chunk_area::OWN { self.main.at } else { self.other_at() };
            let mut sending = Sending { spot: Spot { area, offset }, done: 0 };
            if !self.go_on(&mut sending, bytes)? || self.is_gone(area) {
                continue;
            }
            self.last = area;
            match &mut self.other {
                Some(other) if area == chunk_area::OTHER => {
                    other.at += length;
                    self.other_bytes += bytes.len() as u64;
                }
                _ => self.main.at += length,
            }
            return Ok(Some(sending));
        }
        Ok(None)
    }

    /// Sends more of `bytes`; `false` when the disk is busy. What was meant for a disk that is
    /// gone counts as sent: it will be brought back.
    ///
    /// # Errors
    /// When the first disk fails.
    pub fn go_on(&mut self, sending: &mut Sending, bytes: &[u8]) -> Result<bool, StorageError> {
        let Sending { spot, done } = *sending;
        let taken = match &mut self.other {
            _ if spot.area == chunk_area::OWN => self.main.submit(spot.offset, bytes, done)?,
            Some(other) => match other.submit(spot.offset, bytes, done) {
                Ok(taken) => taken,
                Err(error) => {
                    self.lose(error);
                    bytes.len()
                }
            },
            None => bytes.len(),
        };
        sending.done = done.saturating_add(taken);
        Ok(taken > 0)
    }

    /// Takes notice of what the disks have done.
    ///
    /// # Errors
    /// When the first disk fails.
    pub fn poll(&mut self) -> Result<(), StorageError> {
        if let Some(other) = &mut self.other
            && let Err(error) = other.device.poll()
        {
            self.lose(error);
        }
        self.main.device.poll()?;
        Ok(())
    }

    /// Waits until nothing is on its way any more.
    ///
    /// # Errors
    /// When the first disk fails.
    pub fn drain(&mut self) -> Result<(), StorageError> {
        if let Some(other) = &mut self.other
            && let Err(error) = drain(other.device)
        {
            self.lose(error);
        }
        drain(self.main.device)?;
        Ok(())
    }

    /// Makes durable what either disk has.
    ///
    /// # Errors
    /// When the first disk fails.
    pub fn flush(&mut self) -> Result<(), StorageError> {
        if let Some(other) = &mut self.other
            && let Err(error) = other.device.flush()
        {
            self.lose(error);
        }
        self.main.device.flush()?;
        Ok(())
    }

    /// Makes durable what the other disk has of stage `index`, of kind `kind`, and seals it
    /// there. Nothing may be on its way any more.
    pub fn seal_other(&mut self, index: u32, kind: u32) {
        let stored = self.other_bytes;
        let Some(other) = self.other.as_mut().filter(|other| other.at > DATA_OFFSET) else {
            return;
        };
        let mut seal = StageSeal::new(&other.open);
        seal.kind = kind;
        seal.complete = 1;
        (seal.header_offset, seal.table_offset) = (DATA_OFFSET, DATA_OFFSET);
        seal.stored_bytes = stored;
        seal.log_end = other.at;
        // With one flush: by itself this seal promises nothing, it keeps the slot. The one on the
        // first disk counts, and comes later.
        match other.seal(index, &mut seal) {
            Ok(()) => {}
            Err(StorageError::Disk(error)) => self.lose(error),
            Err(_) => self.lose(Error::OutOfRange),
        }
    }

    /// Whether a disk still fetches from some of `bytes`, so that nothing may be written there.
    /// One that is gone may do so for ever, and nobody will read what it has.
    #[must_use]
    pub fn are_reading(&self, bytes: &[u8]) -> bool {
        let bytes = source(bytes);
        let other = self.other.as_ref().is_some_and(|other| other.device.is_reading(bytes));
        other || self.main.device.is_reading(bytes)
    }

    fn other_at(&self) -> u64 {
        self.other.as_ref().map_or(0, |other| other.at)
    }

    fn is_gone(&self, area: u32) -> bool {
        area == chunk_area::OTHER && self.other.is_none()
    }

    /// From now on there is one disk.
    fn lose(&mut self, error: Error) {
        self.other = None;
        self.lost = Some(error);
        self.other_bytes = 0;
    }
}

/// Where a device finds bytes: memory is mapped one to one.
fn source(bytes: &[u8]) -> Source {
    Source { address: bytes.as_ptr() as u64, bytes: bytes.len() as u64 }
}

#[cfg(test)]
mod tests {
    use storage::area::{choose_place, find_area};
    use storage::fake::{Event, FakeDisk};

    use super::*;

    #[test]
    fn a_disk_is_asked_now_and_then_to_put_away_what_it_has() {
        let mut disk = FakeDisk::prepared(1);
        let area = find_area(&mut disk).unwrap().header;
        let place = choose_place(&mut disk, &area, false, &mut |_| ()).unwrap();
        let open = place.open(&mut disk, SlotOpen::new()).unwrap();
        let mut lane = Lane::new(&mut disk, place, open);
        let memory = vec![1; 1 << 20];
        let requests = 5 * UNFLUSHED_BYTES / 2 / memory.len() as u64;
        let mut sent = 0;
        while sent < requests {
            match lane.submit(DATA_OFFSET, &memory, 0).unwrap() {
                0 => drop(drain(lane.device).unwrap()),
                _ => sent += 1,
            }
        }
        let started = |event: &&Event| **event == Event::FlushStarted;
        assert_eq!(disk.events.iter().filter(started).count(), 2);
        let first = disk.events.iter().take_while(|event| !started(event));
        let sent = first.filter(|event| matches!(event, Event::Sent(..))).count();
        assert_eq!(sent as u64 * memory.len() as u64, UNFLUSHED_BYTES);
    }
}
