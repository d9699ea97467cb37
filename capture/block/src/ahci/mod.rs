//! SATA disks behind an AHCI controller on PCI (Serial ATA AHCI 1.3.1; commands after
//! ATA/ATAPI Command Set 3, ACS-3).
//!
//! One controller has up to 32 ports, each with a disk of its own. The controller is reset
//! once; from then on each port is driven apart from the others, by native command queueing
//! where controller and disk have it, and otherwise with one command at a time.

#[cfg(test)]
mod fake;
mod identify;
mod port;
mod register;

use port::{Abilities, Port};
use register::Port as PortRegisters;

use crate::memory::{Mmio, Registers};
use crate::polled::Polled;
use crate::{BlockDevice, Deadline, Error, Platform, pci};

/// Mass storage, serial ATA, AHCI (PCI Code and ID Assignment 1.11, §1.2).
const CLASS: u32 = 0x01_06_01;
/// The base address register of the controller's memory (ABAR, §2.1.11).
const BAR: u8 = 5;
/// Registers of the controller and of 32 ports (§3).
const REGISTER_BYTES: usize = 0x1100;
/// Ports a controller may have.
const MAX_PORTS: u8 = 32;

/// Registers of the controller (§3.1).
mod global {
    pub const CAPABILITIES: usize = 0x00;
    pub const CONTROL: usize = 0x04;
    pub const PORTS: usize = 0x0c;
}

/// GHC (§3.1.2): reset, interrupts, AHCI mode.
const RESET: u32 = 1;
const AHCI_MODE: u32 = 1 << 31;
/// CAP (§3.1.1): addresses of 64 bits, native command queueing, spin-up by command; command slots
/// less one, in bits 12:8.
const WIDE: u32 = 1 << 31;
const QUEUEING: u32 = 1 << 30;
const SLOTS_SHIFT: u32 = 8;
const STAGGERED_SPIN_UP: u32 = 1 << 27;
/// How long a reset may take. §10.4.3 allows a second; a controller with requests under
/// way may finish them first.
const RESET_MS: u64 = 5_000;
/// How long ports may take to notice what is plugged in: twice the 10 ms of §10.1.1. Every
/// controller with an empty port takes all of it.
const PRESENCE_MS: u64 = 20;

/// Whether a function is an AHCI controller.
#[must_use]
pub fn is_controller(function: &pci::Function) -> bool {
    function.class == CLASS
}

/// A controller that has been reset, and its ports.
pub struct Controller {
    inner: Hba<Mmio>,
    location: pci::Address,
}

/// Resets an AHCI controller and waits until the reset is done.
///
/// # Errors
/// Says which step failed. The device is left as it is then, never reset again.
pub fn open<P: Platform>(function: &pci::Function) -> Result<Controller, Error> {
    let location = function.address;
    let inner = Hba::new::<P>(registers::<P>(location)?)?;
    // Only now, so that commands of the crashed system cannot go on.
    pci::enable_bus_master::<P>(location);
    Ok(Controller { inner, location })
}

/// Resets a controller and waits until the reset is done: no port of it touches memory any
/// more. For one that has answered so far.
///
/// # Errors
/// When it does not come to rest.
pub fn quiet<P: Platform>(function: &pci::Function) -> Result<(), Error> {
    reset::<P>(&registers::<P>(function.address)?)
}

fn registers<P: Platform>(location: pci::Address) -> Result<Mmio, Error> {
    let bar = pci::memory_bar::<P>(location, BAR).ok_or(Error::Setup("no registers"))?;
    pci::enable_memory::<P>(location);
    Mmio::map::<P>(bar, REGISTER_BYTES)
}

/// Resets the controller, which stops every port of it (§10.4.3).
fn reset<P: Platform>(registers: &impl Registers) -> Result<(), Error> {
    let control = || registers.read(global::CONTROL);
    // A function without decoding or power reads as ones.
    if control() == u32::MAX {
        return Err(Error::Setup("the registers read as ones"));
    }
    registers.write(global::CONTROL, AHCI_MODE);
    registers.write(global::CONTROL, AHCI_MODE | RESET);
    if Deadline::<P>::after_ms(RESET_MS).wait(|| control() & RESET == 0) {
        Ok(())
    } else {
        Err(Error::Deadline("reset"))
    }
}

impl Controller {
    /// The ports with something plugged in, in order.
    pub fn ports(&self) -> impl Iterator<Item = u8> + use<> {
        let present = self.inner.present;
        (0..MAX_PORTS).filter(move |port| present & 1 << port != 0)
    }

    /// Brings up the disk at one of [`Self::ports`].
    ///
    /// # Errors
    /// Says which step failed. The port is left as it is then; others are not concerned.
    pub fn disk<P: Platform>(&self, port: u8) -> Result<impl BlockDevice + use<P>, Error> {
        self.inner.disk::<P>(port, self.location)
    }
}

/// The controller behind any registers.
struct Hba<R> {
    registers: R,
    abilities: Abilities,
    /// One bit for each port with something plugged in.
    present: u32,
}

impl<R: Registers> Hba<R> {
    /// Resets the controller and looks at its ports (§10.4.3, §10.1.2).
    fn new<P: Platform>(registers: R) -> Result<Self, Error> {
        reset::<P>(&registers)?;
        // The reset took the mode back, and left interrupts off.
        registers.write(global::CONTROL, AHCI_MODE);
        let capabilities = registers.read(global::CAPABILITIES);
        let slots = (capabilities >> SLOTS_SHIFT & 0x1f) as usize + 1;
        let depth = if capabilities & QUEUEING == 0 { 1 } else { slots };
        let abilities = Abilities { wide: capabilities & WIDE != 0, depth };
        let mut controller = Self { abilities, present: 0, registers };
        let ports = controller.registers.read(global::PORTS);
        let implemented = || (0..MAX_PORTS).filter(|port| ports & 1 << port != 0);
        if capabilities & STAGGERED_SPIN_UP != 0 {
            implemented().for_each(|port| controller.port(port).spin_up());
        }
        // All ports at once: waiting for each of the empty ones would add up.
        Deadline::<P>::after_ms(PRESENCE_MS).wait(|| {
            let found = implemented().filter(|port| controller.port(*port).detects());
            controller.present = found.fold(0, |bits, port| bits | 1 << port);
            controller.present == ports
        });
        Ok(controller)
    }

    fn port(&self, number: u8) -> PortRegisters<R> {
        PortRegisters::new(self.registers.clone(), number)
    }

    fn disk<P: Platform>(
        &self,
        port: u8,
        location: pci::Address,
    ) -> Result<Polled<P, Port<P, R>>, Error> {
        let (port, identity) = Port::start(self.port(port), self.abilities, location)?;
        Polled::new(port, identity)
    }
}

#[cfg(test)]
mod tests;
