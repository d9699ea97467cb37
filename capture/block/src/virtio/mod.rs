//! Virtio block devices on PCI (Virtual I/O Device 1.2, §5.2 and §4.1).
//!
//! The transport and the split queue come from the `virtio-drivers` crate. The requests
//! are our own: the crate's block device waits without a deadline for a flush and for the
//! serial number, and asks for event indices, whose comparison in
//! `VirtQueue::should_notify` goes wrong when the 16-bit index wraps round.

mod disk;
#[cfg(test)]
pub(crate) mod fake;
mod hal;
mod many;
mod queue;

use core::mem::ManuallyDrop;

pub use disk::Disk;
use hal::{ConfigSpace, PlatformHal};
pub use many::{DEPTH, Many, Order, SLOT_BYTES, Ticket};
pub use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::PciRoot;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::{Deadline, Error, Platform, pci};

/// Red Hat's vendor ID, used by every virtio device.
const VENDOR: u16 = 0x1af4;
/// Device ID of a block device: 0x1040 + 2 (§4.1.2.1), and that of a transitional one.
const BLOCK: [u16; 2] = [0x1042, 0x1001];
/// How long a reset may take. Tens of microseconds when idle; a device with requests in
/// flight finishes them first.
const RESET_MS: u64 = 5_000;

/// A virtio block device on PCI.
pub type PciDisk<P> = Disk<P, PciTransport>;

/// Whether a function is a virtio block device.
#[must_use]
pub fn is_block(function: &pci::Function) -> bool {
    function.vendor == VENDOR && BLOCK.contains(&function.device)
}

/// Resets a virtio block device, waits until the reset is done, and brings it up.
///
/// # Errors
/// Says which step failed. The device is left as it is then, never reset again.
pub fn open<P: Platform>(function: &pci::Function) -> Result<PciDisk<P>, Error> {
    disk::start(rest::<P>(function)?, function.address)
}

/// As [`open`], for many requests in flight.
///
/// # Errors
/// As [`open`].
pub fn open_many<P: Platform>(function: &pci::Function) -> Result<Many<P, PciTransport>, Error> {
    Many::start(rest::<P>(function)?, function.address)
}

/// Resets a device and waits until the reset is done: it touches no memory any more. For
/// one that has answered so far.
///
/// # Errors
/// When it does not come to rest.
pub fn quiet<P: Platform>(function: &pci::Function) -> Result<(), Error> {
    stop::<P>(function).map(drop)
}

/// Resets a device, and lets it reach memory when that is done.
fn rest<P: Platform>(function: &pci::Function) -> Result<ManuallyDrop<PciTransport>, Error> {
    let transport = stop::<P>(function)?;
    // Only now, so that a device the crashed system had running cannot write on to its
    // old queues.
    pci::enable_bus_master::<P>(function.address);
    Ok(transport)
}

/// Resets a device.
fn stop<P: Platform>(function: &pci::Function) -> Result<ManuallyDrop<PciTransport>, Error> {
    let address = function.address;
    pci::enable_memory::<P>(address);
    let mut root = PciRoot::new(ConfigSpace::<P>::of(address.segment));
    let transport = PciTransport::new::<PlatformHal<P>, _>(&mut root, address.into())
        .map_err(|_| Error::Setup("no virtio 1.x registers"))?;
    // The transport's destructor resets the device and waits for it without a deadline.
    let mut transport = ManuallyDrop::new(transport);
    reset::<P>(&mut *transport)?;
    Ok(transport)
}

/// Resets a device and waits until it says that it is done (§4.1.4.3.2).
fn reset<P: Platform>(transport: &mut impl Transport) -> Result<(), Error> {
    transport.set_status(DeviceStatus::empty());
    if Deadline::<P>::after_ms(RESET_MS).wait(|| transport.get_status() == DeviceStatus::empty()) {
        Ok(())
    } else {
        Err(Error::Deadline("reset"))
    }
}

#[cfg(test)]
mod tests;
