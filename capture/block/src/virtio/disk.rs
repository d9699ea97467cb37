//! The requests of a block device, and the engine that keeps them in its queue.
#![expect(unsafe_code, reason = "shares request headers and data with the device by DMA")]

use core::mem::ManuallyDrop;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::{DeviceStatus, Transport};
use zerocopy::{Immutable, IntoBytes};

use super::queue::Queue;
use crate::memory::Dma;
use crate::pci::Address;
use crate::polled::{self, Answer, Engine, Polled, Request, bounce_pages};
use crate::{Deadline, Error, Identity, MAX_REQUEST_BYTES, Platform, Source};

/// The only queue used (§5.2.2).
pub(super) const QUEUE: u16 = 0;
/// Descriptors of the queue: three for each request in flight, rounded to a power of two.
const QUEUE_SIZE: usize = 32;
/// Requests in flight at once. For large ones less would do, the bound on the bytes in flight
/// sees to that; small ones come in bursts, and the code that makes them should not have to wait
/// in the middle of one.
pub(super) const DEPTH: usize = 10;
/// Largest block size taken: a page of the machine, and the block of a dump area.
const MAX_BLOCK_BYTES: u32 = 4096;
/// How long the device may take to tell its serial number, in ms: as long as a read.
const SERIAL_MS: u64 = 30_000;
/// Bytes of the serial number (§5.2.6.1).
const SERIAL_BYTES: usize = 20;
/// Unit of capacity and sector numbers, whatever the block size (§5.2.4).
const SECTOR: u64 = 512;

/// Feature bits (§5.2.3, §6).
mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const VERSION_1: u64 = 1 << 32;
    /// The device goes through the platform's DMA translation, which is one to one here.
    /// A device that offers it refuses a driver without it.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const WANTED: u64 = SIZE_MAX | READ_ONLY | BLOCK_SIZE | FLUSH | VERSION_1 | ACCESS_PLATFORM;
}

/// Byte offsets in the device's configuration (§5.2.4).
mod config {
    pub const CAPACITY_LOW: usize = 0;
    pub const CAPACITY_HIGH: usize = 4;
    pub const SIZE_MAX: usize = 8;
    pub const BLOCK_SIZE: usize = 20;
}

/// Request types (§5.2.6).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
    Serial = 8,
}

/// What a request starts with (§5.2.6).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

impl Header {
    /// Of a request at byte `offset`.
    pub(super) const fn new(kind: Kind, offset: u64) -> Self {
        Self { kind: kind as u32, reserved: 0, sector: offset / SECTOR }
    }
}

/// Pages that driver and device share, apart from the queue and the data, by offset: the headers
/// of all requests, and behind them the statuses, a word each of which the first byte counts.
mod cell {
    use super::{DEPTH, Header};

    pub const HEADER_BYTES: usize = size_of::<Header>();
    pub const STATUSES: usize = DEPTH * HEADER_BYTES;
    pub const STATUS_BYTES: usize = 4;
    pub const PAGES: usize = 1;
    const _: () = assert!(STATUSES + DEPTH * STATUS_BYTES <= PAGES * crate::memory::PAGE);
}

/// A status no device writes: the request has not been answered.
pub(super) const STATUS_NONE: u8 = 0xff;
pub(super) const STATUS_OK: u8 = 0;
pub(super) const STATUS_UNSUPPORTED: u8 = 2;

/// A request in the queue. Its buffers follow from the slot, the kind and the data.
#[derive(Clone, Copy)]
struct InQueue {
    token: u16,
    kind: Kind,
    data: Source,
}

/// A virtio block device behind any transport.
///
/// Nothing is torn down when this is dropped: the device keeps its queue, which lies in
/// memory that is never taken back.
pub type Disk<P, T> = Polled<P, Virtio<P, T>>;

/// The request queue of a device, as [`Polled`] drives it.
pub struct Virtio<P: Platform, T: Transport> {
    transport: ManuallyDrop<T>,
    queue: ManuallyDrop<Queue<P, QUEUE_SIZE>>,
    /// The pages of [`cell`].
    cells: Dma,
    slots: [Option<InQueue>; DEPTH],
    /// There are requests in the queue that the device was not told of.
    unheard: bool,
}

