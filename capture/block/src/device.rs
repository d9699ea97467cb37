//! What every disk offers, whatever it is attached to.

use core::fmt;

use crate::pci::Address;

/// Most bytes one request carries. Larger requests gain nothing measurable over this size
/// and make a missed deadline cost more.
pub const MAX_REQUEST_BYTES: u64 = 1 << 20;

/// Physical memory a device is to fetch its data from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Physical address; not 0, since the memory is passed on as a reference.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Source {
    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.address < other.address.saturating_add(other.bytes)
            && other.address < self.address.saturating_add(self.bytes)
    }
}

/// What a device says about itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Kind of driver, as in the `dump_to=` list: `virtio`, `nvme`, `ahci`.
    pub driver: &'static str,
    /// Where it sits.
    pub location: Address,
    /// Identifier of the NVMe namespace, from 1; 0 for every other kind of disk.
    pub namespace: u32,
    /// Serial number, trimmed; empty when it has none.
    pub serial: heapless::String<20>,
    /// Capacity in bytes.
    pub capacity: u64,
    /// Smallest unit of transfer in bytes, a power of two.
    pub block_bytes: u32,
    /// Most bytes one write may carry, a multiple of `block_bytes`.
    pub max_write_bytes: u64,
    /// The device refuses writes.
    pub read_only: bool,
    /// A flush reaches the medium. Without it the device promises that a completed write
    /// is durable, or nothing at all; there is no way to ask.
    pub can_flush: bool,
}

impl Identity {
    /// Returns the driver and where the disk is, for people: `nvme at 00:04.0, namespace 2`.
    #[must_use]
    pub const fn name(&self) -> Name {
        Name { driver: self.driver, location: self.location, namespace: self.namespace }
    }
}

/// The name of a disk for people, from [`Identity::name`].
#[derive(Clone, Copy, Debug)]
pub struct Name {
    driver: &'static str,
    location: Address,
    namespace: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.driver, self.location)?;
        match self.namespace {
            // The only one of nearly every controller.
            0 | 1 => Ok(()),
            namespace => write!(f, ", namespace {namespace}"),
        }
    }
}

/// Whether a write was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is on its way; its memory must not change until it has completed.
    Yes,
    /// As many requests as the driver keeps are in flight: poll, then offer it again.
    Full,
}

/// What can go wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The device did not answer in time; it is not touched any more.
    Deadline(&'static str),
    /// An earlier request missed its deadline, so nothing more is sent.
    GivenUp,
    /// The device reported an error for the request at this byte offset.
    Io(u64),
    /// The device does not know the request.
    Unsupported,
    /// The device takes no writes.
    ReadOnly,
    /// Offset, length or address do not fit the device's block size, or lie beyond its end.
    OutOfRange,
    /// The device's DMA does not reach memory at this physical address.
    Unreachable(u64),
    /// There is something, and it is no disk.
    NotADisk,
    /// The device could not be brought up; says which step failed.
    Setup(&'static str),
    /// The platform has no memory left for the driver.
    NoMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline(what) => write!(f, "no answer in time: {what}"),
            Self::GivenUp => f.write_str("given up after a missed deadline"),
            Self::Io(offset) => write!(f, "input/output error at byte {offset}"),
            Self::Unsupported => f.write_str("request not supported"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::OutOfRange => f.write_str("request outside the disk or unaligned"),
            Self::Unreachable(address) => {
                write!(f, "the device does not reach memory at {address:#x}")
            }
            Self::NotADisk => f.write_str("not a disk"),
            Self::Setup(step) => write!(f, "cannot be set up: {step}"),
            Self::NoMemory => f.write_str("no memory left for the driver"),
        }
    }
}

impl core::error::Error for Error {}

/// Failed writes that were not reported yet.
///
/// Each is reported, since a dump goes on without what was lost: what is not reported counts as
/// written.
#[derive(Debug)]
pub(crate) struct Failures([Option<Error>; MAX_FAILURES]);

/// More than any driver has in flight, twice over.
const MAX_FAILURES: usize = 64;

