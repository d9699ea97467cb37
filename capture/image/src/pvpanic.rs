//! Tells the host that the capture image has taken over, through QEMU's pvpanic device.
//!
//! Event bit 1, `CRASHLOADED`, lets whoever watches the machine know of the crash while the
//! dump is still being written; bit 0 would let the host end the machine on the spot
//! (QEMU, `docs/specs/pvpanic.rst`). Reading the port gives the events the device knows.

use machine::{cpu, port};

use crate::console::say;

/// Where the device is unless the host was told otherwise.
const USUAL_PORT: u16 = 0x505;
/// The event, as a bit of both reading and writing.
const CRASHLOADED: u8 = 1 << 1;
/// What is read where there is no device.
const NOBODY: u8 = 0xff;

/// Tells it, if there is such a device. `known` is its port when that was found out, 0
/// otherwise; a machine that is not virtual is not asked at a guess.
pub fn taken_over(known: u32) {
    let port = match u16::try_from(known) {
        Ok(0) if cpu::is_virtual() => USUAL_PORT,
        Ok(0) | Err(_) => return,
        Ok(known) => known,
    };
    let events = port::read8(port);
    if events != NOBODY && events & CRASHLOADED != 0 {
        port::write8(port, CRASHLOADED);
        say!("capture: the host was told, by pvpanic");
    }
}
