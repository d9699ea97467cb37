//! NVMe controllers on PCI (NVM Express Base Specification 1.4).
//!
//! One admin queue, one I/O queue, both polled and in pages of ours; no interrupt is asked
//! for. Every active namespace that has blocks is a disk; they are driven one at a time.

mod engine;
#[cfg(test)]
mod fake;
mod identify;
mod queue;

pub use engine::MAX_NAMESPACES;
use engine::{Controller as Reset, Started};

use crate::memory::Mmio;
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

/// A controller that is up, and its namespaces.
pub struct Controller {
    inner: Started<Mmio>,
    location: pci::Address,
}

/// Resets an NVMe controller, waits until the reset is done, and brings it up.
///
/// # Errors
/// Says which step failed. The device is left as it is then, never reset again.
pub fn open<P: Platform>(function: &pci::Function) -> Result<Controller, Error> {
    let location = function.address;
    let controller = stop::<P>(location)?;
    // Only now, so that a device the crashed system had running cannot write on to its
    // old queues.
    pci::enable_bus_master::<P>(location);
    Ok(Controller { inner: controller.start::<P>()?, location })
}

impl Controller {
    /// Returns the identifier of the namespace at `index` of the list, which is ascending and
    /// has [`MAX_NAMESPACES`] at most.
    #[must_use]
    pub fn namespace(&self, index: usize) -> Option<u32> {
        self.inner.namespaces.get(index).copied()
    }

    /// Returns true if the controller has more namespaces than are listed.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.inner.more
    }

    /// Brings up the namespace with an identifier of [`Self::namespace`].
    ///
    /// # Errors
    /// [`Error::NotADisk`] when it has no blocks; otherwise says which step failed.
    pub fn disk<P: Platform>(
        &mut self,
        namespace: u32,
    ) -> Result<impl BlockDevice + use<'_, P>, Error> {
        self.inner.namespace::<P>(namespace, self.location)?.ok_or(Error::NotADisk)
    }
}

/// Resets a controller and waits until the reset is done: it touches no memory any more. For
/// one that has answered so far.
///
/// # Errors
/// When it does not come to rest.
pub fn quiet<P: Platform>(function: &pci::Function) -> Result<(), Error> {
    stop::<P>(function.address).map(drop)
}

fn stop<P: Platform>(address: pci::Address) -> Result<Reset<Mmio>, Error> {
    let bar = pci::memory_bar::<P>(address, 0).ok_or(Error::Setup("no registers"))?;
    pci::enable_memory::<P>(address);
    Reset::reset::<P>(Mmio::map::<P>(bar, REGISTER_BYTES)?)
}

#[cfg(test)]
mod tests;
