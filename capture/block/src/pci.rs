//! PCI configuration space: finding functions and letting them reach memory.
//!
//! Register numbers are those of the PCI Local Bus Specification 3.0, chapter 6, and the
//! PCI-to-PCI Bridge Architecture Specification 1.2, chapter 3.

mod assign;
mod ecam;
mod roots;

use core::fmt;

pub use assign::assign;
pub use ecam::{ConfigWay, EcamWindow, RootBuses, root};
pub use roots::{Probe, probe_roots};

use crate::Platform;

/// Vendor and device ID.
const ID: u8 = 0x00;
/// Command and status.
const COMMAND: u8 = 0x04;
/// Class code, sub-class, programming interface, revision.
const CLASS: u8 = 0x08;
/// Header type, among others.
const HEADER: u8 = 0x0c;
/// First base address register of six.
const BAR0: u8 = 0x10;
const BARS: u8 = 6;
/// Primary, secondary and subordinate bus number of a bridge.
const BRIDGE_BUSES: u8 = 0x18;

/// The function answers to memory accesses.
const COMMAND_MEMORY: u32 = 1 << 1;
/// The function may access memory itself.
const COMMAND_BUS_MASTER: u32 = 1 << 2;
/// The function raises no INTx interrupt.
const COMMAND_NO_INTX: u32 = 1 << 10;

/// Base class of bridges (PCI Code and ID Assignment 1.11, §1.7).
const CLASS_BRIDGE: u32 = 0x06;

/// Header type: the device has more than one function.
const SEVERAL: u32 = 1 << 7;
/// Header type: what kind of header it is.
const HEADER_KIND: u32 = 0x7f;
/// That of a PCI-to-PCI bridge.
const HEADER_BRIDGE: u32 = 1;

/// Root buses asked for.
const MAX_ROOTS: usize = 256;

/// Vendor ID of an absent function.
const NO_VENDOR: u16 = 0xffff;

/// Segment, bus, device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Segment group, 0 to 65535; 0 where there are no others.
    pub segment: u16,
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Address {
    /// The word for port 0xCF8 that selects `offset` of this function (mechanism 1 of the
    /// PCI Local Bus Specification 3.0, §3.2.2.3.2), which reaches segment 0 only.
    #[must_use]
    pub const fn mechanism_1(&self, offset: u8) -> u32 {
        1 << 31
            | (self.bus as u32) << 16
            | (self.device as u32 & 31) << 11
            | (self.function as u32 & 7) << 8
            | (offset as u32 & 0xfc)
    }

    /// Returns the number by which a function travels between images: segment in bits 31:16,
    /// bus in 15:8, device in 7:3, function in 2:0.
    #[must_use]
    pub const fn number(self) -> u32 {
        (self.segment as u32) << 16
            | (self.bus as u32) << 8
            | (self.device as u32 & 31) << 3
            | (self.function as u32 & 7)
    }

    /// Returns the address that has this [number](Self::number).
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self {
            segment: (number >> 16) as u16,
            bus: (number >> 8) as u8,
            device: (number as u8) >> 3,
            function: number as u8 & 7,
        }
    }
}

/// `bus:device.function`, with the segment in front where it is not 0.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// A function found on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: Address,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code in bits 23:16, sub-class in 15:8, programming interface in 7:0.
    pub class: u32,
}

/// Calls `found` for every function of every bus that is reachable from a
/// [root bus](Platform::pci_root), until it returns `false`. Each bus of a segment is visited
/// once, so a bridge that names an earlier bus, by mistake or by damage, cannot make the walk
/// endless.
pub fn scan<P: Platform>(mut found: impl FnMut(Function) -> bool) {
    let mut seen = [false; 256];
    let mut segment = 0;
    for (of, root) in (0..MAX_ROOTS).map_while(P::pci_root) {
        if of != segment {
            (seen, segment) = ([false; 256], of);
        }
        if !scan_from::<P>(segment, root, &mut seen, &mut found) {
            return;
        }
    }
}

