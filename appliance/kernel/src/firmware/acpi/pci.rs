//! What the firmware says of PCI: configuration space in memory, and the addresses that the
//! host bridge passes on.
//!
//! The MCFG table has the former. A machine without one may still name it in its AML, and
//! the latter stands nowhere else. As with the sleep types, no interpreter is needed for
//! either: firmware declares both as constants, and what reads like them is taken.

use handoff::facts::MAX_CONFIG_SPACES;
use handoff::{ConfigSpace, Range};

use super::{HEADER, u32_in, u64_in};

/// What is known of PCI.
#[derive(Clone, Debug, Default)]
pub struct Pci {
    /// Configuration space in memory, by segment.
    pub config_spaces: ConfigSpaces,
    /// Memory addresses below 4 GiB that the host bridge passes on.
    pub window: Option<Range>,
    /// Root buses of segment 0 beside bus 0: bit n of word n / 64 for bus n.
    pub root_buses: [u64; 4],
}

/// Parts of configuration space, those of one segment one behind the other.
pub type ConfigSpaces = heapless::Vec<ConfigSpace, MAX_CONFIG_SPACES>;

impl Pci {
    /// From the MCFG, if there is one, and the AML of the machine's first table.
    pub fn read(mcfg: Option<&[u8]>, aml: &[u8]) -> Self {
        let mut config_spaces = mcfg.map(from_mcfg).unwrap_or_default();
        if config_spaces.iter().all(|space| space.segment != 0)
            && let Some(space) = from_aml(aml)
        {
            // Without room for it there are fewer segments in the table than it has entries.
            let _ = config_spaces.insert(0, space);
        }
        let own = |space: &ConfigSpace| Range {
            start: space.address,
            bytes: (u64::from(space.last_bus) + 1) << 20,
        };
        let window = memory_windows(aml)
            .find(|window| !config_spaces.iter().any(|space| window.overlaps(&own(space))));
        Self { config_spaces, window, root_buses: [0; 4] }
    }
}

impl Pci {
    /// Adds the root buses that a table of AML names by `Name (_BBN, constant)` (ACPI 6.5,
    /// §6.5.5): a machine with several sockets has a host bridge for each, and the buses
    /// below one are not reached from another.
    pub fn add_roots(&mut self, aml: &[u8]) {
        /// NameOp, and constants (ACPI 6.5, §20.2.5.1, §20.2.3).
        const NAME: &[u8] = b"\x08_BBN";
        const BYTE: u8 = 0x0a;
        const WORD: u8 = 0x0b;
        let places = aml.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
        for rest in places.filter_map(|(at, _)| aml.get(at + NAME.len()..)) {
            let bus = match rest {
                [BYTE, bus, ..] | [WORD, bus, 0, ..] => *bus,
                // OneOp; ZeroOp is bus 0, which every walk begins with.
                [1, ..] => 1,
                _ => 0,
            };
            if bus != 0 {
                self.root_buses[usize::from(bus / 64)] |= 1 << (bus % 64);
            }
        }
    }
}

/// The entries of the table (PCI Firmware Specification 3.3, table 4-3); what there is no room
/// for is left out.
fn from_mcfg(mcfg: &[u8]) -> ConfigSpaces {
    // Behind the header: 8 reserved bytes.
    let entries = mcfg.get(HEADER + 8..).unwrap_or_default().chunks_exact(16);
    let spaces = entries.filter_map(|entry| {
        let segment = u16::from_le_bytes([entry[8], entry[9]]);
        let (first_bus, last_bus) = (entry[10], entry[11]);
        let address = u64_in(entry, 0).filter(|&address| address != 0)?;
        Some(ConfigSpace { address, segment, first_bus, last_bus, reserved: 0 })
    });
    let sound = spaces.filter(|space| space.first_bus <= space.last_bus);
    let mut spaces: ConfigSpaces = sound.take(MAX_CONFIG_SPACES).collect();
    spaces.sort_unstable_by_key(|space| (space.segment, space.first_bus));
    spaces
}

