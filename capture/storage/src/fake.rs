//! A disk for tests: what reaches it is kept in memory, and in which order.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use block::{Accepted, BlockDevice, Error, Identity, Source, pci::Address};
use vmcore_format::area::{AreaHeader, BLOCK_BYTES, RECORD_VERSION};
use zerocopy::IntoBytes;

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 64 << 20;

/// What reached the disk, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record was written: byte offset, bytes.
    Wrote(u64, u64),
    /// Memory was offered: byte offset, bytes.
    Sent(u64, u64),
    /// A flush was started that nobody waits for.
    FlushStarted,
    /// What was written is durable.
    Flushed,
}

/// What a disk with a [clock](FakeDisk::clock) did, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Bytes arrived at an offset.
    Wrote(u64, Vec<u8>),
    /// All before it is durable.
    Flushed,
}

/// A disk that fetches what is sent to it when it is polled: one request at a time.
pub struct FakeDisk {
    /// What it says of itself.
    pub identity: Identity,
    /// What is on it.
    pub bytes: Vec<u8>,
    /// What happened to it.
    pub events: Vec<Event>,
    /// Memory that devices reach.
    pub memory: Vec<Rc<Vec<u64>>>,
    /// Fail the event with this number, from 1.
    pub fail_at: Option<usize>,
    /// Stretches that cannot be read: reads that touch one fail.
    pub unreadable: Vec<Range<u64>>,
    /// Stretches that cannot be written: writes that touch one fail and leave nothing.
    pub unwritable: Vec<Range<u64>>,
    /// Reads so far.
    pub reads: usize,
    /// Goes on with every deed; disks may share it.
    pub clock: Option<Rc<Cell<usize>>>,
    /// With the clock, what was done at which moment.
    pub deeds: Vec<(usize, Deed)>,
    queue: Vec<(u64, Source)>,
}

impl FakeDisk {
    /// One that is all zero.
    #[must_use]
    pub fn blank() -> Self {
        let identity = Identity {
            driver: "fake",
            location: Address { segment: 0, bus: 0, device: 0, function: 0 },
            namespace: 0,
            serial: heapless::String::new(),
            capacity: DISK_BYTES,
            block_bytes: 512,
            max_write_bytes: 1 << 20,
            read_only: false,
            can_flush: true,
        };
        let bytes = vec![0; DISK_BYTES as usize];
        Self {
            identity,
            bytes,
            events: vec![],
            memory: vec![],
            fail_at: None,
            unreadable: vec![],
            unwritable: vec![],
            reads: 0,
            clock: None,
            deeds: vec![],
            queue: vec![],
        }
    }

    /// Bytes have arrived.
    fn arrive(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        if self.clock.is_some() {
            self.note(Deed::Wrote(offset, bytes.to_vec()));
        }
    }

    fn note(&mut self, deed: Deed) {
        if let Some(clock) = &self.clock {
            clock.set(clock.get() + 1);
            self.deeds.push((clock.get(), deed));
        }
    }

    /// What is on the disk after a power cut at `moment`: everything that was flushed before,
    /// and of what came later all or nothing. `before` is what was on it at first.
    #[must_use]
    pub fn after_cut(&self, before: &[u8], moment: usize, all: bool) -> Vec<u8> {
        let past = || self.deeds.iter().filter(|(at, _)| *at <= moment);
        let flushes = past().filter(|(_, deed)| *deed == Deed::Flushed);
        let durable = flushes.map(|(at, _)| *at).max().unwrap_or(0);
        let mut bytes = before.to_vec();
        for (at, deed) in past() {
            if let Deed::Wrote(offset, written) = deed
                && (all || *at <= durable)
            {
                bytes[*offset as usize..][..written.len()].copy_from_slice(written);
            }
        }
        bytes
    }

