//! Many requests in flight, each with memory of its own: for a system that works, beside the
//! few large writes of a dump.
//!
//! A request is started and handed a [`Ticket`]; whoever holds the ticket asks now and then
//! whether it is done. Several CPUs may have requests in flight at once: the caller keeps
//! the disk under a lock of its own, and each takes back only what it started.
#![expect(unsafe_code, reason = "shares request headers and data with the device by DMA")]

use core::mem::{ManuallyDrop, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::Transport;

use super::disk::{self, Header, Kind, QUEUE, STATUS_NONE, STATUS_OK, STATUS_UNSUPPORTED};
use super::queue::Queue;
use crate::device::{check_range, check_write};
use crate::memory::{Dma, PAGE};
use crate::pci::Address;
use crate::{Deadline, Error, Identity, Platform, Source};

/// Requests in flight at once.
pub const DEPTH: usize = 64;
/// Descriptors of the queue: three for each request in flight, rounded to a power of two.
const QUEUE_SIZE: usize = 256;
/// Bytes a request carries at most.
pub const SLOT_BYTES: usize = PAGE;
/// How long a request may take.
const TRANSFER_MS: u64 = 30_000;

/// What driver and device share, apart from the queue and the data.
#[repr(C)]
struct Shared {
    headers: [Header; DEPTH],
    statuses: [u8; DEPTH],
}

/// A request that was started, until it is [taken back](Many::finish).
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(usize);

/// What is to be done with a block.
#[derive(Clone, Copy, Debug)]
pub enum Order<'a> {
    /// Read so many bytes.
    Read(usize),
    /// Write these.
    Write(&'a [u8]),
}

/// A request in flight.
struct InFlight<P> {
    token: u16,
    kind: Kind,
    offset: u64,
    bytes: usize,
    deadline: Deadline<P>,
}

enum Slot<P> {
    Free,
    InFlight(InFlight<P>),
    /// Done, and not taken back yet.
    Done(usize, Result<(), Error>),
}

/// A virtio block device behind any transport.
///
/// Nothing is torn down when this is dropped: the device keeps its queue, which lies in
/// memory that is never taken back. [`close`](Self::close) ends that in order.
pub struct Many<P: Platform, T: Transport> {
    transport: ManuallyDrop<T>,
    queue: ManuallyDrop<Queue<P, QUEUE_SIZE>>,
    shared: NonNull<Shared>,
    data: Dma,
    slots: [Slot<P>; DEPTH],
    given_up: bool,
    identity: Identity,
}

// SAFETY: it owns the device and the pages it shares with it; the pointers are to those and
// mean the same on every CPU.
unsafe impl<P: Platform, T: Transport> Send for Many<P, T> {}

impl<P: Platform, T: Transport> Many<P, T> {
    /// Brings up a device that has just been reset.
    ///
    /// # Errors
    /// Says which step failed.
    pub(super) fn start(mut transport: ManuallyDrop<T>, location: Address) -> Result<Self, Error> {
        let identity = disk::negotiate(&mut *transport, location)?;
        let queue = ManuallyDrop::new(Queue::new(&mut *transport)?);
        let pages = size_of::<Shared>().div_ceil(PAGE);
        let shared = P::dma_pages(pages).ok_or(Error::NoMemory)?.cast();
        let data = Dma::take::<P>(DEPTH * SLOT_BYTES / PAGE)?;
        transport.finish_init();
        let slots = [const { Slot::Free }; DEPTH];
        Ok(Self { transport, queue, shared, data, slots, given_up: false, identity })
    }

    /// What the device is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns true if the device has not answered a request yet, as far as it was asked.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::InFlight(_)))
    }

    /// Returns true if the device was given up: nothing is sent to it any more.
    #[must_use]
    pub const fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Reads that the device has not answered yet, as far as it was asked.
    #[must_use]
    pub fn reads_in_flight(&self) -> usize {
        let reads = |slot: &&Slot<P>| matches!(slot, Slot::InFlight(in_flight) if in_flight.kind == Kind::Read);
        self.slots.iter().filter(reads).count()
    }

    /// Starts a request at byte `offset`; `None` when as many as there is room for have not
    /// been taken back. `midway` is called when the request stands in the queue and the
    /// device has not been told yet, with the number of reads in flight.
    ///
    /// # Errors
    /// When the request itself is wrong or the device was given up.
    pub fn begin(
        &mut self,
        offset: u64,
        order: Order<'_>,
        midway: &mut dyn FnMut(usize),
    ) -> Result<Option<Ticket>, Error> {
        if self.given_up {
            return Err(Error::GivenUp);
        }
        let (kind, bytes) = match order {
            Order::Read(bytes) => (Kind::Read, bytes),
            Order::Write(from) => (Kind::Write, from.len()),
        };
        match kind {
            Kind::Write => check_write(&self.identity, offset, bytes as u64)?,
            _ => check_range(&self.identity, offset, bytes as u64)?,
        }
        if bytes > SLOT_BYTES {
            return Err(Error::OutOfRange);
        }
        let free = self.slots.iter().position(|slot| matches!(slot, Slot::Free));
        let Some(slot) = free else { return Ok(None) };
        let in_flight = self.slots.iter().filter(|slot| matches!(slot, Slot::InFlight(_)));
        if in_flight.count() >= self.queue.depth() {
            return Ok(None);
        }
        if let Order::Write(from) = order {
            self.data.copy_in(slot * SLOT_BYTES, from);
        }
        let header = Header::new(kind, offset);
        // SAFETY: the slot is free, so the device does not look at its header and status;
        // both lie in a DMA page of ours.
        unsafe {
            (&raw mut (*self.shared.as_ptr()).headers[slot]).write(header);
            (&raw mut (*self.shared.as_ptr()).statuses[slot]).write(STATUS_NONE);
        }
        let (cell, data) = (self.cell(slot), self.source(slot, bytes));
        let token = disk::with_buffers(cell, kind, data, |inputs, outputs| {
            // SAFETY: header, status and data stay untouched until the slot is freed, which
            // happens after `pop_used`.
            unsafe { self.queue.add(inputs, outputs) }
        });
        // `DEPTH` requests of three descriptors fit the queue: this is damage.
        let token = token.map_err(|_| self.give_up(Error::Setup("queue out of step")))?;
        midway(self.reads_in_flight());
        // As in `Disk`: the device's flag must not be looked at before the index is out.
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            self.transport.notify(QUEUE);
        }
        let deadline = Deadline::after_ms(TRANSFER_MS);
        self.slots[slot] = Slot::InFlight(InFlight { token, kind, offset, bytes, deadline });
        Ok(Some(Ticket(slot)))
    }

    fn cell(&self, slot: usize) -> disk::RequestCell {
        // SAFETY: both are places inside the page, which is ours.
        unsafe {
            let shared = self.shared.as_ptr();
            disk::RequestCell {
                header: &raw const (*shared).headers[slot],
                status: &raw mut (*shared).statuses[slot],
            }
        }
    }

    fn source(&self, slot: usize, bytes: usize) -> Source {
        Source { address: self.data.address(slot * SLOT_BYTES), bytes: bytes as u64 }
    }

    /// Takes notice of what has completed and looks for missed deadlines.
    ///
    /// # Errors
    /// When a request has been in flight for too long, or the device does what it must not.
    /// It is given up then: nothing more is sent to it.
    pub fn poll(&mut self) -> Result<(), Error> {
        if self.given_up {
            return Err(Error::GivenUp);
        }
        while let Some(token) = self.queue.peek_used() {
            let answered = |slot: &Slot<P>| matches!(slot, Slot::InFlight(in_flight) if in_flight.token == token);
            let slot = self.slots.iter().position(answered);
            let Some((slot, Slot::InFlight(done))) =
                slot.map(|slot| (slot, core::mem::replace(&mut self.slots[slot], Slot::Free)))
            else {
                return Err(self.give_up(Error::Setup("the device answered what nobody asked")));
            };
            let (cell, data) = (self.cell(slot), self.source(slot, done.bytes));
            let popped = disk::with_buffers(cell, done.kind, data, |inputs, outputs| {
                // SAFETY: the same buffers as when the token was made: they follow from
                // the slot, the kind and the length, which were kept.
                unsafe { self.queue.pop_used(token, inputs, outputs) }
            });
            if popped.is_err() {
                return Err(self.give_up(Error::Setup("queue out of step")));
            }
            // SAFETY: the device has completed the request, so the status is ours again.
            let status = unsafe { self.cell(slot).status.read_volatile() };
            let result = match status {
                STATUS_OK => Ok(()),
                STATUS_UNSUPPORTED => Err(Error::Unsupported),
                _ => Err(Error::Io(done.offset)),
            };
            self.slots[slot] = Slot::Done(done.bytes, result);
        }
        let late = |slot: &Slot<P>| matches!(slot, Slot::InFlight(in_flight) if in_flight.deadline.passed());
        if self.slots.iter().any(late) {
            return Err(self.give_up(Error::Deadline("read or write")));
        }
        Ok(())
    }

    /// Never speaks to the device again; hands the reason through.
    fn give_up(&mut self, reason: Error) -> Error {
        self.given_up = true;
        reason
    }

    /// Takes a request back when it is done, and says how it went; what was read goes into
    /// `into`, as far as it fits. `None` while it is in flight. A ticket that was taken back
    /// is good for nothing more.
    pub fn finish(&mut self, ticket: &Ticket, into: &mut [u8]) -> Option<Result<(), Error>> {
        let Slot::Done(bytes, result) = self.slots[ticket.0] else { return None };
        self.slots[ticket.0] = Slot::Free;
        let bytes = bytes.min(into.len());
        self.data.copy_out(ticket.0 * SLOT_BYTES, &mut into[..bytes]);
        Some(result)
    }

    /// Runs one request to its end.
    ///
    /// # Errors
    /// As for its parts.
    pub fn run(&mut self, offset: u64, order: Order<'_>, into: &mut [u8]) -> Result<(), Error> {
        let ticket = loop {
            match self.begin(offset, order, &mut |_| ())? {
                Some(ticket) => break ticket,
                None => self.poll()?,
            }
        };
        loop {
            self.poll()?;
            if let Some(result) = self.finish(&ticket, into) {
                return result;
            }
            core::hint::spin_loop();
        }
    }

    /// Resets the device, so that it touches no memory any more; not one that was given up.
    pub fn close(mut self) {
        if !self.given_up {
            // That it does not come to rest changes nothing: its pages are never reused.
            let _ = super::reset::<P>(&mut *self.transport);
        }
    }
}