/// What `Method (_CBA) { Return (constant) }` says (PCI Firmware Specification 3.3, §4.1.3):
/// the address of bus 0 of the segment that the bridge leads to.
fn from_aml(aml: &[u8]) -> Option<ConfigSpace> {
    /// ReturnOp, DWordPrefix and QWordPrefix (ACPI 6.5, §20.2.5.3, §20.2.3).
    const RETURN: u8 = 0xa4;
    const DWORD: u8 = 0x0c;
    const QWORD: u8 = 0x0e;
    let places = aml.windows(4).enumerate().filter(|(_, window)| window == b"_CBA");
    let address = places.filter_map(|(at, _)| aml.get(at + 4..)).find_map(|rest| match rest {
        [_, RETURN, DWORD, ..] => u32_in(rest, 3).map(u64::from),
        [_, RETURN, QWORD, ..] => u64_in(rest, 3),
        _ => None,
    })?;
    let (first_bus, last_bus) = bus_numbers(aml).unwrap_or((0, u8::MAX));
    (address != 0).then_some(ConfigSpace { address, segment: 0, first_bus, last_bus, reserved: 0 })
}

/// Address space descriptors by their tag and length (ACPI 6.5, §6.4.3.5): 16 bits wide, of
/// bus numbers, and 32 bits wide, of memory.
const BUSES: [u8; 4] = [0x88, 13, 0, 2];
const MEMORY: [u8; 4] = [0x87, 23, 0, 0];

fn descriptors(aml: &[u8], tag: [u8; 4]) -> impl Iterator<Item = &[u8]> {
    let bytes = usize::from(tag[1]) + 3;
    let places = aml.windows(4).enumerate().filter(move |(_, window)| *window == tag);
    places.filter_map(move |(at, _)| aml.get(at..at + bytes))
}

/// First and last bus below the host bridge.
fn bus_numbers(aml: &[u8]) -> Option<(u8, u8)> {
    let word = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    descriptors(aml, BUSES).find_map(|bytes| {
        let (first, last) = (word(bytes, 8), word(bytes, 10));
        (first <= last && word(bytes, 14) == last - first + 1)
            .then_some((first.try_into().ok()?, last.try_into().ok()?))
    })
}