    /// One with a dump area of `slots` slots.
    ///
    /// # Panics
    /// When there is no room for so many.
    #[must_use]
    pub fn prepared(slots: u32) -> Self {
        let mut disk = Self::blank();
        let mut area = AreaHeader::plan(DISK_BYTES, slots).unwrap();
        area.uuid = [0x55; 16];
        area.seal();
        for at in [0, area.copy_offset().unwrap() as usize] {
            disk.bytes[at..at + size_of::<AreaHeader>()].copy_from_slice(area.as_bytes());
        }
        disk
    }

    /// One with a dump area of version 2.
    ///
    /// # Panics
    /// When there is no room for so many slots.
    #[must_use]
    pub fn prepared_before(slots: u32) -> Self {
        let mut disk = Self::blank();
        let mut area = AreaHeader::plan(DISK_BYTES, slots).unwrap();
        area.version = RECORD_VERSION;
        // The last slot reaches to the end of the disk.
        area.slot_bytes =
            (DISK_BYTES - area.first_slot) / u64::from(slots) / BLOCK_BYTES * BLOCK_BYTES;
        area.seal();
        disk.bytes[..size_of::<AreaHeader>()].copy_from_slice(area.as_bytes());
        disk
    }

    /// Fails what touches one of some stretches.
    fn refuse(bad: &[Range<u64>], offset: u64, bytes: u64) -> Result<(), Error> {
        let touches = |bad: &Range<u64>| bad.start < offset + bytes && offset < bad.end;
        if bad.iter().any(touches) { Err(Error::Io(offset)) } else { Ok(()) }
    }

    fn log(&mut self, event: Event) -> Result<(), Error> {
        self.events.push(event);
        match self.fail_at == Some(self.events.len()) {
            true => Err(Error::Io(0)),
            false => Ok(()),
        }
    }

    /// The bytes a device finds at an address of this process.
    fn fetch(&self, source: Source) -> Vec<u8> {
        let found = self.memory.iter().find_map(|memory| {
            let start = source.address.checked_sub(memory.as_ptr() as u64)?;
            memory.as_bytes().get(start as usize..(start + source.bytes) as usize)
        });
        // A buffer belongs to whoever filled it: it cannot be looked into from here.
        found.map_or_else(|| vec![0xcc; source.bytes as usize], <[u8]>::to_vec)
    }
}

impl BlockDevice for FakeDisk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error> {
        assert!(source.address != 0 && source.bytes <= self.identity.max_write_bytes);
        assert!(offset + source.bytes <= DISK_BYTES);
        if self.queue.len() == 2 {
            return Ok(Accepted::Full);
        }
        self.log(Event::Sent(offset, source.bytes))?;
        self.queue.push((offset, source));
        Ok(Accepted::Yes)
    }

    fn poll(&mut self) -> Result<u64, Error> {
        let Some((offset, source)) = self.queue.pop() else { return Ok(0) };
        Self::refuse(&self.unwritable, offset, source.bytes)?;
        let bytes = self.fetch(source);
        self.arrive(offset, &bytes);
        Ok(source.bytes)
    }

    fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn is_reading(&self, source: Source) -> bool {
        self.queue.iter().any(|(_, queued)| queued.overlaps(&source))
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.log(Event::Wrote(offset, from.len() as u64))?;
        Self::refuse(&self.unwritable, offset, from.len() as u64)?;
        self.arrive(offset, from);
        Ok(())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.reads += 1;
        Self::refuse(&self.unreadable, offset, into.len() as u64)?;
        into.copy_from_slice(&self.bytes[offset as usize..][..into.len()]);
        Ok(())
    }

    fn start_flush(&mut self) -> Result<Accepted, Error> {
        self.log(Event::FlushStarted)?;
        Ok(Accepted::Yes)
    }

    fn flush(&mut self) -> Result<(), Error> {
        assert!(self.queue.is_empty(), "flushed with writes in flight");
        self.log(Event::Flushed)?;
        self.note(Deed::Flushed);
        Ok(())
    }
}