/// Brings up a device that has just been reset (§3.1.1).
///
/// # Errors
/// Says which step failed.
pub(super) fn start<P: Platform, T: Transport>(
    mut transport: ManuallyDrop<T>,
    location: Address,
) -> Result<Disk<P, T>, Error> {
    let mut identity = negotiate(&mut *transport, location)?;
    let queue = ManuallyDrop::new(Queue::new(&mut *transport)?);
    let cells = Dma::take::<P>(cell::PAGES)?;
    let bounce = bounce_pages::<P>()?;
    transport.finish_init();
    let mut engine = Virtio { transport, queue, cells, slots: [None; DEPTH], unheard: false };
    identity.serial = engine.read_serial(&bounce)?;
    Ok(Polled::with_pages(engine, identity, bounce))
}

impl<P: Platform, T: Transport> Virtio<P, T> {
    /// Asks for the serial number; a device without the request has an empty one.
    fn read_serial(&mut self, bounce: &Dma) -> Result<heapless::String<SERIAL_BYTES>, Error> {
        let data = Source { address: bounce.address(0), bytes: SERIAL_BYTES as u64 };
        self.add(0, Kind::Serial, 0, data)?;
        self.announce();
        let mut answer = Ok(None);
        Deadline::<P>::after_ms(SERIAL_MS).wait(|| {
            answer = self.finished();
            !matches!(answer, Ok(None))
        });
        let mut text = heapless::String::new();
        match answer? {
            Some((_, Answer::Done)) => {}
            Some(_) => return Ok(text),
            None => return Err(Error::Deadline("serial number")),
        }
        let mut serial = [0; SERIAL_BYTES];
        bounce.copy_out(0, &mut serial);
        let serial = serial.split(|&byte| byte == 0).next().unwrap_or_default();
        for &byte in serial.trim_ascii() {
            let shown = if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '?' };
            // As many places as bytes.
            let _ = text.push(shown);
        }
        Ok(text)
    }

    /// Returns where the header and the status of a slot are.
    fn cell(&self, slot: usize) -> RequestCell {
        RequestCell {
            header: self.cells.address(slot * cell::HEADER_BYTES) as *const Header,
            status: self.cells.address(status_at(slot)) as *mut u8,
        }
    }

    /// Puts a request into the queue.
    fn add(&mut self, slot: usize, kind: Kind, offset: u64, data: Source) -> Result<(), Error> {
        let cell = self.cell(slot);
        let Some(place) = self.slots.get_mut(slot).filter(|place| place.is_none()) else {
            return Err(Error::Setup("queue out of step"));
        };
        let header = Header::new(kind, offset);
        self.cells.copy_in(slot * cell::HEADER_BYTES, header.as_bytes());
        self.cells.write(status_at(slot), STATUS_NONE.into());
        let token = with_buffers(cell, kind, data, |inputs, outputs| {
            // SAFETY: header and status stay untouched until the slot is freed, which
            // happens after `pop_used`; the data is memory nobody else writes through a
            // reference while its write is in flight.
            unsafe { self.queue.add(inputs, outputs) }
        });
        // `DEPTH` requests of three descriptors fit the queue: this is damage.
        let token = token.map_err(|_| Error::Setup("queue out of step"))?;
        *place = Some(InQueue { token, kind, data });
        self.unheard = true;
        Ok(())
    }
}

/// Returns the offset of a slot's status in the pages of [`cell`].
const fn status_at(slot: usize) -> usize {
    cell::STATUSES + slot * cell::STATUS_BYTES
}

impl<P: Platform, T: Transport> Engine for Virtio<P, T> {
    fn depth(&self) -> usize {
        self.queue.depth().min(DEPTH)
    }

    fn flushes_beside_writes(&self) -> bool {
        true
    }

    fn start(&mut self, slot: usize, request: &Request) -> Result<(), Error> {
        let kind = match request.kind {
            polled::Kind::Read => Kind::Read,
            polled::Kind::Write => Kind::Write,
            polled::Kind::Flush => Kind::Flush,
        };
        self.add(slot, kind, request.offset, request.data)
    }

    fn announce(&mut self) {
        if !core::mem::take(&mut self.unheard) {
            return;
        }
        // The queue publishes the index with a release store; looking at the device's
        // "no notification needed" flag must not move ahead of it (§2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            self.transport.notify(QUEUE);
        }
    }

    fn finished(&mut self) -> Result<Option<(usize, Answer)>, Error> {
        let Some(token) = self.queue.peek_used() else { return Ok(None) };
        let mut slots = self.slots.iter_mut().enumerate();
        let answered = slots.find_map(|(slot, place)| {
            place.take_if(|in_queue| in_queue.token == token).map(|in_queue| (slot, in_queue))
        });
        let Some((slot, InQueue { kind, data, .. })) = answered else {
            return Err(Error::Setup("the device answered what nobody asked"));
        };
        let popped = with_buffers(self.cell(slot), kind, data, |inputs, outputs| {
            // SAFETY: the same buffers as when the token was made: they follow from
            // the slot, the kind and the data, which were kept.
            unsafe { self.queue.pop_used(token, inputs, outputs) }
        });
        if popped.is_err() {
            return Err(Error::Setup("queue out of step"));
        }
        let answer = match self.cells.read(status_at(slot)) as u8 {
            STATUS_OK => Answer::Done,
            STATUS_UNSUPPORTED => Answer::Unsupported,
            _ => Answer::Failed,
        };
        Ok(Some((slot, answer)))
    }
}