/// Memory that bridges pass on: bounds fixed, nothing translated, and the length as the
/// bounds have it, which bytes that only look like a descriptor do not.
fn memory_windows(aml: &[u8]) -> impl Iterator<Item = Range> {
    /// General flags: not for the device's own use, both bounds fixed.
    const CONSUMER: u8 = 1;
    const FIXED: u8 = 0b1100;
    descriptors(aml, MEMORY).filter_map(|bytes| {
        let (first, last) = (u32_in(bytes, 10)?, u32_in(bytes, 14)?);
        let (translation, length) = (u32_in(bytes, 18)?, u32_in(bytes, 22)?);
        let fits = last.checked_sub(first)?.checked_add(1)? == length;
        // The memory of a graphics card is passed on as well, below 1 MiB, and is no place
        // for anyone else.
        (bytes[4] & (CONSUMER | FIXED) == FIXED && fits && translation == 0 && first >= 1 << 20)
            .then_some(Range { start: first.into(), bytes: length.into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host bridge of a machine that QEMU calls microvm, as its firmware has it.
    const BRIDGE: &[u8] = &[
        0x14, 0x0c, b'_', b'C', b'B', b'A', 0x00, 0xa4, 0x0c, 0x00, 0x00, 0x00, 0xe0, 0x08, b'_',
        b'C', b'R', b'S', 0x11, 0x4e, 0x05, 0x0a, 0x5a, 0x88, 0x0d, 0x00, 0x02, 0x0c, 0x00, 0x00,
        0x00, 0x00, 0x00, 0xff, 0x00, 0x00, 0x00, 0x00, 0x01, 0x87, 0x17, 0x00, 0x00, 0x0c, 0x01,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc0, 0xff, 0xff, 0xff, 0xdf, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x20,
    ];

    fn mcfg(entries: &[(u64, u16, u8, u8)]) -> std::vec::Vec<u8> {
        let mut bytes = std::vec![0; HEADER + 8];
        for (address, segment, first, last) in entries {
            bytes.extend(address.to_le_bytes());
            bytes.extend(segment.to_le_bytes());
            bytes.extend([*first, *last, 0, 0, 0, 0]);
        }
        bytes
    }

    /// Segment, address and buses of all parts.
    fn spaces(pci: &Pci) -> std::vec::Vec<(u16, u64, u8, u8)> {
        let spaces = pci.config_spaces.iter();
        spaces
            .map(|space| (space.segment, space.address, space.first_bus, space.last_bus))
            .collect()
    }

    #[test]
    fn every_host_bridge_names_its_root_bus() {
        let mut pci = Pci::default();
        // Constants of all widths; a method of that name, and a name cut off, are none.
        pci.add_roots(b"..\x08_BBN\x0a\x40..\x08_BBN\x0b\x80\x00..\x08_BBN\x00..\x08_BBN\x01");
        pci.add_roots(b"\x14\x08_BBN\x00\xa4\x0a\x20_BBN\x0a\x10\x08_BBN\x0b\x00\x01");
        pci.add_roots(b"\x08_BBN");
        pci.add_roots(b"\x08_BBN\x0a\xff");
        assert_eq!(pci.root_buses, [1 << 1, 1, 1, 1 << 63]);
    }

    #[test]
    fn the_table_goes_before_the_aml() {
        let table = mcfg(&[(0x7000_0000, 1, 0, 255), (0xb000_0000, 0, 0, 127)]);
        let pci = Pci::read(Some(&table), BRIDGE);
        assert_eq!(spaces(&pci), [(0, 0xb000_0000, 0, 127), (1, 0x7000_0000, 0, 255)]);
    }

    #[test]
    fn every_segment_of_the_table_is_taken_in_order() {
        let table = mcfg(&[
            (0x7000_0000, 2, 128, 255),
            (0x4000_0000, 1, 9, 8),
            (0, 3, 0, 255),
            (0x5000_0000, 2, 0, 127),
            (0x6000_0000, 1, 0, 31),
        ]);
        let rest = [(1, 0x6000_0000, 0, 31), (2, 0x5000_0000, 0, 127), (2, 0x7000_0000, 128, 255)];
        assert_eq!(spaces(&Pci::read(Some(&table), &[])), rest);
        // Segment 0 is then the AML's.
        let with_aml = spaces(&Pci::read(Some(&table), BRIDGE));
        assert_eq!(with_aml, [&[(0, 0xe000_0000, 0, 255)][..], &rest].concat());
        let many: std::vec::Vec<_> = (0..20).map(|segment| (0x1000_0000, segment, 0, 0)).collect();
        assert_eq!(spaces(&Pci::read(Some(&mcfg(&many)), &[])).len(), MAX_CONFIG_SPACES);
        for length in 0..table.len() {
            assert!(Pci::read(Some(&table[..length]), &[]).config_spaces.len() <= 3);
        }
    }

    #[test]
    fn a_bridge_without_a_table_says_it_itself() {
        let pci = Pci::read(None, BRIDGE);
        assert_eq!(spaces(&pci), [(0, 0xe000_0000, 0, 255)]);
        assert_eq!(pci.window, Some(Range { start: 0xc000_0000, bytes: 0x2000_0000 }));
    }

    #[test]
    fn what_only_looks_like_a_window_is_none() {
        for (at, value) in [(61, 1), (43, 0x0d), (43, 0x04), (57, 1)] {
            let mut aml = BRIDGE.to_vec();
            aml[at] = value;
            assert_eq!(Pci::read(None, &aml).window, None, "byte {at}");
        }
        for length in 0..BRIDGE.len() {
            assert_eq!(Pci::read(None, &BRIDGE[..length]).window, None);
        }
    }
}
