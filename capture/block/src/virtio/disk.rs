//! The block requests, and who waits for them and how long.
//!
//! Longer than most, because whatever shares memory with the device stands together.
#![expect(unsafe_code, reason = "shares request headers and data with the device by DMA")]

use core::mem::{ManuallyDrop, size_of};
use core::ptr::{self, NonNull};
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::{DeviceStatus, Transport};
use zerocopy::{Immutable, IntoBytes};

use super::queue::Queue;
use crate::device::{Failures, check_range, check_write};
use crate::pci::Address;
use crate::{
    Accepted, BlockDevice, Deadline, Error, Identity, MAX_REQUEST_BYTES, Platform,
    SLOWEST_REQUEST_MS, Source,
};

/// The only queue used (§5.2.2).
pub(super) const QUEUE: u16 = 0;
/// Descriptors of the queue: three for each request in flight, rounded to a power of two.
const QUEUE_SIZE: usize = 32;
/// Requests in flight at once. For large ones less would do, [`MOST_IN_FLIGHT`] sees to that; small
/// ones come in bursts, and whoever makes them should not have to wait in the middle of one.
pub(super) const DEPTH: usize = 10;
/// Bytes in flight at once, when there is more than one request. More does not help: the size of
/// a request is what counts.
pub(super) const MOST_IN_FLIGHT: u64 = 4 * MAX_REQUEST_BYTES;
/// The device hears of a request as large as this at once, and of smaller ones at the next
/// look at it: those that adjoin may become one.
const WORTH_A_BELL: u64 = MAX_REQUEST_BYTES / 2;
/// Bytes of the driver's own memory that small reads and writes go through.
const BOUNCE_BYTES: usize = 64 << 10;
/// Largest block size taken: a page of the machine, and the block of a dump area.
const MAX_BLOCK_BYTES: u32 = 4096;
/// How long a read or a write may take.
const TRANSFER_MS: u64 = 30_000;
/// The data of a flush.
const NOTHING: Source = Source { address: 0, bytes: 0 };
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

/// What driver and device share, apart from the queue and the data.
#[repr(C)]
struct Shared {
    bounce: [u8; BOUNCE_BYTES],
    headers: [Header; DEPTH],
    statuses: [u8; DEPTH],
}

/// A status no device writes: the request has not been answered.
pub(super) const STATUS_NONE: u8 = 0xff;
pub(super) const STATUS_OK: u8 = 0;
pub(super) const STATUS_UNSUPPORTED: u8 = 2;

/// What the device is asked for.
#[derive(Clone, Copy)]
struct Request {
    kind: Kind,
    /// Byte offset on the disk.
    offset: u64,
    /// Where the data is, or is to go; nothing for a flush.
    data: Source,
    /// How long it may take.
    limit_ms: u64,
    /// Somebody waits for this very request.
    awaited: bool,
}

/// A request in flight.
struct InFlight<P> {
    token: u16,
    request: Request,
    deadline: Deadline<P>,
}

/// A virtio block device behind any transport.
///
/// Nothing is torn down when this is dropped: the device keeps its queue, which lies in
/// memory that is never taken back.
pub struct Disk<P: Platform, T: Transport> {
    transport: ManuallyDrop<T>,
    queue: ManuallyDrop<Queue<P, QUEUE_SIZE>>,
    shared: NonNull<Shared>,
    slots: [Option<InFlight<P>>; DEPTH],
    /// Bytes of submitted writes completed and not yet reported by `poll`.
    completed: u64,
    /// Failures of submitted writes not yet reported by `poll`.
    failed: Failures,
    /// What became of the request somebody waits for; there is at most one.
    answer: Option<Result<(), Error>>,
    given_up: bool,
    /// There are requests in the queue that the device was not told of.
    unheard: bool,
    identity: Identity,
}

impl<P: Platform, T: Transport> Disk<P, T> {
    /// Brings up a device that has just been reset (§3.1.1).
    ///
    /// # Errors
    /// Says which step failed.
    pub(super) fn start(mut transport: ManuallyDrop<T>, location: Address) -> Result<Self, Error> {
        let mut identity = negotiate(&mut *transport, location)?;
        let queue = ManuallyDrop::new(Queue::new(&mut *transport)?);
        let pages = size_of::<Shared>().div_ceil(4096);
        let shared = P::dma_pages(pages).ok_or(Error::NoMemory)?.cast();
        transport.finish_init();

        identity.serial.clear();
        let mut disk = Self {
            transport,
            queue,
            shared,
            slots: [const { None }; DEPTH],
            completed: 0,
            failed: Failures::default(),
            answer: None,
            given_up: false,
            unheard: false,
            identity,
        };
        disk.read_serial()?;
        Ok(disk)
    }

