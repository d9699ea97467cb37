//! AML as firmware has it, byte by byte.

extern crate std;

use std::vec;

use super::*;

/// The host bridge of a machine that QEMU calls microvm, as its firmware has it.
const BRIDGE: &[u8] = &[
    0x14, 0x0c, b'_', b'C', b'B', b'A', 0x00, 0xa4, 0x0c, 0x00, 0x00, 0x00, 0xe0, 0x08, b'_', b'C',
    b'R', b'S', 0x11, 0x4e, 0x05, 0x0a, 0x5a, 0x88, 0x0d, 0x00, 0x02, 0x0c, 0x00, 0x00, 0x00, 0x00,
    0x00, 0xff, 0x00, 0x00, 0x00, 0x00, 0x01, 0x87, 0x17, 0x00, 0x00, 0x0c, 0x01, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0xc0, 0xff, 0xff, 0xff, 0xdf, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x20,
];

fn aml(bytes: &[u8]) -> Aml {
    let mut aml = Aml::default();
    aml.look(bytes, bytes.len(), true);
    aml
}

#[test]
fn every_host_bridge_names_its_root_bus() {
    let mut of = Aml::default();
    let mut add = |bytes: &[u8]| of.look(bytes, bytes.len(), false);
    // Constants of all widths; a name cut off and a bus that does not exist are none.
    add(b"..\x08_BBN\x0a\x40..\x08_BBN\x0b\x80\x00..\x08_BBN\x00..\x08_BBN\x01");
    add(b"\x08_BBN\x0b\x00\x01\x08_BBN");
    add(b"\x08_BBN\x0a\xff\x08_BBN\x0c\x41\x00\x00\x00\x08_BBN\x0c\x42\x00\x01\x00");
    assert_eq!(of.root_buses, [1 << 1, 0b11, 1, 1 << 63]);
}

#[test]
fn a_root_bus_that_a_method_returns_is_found() {
    let root = |bytes: &[u8]| aml(bytes).root_buses;
    assert_eq!(root(b"\x14\x0a_BBN\x00\xa4\x0a\x20"), [1 << 32, 0, 0, 0]);
    assert_eq!(root(b"\x14\x08_BBN\x08\xa4\x01"), [1 << 1, 0, 0, 0]);
    // Returns a field, and is called by another method.
    assert_eq!(root(b"\x14\x0c_BBN\x00\xa4BUS0"), [0; 4]);
    assert_eq!(root(b"\x14\x0c_STA\x00\xa4_BBN"), [0; 4]);
}

#[test]
fn a_host_bridge_says_where_configuration_space_and_windows_are() {
    let of = aml(BRIDGE);
    assert_eq!(of.config_space, Some(0xe000_0000));
    assert_eq!(of.buses, Some((0, 255)));
    assert_eq!(of.memory_windows, [Range { start: 0xc000_0000, bytes: 0x2000_0000 }]);
    // In a secondary table it is another bridge's.
    let mut secondary = Aml::default();
    secondary.look(BRIDGE, BRIDGE.len(), false);
    assert_eq!((secondary.config_space, secondary.buses), (None, None));
    assert!(secondary.memory_windows.is_empty());
}

#[test]
fn bytes_that_only_look_like_a_window_are_none() {
    for (at, value) in [(61, 1), (43, 0x0d), (43, 0x04), (57, 1)] {
        let mut bytes = BRIDGE.to_vec();
        bytes[at] = value;
        assert!(aml(&bytes).memory_windows.is_empty(), "byte {at}");
    }
    for length in 0..BRIDGE.len() {
        assert!(aml(&BRIDGE[..length]).memory_windows.is_empty());
    }
}

#[test]
fn the_sleep_package_is_found_among_other_uses_of_its_name() {
    let sleep_types = |bytes: &[u8]| aml(bytes).sleep_types;
    let package = |elements: &[u8]| {
        let mut aml = b"_S5_\x12".to_vec();
        aml.extend([elements.len() as u8 + 2, 4]);
        aml.extend(elements);
        aml
    };
    // Byte, word and double word; zero and one; a computed element is no constant.
    assert_eq!(sleep_types(&package(&[0x0a, 7, 0x0b, 6, 0])), Some((7, 6)));
    assert_eq!(sleep_types(&package(&[0x0c, 3, 0, 0, 0, 1])), Some((3, 1)));
    assert_eq!(sleep_types(&package(&[0, 0, 0, 0])), Some((0, 0)));
    assert_eq!(sleep_types(&package(&[0x0a, 5])), Some((5, 5)));
    assert_eq!(sleep_types(&package(b"ABCD")), None);
    // A package length of two bytes.
    assert_eq!(sleep_types(b"_S5_\x12\x46\x00\x04\x0a\x05\x0a\x05"), Some((5, 5)));
    let mut bytes = b"\x5c_S5_\x70".to_vec();
    bytes.extend(package(b"ABCD"));
    bytes.extend(package(&[0x0a, 5, 0x0a, 4]));
    assert_eq!(sleep_types(&bytes), Some((5, 4)));
    for cut in [&b"_S5_\x12"[..], b"_S5_\x12\xff\x04\x0a", b"_S5_\x12\x06\x04\x0b\x05"] {
        assert_eq!(sleep_types(cut), None);
    }
}

#[test]
fn a_declaration_across_two_pieces_is_found() {
    struct Ram(std::vec::Vec<u8>);
    impl crate::PhysicalMemory for Ram {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), crate::Unreadable> {
            let start = usize::try_from(address).map_err(|_| crate::Unreadable)?;
            let end = start.checked_add(buffer.len()).ok_or(crate::Unreadable)?;
            buffer.copy_from_slice(self.0.get(start..end).ok_or(crate::Unreadable)?);
            Ok(())
        }
    }
    for before in PIECE - BRIDGE.len()..PIECE + 2 {
        let mut bytes = vec![0; HEADER as usize + before];
        bytes.extend(BRIDGE);
        let table = Table { address: 0, bytes: bytes.len() as u32 };
        let ram = Ram(bytes);
        let mut of = Aml::default();
        of.look_through(&Reader::new(&ram, u64::MAX), &table, true);
        assert_eq!((of.config_space, of.memory_windows.len()), (Some(0xe000_0000), 1), "{before}");
    }
}
