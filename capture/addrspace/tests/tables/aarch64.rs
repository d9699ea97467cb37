//! AArch64: hand-made tables for every size, level and bit.

use crate::memory::{Absent, Builder, Ram};
use epitaph_addrspace::{
    AArch64, Access, AddressSpace, Level, Rights, Unsupported, Walk, WalkError,
};

const TABLE: u64 = 3;
const BLOCK: u64 = 1;
const PAGE: u64 = 3;
const AP_USER: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const AF: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
const DBM: u64 = 1 << 51;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

/// SCTLR_EL1.M.
const ON: u64 = 1;
/// ID_AA64MMFR0_EL1 with PARange of 48 bits.
const WIDE: u64 = 5;
/// TCR_EL1: granules of 4 KiB in both halves, IPS of 48 bits.
const GRANULES: u64 = 2 << 30 | 5 << 32;
const TBI0: u64 = 1 << 37;
const TBI1: u64 = 1 << 38;
const HD: u64 = 1 << 40;
const HPD1: u64 = 1 << 42;

/// Returns T0SZ and T1SZ for these widths in bits.
fn sizes(lower: u64, upper: u64) -> u64 {
    (64 - lower) | (64 - upper) << 16
}

/// Returns the address space with the same root for both halves.
fn space(root: u64, tcr: u64) -> AddressSpace {
    AArch64::from_registers(root, root, tcr, ON, WIDE).expect("little-endian")
}

#[test]
fn every_size_with_48_and_39_bits() {
    let tcr = GRANULES | sizes(48, 48);
    let mut tables = Builder::new(3, TABLE);
    tables.map(0x7f12_3456_7000, 0, 0xabc_d000 | PAGE | AF);
    tables.map(0xffff_8000_4000_0000, 1, 0x1_2340_0000 | BLOCK | AF);
    tables.map(0xffff_ffff_c000_0000, 2, 0x3f_c000_0000 | BLOCK | AF);
    let wide = space(tables.root, tcr);
    let walk = wide.translate(&tables.ram, 0x7f12_3456_7abc).expect("a page of 4 KiB");
    assert_eq!((walk.physical, walk.page_size), (0xabc_dabc, 4 << 10));
    let seen: Vec<_> = walk.steps.iter().map(|step| (step.level, step.index)).collect();
    assert_eq!(
        seen,
        [
            (Level::Level0, 0xfe),
            (Level::Level1, 0x48),
            (Level::Level2, 0x1a2),
            (Level::Level3, 0x167)
        ]
    );
    assert_eq!(tables.ram.reads(), 4);
    let walk = wide.translate(&tables.ram, 0xffff_8000_401f_ffff).expect("a block of 2 MiB");
    assert_eq!((walk.physical, walk.page_size), (0x1_235f_ffff, 2 << 20));
    let walk = wide.translate(&tables.ram, u64::MAX).expect("a block of 1 GiB");
    assert_eq!((walk.physical, walk.page_size), (0x3f_ffff_ffff, 1 << 30));

    let mut tables = Builder::new(2, TABLE);
    tables.map(0xffff_ff80_0000_1000, 0, 0x5000 | PAGE);
    let narrow = space(tables.root, GRANULES | sizes(39, 39));
    tables.ram.reads();
    let walk = narrow.translate(&tables.ram, 0xffff_ff80_0000_1008).expect("mapped");
    assert_eq!((walk.physical, walk.steps.len()), (0x5008, 3));
    assert_eq!((walk.steps[0].level, walk.steps[0].index), (Level::Level1, 0));
    assert_eq!(tables.ram.reads(), 3);
}

