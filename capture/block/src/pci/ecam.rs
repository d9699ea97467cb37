//! Configuration space in memory, for machines without the I/O ports of mechanism 1.

use super::Address;

/// Where configuration space lies in memory (PCI Express Base Specification 5.0, §7.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamWindow {
    /// Physical address of bus 0, whether the window begins there or not.
    pub address: u64,
    /// First bus in the window.
    pub first_bus: u8,
    /// Last bus in the window.
    pub last_bus: u8,
}

/// Bytes of one bus: 256 functions of 4 KiB.
const BUS_BYTES: u64 = 1 << 20;

impl EcamWindow {
    /// First byte and length of the window; `None` when it would wrap or have no bus.
    #[must_use]
    pub fn extent(&self) -> Option<(u64, u64)> {
        let buses = u64::from(self.last_bus.checked_sub(self.first_bus)?) + 1;
        let start = self.address.checked_add(u64::from(self.first_bus) * BUS_BYTES)?;
        start.checked_add(buses * BUS_BYTES)?;
        Some((start, buses * BUS_BYTES))
    }

    /// Physical address of the word at `offset` of a function; `None` when its bus is not in
    /// the window.
    #[must_use]
    pub fn place(&self, function: Address, offset: u8) -> Option<u64> {
        let number = u64::from(function.bus) << 20
            | u64::from(function.device & 31) << 15
            | u64::from(function.function & 7) << 12
            | u64::from(offset & 0xfc);
        let inside = (self.first_bus..=self.last_bus).contains(&function.bus);
        self.address.checked_add(number).filter(|_| inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_4_kib_and_a_bus_1_mib() {
        let window = EcamWindow { address: 0xe000_0000, first_bus: 2, last_bus: 3 };
        assert_eq!(window.extent(), Some((0xe020_0000, 0x20_0000)));
        let at = |bus| window.place(Address { bus, device: 31, function: 7 }, 0x13);
        assert_eq!(at(2), Some(0xe02f_f010));
        assert_eq!((at(1), at(4)), (None, None));
        let wraps = EcamWindow { address: u64::MAX - 0xffff, first_bus: 0, last_bus: 0 };
        assert_eq!(wraps.extent(), None);
        assert_eq!(EcamWindow { first_bus: 4, ..window }.extent(), None);
    }
}
