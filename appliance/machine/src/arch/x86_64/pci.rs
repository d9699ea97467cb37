//! PCI configuration space by I/O ports: mechanism 1 of the PCI Local Bus Specification 3.0,
//! §3.2.2.3.2.

use super::port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// Bit 31 of the address: the data port leads to configuration space.
const ENABLE: u32 = 1 << 31;

/// Reads the word that `selector` names.
#[must_use]
pub fn read(selector: u32) -> u32 {
    port::write32(ADDRESS, selector);
    port::read32(DATA)
}

/// Writes the word that `selector` names.
pub fn write(selector: u32, value: u32) {
    port::write32(ADDRESS, selector);
    port::write32(DATA, value);
}

/// Whether anyone answers at the ports: the address keeps what was written to it.
#[must_use]
pub fn answers() -> bool {
    port::write32(ADDRESS, ENABLE);
    port::read32(ADDRESS) == ENABLE
}