impl Default for Failures {
    fn default() -> Self {
        Self([const { None }; MAX_FAILURES])
    }
}

impl Failures {
    /// Adds a failure. Where there are too many, the last one says so.
    pub(crate) fn add(&mut self, failure: Error) {
        match self.0.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(failure),
            None => {
                let last = self.0.last_mut();
                let full = Error::Setup("more writes failed than can be told");
                last.into_iter().for_each(|place| *place = Some(full));
            }
        }
    }

    /// Takes one out.
    pub(crate) fn take(&mut self) -> Option<Error> {
        self.0.iter_mut().find_map(Option::take)
    }
}

/// A disk that is polled. Every call returns within a bounded time.
pub trait BlockDevice {
    /// What the device is.
    fn identity(&self) -> &Identity;

    /// Offers a write of `source` to byte `offset`; both are multiples of the block size
    /// and at most [`Identity::max_write_bytes`] long. A small one may be kept until the next
    /// [`poll`](Self::poll), and then go out together with others.
    ///
    /// # Errors
    /// When the request itself is wrong or the device was given up.
    fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error>;

    /// Sends what was kept, collects what has completed and returns how many bytes that were.
    ///
    /// # Errors
    /// When a request failed, or one has been in flight for too long. Each call reports one
    /// failure; a request that failed is not in flight any more, and the device goes on.
    fn poll(&mut self) -> Result<u64, Error>;

    /// How many requests are in flight.
    fn in_flight(&self) -> usize;

    /// Whether a write in flight still fetches from memory that `source` touches, so that
    /// nothing may be written there.
    fn is_reading(&self, source: Source) -> bool;

    /// Writes `from`, a multiple of the block size, to byte `offset`, and waits for it.
    /// The bytes go through memory of the driver: this is for records, not for dumps.
    ///
    /// # Errors
    /// When the request is wrong, fails, or takes too long.
    fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error>;

    /// Reads `into.len()` bytes, a multiple of the block size, from byte `offset`, and
    /// waits for them.
    ///
    /// # Errors
    /// As for writes.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error>;

    /// Starts a flush that nobody waits for, so that a disk that keeps back what it is given
    /// puts that away while more comes, and has little left when [`Self::flush`] is called, which
    /// alone promises something. It counts as in flight, and a failure of it as that of a write:
    /// some systems tell of one only once. Taken one at a time, and never by a driver that has
    /// one request in flight at most, which would only wait for it.
    ///
    /// # Errors
    /// When the device was given up.
    fn start_flush(&mut self) -> Result<Accepted, Error>;

    /// Makes every completed write durable, as far as the device can. Does nothing when
    /// [`Identity::can_flush`] says that there is no such request.
    ///
    /// # Errors
    /// When the device reports one, or does not answer in time.
    fn flush(&mut self) -> Result<(), Error>;
}

/// Waits until nothing is in flight and returns how many bytes completed meanwhile.
///
/// # Errors
/// As [`BlockDevice::poll`], whose deadlines bound the wait.
pub fn drain(device: &mut dyn BlockDevice) -> Result<u64, Error> {
    let mut bytes = 0;
    while device.in_flight() > 0 {
        bytes += device.poll()?;
        core::hint::spin_loop();
    }
    // A failure may still wait to be reported.
    Ok(bytes + device.poll()?)
}

/// Whether `[offset, offset + bytes)` lies on the device and fits its blocks.
pub(crate) fn check_range(identity: &Identity, offset: u64, bytes: u64) -> Result<(), Error> {
    let block = u64::from(identity.block_bytes);
    let fits = bytes > 0
        && offset.is_multiple_of(block)
        && bytes.is_multiple_of(block)
        && offset.checked_add(bytes).is_some_and(|end| end <= identity.capacity);
    if fits { Ok(()) } else { Err(Error::OutOfRange) }
}

/// [`check_range`], for a device that may refuse writes altogether.
pub(crate) fn check_write(identity: &Identity, offset: u64, bytes: u64) -> Result<(), Error> {
    if identity.read_only { Err(Error::ReadOnly) } else { check_range(identity, offset, bytes) }
}