/// Walks over the buses behind one root bus; returns `false` when `found` has had enough.
fn scan_from<P: Platform>(
    segment: u16,
    root: u8,
    seen: &mut [bool; 256],
    found: &mut impl FnMut(Function) -> bool,
) -> bool {
    let mut waiting: heapless::Vec<u8, 256> = heapless::Vec::new();
    let mut visit = |bus: u8, waiting: &mut heapless::Vec<u8, 256>| {
        if !core::mem::replace(&mut seen[usize::from(bus)], true) {
            // There are as many places as buses, and each is pushed once.
            let _ = waiting.push(bus);
        }
    };
    visit(root, &mut waiting);
    while let Some(bus) = waiting.pop() {
        for device in 0..32 {
            let mut functions = 1;
            let mut function = 0;
            while function < functions {
                let address = Address { segment, bus, device, function };
                let id = P::pci_read(address, ID);
                if id as u16 == NO_VENDOR {
                    // Without the first function there is no device.
                    functions = if function == 0 { 0 } else { functions };
                } else {
                    let header = P::pci_read(address, HEADER) >> 16;
                    if function == 0 && header & SEVERAL != 0 {
                        functions = 8;
                    }
                    if let Some(secondary) = bridge_to::<P>(address, header) {
                        visit(secondary, &mut waiting);
                    }
                    let class = P::pci_read(address, CLASS) >> 8;
                    let device = (id >> 16) as u16;
                    if !found(Function { address, vendor: id as u16, device, class }) {
                        return false;
                    }
                }
                function += 1;
            }
        }
    }
    true
}

/// The bus behind a function with this header type, if that is a PCI-to-PCI bridge.
fn bridge_to<P: Platform>(address: Address, header: u32) -> Option<u8> {
    if header & HEADER_KIND != HEADER_BRIDGE {
        return None;
    }
    let secondary = (P::pci_read(address, BRIDGE_BUSES) >> 8) as u8;
    (secondary != 0).then_some(secondary)
}

/// Where the memory of base address register `index` is; `None` when it is no memory, or
/// the firmware gave it no address.
#[must_use]
pub fn memory_bar<P: Platform>(address: Address, index: u8) -> Option<u64> {
    let read = |index: u8| P::pci_read(address, BAR0 + 4 * index);
    let low = read(index);
    // Bit 0: I/O ports; bits 2:1 = 2: 64 bits wide (§6.2.5.1).
    if low & 1 != 0 {
        return None;
    }
    let high = if low & 0b110 == 0b100 && index + 1 < BARS { read(index + 1) } else { 0 };
    let start = u64::from(high) << 32 | u64::from(low & !0xf);
    (start != 0).then_some(start)
}

/// Lets a function answer to memory accesses, and keeps its interrupt line quiet.
pub fn enable_memory<P: Platform>(address: Address) {
    set_command::<P>(address, COMMAND_MEMORY | COMMAND_NO_INTX);
}

/// Lets a function access memory itself.
pub fn enable_bus_master<P: Platform>(address: Address) {
    set_command::<P>(address, COMMAND_BUS_MASTER);
}

/// What [`silence`] is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Take bus mastering away.
    Taken,
    /// Leave all as it is.
    Counted,
}

/// Takes bus mastering from every function but the bridges and those of `but`, by their
/// [numbers](Address::number), and returns how many had it. Only counts them where that is all
/// that is `wanted`. All that it `met` are handed on, so that nobody has to walk again.
///
/// Whatever the crashed system had under way, a network card that receives, a disk that
/// reads, goes on by itself and would change memory while it is being written out, or
/// overwrite the capture image's own. A bridge passes on what those behind it do, the
/// device the dump goes to among them, so bridges keep it. Interrupts sent as messages
/// are writes to memory, and end here too.
///
/// A function with requests in flight belongs to `but`: taking bus mastering from a virtual
/// one waits for its requests, as a reset does, and may never return.
pub fn silence<P: Platform>(but: &[u32], wanted: Silence, mut met: impl FnMut(&Function)) -> usize {
    let mut silenced = 0;
    scan::<P>(|function| {
        met(&function);
        let left = function.class >> 16 == CLASS_BRIDGE || but.contains(&function.address.number());
        if !left {
            let command = P::pci_read(function.address, COMMAND) & 0xffff;
            if command & COMMAND_BUS_MASTER != 0 {
                if wanted == Silence::Taken {
                    P::pci_write(function.address, COMMAND, command & !COMMAND_BUS_MASTER);
                }
                silenced += 1;
            }
        }
        true
    });
    silenced
}

/// Takes its way to memory from a function.
pub fn disable_bus_master<P: Platform>(address: Address) {
    let command = P::pci_read(address, COMMAND) & 0xffff;
    P::pci_write(address, COMMAND, command & !COMMAND_BUS_MASTER);
}

fn set_command<P: Platform>(address: Address, bits: u32) {
    // The status half is write-one-to-clear: zeros leave it alone.
    let command = P::pci_read(address, COMMAND) & 0xffff;
    P::pci_write(address, COMMAND, command | bits);
}

#[cfg(test)]
mod tests;
