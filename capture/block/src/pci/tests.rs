use super::*;
use crate::fake::{CONFIG, Fake, WRITABLE};

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
fn functions_other_than_the_first_count_only_where_there_are_several() {
    function((0, 1, 0), 0x0001_8086, 0x80);
    function((0, 1, 3), 0x1042_1af4, 0);
    function((0, 2, 0), 0x0001_8086, 0);
    function((0, 2, 3), 0x1042_1af4, 0);
    assert_eq!(found(), ["00:01.0", "00:01.3", "00:02.0"]);
}

#[test]
fn bars_are_sized_and_left_as_they_were() {
    let at = (0, 3, 0);
    function(at, 0x1042_1af4, 0);
    put(at, COMMAND, 0x0010_0007);
    let mask = |offset: u8, mask: u32| {
        WRITABLE.with_borrow_mut(|masks| masks.insert((0, 3, 0, offset), mask));
    };
    // The status half is no plain memory.
    mask(COMMAND, 0xffff);
    // I/O, none, 32-bit memory of 4 KiB, none, 64-bit memory of 16 KiB at 896 GiB.
    put(at, BAR0, 0xc001);
    mask(BAR0, 0xffff_ff00);
    mask(BAR0 + 4, 0);
    put(at, BAR0 + 8, 0xfeb0_0000);
    mask(BAR0 + 8, 0xffff_f000);
    mask(BAR0 + 12, 0);
    put(at, BAR0 + 16, 0xc);
    mask(BAR0 + 16, 0xffff_c000);
    put(at, BAR0 + 20, 0xe0);
    put(at, BAR0 + 4, 0);
    put(at, BAR0 + 12, 0);
    let before = CONFIG.with_borrow(|config| config.clone());
    let address = Address { bus: 0, device: 3, function: 0 };
    let bars = memory_bars::<Fake>(address);
    assert_eq!(
        bars[..],
        [
            MemoryBar { address: 0xfeb0_0000, bytes: 0x1000 },
            MemoryBar { address: 0xe0_0000_0000, bytes: 0x4000 }
        ]
    );
    assert_eq!(CONFIG.with_borrow(|config| config.clone()), before);
}

#[test]
fn the_selector_word_is_made_of_bus_device_function_and_offset() {
    let address = Address { bus: 0x12, device: 0x1f, function: 7 };
    assert_eq!(address.mechanism_1(0x3e), 0x8012_ff3c);
}
