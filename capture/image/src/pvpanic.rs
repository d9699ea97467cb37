//! Tells the host that the capture image has taken over, through QEMU's pvpanic device.
//!
//! Event bit 1, `CRASHLOADED`, lets whoever watches the machine know of the crash while the
//! dump is still being written; bit 0 would let the host end the machine on the spot
//! (QEMU, `docs/specs/pvpanic.rst`). Reading the device gives the events it knows.
//!
//! There are two kinds: one at an I/O port, which the appliance has learnt from the host at
//! boot, and one on PCI, a single register in memory.

use block::pci::{self, Address, Function};
use machine::port;

use crate::console::say;
use crate::physical::{CapturePlatform, Register};
use crate::rehearsal;

/// The device on PCI: vendor and device ID (QEMU, `docs/specs/pci-ids.rst`).
const ON_PCI: (u16, u16) = (0x1b36, 0x0011);
/// The event, as a bit of both reading and writing.
const CRASHLOADED: u8 = 1 << 1;
/// What is read where there is no device.
const NOBODY: u8 = 0xff;

/// Tells the one at I/O port `known`; 0 where there is none.
pub fn taken_over(known: u32) {
    let Ok(known @ 1..) = u16::try_from(known) else { return };
    if rehearsal::under_way() {
        return;
    }
    tell(port::read8(known), |event| port::write8(known, event));
}

/// Whether a function is the device on PCI.
pub fn is_on_pci(function: &Function) -> bool {
    (function.vendor, function.device) == ON_PCI
}

/// Tells the one on PCI, if there is one, once devices can be reached.
pub fn taken_over_by_pci(found: Option<Address>) {
    let Some(at) = found else { return };
    if rehearsal::under_way() {
        return;
    }
    let Some(register) = pci::memory_bar::<CapturePlatform>(at, 0) else { return };
    pci::enable_memory::<CapturePlatform>(at);
    if let Some(register) = Register::map(register) {
        tell(register.read(), |event| register.write(event));
    }
}

fn tell(events: u8, write: impl FnOnce(u8)) {
    if events != NOBODY && events & CRASHLOADED != 0 {
        write(CRASHLOADED);
        say!("capture: the host was told, by pvpanic");
    }
}
