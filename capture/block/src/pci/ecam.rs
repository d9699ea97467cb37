//! Configuration space in memory: for machines without the I/O ports of mechanism 1, and for
//! segments that those do not reach.

use super::Address;

/// Where configuration space lies in memory (PCI Express Base Specification 5.0, §7.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamWindow {
    /// Physical address of bus 0, whether the window begins there or not.
    pub address: u64,
    /// Segment group that the window is of.
    pub segment: u16,
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

    /// Physical address of the word at `offset` of a function; `None` when its bus or its
    /// segment is not in the window.
    #[must_use]
    pub fn place(&self, function: Address, offset: u8) -> Option<u64> {
        let number = u64::from(function.bus) << 20
            | u64::from(function.device & 31) << 15
            | u64::from(function.function & 7) << 12
            | u64::from(offset & 0xfc);
        let inside = self.segment == function.segment
            && (self.first_bus..=self.last_bus).contains(&function.bus);
        self.address.checked_add(number).filter(|_| inside)
    }
}

/// The way to a word of configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigWay {
    /// Through memory, at this physical address.
    Memory(u64),
    /// Through the I/O ports of mechanism 1.
    Ports,
    /// There is none: no function answers.
    Nowhere,
}

impl ConfigWay {
    /// Returns the way to the word at `offset` of a function, by one of `windows`; segment 0 is
    /// reached through I/O ports where no window is of it.
    #[must_use]
    pub fn to(windows: &[EcamWindow], function: Address, offset: u8) -> Self {
        match windows.iter().find_map(|window| window.place(function, offset)) {
            Some(at) => Self::Memory(at),
            None if function.segment == 0 && by_ports(windows) => Self::Ports,
            None => Self::Nowhere,
        }
    }
}

/// Returns true if segment 0 is reached through I/O ports.
fn by_ports(windows: &[EcamWindow]) -> bool {
    windows.iter().all(|window| window.segment != 0)
}

/// Root buses of segment 0 beside its first bus: bit n of word n / 64 for bus n.
pub type RootBuses = [u64; 4];

/// Returns segment and number of root bus `index`, for
/// [`Platform::pci_root`](crate::Platform::pci_root): bus 0 of segment 0 where that is reached
/// through I/O ports, the `further` root buses of that segment, and the first bus of every
/// window.
#[must_use]
pub fn root(windows: &[EcamWindow], further: &RootBuses, index: usize) -> Option<(u16, u8)> {
    let first = |index| match (by_ports(windows), index) {
        (true, 0) => Some((0, 0)),
        (true, index) => windows.get(index - 1).map(|window| (window.segment, window.first_bus)),
        (false, index) => windows.get(index).map(|window| (window.segment, window.first_bus)),
    };
    // One segment behind the other: those of segment 0 stand behind its first bus.
    match index.checked_sub(1) {
        None => first(0),
        Some(nth) => {
            let bus = |bus: &u8| further[usize::from(*bus / 64)] >> (bus % 64) & 1 != 0;
            let count = further.iter().map(|word| word.count_ones() as usize).sum::<usize>();
            match (0..=u8::MAX).filter(bus).nth(nth) {
                Some(bus) => Some((0, bus)),
                None => first(index - count),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_reached_by_ports_or_by_their_windows() {
        let window = |segment, first_bus| EcamWindow {
            address: 0x1000_0000 * u64::from(segment + 1),
            segment,
            first_bus,
            last_bus: 255,
        };
        let way = |windows: &[EcamWindow], segment| {
            ConfigWay::to(windows, Address { segment, bus: 4, device: 0, function: 0 }, 0)
        };
        let others = [window(1, 0), window(2, 4)];
        assert_eq!(way(&others, 0), ConfigWay::Ports);
        assert_eq!(way(&others, 2), ConfigWay::Memory(0x3040_0000));
        assert_eq!(way(&others, 3), ConfigWay::Nowhere);
        let roots = |windows: &[EcamWindow]| {
            (0..9).map_while(|index| root(windows, &[0; 4], index)).collect::<Vec<_>>()
        };
        assert_eq!(roots(&others), [(0, 0), (1, 0), (2, 4)]);
        assert_eq!(roots(&[]), [(0, 0)]);
        let all = [window(0, 2), window(1, 0)];
        assert_eq!(way(&all, 0), ConfigWay::Memory(0x1040_0000));
        let below = Address { segment: 0, bus: 1, device: 0, function: 0 };
        assert_eq!(ConfigWay::to(&all, below, 0), ConfigWay::Nowhere);
        assert_eq!(roots(&all), [(0, 2), (1, 0)]);
        // Further root buses of segment 0 come before the next segment.
        let further = [1 << 8, 1, 0, 1 << 63];
        let roots = |windows: &[EcamWindow]| {
            (0..9).map_while(|index| root(windows, &further, index)).collect::<Vec<_>>()
        };
        assert_eq!(roots(&[]), [(0, 0), (0, 8), (0, 64), (0, 255)]);
        assert_eq!(roots(&all), [(0, 2), (0, 8), (0, 64), (0, 255), (1, 0)]);
    }

    #[test]
    fn a_function_has_4_kib_and_a_bus_1_mib() {
        let window = EcamWindow { address: 0xe000_0000, segment: 0, first_bus: 2, last_bus: 3 };
        assert_eq!(window.extent(), Some((0xe020_0000, 0x20_0000)));
        let place =
            |segment, bus| window.place(Address { segment, bus, device: 31, function: 7 }, 0x13);
        let at = |bus| place(0, bus);
        assert_eq!(place(1, 2), None);
        assert_eq!(at(2), Some(0xe02f_f010));
        assert_eq!((at(1), at(4)), (None, None));
        let wraps = EcamWindow { address: u64::MAX - 0xffff, first_bus: 0, last_bus: 0, ..window };
        assert_eq!(wraps.extent(), None);
        assert_eq!(EcamWindow { first_bus: 4, ..window }.extent(), None);
    }
}
