//! NVMe controllers on PCI (NVM Express Base Specification 1.4).
//!
//! One admin queue, one I/O queue, both polled and in pages of ours; no interrupt is asked
//! for. The first namespace that has any blocks is the disk.

mod engine;
#[cfg(test)]
mod fake;
mod identify;
mod queue;

use engine::Controller;

use crate::memory::Mmio;
use crate::polled::Polled;
use crate::{BlockDevice, Error, Platform, pci};

/// Mass storage, non-volatile memory, NVM Express (PCI Code and ID Assignment 1.11, §1.2).
const CLASS: u32 = 0x01_08_02;
/// Registers used: the controller's, and the doorbells of two queues behind them.
const REGISTER_BYTES: usize = 0x2000;

/// Whether a function is an NVMe controller.
#[must_use]
pub fn is_controller(function: &pci::Function) -> bool {
    function.class == CLASS
}

/// Resets an NVMe controller, waits until the reset is done, and brings it up.
///
/// # Errors
/// Says which step failed. The device is left as it is then, never reset again.
pub fn open<P: Platform>(function: &pci::Function) -> Result<impl BlockDevice, Error> {
    let address = function.address;
    let controller = stop::<P>(address)?;
    // Only now, so that a device the crashed system had running cannot write on to its
    // old queues.
    pci::enable_bus_master::<P>(address);
    let (engine, identity) = controller.start::<P>(address)?;
    Polled::<P, _>::new(engine, identity)
}

/// Resets a controller and waits until the reset is done: it touches no memory any more. For
/// one that has answered so far.
///
/// # Errors
/// When it does not come to rest.
pub fn quiet<P: Platform>(function: &pci::Function) -> Result<(), Error> {
    stop::<P>(function.address).map(drop)
}

fn stop<P: Platform>(address: pci::Address) -> Result<Controller<Mmio>, Error> {
    let bar = pci::memory_bar::<P>(address, 0).ok_or(Error::Setup("no registers"))?;
    pci::enable_memory::<P>(address);
    Controller::reset::<P>(Mmio::map::<P>(bar, REGISTER_BYTES)?)
}

#[cfg(test)]
mod tests;