#[test]
fn the_root_of_every_width() {
    // The start of the table, the height at which it is, and how many index bits it has.
    for bits in 25..=48_u64 {
        let height = match bits {
            25..=30 => 1,
            31..=39 => 2,
            _ => 3,
        };
        let shift = 12 + 9 * height;
        let entries = 1 << (bits - shift);
        let size = (8_u64 * entries).max(64);
        let ram = Ram::default();
        // A table that is as high in its page as its size permits, and a table behind it.
        let root = 0x10_2000 - size;
        ram.page(0x10_1000);
        let last = root + 8 * (entries - 1);
        // What is not a block at level 0 is a table, which cannot be read.
        ram.write(last, if height == 3 { 0x20_0000 | TABLE } else { 0x4000_0000 | BLOCK });
        let tcr = GRANULES | sizes(bits, bits);
        // The ASID, CnP and the bits below the alignment of the table are no address.
        let space = space(root | 0xabcd << 48 | (size - 1), tcr);
        let top = (1 << bits) - 1;
        for address in [top, u64::MAX] {
            match space.translate(&ram, address) {
                Ok(walk) => {
                    assert!(height < 3);
                    assert_eq!((walk.steps.len(), walk.steps[0].entry), (1, last));
                    assert_eq!(walk.physical, 0x4000_0000 + (1 << shift) - 1);
                }
                Err(WalkError::Unreadable { level, entry, error }) => {
                    assert_eq!((height, level), (3, Level::Level1));
                    assert_eq!((entry, error), (0x20_0ff8, Absent(0x20_0ff8)));
                }
                other => panic!("{bits} bits: {other:?}"),
            }
        }
        for address in [top + 1, u64::MAX << bits, u64::MAX >> 1, (u64::MAX << bits) - 1] {
            let canonical = address == u64::MAX << bits;
            let error = space.translate(&ram, address).unwrap_err();
            let refused = error == WalkError::NonCanonical { address };
            assert_eq!(refused, !canonical, "{bits} bits, {address:#x}");
        }
    }
}

#[test]
fn each_half_has_its_own_root_and_width() {
    let mut lower = Builder::new(2, TABLE);
    lower.map(0x1000, 0, 0x5000 | PAGE);
    let root1 = 0x80_0000;
    lower.ram.page(root1);
    lower.ram.write(root1 + 8 * 256, 0x80_1000 | TABLE);
    lower.ram.page(0x80_1000);
    lower.ram.write(0x80_1000, 0x4000_0000 | BLOCK);
    let tcr = GRANULES | sizes(39, 48);
    let space = AArch64::from_registers(lower.root, root1, tcr, ON, WIDE).expect("valid");
    assert_eq!(space.translate(&lower.ram, 0x1004).expect("mapped").physical, 0x5004);
    let walk = space.translate(&lower.ram, 0xffff_8000_0000_0004).expect("mapped");
    assert_eq!(walk.physical, 0x4000_0004);
    assert_eq!(walk.steps[0].entry, root1 + 8 * 256);

    // EPD1 switches the upper half off.
    let space = AArch64::from_registers(lower.root, root1, tcr | 1 << 23, ON, WIDE);
    let space = space.expect("valid");
    let address = 0xffff_8000_0000_0004;
    assert_eq!(space.translate(&lower.ram, address), Err(WalkError::Disabled { address }));
    assert!(space.translate(&lower.ram, 0x1004).is_ok());
    // EPD0 the lower.
    let space = AArch64::from_registers(lower.root, root1, tcr | 1 << 7, ON, WIDE);
    let error = space.expect("valid").translate(&lower.ram, 0x1004);
    assert_eq!(error, Err(WalkError::Disabled { address: 0x1004 }));
}

#[test]
fn tags_are_ignored_where_the_register_says_so() {
    let mut tables = Builder::new(2, TABLE);
    tables.map(0x1000, 0, 0x5000 | PAGE);
    tables.map(0xffff_ffff_ffff_f000, 0, 0x6000 | PAGE);
    let tcr = GRANULES | sizes(39, 39);
    let physical = |tcr, address| {
        space(tables.root, tcr).translate(&tables.ram, address).map(|walk| walk.physical)
    };
    let (low, high) = (0xab00_0000_0000_1004, 0x12ff_ffff_ffff_f004);
    for (tcr, tagged_low, tagged_high) in [
        (tcr, false, false),
        (tcr | TBI0, true, false),
        (tcr | TBI1, false, true),
        (tcr | TBI0 | TBI1, true, true),
    ] {
        let refused = |address| Err(WalkError::NonCanonical { address });
        assert_eq!(physical(tcr, low), if tagged_low { Ok(0x5004) } else { refused(low) });
        assert_eq!(physical(tcr, high), if tagged_high { Ok(0x6004) } else { refused(high) });
        // Bits below the tag have to be right all the same.
        for address in [0xab01_0000_0000_1004, 0x12fe_ffff_ffff_f004] {
            assert_eq!(physical(tcr, address), refused(address));
        }
    }
}

