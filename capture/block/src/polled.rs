//! A disk out of an engine: who waits for which request, and how long.
//!
//! An engine knows one kind of controller: how a request is started and how it is seen to
//! be finished. What all of them have in common is here: deadlines, the count of what was
//! written, memory for small records, and giving up for good.

use crate::device::{Failures, check_range, check_write};
use crate::memory::{Dma, PAGE};
use crate::{
    Accepted, BlockDevice, Deadline, Error, Identity, MAX_REQUEST_BYTES, Platform, Source,
};

/// Requests in flight at once, at most: as many as AHCI has command slots. The bytes in flight
/// are bounded by [`MOST_IN_FLIGHT`], so this is for devices that take small requests only, and
/// for bursts of small records.
pub const MAX_DEPTH: usize = 32;
/// Bytes of writes in flight at once, when there is more than one request. A choice: a disk that
/// stores 0.15 MB/s still answers the last of them within [`TRANSFER_MS`].
pub const MOST_IN_FLIGHT: u64 = 4 * MAX_REQUEST_BYTES;
/// Bytes of a request of which the device hears at once. Smaller ones wait for the next look at
/// the device: they go out together, and those that adjoin may become one.
const WORTH_ANNOUNCING: u64 = MAX_REQUEST_BYTES / 2;
/// Bytes of the driver's own memory that small reads and writes go through.
const BOUNCE_BYTES: usize = 16 * PAGE;
/// How long a read or a write may take.
const TRANSFER_MS: u64 = 30_000;
/// Milliseconds that a flush may take, the slowest of all requests, before a driver gives its
/// disk up: the device may have gigabytes to put away. A watchdog over a dump has to wait for
/// longer.
pub const SLOWEST_REQUEST_MS: u64 = 120_000;
/// The data of a flush.
const NOTHING: Source = Source { address: 0, bytes: 0 };
/// Every controller fetches data from addresses that are a multiple of this.
const ALIGNMENT: u64 = 4;

/// What a device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the disk into memory.
    Read,
    /// From memory to the disk.
    Write,
    /// Everything written so far is to become durable.
    Flush,
}

/// A request, as an engine gets it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What is to be done.
    pub kind: Kind,
    /// Byte offset on the disk, a multiple of the block size.
    pub offset: u64,
    /// Where the data is or goes, a multiple of the block size and at most 1 MiB; nothing
    /// for a flush.
    pub data: Source,
}

/// How a device answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// The device does not know the request.
    Unsupported,
    /// The device takes no writes.
    ReadOnly,
}

/// One kind of controller.
pub trait Engine {
    /// Returns how many requests it keeps in flight, 1 to [`MAX_DEPTH`]. It may become smaller.
    fn depth(&self) -> usize;

    /// Returns true if the device writes on while it flushes. Otherwise a flush for which no
    /// caller waits would only hold up the writes behind it.
    fn flushes_beside_writes(&self) -> bool;

    /// Starts a request; `slot` is free, and below [`Self::depth`]. The device may hear of it as
    /// late as at the next [`Self::announce`].
    ///
    /// # Errors
    /// When the request cannot be expressed or the device is out of step. Nothing was started
    /// then.
    fn start(&mut self, slot: usize, request: &Request) -> Result<(), Error>;

    /// Tells the device of the requests that it has not heard of.
    fn announce(&mut self);

    /// Returns the next finished request: its slot, and how it went.
    ///
    /// # Errors
    /// When the device does what it must not; it is given up.
    fn finished(&mut self) -> Result<Option<(usize, Answer)>, Error>;
}

/// A request in flight.
struct InFlight<P> {
    request: Request,
    /// Somebody waits for this very request.
    awaited: bool,
    deadline: Deadline<P>,
}

/// A disk, whatever drives it. Nothing is torn down when it is dropped.
pub struct Polled<P, E> {
    engine: E,
    bounce: Dma,
    slots: [Option<InFlight<P>>; MAX_DEPTH],
    /// Bytes of submitted writes completed and not yet reported by `poll`.
    completed: u64,
    /// Failures of submitted writes not yet reported by `poll`.
    failed: Failures,
    /// What became of the request somebody waits for; there is at most one.
    answer: Option<Result<(), Error>>,
    given_up: bool,
    identity: Identity,
}

/// Takes the pages that small reads and writes of a disk go through.
///
/// # Errors
/// When there are no more.
pub fn bounce_pages<P: Platform>() -> Result<Dma, Error> {
    Dma::take::<P>(BOUNCE_BYTES / PAGE)
}

impl<P: Platform, E: Engine> Polled<P, E> {
    /// A disk over a controller that is ready.
    ///
    /// # Errors
    /// When there is no memory for small requests.
    pub fn new(engine: E, identity: Identity) -> Result<Self, Error> {
        Ok(Self::with_pages(engine, identity, bounce_pages::<P>()?))
    }

