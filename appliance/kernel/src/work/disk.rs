//! The data disk: a block device beside the dump's, with many requests in flight.
//!
//! The driver is the capture image's, with room for more; it is polled, under one lock for
//! all CPUs. The crash path takes neither: a disk with requests in flight is on the list in the
//! hand-off ([`in_flight`]), and the capture image leaves it alone.

use core::fmt::Write;
use core::sync::atomic::{AtomicU32, Ordering};

use block::pci::{self, Address, Function};
use block::virtio::{self, Many, Order, Ticket};
use block::{Error, Identity};
use handoff::Range;
use heapless::{String, Vec};
use machine::identity;
use machine::lock::Lock;

use crate::base::devices::visit::Visit;
use crate::base::devices::{self, KernelPlatform, in_flight};
use crate::log;
use crate::trial::faults;
use crate::work::blocks::{self, BLOCK_BYTES, ENDS_BYTES, Owner};

type Disk = Many<KernelPlatform, virtio::PciTransport>;

/// Number of the function that is the data disk; [`NONE`] while there is none.
static IN_USE: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = u32::MAX;

static DISK: Lock<Option<Disk>> = Lock::new("disk", None);

/// Disks looked at.
const MAX_DISKS: usize = 16;

/// What was wrong with every disk there is.
pub type Refusals = String<160>;

/// Finds a disk that may be written to, brings it up and labels it; one that is up already
/// is kept. Returns how many blocks it has; `None` when no disk will do, and then says in
/// `refusals` of each why it is not the one.
pub fn open(refusals: &mut Refusals) -> Option<u64> {
    if let Some(disk) = DISK.lock().as_ref() {
        return Some(blocks_of(disk.identity()));
    }
    let _nobody_looks = Visit::wait();
    let mut functions: Vec<Function, MAX_DISKS> = Vec::new();
    pci::scan::<KernelPlatform>(|function| {
        !virtio::is_block(&function) || functions.push(function).is_ok()
    });
    for function in &functions {
        let number = function.address.number();
        let silent = in_flight::given_up().any(|given_up| given_up == number);
        let taken = if silent { Err(Unsuitable::Broken(Error::GivenUp)) } else { take(function) };
        match taken {
            Ok(disk) => {
                let identity = disk.identity();
                let blocks = blocks_of(identity);
                log!("disk: virtio at {}, {blocks} blocks for data", identity.location);
                IN_USE.store(number, Ordering::Relaxed);
                in_flight::Entry::of(function.address).keeps_data();
                *DISK.lock() = Some(disk);
                return Some(blocks);
            }
            // What does not fit is cut off.
            Err(why) => drop(write!(refusals, "{}: {why}; ", function.address)),
        }
    }
    if functions.is_empty() {
        let _ = refusals.push_str("there is no virtio disk");
    }
    None
}

/// Whether the function at `address` is the data disk.
pub fn uses(address: Address) -> bool {
    IN_USE.load(Ordering::Relaxed) == address.number()
}

/// Whole data blocks behind the label.
const fn blocks_of(identity: &Identity) -> u64 {
    (identity.capacity / BLOCK_BYTES as u64).saturating_sub(1)
}

/// Why a disk is not used.
enum Unsuitable {
    Owned(Owner),
    Small,
    ReadOnly,
    Broken(Error),
}

impl core::fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Owned(owner) => f.write_str(owner.name()),
            Self::Small => f.write_str("too small"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Broken(error) => error.fmt(f),
        }
    }
}

/// Brings up a disk, and leaves it as it was when it is not to be written to. Meanwhile it is on
/// the list of functions with requests in flight, and stays there when it does not answer.
fn take(function: &Function) -> Result<Disk, Unsuitable> {
    let entry = in_flight::Entry::of(function.address);
    // Its memory is not known before the driver has asked for it.
    entry.begin(Range::default());
    let taken = bring_up(function);
    match &taken {
        Err(Unsuitable::Broken(Error::Deadline(_) | Error::GivenUp)) => entry.give_up(),
        _ => entry.end(),
    }
    taken
}

