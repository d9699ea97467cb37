//! What is added to a tree, read by another reader; damaged trees.

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node as _, Property as _};
use epitaph_monitor::devicetree::{DeviceTree, TreeError, describe, memory};
use proptest::prelude::*;

/// Puts a tree together, the way `dtc` lays it out.
#[derive(Default)]
struct Builder {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Builder {
    fn word(&mut self, value: u32) {
        self.structure.extend(value.to_be_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.structure.extend(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    fn begin(&mut self, name: &str) {
        self.word(1);
        self.padded(&[name.as_bytes(), b"\0"].concat());
    }

    fn end(&mut self) {
        self.word(2);
    }

    fn property(&mut self, name: &str, value: &[u8]) {
        let string = self.strings.len() as u32;
        self.strings.extend([name.as_bytes(), b"\0"].concat());
        self.word(3);
        self.word(value.len() as u32);
        self.word(string);
        self.padded(value);
    }

    /// Returns the tree, with `room` bytes behind it.
    fn finish(mut self, room: usize) -> Vec<u8> {
        self.word(9);
        let structure = 40 + 16;
        let strings = structure + self.structure.len();
        let total = strings + self.strings.len();
        let header = [
            0xd00d_feed,
            total,
            structure,
            strings,
            40,
            17,
            16,
            0,
            self.strings.len(),
            self.structure.len(),
        ];
        let mut bytes: Vec<u8> =
            header.iter().flat_map(|word| (*word as u32).to_be_bytes()).collect();
        bytes.resize(structure, 0);
        bytes.extend(self.structure);
        bytes.extend(self.strings);
        bytes.resize(total + room, 0xee);
        bytes
    }
}

/// A machine of two CPUs, with a secure memory in front of the client's.
fn machine(room: usize) -> Vec<u8> {
    let mut tree = Builder::default();
    tree.begin("");
    tree.property("compatible", b"test\0");
    tree.begin("secram@e000000");
    tree.property("device_type", b"memory\0");
    tree.property("reg", &[0; 16]);
    tree.end();
    tree.begin("memory@40000000");
    tree.property("device_type", b"memory\0");
    tree.property("reg", &[0x4000_0000_u64.to_be_bytes(), 0x1000_0000_u64.to_be_bytes()].concat());
    tree.end();
    tree.begin("cpus");
    tree.property("#address-cells", &1_u32.to_be_bytes());
    tree.begin("cpu-map");
    tree.begin("core0");
    tree.end();
    tree.end();
    tree.begin("cpu@0");
    tree.property("device_type", b"cpu\0");
    tree.property("enable-method", b"spin-table\0");
    tree.end();
    tree.begin("cpu@1");
    tree.property("device_type", b"cpu\0");
    tree.end();
    tree.end();
    tree.begin("chosen");
    tree.property("bootargs", b"quiet\0");
    tree.end();
    tree.end();
    tree.finish(room)
}

/// Has the other reader look at the tree in `bytes`.
fn read(bytes: &[u8]) -> Fdt<'_> {
    let total = u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes")) as usize;
    Fdt::new(&bytes[..total]).expect("a tree for another reader")
}

fn value<'a>(tree: &Fdt<'a>, path: &str, name: &str) -> Option<Vec<u8>> {
    let node = tree.find_node(path)?;
    let property = node.property(name)?;
    Some(property.value().to_vec())
}

#[test]
fn what_is_added_is_there_and_the_rest_is_as_it_was() {
    let mut bytes = machine(2000);
    let mut tree = DeviceTree::open(&mut bytes).expect("a tree");
    assert_eq!(memory(&tree, 0x4000_0000), Ok(Some(0x4000_0000..0x5000_0000)));
    assert_eq!(memory(&tree, 0x8000_0000), Ok(None));
    describe(&mut tree, true, Some(&(0x4400_0000..0x4400_1234))).expect("room");
    // A second time changes nothing that a reader sees.
    describe(&mut tree, true, Some(&(0x4400_0000..0x4400_1234))).expect("room");
    let tree = read(&bytes);
    for (path, name, wanted) in [
        ("/psci", "compatible", &b"arm,psci-1.0\0arm,psci-0.2\0"[..]),
        ("/psci", "method", b"smc\0"),
        ("/firmware/sdei", "compatible", b"arm,sdei-1.0\0"),
        ("/firmware/sdei", "method", b"smc\0"),
        ("/cpus/cpu@0", "enable-method", b"psci\0"),
        ("/cpus/cpu@1", "enable-method", b"psci\0"),
        ("/cpus/cpu@1", "device_type", b"cpu\0"),
        ("/cpus", "#address-cells", &[0, 0, 0, 1]),
        ("/chosen", "bootargs", b"quiet\0"),
        ("/chosen", "linux,initrd-start", &0x4400_0000_u64.to_be_bytes()),
        ("/chosen", "linux,initrd-end", &0x4400_1234_u64.to_be_bytes()),
        ("/", "compatible", b"test\0"),
    ] {
        assert_eq!(value(&tree, path, name).as_deref(), Some(wanted), "{path} {name}");
    }
    assert_eq!(value(&tree, "/cpus/cpu-map/core0", "enable-method"), None);
    let names: Vec<_> = tree.root().children().map(|node| node.name().to_owned()).collect();
    let wanted = ["firmware", "psci", "secram@e000000", "memory@40000000", "cpus", "chosen"];
    assert_eq!(names, wanted);
}

#[test]
fn without_sdei_there_is_no_node_for_it() {
    let mut bytes = machine(2000);
    let mut tree = DeviceTree::open(&mut bytes).expect("a tree");
    describe(&mut tree, false, None).expect("room");
    let tree = read(&bytes);
    assert!(tree.find_node("/firmware").is_none() && tree.find_node("/psci").is_some());
    assert_eq!(value(&tree, "/chosen", "linux,initrd-start"), None);
}

#[test]
fn a_tree_without_room_is_refused_and_stays_readable() {
    for room in 0..700 {
        let mut bytes = machine(room);
        let mut tree = DeviceTree::open(&mut bytes).expect("a tree");
        let described = describe(&mut tree, true, None);
        assert!(matches!(described, Ok(()) | Err(TreeError::Full)), "{room}: {described:?}");
        let tree = read(&bytes);
        assert!(tree.find_node("/cpus/cpu@1").is_some());
    }
    let mut bytes = machine(0);
    assert!(DeviceTree::open(&mut bytes[..30]).is_err());
    bytes[0] = 0;
    assert_eq!(DeviceTree::open(&mut bytes).err(), Some(TreeError::NotATree));
}

proptest! {
    /// Any damage ends in an error or in a tree, never in a panic or an endless walk.
    #[test]
    fn damage_does_no_harm(changes in proptest::collection::vec((0_usize..900, any::<u8>()), 1..12)) {
        let mut bytes = machine(400);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(mut tree) = DeviceTree::open(&mut bytes) {
            let _ = memory(&tree, 0x4000_0000);
            let _ = describe(&mut tree, true, Some(&(1..2)));
        }
    }

    #[test]
    fn noise_does_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (place, byte) in bytes.iter_mut().zip([0xd0, 0x0d, 0xfe, 0xed]) {
            *place = byte;
        }
        if let Ok(mut tree) = DeviceTree::open(&mut bytes) {
            let _ = describe(&mut tree, true, None);
        }
    }
}