/// Translates the address of a single page with these bits in its descriptor and in the
/// descriptor of the table above it.
fn page(tcr: u64, table: u64, descriptor: u64) -> Walk {
    let mut tables = Builder::new(2, TABLE);
    let address = 0xffff_ff80_0000_1000;
    tables.map(address, 0, 0x5000 | PAGE | descriptor);
    let entry = tables.entry(address, 1);
    tables.ram.write(entry, tables.ram.word(entry) | table);
    let space = space(tables.root, GRANULES | sizes(39, 39) | tcr);
    space.translate(&tables.ram, address).expect("mapped")
}

fn access(read: bool, write: bool, execute: bool) -> Access {
    Access { read, write, execute }
}

#[test]
fn rights_of_a_page() {
    let rights = |bits| page(0, 0, bits).rights;
    let (yes, no) = (true, false);
    for (bits, kernel, user) in [
        (0, access(yes, yes, yes), access(no, no, yes)),
        // EL0 can write, so that EL1 does not execute.
        (AP_USER, access(yes, yes, no), access(yes, yes, yes)),
        (AP_READ_ONLY, access(yes, no, yes), access(no, no, yes)),
        (AP_USER | AP_READ_ONLY, access(yes, no, yes), access(yes, no, yes)),
        (PXN, access(yes, yes, no), access(no, no, yes)),
        (UXN, access(yes, yes, yes), access(no, no, no)),
        (UXN | PXN | AP_USER, access(yes, yes, no), access(yes, yes, no)),
    ] {
        assert_eq!(rights(bits), Rights { kernel, user }, "{bits:#x}");
    }
}

#[test]
fn rights_of_a_table_hold_below() {
    let pxn_table = 1 << 59;
    let uxn_table = 1 << 60;
    let no_user = 1 << 61;
    let read_only = 1 << 62;
    let (yes, no) = (true, false);
    for (table, kernel, user) in [
        (0, access(yes, yes, no), access(yes, yes, yes)),
        (pxn_table, access(yes, yes, no), access(yes, yes, yes)),
        (uxn_table, access(yes, yes, no), access(yes, yes, no)),
        // Without a write of EL0, EL1 may execute again.
        (no_user, access(yes, yes, yes), access(no, no, yes)),
        (read_only, access(yes, no, yes), access(yes, no, yes)),
        (no_user | read_only | pxn_table, access(yes, no, no), access(no, no, yes)),
    ] {
        let walk = page(0, table, AP_USER);
        assert_eq!(walk.rights, Rights { kernel, user }, "{table:#x}");
        // HPD1: the same bits mean nothing.
        assert_eq!(page(HPD1, table, AP_USER).rights, page(0, 0, AP_USER).rights);
    }
    let walk = page(0, no_user | read_only | uxn_table, AP_USER);
    assert_eq!(walk.steps[0].rights, Rights::ALL);
    let left = Rights { kernel: access(yes, no, yes), user: access(no, no, no) };
    assert_eq!(walk.steps[1].rights, left);
    assert_eq!(walk.steps[2].rights, walk.rights);
}

#[test]
fn attributes_of_the_last_descriptor() {
    let of = |tcr, bits| page(tcr, 0, bits).attributes;
    assert!(of(0, 0).global && !of(0, NOT_GLOBAL).global);
    assert!(of(0, AF).accessed && !of(0, 0).accessed);
    for index in 0..8 {
        assert_eq!(u64::from(of(0, index << 2).memory_type), index);
    }
    // DBM has a meaning only where hardware manages the dirty state.
    assert_eq!(of(0, DBM).dirty, None);
    assert!(!page(0, 0, DBM | AP_READ_ONLY).rights.kernel.write);
    assert_eq!(of(HD, 0).dirty, None);
    assert_eq!(of(HD, DBM).dirty, Some(true));
    assert_eq!(of(HD, DBM | AP_READ_ONLY).dirty, Some(false));
    assert!(page(HD, 0, DBM | AP_READ_ONLY).rights.kernel.write);
}

#[test]
fn descriptors_that_map_nothing() {
    let mut tables = Builder::new(3, TABLE);
    let space = space(tables.root, GRANULES | sizes(48, 48));
    // Invalid at each level; a block at level 0; bit 1 clear at level 3.
    for (height, value, level) in [
        (0, 0x5000 | 2, Level::Level3),
        (0, 0x5000 | BLOCK, Level::Level3),
        (1, 2, Level::Level2),
        (2, 2, Level::Level1),
        (3, BLOCK, Level::Level0),
        (3, 2, Level::Level0),
    ] {
        tables.map(0x1000, height, value);
        let entry = tables.entry(0x1000, height);
        let error = space.translate(&tables.ram, 0x1000).unwrap_err();
        assert_eq!(error, WalkError::NotPresent { level, entry, value });
        tables.map(0x1000, height, 0);
    }
}