fn bring_up(function: &Function) -> Result<Disk, Unsuitable> {
    let mut disk = virtio::open_many::<KernelPlatform>(function).map_err(Unsuitable::Broken)?;
    let fit = look(&mut disk).and_then(|owner| {
        let mut block = [0; BLOCK_BYTES];
        match owner {
            Owner::Ours => Ok(()),
            Owner::Blank => {
                blocks::fill_label(&mut block);
                disk.run(0, Order::Write(&block), &mut []).map_err(Unsuitable::Broken)
            }
            other => Err(Unsuitable::Owned(other)),
        }
    });
    match fit {
        Ok(()) => Ok(disk),
        Err(why) => {
            disk.close();
            Err(why)
        }
    }
}

/// Who owns a disk: its label says so, and where there is none, both ends are looked at.
fn look(disk: &mut Disk) -> Result<Owner, Unsuitable> {
    let identity = disk.identity();
    let bytes = blocks_of(identity) * BLOCK_BYTES as u64;
    if bytes < ENDS_BYTES {
        return Err(Unsuitable::Small);
    }
    if identity.read_only {
        return Err(Unsuitable::ReadOnly);
    }
    let whole = identity.capacity / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let mut block = [0; BLOCK_BYTES];
    let mut read = |offset, block: &mut [u8; BLOCK_BYTES]| {
        disk.run(offset, Order::Read(BLOCK_BYTES), block).map_err(Unsuitable::Broken)
    };
    read(0, &mut block)?;
    let owner = Owner::of(&block);
    if owner != Owner::Blank {
        return Ok(owner);
    }
    for offset in (0..ENDS_BYTES).chain(whole - ENDS_BYTES..whole).step_by(BLOCK_BYTES) {
        read(offset, &mut block)?;
        if !blocks::is_blank(&block) {
            return Ok(Owner::Foreign);
        }
    }
    Ok(Owner::Blank)
}

/// The data disk, for a moment; `None` when another CPU has it, or there is none. Nobody
/// waits for it, so that a CPU whose turn it is not still gives signs of life.
pub fn try_with<R>(work: impl FnOnce(&mut Shared<'_>) -> R) -> Option<R> {
    let mut disk = DISK.lock_unless(identity::here(), || true)?;
    disk.as_mut().map(|disk| work(&mut Shared(disk)))
}

/// The data disk, as a workload uses it: by data blocks.
pub struct Shared<'a>(&'a mut Disk);

impl Shared<'_> {
    /// Starts to write data block `position`; `None` when the queue is full.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(
        &mut self,
        position: u64,
        from: &[u8; BLOCK_BYTES],
    ) -> Result<Option<Ticket>, Error> {
        self.begin(position, Order::Write(from))
    }

    /// Starts to read data block `position`; `None` when the queue is full.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&mut self, position: u64) -> Result<Option<Ticket>, Error> {
        self.begin(position, Order::Read(BLOCK_BYTES))
    }

    fn begin(&mut self, position: u64, order: Order<'_>) -> Result<Option<Ticket>, Error> {
        // Before the device is told.
        self.entry().begin(devices::dma_memory());
        let begun = self.0.begin(offset(position), order, &mut faults::mid_submit);
        self.note();
        begun
    }

    /// Looks what has completed.
    ///
    /// # Errors
    /// The disk's; it is given up then.
    pub fn poll(&mut self) -> Result<(), Error> {
        let polled = self.0.poll();
        self.note();
        polled
    }

    fn entry(&self) -> in_flight::Entry {
        in_flight::Entry::of(self.0.identity().location)
    }

    /// Notes for the hand-off whether the disk has requests in flight.
    fn note(&self) {
        match (self.0.is_given_up(), self.0.is_busy()) {
            (true, _) => self.entry().give_up(),
            (false, true) => {}
            (false, false) => self.entry().end(),
        }
    }

    /// Takes back a request that is done; `None` while it is not.
    pub fn finish(
        &mut self,
        ticket: &Ticket,
        into: &mut [u8; BLOCK_BYTES],
    ) -> Option<Result<(), Error>> {
        self.0.finish(ticket, into)
    }
}

/// Where data block `position` is: behind the label.
const fn offset(position: u64) -> u64 {
    (position + 1) * BLOCK_BYTES as u64
}