/// Agrees with a device that has just been reset on what both can do (§3.1.1), and asks it
/// what it is. The serial number is not part of that: it takes a request.
pub(super) fn negotiate(
    transport: &mut impl Transport,
    location: Address,
) -> Result<Identity, Error> {
    let hello = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(hello);
    let features = transport.read_device_features() & feature::WANTED;
    if features & feature::VERSION_1 == 0 {
        return Err(Error::Setup("not a virtio 1.x device"));
    }
    transport.write_driver_features(features);
    transport.set_status(hello | DeviceStatus::FEATURES_OK);
    if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
        return Err(Error::Setup("features refused"));
    }
    read_identity(&*transport, features, location)
}

/// What the device says of itself, but for the serial number.
fn read_identity(
    transport: &impl Transport,
    features: u64,
    location: Address,
) -> Result<Identity, Error> {
    let read = |offset| {
        transport
            .read_config_space::<u32>(offset)
            .map_err(|_| Error::Setup("configuration unreadable"))
    };
    let has = |feature: u64| features & feature != 0;
    // Two halves of one number: read the upper one again until it stays (§2.5.1). It
    // changes only when the disk is being resized, so a few attempts are plenty.
    let mut high = read(config::CAPACITY_HIGH)?;
    let mut low = 0;
    for _ in 0..3 {
        low = read(config::CAPACITY_LOW)?;
        let again = read(config::CAPACITY_HIGH)?;
        if again == high {
            break;
        }
        high = again;
    }
    let sectors = u64::from(high) << 32 | u64::from(low);
    let block_bytes =
        if has(feature::BLOCK_SIZE) { read(config::BLOCK_SIZE)? } else { SECTOR as u32 };
    if !block_bytes.is_power_of_two() || !(SECTOR as u32..=MAX_BLOCK_BYTES).contains(&block_bytes) {
        return Err(Error::Setup("block size is not 512 to 4096"));
    }
    let block = u64::from(block_bytes);
    let size_max = match has(feature::SIZE_MAX) {
        true => u64::from(read(config::SIZE_MAX)?),
        false => MAX_REQUEST_BYTES,
    };
    let max_write_bytes = size_max.min(MAX_REQUEST_BYTES) / block * block;
    if max_write_bytes == 0 {
        return Err(Error::Setup("requests smaller than a block"));
    }
    Ok(Identity {
        driver: "virtio",
        location,
        namespace: 0,
        serial: heapless::String::new(),
        capacity: sectors.saturating_mul(SECTOR) / block * block,
        block_bytes,
        max_write_bytes,
        read_only: has(feature::READ_ONLY),
        can_flush: has(feature::FLUSH),
    })
}

/// Where a request's header and its status are: in a DMA page of the driver's own.
pub(super) struct RequestCell {
    pub(super) header: *const Header,
    pub(super) status: *mut u8,
}

/// Calls `then` with the buffers of a request: what the device reads, what it writes.
pub(super) fn with_buffers<R>(
    cell: RequestCell,
    kind: Kind,
    data: Source,
    then: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
) -> R {
    // SAFETY: header and status lie in a DMA page of ours, and no other reference to this
    // slot's exists: every caller holds the disk exclusively.
    let (header, status) = unsafe { ((*cell.header).as_bytes(), &mut *cell.status) };
    let status = core::slice::from_mut(status);
    let (pointer, bytes) = (data.address as *mut u8, data.bytes as usize);
    match kind {
        Kind::Write => {
            // SAFETY: not null (checked on submission), and memory of this machine. The
            // library takes its address and length and does not look inside.
            let data = unsafe { core::slice::from_raw_parts(pointer.cast_const(), bytes) };
            then(&[header, data], &mut [status])
        }
        Kind::Read | Kind::Serial => {
            // SAFETY: the driver's own page, to which no other reference exists.
            let data = unsafe { core::slice::from_raw_parts_mut(pointer, bytes) };
            then(&[header], &mut [data, status])
        }
        Kind::Flush => then(&[header], &mut [status]),
    }
}