#[test]
fn reserved_address_bits_of_a_block_are_ignored() {
    let mut tables = Builder::new(2, TABLE);
    tables.map(0x20_0000, 1, 0x40_0000 | 0x1f_f000 | BLOCK);
    tables.map(1 << 30, 2, 0x4000_0000 | 0x3fff_f000 | BLOCK);
    let space = space(tables.root, GRANULES | sizes(39, 39));
    assert_eq!(space.translate(&tables.ram, 0x20_0123).expect("mapped").physical, 0x40_0123);
    assert_eq!(space.translate(&tables.ram, 0x4000_0123).expect("mapped").physical, 0x4000_0123);
}

#[test]
fn the_physical_width_is_the_smaller_of_both_registers() {
    let mut tables = Builder::new(2, TABLE);
    let high = 1 << 36;
    tables.map(0x1000, 0, high | PAGE);
    tables.map(0x20_0000, 1, high | BLOCK);
    tables.map(1 << 30, 2, high | TABLE);
    let of = |ips: u64, range: u64, root, address| {
        let tcr = 2 << 30 | ips << 32 | sizes(39, 39);
        let space = AArch64::from_registers(root, root, tcr, ON, range).expect("little-endian");
        space.translate(&tables.ram, address)
    };
    for (ips, range, width) in [(1, 5, 36), (5, 1, 36), (0, 6, 32), (7, 0, 32)] {
        for (address, level) in
            [(0x1000, Level::Level3), (0x20_0000, Level::Level2), (1 << 30, Level::Level1)]
        {
            let outside = WalkError::OutsidePhysicalWidth { level, address: high, width };
            assert_eq!(of(ips, range, tables.root, address), Err(outside));
        }
        let outside = WalkError::OutsidePhysicalWidth { level: Level::Root, address: high, width };
        assert_eq!(of(ips, range, high, 0x1000), Err(outside));
    }
    for (ips, range) in [(2, 5), (5, 2), (7, 7), (6, 6)] {
        assert_eq!(of(ips, range, tables.root, 0x1004).expect("mapped").physical, high + 4);
    }
}

#[test]
fn what_is_not_supported_has_a_name() {
    let ram = Ram::default();
    let (low, high) = (0x1000, u64::MAX);
    let of = |tcr, id, address| {
        let space = AArch64::from_registers(0x1000, 0x1000, tcr, ON, id).expect("little-endian");
        space.translate(&ram, address).unwrap_err()
    };
    let tcr = |tg0: u64, tg1: u64| tg0 << 14 | tg1 << 30 | 5 << 32 | sizes(48, 48);
    for (tg0, tg1, lower, upper) in [
        (1, 3, Unsupported::Granule64Kib, Unsupported::Granule64Kib),
        (2, 1, Unsupported::Granule16Kib, Unsupported::Granule16Kib),
        (3, 0, Unsupported::GranuleReserved, Unsupported::GranuleReserved),
    ] {
        assert_eq!(of(tcr(tg0, tg1), WIDE, low), WalkError::Unsupported(lower));
        assert_eq!(of(tcr(tg0, tg1), WIDE, high), WalkError::Unsupported(upper));
    }
    // One half does not stand in the way of the other.
    assert!(matches!(of(tcr(0, 3), WIDE, low), WalkError::Unreadable { .. }));
    let lpa2 = tcr(0, 2) | 1 << 59;
    assert_eq!(of(lpa2, WIDE, low), WalkError::Unsupported(Unsupported::Lpa2));
    let absent = WalkError::Unsupported(Unsupported::Granule4KibAbsent);
    assert_eq!(of(tcr(0, 2), WIDE | 15 << 28, low), absent);
    for bits in [0, 15, 40, 63_u64] {
        let error = of(GRANULES | bits | 16 << 16, WIDE, low);
        let width = 64 - bits as u8;
        assert_eq!(error, WalkError::Unsupported(Unsupported::VirtualWidth(width)));
    }
    let registers = |sctlr| AArch64::from_registers(0, 0, GRANULES, sctlr, WIDE);
    assert_eq!(registers(1 << 25 | ON), Err(Unsupported::BigEndian));
    assert_eq!(registers(1 << 25), Ok(AddressSpace::Identity));
}
