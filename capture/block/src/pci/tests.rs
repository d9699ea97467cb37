use super::*;
use crate::virtio::fake::{CONFIG, Fake, ROOTS};

fn put(at: (u8, u8, u8), offset: u8, value: u32) {
    CONFIG.with_borrow_mut(|config| config.insert((at.0, at.1, at.2, offset), value));
}

fn function(at: (u8, u8, u8), id: u32, header: u8) {
    put(at, ID, id);
    put(at, HEADER, u32::from(header) << 16);
}

fn bridge(at: (u8, u8, u8), secondary: u8) {
    function(at, 0x000c_1b36, 1);
    put(at, BRIDGE_BUSES, u32::from(secondary) << 8);
}

fn found() -> Vec<String> {
    let mut found = Vec::new();
    scan::<Fake>(|function| {
        found.push(function.address.to_string());
        true
    });
    found.sort();
    found
}

#[test]
fn functions_behind_bridges_are_found_once() {
    function((0, 0, 0), 0x29c0_8086, 0);
    bridge((0, 2, 0), 1);
    bridge((1, 0, 0), 2);
    function((2, 5, 0), 0x1042_1af4, 0);
    // Back to where it came from, to a bus seen already, and to none.
    bridge((2, 6, 0), 0);
    bridge((2, 7, 0), 1);
    assert_eq!(found(), ["00:00.0", "00:02.0", "01:00.0", "02:05.0", "02:06.0", "02:07.0"]);
}

#[test]
fn every_root_bus_of_every_segment_is_walked() {
    function((0, 1, 0), 0x29c0_8086, 0);
    bridge((64, 0, 0), 65);
    function((65, 0, 0), 0x1042_1af4, 0);
    assert_eq!(found(), ["00:01.0"]);
    // Bus 65 is reached twice: by its bridge and as a root.
    ROOTS.set(vec![(0, 0), (0, 64), (0, 65), (1, 8), (0xfffe, 0), (0xffff, 8)]);
    let all = ["0001:08:01.0", "00:01.0", "40:00.0", "41:00.0", "ffff:08:01.0"];
    assert_eq!(found(), all);
}

#[test]
fn a_number_says_the_segment_too() {
    for (number, text) in [
        (0, "00:00.0"),
        (0xffff, "ff:1f.7"),
        (0x0001_0000, "0001:00:00.0"),
        (0x1234_0810, "1234:08:02.0"),
    ] {
        let address = Address::from_number(number);
        assert_eq!((address.number(), address.to_string().as_str()), (number, text));
    }
}

#[test]
fn functions_other_than_the_first_count_only_where_there_are_several() {
    function((0, 1, 0), 0x0001_8086, 0x80);
    function((0, 1, 3), 0x1042_1af4, 0);
    function((0, 2, 0), 0x0001_8086, 0);
    function((0, 2, 3), 0x1042_1af4, 0);
    assert_eq!(found(), ["00:01.0", "00:01.3", "00:02.0"]);
}

#[test]
fn a_function_is_enabled_bit_by_bit() {
    let at = Address { segment: 0, bus: 0, device: 3, function: 0 };
    put((0, 3, 0), ID, 0x1042_1af4);
    put((0, 3, 0), COMMAND, 0x0010_0001);
    enable_memory::<Fake>(at);
    // The status half is written as zeros, which a real device ignores.
    assert_eq!(Fake::pci_read(at, COMMAND), 0x0403);
    enable_bus_master::<Fake>(at);
    assert_eq!(Fake::pci_read(at, COMMAND), 0x0407);
}

#[test]
fn the_selector_word_is_made_of_bus_device_function_and_offset() {
    let address = Address { segment: 0, bus: 0x12, device: 0x1f, function: 7 };
    assert_eq!(address.mechanism_1(0x3e), 0x8012_ff3c);
}

#[test]
fn everyone_but_the_bridges_is_silenced() {
    let commands = [
        ((0, 0, 0), 0x06_00_00, 0x0107),
        ((0, 1, 0), 0x02_00_00, 0x0407),
        ((0, 2, 0), 0x06_04_00, 0x0006),
        ((1, 0, 0), 0x01_08_02, 0x0006),
        ((0, 3, 0), 0x03_00_00, 0x0003),
    ];
    for (at, class, command) in commands {
        function(at, 0x0001_8086, 0);
        put(at, CLASS, class << 8);
        // With a status that would be cleared by writing it back.
        put(at, COMMAND, 0xf810_0000 | command);
    }
    put((0, 2, 0), HEADER, 1 << 16);
    put((0, 2, 0), BRIDGE_BUSES, 1 << 8);
    // Whoever is left out keeps it.
    let disk = Address { segment: 0, bus: 1, device: 0, function: 0 };
    let mut met = Vec::new();
    let silenced = silence::<Fake>(&[0, disk.number()], Silence::Taken, |function| {
        met.push(function.address.to_string());
    });
    assert_eq!(silenced, 1);
    met.sort();
    assert_eq!(met, ["00:00.0", "00:01.0", "00:02.0", "00:03.0", "01:00.0"]);
    assert_eq!(Fake::pci_read(disk, COMMAND) & 0xffff, 0x0006);
    assert_eq!(silence::<Fake>(&[0; 8], Silence::Taken, |_| ()), 1);
    let now = commands.map(|((bus, device, function), ..)| {
        Fake::pci_read(Address { segment: 0, bus, device, function }, COMMAND)
    });
    // What was not silenced was not written either.
    assert_eq!(now, [0xf810_0107, 0x0403, 0xf810_0006, 0x0002, 0xf810_0003]);
    assert_eq!(silence::<Fake>(&[], Silence::Taken, |_| ()), 0);
}

/// Host bridges for bus 64, with a bridge to 65 behind it, and for bus 200.
#[test]
fn root_buses_that_no_table_names_are_found_by_asking() {
    function((0, 1, 0), 0x29c0_8086, 0);
    bridge((0, 2, 0), 1);
    function((1, 0, 0), 0x1042_1af4, 0);
    bridge((64, 0, 0), 65);
    function((65, 0, 0), 0x1042_1af4, 0);
    function((200, 31, 0), 0x1042_1af4, 0);
    let probe = |known: RootBuses, last_bus| probe_roots::<Fake>(&[], &known, last_bus, || true);
    let all = [0, 1, 0, 1 << 8];
    assert_eq!(probe([0; 4], 255), Probe { roots: all, ended_at: None });
    assert_eq!(probe([0, 1, 0, 0], 255).roots, all, "one was known");
    assert_eq!(probe([0; 4], 199).roots, [0, 1, 0, 0]);
    // The caller wants no more after two buses: 0 and 1 are known, 2 and 3 were asked.
    let mut left = 2;
    let ended = probe_roots::<Fake>(&[], &[0; 4], 255, || {
        left -= 1;
        left >= 0
    });
    assert_eq!(ended, Probe { roots: [0; 4], ended_at: Some(4) });
}