    /// Asks for the serial number; a device without the request leaves it empty.
    fn read_serial(&mut self) -> Result<(), Error> {
        const BYTES: u64 = 20;
        match self.transfer(Kind::Serial, 0, self.bounce(BYTES), TRANSFER_MS) {
            Ok(()) => {}
            Err(Error::Deadline(_) | Error::GivenUp) => {
                return Err(Error::Deadline("serial number"));
            }
            Err(_) => return Ok(()),
        }
        let mut serial = [0; BYTES as usize];
        self.copy_out(&mut serial);
        let text = serial.split(|&byte| byte == 0).next().unwrap_or_default();
        for &byte in text.trim_ascii() {
            let shown = if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '?' };
            // As many places as bytes.
            let _ = self.identity.serial.push(shown);
        }
        Ok(())
    }

    fn cell(&self, slot: usize) -> RequestCell {
        // SAFETY: both are places inside the pages, which are ours.
        unsafe {
            let shared = self.shared.as_ptr();
            RequestCell {
                header: &raw const (*shared).headers[slot],
                status: &raw mut (*shared).statuses[slot],
            }
        }
    }

    /// The first `bytes` bytes of the driver's own memory.
    fn bounce(&self, bytes: u64) -> Source {
        Source { address: self.shared.as_ptr() as u64, bytes }
    }

    /// Copies the driver's own memory out, from its beginning.
    fn copy_out(&self, into: &mut [u8]) {
        let bytes = into.len().min(BOUNCE_BYTES);
        // SAFETY: `shared` is DMA memory of ours with `bounce` at its start. Every request
        // that uses it is waited for, or the device was given up and this is not reached.
        unsafe {
            ptr::copy_nonoverlapping(self.shared.as_ptr().cast::<u8>(), into.as_mut_ptr(), bytes);
        }
    }

    /// Copies into the driver's own memory, to its beginning.
    fn copy_in(&mut self, from: &[u8]) {
        let bytes = from.len().min(BOUNCE_BYTES);
        // SAFETY: as in `copy_out`.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), self.shared.as_ptr().cast::<u8>(), bytes);
        }
    }

    /// Puts a request into the queue; `false` when all slots are taken. One that is not awaited may
    /// be small, and wait there until the device is polled.
    fn submit(&mut self, request: Request) -> Result<bool, Error> {
        if self.given_up {
            return Err(Error::GivenUp);
        }
        let Some(slot) = self.slots.iter().position(Option::is_none) else { return Ok(false) };
        // The lowest free slot: all that the queue has room for are taken.
        if slot >= self.queue.depth() {
            return Ok(false);
        }
        let Request { kind, offset, data, limit_ms, .. } = request;
        let header = Header::new(kind, offset);
        // SAFETY: the slot is free, so the device does not look at its header and status;
        // both lie in a DMA page of ours.
        unsafe {
            (&raw mut (*self.shared.as_ptr()).headers[slot]).write(header);
            (&raw mut (*self.shared.as_ptr()).statuses[slot]).write(STATUS_NONE);
        }
        let token = with_buffers(self.cell(slot), kind, data, |inputs, outputs| {
            // SAFETY: header and status stay untouched until the slot is freed, which
            // happens after `pop_used`; the data is memory nobody else writes through a
            // reference while its write is in flight.
            unsafe { self.queue.add(inputs, outputs) }
        });
        // `DEPTH` requests of three descriptors fit the queue: this is damage.
        let token = token.map_err(|_| self.give_up(Error::Setup("queue out of step")))?;
        self.unheard = true;
        if request.awaited || data.bytes >= WORTH_A_BELL {
            self.ring();
        }
        let deadline = Deadline::after_ms(limit_ms);
        self.slots[slot] = Some(InFlight { token, request, deadline });
        Ok(true)
    }

    /// Tells the device of requests that it has not heard of.
    fn ring(&mut self) {
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

    /// Takes completed requests out of the queue and looks for missed deadlines.
    fn reap(&mut self) -> Result<(), Error> {
        if self.given_up {
            return Err(Error::GivenUp);
        }
        while let Some(token) = self.queue.peek_used() {
            let answered = |slot: &Option<InFlight<P>>| {
                slot.as_ref().is_some_and(|in_flight| in_flight.token == token)
            };
            let found = self.slots.iter().position(answered);
            let Some((slot, in_flight)) =
                found.and_then(|slot| Some((slot, self.slots[slot].take()?)))
            else {
                return Err(self.give_up(Error::Setup("the device answered what nobody asked")));
            };
            let request = in_flight.request;
            let (kind, data) = (request.kind, request.data);
            let popped = with_buffers(self.cell(slot), kind, data, |inputs, outputs| {
                // SAFETY: the same buffers as when the token was made: they follow from
                // the slot, the kind and the data, which were kept.
                unsafe { self.queue.pop_used(token, inputs, outputs) }
            });
            if popped.is_err() {
                return Err(self.give_up(Error::Setup("queue out of step")));
            }
            // SAFETY: the device has completed the request, so the status is ours again.
            let status =
                unsafe { (&raw const (*self.shared.as_ptr()).statuses[slot]).read_volatile() };
            let result = match status {
                STATUS_OK => Ok(()),
                STATUS_UNSUPPORTED => Err(Error::Unsupported),
                _ => Err(Error::Io(request.offset)),
            };
            match result {
                _ if request.awaited => self.answer = Some(result),
                Ok(()) => self.completed += data.bytes,
                Err(failure) => self.failed.add(failure),
            }
        }
        let late = self.slots.iter().flatten().find(|in_flight| in_flight.deadline.passed());
        match late.map(|in_flight| in_flight.request.kind) {
            Some(kind) => Err(self.give_up(Error::Deadline(match kind {
                Kind::Read => "read",
                Kind::Write => "write",
                Kind::Flush => "flush",
                Kind::Serial => "serial number",
            }))),
            None => Ok(()),
        }
    }

    /// Never speaks to the device again; hands the reason through.
    fn give_up(&mut self, reason: Error) -> Error {
        self.given_up = true;
        reason
    }

    /// Submits one request and waits until it has completed.
    fn transfer(
        &mut self,
        kind: Kind,
        offset: u64,
        data: Source,
        limit_ms: u64,
    ) -> Result<(), Error> {
        let request = Request { kind, offset, data, limit_ms, awaited: true };
        self.answer = None;
        while !self.submit(request)? {
            self.reap()?;
        }
        loop {
            self.reap()?;
            if let Some(answer) = self.answer.take() {
                return answer;
            }
            core::hint::spin_loop();
        }
    }
}