    /// A disk over a controller that is ready, with [`bounce_pages`] that no other disk
    /// uses at the same time.
    pub fn with_pages(engine: E, identity: Identity, bounce: Dma) -> Self {
        Self {
            engine,
            bounce,
            slots: [const { None }; MAX_DEPTH],
            completed: 0,
            failed: Failures::default(),
            answer: None,
            given_up: false,
            identity,
        }
    }

    /// Starts a request; `false` when all slots are taken.
    fn submit(&mut self, request: Request, awaited: bool) -> Result<bool, Error> {
        if self.given_up {
            return Err(Error::GivenUp);
        }
        let mut slots = self.slots.iter_mut().take(self.engine.depth()).enumerate();
        let free = slots.find(|(_, in_flight)| in_flight.is_none());
        let Some((slot, in_flight)) = free else { return Ok(false) };
        self.engine.start(slot, &request)?;
        let limit_ms = if request.kind == Kind::Flush { SLOWEST_REQUEST_MS } else { TRANSFER_MS };
        let deadline = Deadline::after_ms(limit_ms);
        *in_flight = Some(InFlight { request, awaited, deadline });
        if awaited || request.data.bytes >= WORTH_ANNOUNCING {
            self.engine.announce();
        }
        Ok(true)
    }

    /// Sends what was kept, takes notice of what has finished and looks for missed deadlines.
    fn reap(&mut self) -> Result<(), Error> {
        if self.given_up {
            return Err(Error::GivenUp);
        }
        self.engine.announce();
        loop {
            let finished = self.engine.finished().map_err(|error| self.give_up(error))?;
            let Some((slot, answer)) = finished else { break };
            let Some(in_flight) = self.slots.get_mut(slot).and_then(Option::take) else {
                return Err(self.give_up(Error::Setup("the device answered what nobody asked")));
            };
            let result = match answer {
                Answer::Done => Ok(()),
                Answer::Failed => Err(Error::Io(in_flight.request.offset)),
                Answer::Unsupported => Err(Error::Unsupported),
                Answer::ReadOnly => Err(Error::ReadOnly),
            };
            match result {
                _ if in_flight.awaited => self.answer = Some(result),
                Ok(()) => self.completed += in_flight.request.data.bytes,
                Err(failure) => self.failed.add(failure),
            }
        }
        let late = self.slots.iter().flatten().find(|in_flight| in_flight.deadline.passed());
        match late.map(|in_flight| in_flight.request.kind) {
            Some(kind) => Err(self.give_up(Error::Deadline(match kind {
                Kind::Read => "read",
                Kind::Write => "write",
                Kind::Flush => "flush",
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
    fn transfer(&mut self, kind: Kind, offset: u64, bytes: u64) -> Result<(), Error> {
        let data = Source { address: self.bounce.address(0), bytes };
        self.answer = None;
        while !self.submit(Request { kind, offset, data }, true)? {
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

impl<P: Platform, E: Engine> BlockDevice for Polled<P, E> {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error> {
        check_write(&self.identity, offset, source.bytes)?;
        let fits = source.address.is_multiple_of(ALIGNMENT)
            && source.bytes <= self.identity.max_write_bytes.min(MAX_REQUEST_BYTES);
        if source.address == 0 || !fits {
            return Err(Error::OutOfRange);
        }
        let request = Request { kind: Kind::Write, offset, data: source };
        let in_flight = self.slots.iter().flatten();
        let bytes: u64 = in_flight.map(|in_flight| in_flight.request.data.bytes).sum();
        let room = bytes == 0 || bytes + source.bytes <= MOST_IN_FLIGHT;
        Ok(if room && self.submit(request, false)? { Accepted::Yes } else { Accepted::Full })
    }

    fn poll(&mut self) -> Result<u64, Error> {
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
            // A device given up may still be reading this memory; then nothing is sent.
            if self.given_up {
                return Err(Error::GivenUp);
            }
            self.bounce.copy_in(0, part);
            self.transfer(Kind::Write, offset + (index * most) as u64, part.len() as u64)?;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        check_range(&self.identity, offset, into.len() as u64)?;
        let most = self.identity.max_write_bytes.min(BOUNCE_BYTES as u64) as usize;
        for (index, part) in into.chunks_mut(most.max(1)).enumerate() {
            self.transfer(Kind::Read, offset + (index * most) as u64, part.len() as u64)?;
            self.bounce.copy_out(0, part);
        }
        Ok(())
    }

    fn start_flush(&mut self) -> Result<Accepted, Error> {
        let mut slots = self.slots.iter().flatten();
        let under_way = slots.any(|in_flight| in_flight.request.kind == Kind::Flush);
        if under_way || !self.engine.flushes_beside_writes() || !self.identity.can_flush {
            return Ok(Accepted::Full);
        }
        let request = Request { kind: Kind::Flush, offset: 0, data: NOTHING };
        Ok(if self.submit(request, false)? { Accepted::Yes } else { Accepted::Full })
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.identity.can_flush {
            return Ok(());
        }
        self.transfer(Kind::Flush, 0, 0)
    }
}