impl<P: Platform, T: Transport> BlockDevice for Disk<P, T> {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error> {
        check_write(&self.identity, offset, source.bytes)?;
        if source.address == 0 || source.bytes > self.identity.max_write_bytes {
            return Err(Error::OutOfRange);
        }
        let request = Request {
            kind: Kind::Write,
            offset,
            data: source,
            limit_ms: TRANSFER_MS,
            awaited: false,
        };
        let in_flight = self.slots.iter().flatten();
        let bytes: u64 = in_flight.map(|in_flight| in_flight.request.data.bytes).sum();
        let room = bytes == 0 || bytes + source.bytes <= MOST_IN_FLIGHT;
        Ok(if room && self.submit(request)? { Accepted::Yes } else { Accepted::Full })
    }

    fn poll(&mut self) -> Result<u64, Error> {
        self.ring();
        self.reap()?;
        match self.failed.take() {
            Some(failure) => Err(failure),
            None => Ok(core::mem::take(&mut self.completed)),
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    fn is_reading(&self, source: Source) -> bool {
        self.slots.iter().flatten().any(|in_flight| in_flight.request.data.overlaps(&source))
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        check_write(&self.identity, offset, from.len() as u64)?;
        let most = self.identity.max_write_bytes.min(BOUNCE_BYTES as u64) as usize;
        for (index, part) in from.chunks(most.max(1)).enumerate() {
            let bounce = self.bounce(part.len() as u64);
            // A device given up may still be reading this memory; then nothing is sent.
            if self.given_up {
                return Err(Error::GivenUp);
            }
            self.copy_in(part);
            self.transfer(Kind::Write, offset + (index * most) as u64, bounce, TRANSFER_MS)?;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        check_range(&self.identity, offset, into.len() as u64)?;
        for (index, part) in into.chunks_mut(BOUNCE_BYTES).enumerate() {
            let offset = offset + (index * BOUNCE_BYTES) as u64;
            let bounce = self.bounce(part.len() as u64);
            self.transfer(Kind::Read, offset, bounce, TRANSFER_MS)?;
            self.copy_out(part);
        }
        Ok(())
    }

    fn start_flush(&mut self) -> Result<Accepted, Error> {
        let mut slots = self.slots.iter().flatten();
        let under_way = slots.any(|in_flight| in_flight.request.kind == Kind::Flush);
        if under_way || !self.identity.can_flush {
            return Ok(Accepted::Full);
        }
        let request = Request {
            kind: Kind::Flush,
            offset: 0,
            data: NOTHING,
            limit_ms: SLOWEST_REQUEST_MS,
            awaited: false,
        };
        Ok(if self.submit(request)? { Accepted::Yes } else { Accepted::Full })
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.identity.can_flush {
            return Ok(());
        }
        self.transfer(Kind::Flush, 0, NOTHING, SLOWEST_REQUEST_MS)
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
