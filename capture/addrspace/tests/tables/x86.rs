//! x86-64: hand-made tables for every size, level and bit.

use std::error::Error;

use crate::memory::{Absent, Builder};
use epitaph_addrspace::{
    Access, AddressSpace, Extent, Level, ReadReason, Rights, Steps, Unsupported, WalkError, X86,
    x86,
};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;

const PG: u64 = 1 << 31;
const LA57: u64 = 1 << 12;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;

fn four(tables: &Builder) -> AddressSpace {
    X86::from_registers(PG, tables.root, 0, LMA | NXE, x86::Limits::default()).expect("long mode")
}

fn five(tables: &Builder) -> AddressSpace {
    let limits = x86::Limits::default();
    X86::from_registers(PG, tables.root, LA57, LMA | NXE, limits).expect("long mode")
}

#[test]
fn every_page_size_with_four_levels() {
    let mut tables = Builder::new(3, P | W | U);
    tables.map(0x7f12_3456_7000, 0, 0xabc_d000 | P | W | U);
    tables.map(0xffff_8000_4000_0000, 1, 0x1_2340_0000 | P | W | PS);
    tables.map(0xffff_ffff_c000_0000, 2, 0x3f_c000_0000 | P | PS | NX);
    let space = four(&tables);

    let walk = space.translate(&tables.ram, 0x7f12_3456_7abc).expect("a page of 4 KiB");
    assert_eq!((walk.physical, walk.page_size), (0xabc_dabc, 4 << 10));
    let levels: Vec<_> = walk.steps.iter().map(|step| step.level).collect();
    assert_eq!(levels, [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt]);
    let indices: Vec<_> = walk.steps.iter().map(|step| step.index).collect();
    assert_eq!(indices, [0xfe, 0x48, 0x1a2, 0x167]);
    for step in walk.steps.iter() {
        assert_eq!(step.value, tables.ram.word(step.entry));
    }
    assert_eq!(tables.ram.reads(), 4);

    let walk = space.translate(&tables.ram, 0xffff_8000_401f_ffff).expect("a page of 2 MiB");
    assert_eq!((walk.physical, walk.page_size), (0x1_235f_ffff, 2 << 20));
    assert_eq!(tables.ram.reads(), 3);

    let walk = space.translate(&tables.ram, u64::MAX).expect("a page of 1 GiB");
    assert_eq!((walk.physical, walk.page_size), (0x3f_ffff_ffff, 1 << 30));
    assert_eq!(tables.ram.reads(), 2);
}

#[test]
fn five_levels() {
    let mut tables = Builder::new(4, P | W | U);
    tables.map(0x00ff_ffff_ffff_f000, 0, 0x5000 | P);
    tables.map(0xff00_0000_0000_0000, 2, 0x4000_0000 | P | PS);
    let space = five(&tables);
    let walk = space.translate(&tables.ram, 0x00ff_ffff_ffff_f008).expect("mapped");
    assert_eq!(walk.physical, 0x5008);
    assert_eq!(walk.steps.len(), 5);
    assert_eq!((walk.steps[0].level, walk.steps[0].index), (Level::Pml5, 255));
    let walk = space.translate(&tables.ram, 0xff00_0000_0000_0008).expect("mapped");
    assert_eq!((walk.physical, walk.steps.len()), (0x4000_0008, 3));
    assert_eq!(walk.steps[0].index, 256);
}

#[test]
fn addresses_that_are_not_canonical() {
    let tables = Builder::new(3, P);
    for address in [0x0000_8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63, i64::MAX as u64] {
        let error = four(&tables).translate(&tables.ram, address);
        assert_eq!(error, Err(WalkError::NonCanonical { address }));
    }
    for address in [0x0100_0000_0000_0000, 0xfeff_ffff_ffff_ffff] {
        let error = five(&tables).translate(&tables.ram, address);
        assert_eq!(error, Err(WalkError::NonCanonical { address }));
    }
    assert_eq!(tables.ram.reads(), 0);
    for address in [0x0000_7fff_ffff_ffff, 0xffff_8000_0000_0000] {
        let error = four(&tables).translate(&tables.ram, address);
        assert!(matches!(error, Err(WalkError::NotPresent { level: Level::Pml4, .. })));
    }
}

#[test]
fn rights_need_every_level() {
    // Writable, user and execute-disable at each of the four levels, in all combinations that
    // one level can have, while the others grant everything.
    for height in 0..4 {
        for bits in [0, W, U, W | U, NX, NX | W, NX | U, NX | W | U] {
            let mut tables = Builder::new(3, P | W | U);
            tables.map(0x40_0000, 0, 0x9000 | P | W | U);
            let entry = tables.entry(0x40_0000, height);
            let address = tables.ram.word(entry) & !(P | W | U);
            tables.ram.write(entry, address | P | bits);
            let walk = four(&tables).translate(&tables.ram, 0x40_0000).expect("mapped");
            let (write, user, execute) = (bits & W != 0, bits & U != 0, bits & NX == 0);
            let rights = Rights {
                kernel: Access { read: true, write, execute },
                user: Access { read: user, write: user && write, execute: user && execute },
            };
            assert_eq!(walk.rights, rights, "height {height}, bits {bits:#x}");
            // The levels above that one grant everything, the ones below keep what is left.
            for (step, depth) in walk.steps.iter().zip((0..4).rev()) {
                let expected = if depth > height { Rights::ALL } else { rights };
                assert_eq!(step.rights, expected);
            }
        }
    }
}

#[test]
fn attributes_of_the_last_entry() {
    let (pwt, pcd, a, d, g) = (1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 8);
    let of = |height: u32, value: u64| {
        let mut tables = Builder::new(3, P);
        tables.map(0, height, value | P);
        four(&tables).translate(&tables.ram, 0).expect("mapped")
    };
    let small = of(0, 0x8000 | a | d | g);
    assert!(small.attributes.accessed && small.attributes.global);
    assert_eq!(small.attributes.dirty, Some(true));
    let small = of(0, 0x8000);
    assert!(!small.attributes.accessed && !small.attributes.global);
    assert_eq!(small.attributes.dirty, Some(false));
    // The index into the PAT: PAT is bit 7 of a small page, bit 12 of a large one.
    for (caching, expected) in [(0, 0), (pwt, 1), (pcd, 2), (pwt | pcd, 3)] {
        assert_eq!(of(0, 0x8000 | caching).attributes.memory_type, expected);
        assert_eq!(of(0, 0x8000 | caching | 1 << 7).attributes.memory_type, expected + 4);
        for (height, base) in [(1, 0x20_0000), (2, 0x4000_0000)] {
            let walk = of(height, base | PS | caching | 1 << 12);
            assert_eq!((walk.physical, walk.attributes.memory_type), (base, expected + 4));
            assert_eq!(of(height, base | PS | caching).attributes.memory_type, expected);
        }
    }
}

#[test]
fn reserved_bits() {
    let refused = |height: u32, value: u64, efer: u64| {
        let mut tables = Builder::new(4, P);
        tables.map(0, height, value);
        let space = X86::from_registers(PG, tables.root, LA57, efer, x86::Limits::default());
        match space.expect("long mode").translate(&tables.ram, 0) {
            Err(WalkError::ReservedBit { level, value: found, bits, .. }) => {
                assert_eq!(found, value);
                Some((level, bits))
            }
            Ok(_) => None,
            other => panic!("{other:?}"),
        }
    };
    let nx = LMA | NXE;
    assert_eq!(refused(4, 0x8000 | P | PS, nx), Some((Level::Pml5, PS)));
    assert_eq!(refused(3, 0x8000 | P | PS, nx), Some((Level::Pml4, PS)));
    // Address bits inside of a large page; bit 12 is PAT.
    assert_eq!(refused(2, 0x4000_0000 | P | PS | 1 << 13, nx), Some((Level::Pdpt, 1 << 13)));
    assert_eq!(refused(2, 0x4000_0000 | P | PS | 1 << 29, nx), Some((Level::Pdpt, 1 << 29)));
    assert_eq!(refused(1, 0x4000_0000 | P | PS | 1 << 13, nx), Some((Level::Pd, 1 << 13)));
    assert_eq!(refused(1, 0x4000_0000 | P | PS | 1 << 20, nx), Some((Level::Pd, 1 << 20)));
    assert_eq!(refused(1, 0x4000_0000 | P | PS | 1 << 12, nx), None);
    // Bit 63 without EFER.NXE, at every level.
    for (height, level) in
        [(4, Level::Pml5), (3, Level::Pml4), (2, Level::Pdpt), (1, Level::Pd), (0, Level::Pt)]
    {
        assert_eq!(refused(height, 0x8000 | P | NX, LMA), Some((level, NX)));
    }
    // Bits 62:52 and 11:9 are ignored.
    assert_eq!(refused(0, 0x7ff0_0000_0000_8e01, LMA), None);
}

#[test]
fn the_physical_width() {
    let limits = x86::Limits { physical_bits: 40, encryption_mask: 0 };
    let high = 1 << 40;
    for (height, level) in [(3, Level::Pml4), (2, Level::Pdpt), (1, Level::Pd), (0, Level::Pt)] {
        let mut tables = Builder::new(3, P);
        tables.map(0, height, high | P);
        let space = X86::from_registers(PG, tables.root, 0, LMA, limits).expect("long mode");
        let outside = WalkError::OutsidePhysicalWidth { level, address: high, width: 40 };
        assert_eq!(space.translate(&tables.ram, 0), Err(outside));
    }
    // One bit lower fits.
    let mut tables = Builder::new(3, P);
    tables.map(0, 0, high >> 1 | P);
    let space = X86::from_registers(PG, tables.root, 0, LMA, limits).expect("long mode");
    assert_eq!(space.translate(&tables.ram, 5).expect("mapped").physical, (high >> 1) + 5);
    // A large page, and the root.
    tables.map(1 << 30, 2, high | P | PS);
    let outside = WalkError::OutsidePhysicalWidth { level: Level::Pdpt, address: high, width: 40 };
    assert_eq!(space.translate(&tables.ram, 1 << 30), Err(outside));
    let space = X86::from_registers(PG, high, 0, LMA, limits).expect("long mode");
    let outside = WalkError::OutsidePhysicalWidth { level: Level::Root, address: high, width: 40 };
    assert_eq!(space.translate(&tables.ram, 0), Err(outside));
    // More than 52 bits are no address; 255 counts as 52.
    let limits = x86::Limits { physical_bits: 255, encryption_mask: 0 };
    tables.map(0, 0, u64::MAX);
    let space = X86::from_registers(PG, tables.root, 0, LMA | NXE, limits).expect("long mode");
    assert_eq!(space.translate(&tables.ram, 1).expect("mapped").physical, 0xf_ffff_ffff_f001);
}

#[test]
fn the_encryption_bit_is_no_address() {
    let c_bit = 1 << 47;
    let mut tables = Builder::new(3, P);
    tables.map(0x1000, 0, 0x8000 | P | c_bit);
    tables.map(0x60_0000, 1, 0x40_0000 | P | PS | c_bit);
    for height in 1..4 {
        let entry = tables.entry(0x1000, height);
        tables.ram.write(entry, tables.ram.word(entry) | c_bit);
    }
    let limits = x86::Limits { physical_bits: 43, encryption_mask: c_bit };
    let space = X86::from_registers(PG, tables.root | c_bit, 0, LMA, limits).expect("long mode");
    assert_eq!(space.translate(&tables.ram, 0x1004).expect("mapped").physical, 0x8004);
    assert_eq!(space.translate(&tables.ram, 0x60_1004).expect("mapped").physical, 0x40_1004);
    // Without the mask the same bit is an address outside.
    let limits = x86::Limits { physical_bits: 43, encryption_mask: 0 };
    let space = X86::from_registers(PG, tables.root, 0, LMA, limits).expect("long mode");
    let address = c_bit | (tables.root + 0x1000);
    assert_eq!(
        space.translate(&tables.ram, 0x1004),
        Err(WalkError::OutsidePhysicalWidth { level: Level::Pml4, address, width: 43 })
    );
}

#[test]
fn registers_select_the_mode() {
    let limits = x86::Limits::default();
    let from = |cr0, cr4, efer| X86::from_registers(cr0, 0x1000, cr4, efer, limits);
    assert_eq!(from(0, LA57, LMA), Ok(AddressSpace::Identity));
    assert_eq!(from(PG, 0, 0), Err(Unsupported::LegacyPaging));
    // The PCID, the caching bits and the LAM bits of CR3 are no address.
    let mut tables = Builder::new(3, P);
    tables.map(0x1000, 0, 0x8000 | P);
    let cr3 = tables.root | 0xfff | 3 << 61 | 1 << 63;
    let space = X86::from_registers(PG, cr3, 1 << 17, LMA, limits).expect("long mode");
    assert_eq!(space, from_root(tables.root));
    assert_eq!(space.translate(&tables.ram, 0x1000).expect("mapped").physical, 0x8000);

    let walk = AddressSpace::Identity.translate(&tables.ram, u64::MAX).expect("identity");
    assert_eq!((walk.physical, walk.steps.len(), walk.rights), (u64::MAX, 0, Rights::ALL));
}

fn from_root(root: u64) -> AddressSpace {
    X86::from_registers(PG, root, 0, LMA, x86::Limits::default()).expect("long mode")
}

#[test]
fn a_failed_walk_says_where() {
    let mut tables = Builder::new(3, P | W);
    tables.map(0x1000, 0, 0);
    let mut steps = Steps::new();
    let error = four(&tables).translate_into(&tables.ram, 0x1000, &mut steps).unwrap_err();
    let entry = tables.entry(0x1000, 0);
    assert_eq!(error, WalkError::NotPresent { level: Level::Pt, entry, value: 0 });
    assert_eq!(steps.len(), 4);
    assert_eq!(steps.last().map(|step| (step.entry, step.value)), Some((entry, 0)));
    // An entry that maps nothing leaves the rights as they were: no access for user mode.
    assert_eq!(steps[3].rights, steps[2].rights);
    assert_ne!(steps[3].rights, Rights::ALL);
    assert_eq!(error.level(), Some(Level::Pt));
    assert!(error.is_unmapped());

    // A table that is not in memory. Its entry is not among the steps.
    tables.map(0x20_0000, 1, 0xdead_0000 | P);
    let error = four(&tables).translate_into(&tables.ram, 0x20_3000, &mut steps).unwrap_err();
    let entry = 0xdead_0018;
    assert_eq!(error, WalkError::Unreadable { level: Level::Pt, entry, error: Absent(entry) });
    assert_eq!(steps.len(), 3);
    assert!(!error.is_unmapped());
    assert_eq!(
        error.to_string(),
        "PT: cannot read the entry at 0xdead0018: 0xdead0018 is not in memory"
    );
    assert_eq!(error.source().expect("the reader's error").to_string(), Absent(entry).to_string());
}

#[test]
fn bytes_across_pages() {
    let mut tables = Builder::new(3, P);
    tables.map(0x1000, 0, 0x50_0000 | P);
    tables.map(0x2000, 0, 0x40_0000 | P);
    tables.map(0x3000, 0, 0x60_0000 | P);
    for page in [0x40_0000, 0x50_0000] {
        tables.ram.page(page);
    }
    tables.ram.write(0x50_0ff8, u64::from_le_bytes(*b"abcdefgh"));
    tables.ram.write(0x40_0000, u64::from_le_bytes(*b"ijklmnop"));
    let space = four(&tables);
    let mut bytes = [0; 6];
    tables.ram.reads();
    space.read(&tables.ram, 0x1ffd, &mut bytes).expect("two pages");
    assert_eq!(&bytes, b"fghijk");
    assert_eq!(tables.ram.reads(), 2 * 5);
    space.read(&tables.ram, 0x9999_9999, &mut []).expect("nothing to read");
    assert_eq!(tables.ram.reads(), 0);

    // The third page is mapped to memory that is not there, the fourth is not mapped.
    let mut bytes = vec![0; 0x2004];
    let error = space.read(&tables.ram, 0x1ffc, &mut bytes).unwrap_err();
    assert_eq!((error.done, error.address), (0x1004, 0x3000));
    let reason = ReadReason::Memory { physical: 0x60_0000, error: Absent(0x60_0000) };
    assert_eq!(error.reason, reason);
    assert_eq!(&bytes[..6], b"efghij");
    let error = space.read(&tables.ram, 0x4000, &mut bytes).unwrap_err();
    assert!(matches!(error.reason, ReadReason::Walk(WalkError::NotPresent { .. })));
    assert!(error.to_string().starts_with("virtual address 0x4000 after 0 bytes: PT: entry"));
}

#[test]
fn bytes_at_the_edges_of_the_address_space() {
    let mut tables = Builder::new(3, P);
    tables.map(0xffff_ffff_ffff_f000, 0, 0x50_0000 | P);
    tables.map(0x7fff_ffff_f000, 0, 0x50_0000 | P);
    tables.ram.page(0x50_0000);
    tables.ram.write(0x50_0ff8, u64::from_le_bytes(*b"abcdefgh"));
    let space = four(&tables);
    let mut bytes = [0; 8];
    space.read(&tables.ram, u64::MAX - 7, &mut bytes).expect("the last bytes");
    assert_eq!(&bytes, b"abcdefgh");
    let error = space.read(&tables.ram, u64::MAX - 6, &mut bytes).unwrap_err();
    assert_eq!((error.done, error.address, error.reason), (7, 0, ReadReason::EndOfSpace));
    let error = space.read(&tables.ram, 0x7fff_ffff_fffc, &mut bytes).unwrap_err();
    let address = 0x8000_0000_0000;
    assert_eq!((error.done, error.address), (4, address));
    assert_eq!(error.reason, ReadReason::Walk(WalkError::NonCanonical { address }));
}

#[test]
fn listings_that_begin_and_end_at_the_edges() {
    let mut tables = Builder::new(3, P);
    let (below, above) = (0x7fff_ffff_f000, 0xffff_8000_0000_0000);
    tables.map(below, 0, 0x50_0000 | P);
    tables.map(above, 0, 0x60_0000 | P);
    let space = four(&tables);
    let list = |first: u64, last: u64| -> Vec<(u64, u64, u64)> {
        let mut listing = space.runs(&tables.ram, first, last, 100);
        let found = listing.by_ref().map(|extent| match extent {
            Extent::Mapped(run) => (run.first, run.last, run.physical),
            Extent::Damaged { .. } => panic!("{extent:?}"),
        });
        let found = found.collect();
        assert_eq!(listing.stopped_at(), None);
        found
    };
    let end = below + 0xfff;
    assert_eq!(list(end, end), [(end, end, 0x50_0fff)]);
    assert_eq!(list(above, above), [(above, above, 0x60_0000)]);
    assert_eq!(list(end, above), [(end, end, 0x50_0fff), (above, above, 0x60_0000)]);
    assert_eq!(list(end + 1, above - 1), []);
    assert_eq!(list(below + 5, end - 5), [(below + 5, end - 5, 0x50_0005)]);
    assert_eq!(list(above, end), []);
}

#[test]
fn a_root_outside_is_damage_up_to_the_gap() {
    let tables = Builder::new(3, P);
    let limits = x86::Limits { physical_bits: 20, encryption_mask: 0 };
    let space = X86::from_registers(PG, tables.root, 0, LMA, limits).expect("long mode");
    let extents: Vec<_> = space.runs(&tables.ram, 0x1000, u64::MAX, 100).collect();
    let ranges: Vec<_> = extents.iter().map(|extent| (extent.first(), extent.last())).collect();
    assert_eq!(ranges, [(0x1000, 0x7fff_ffff_ffff), (0xffff_8000_0000_0000, u64::MAX)]);
    assert_eq!(tables.ram.reads(), 0);
}

#[test]
fn runs_differ_in_rights_and_memory_type() {
    let mut tables = Builder::new(3, P | W);
    let pwt = 1 << 3;
    for (page, bits) in [P | W, P | W, P, P | pwt].into_iter().enumerate() {
        let offset = 0x1000 * page as u64;
        tables.map(0x40_0000 + offset, 0, (0x80_0000 + offset) | bits);
    }
    // Two tables in turn that are not in memory, and two entries that are damaged in
    // different ways.
    tables.map(0x60_0000, 1, 0xdead_0000 | P);
    tables.map(0x80_0000, 1, 0xbeef_0000 | P);
    tables.map(0xa0_0000, 1, 1 << 13 | P | PS);
    tables.map(0xc0_0000, 1, 1 << 40 | P);
    let limits = x86::Limits { physical_bits: 40, encryption_mask: 0 };
    let space = X86::from_registers(PG, tables.root, 0, LMA, limits).expect("long mode");
    // A reader that takes the first run only resumes at the second.
    let mut listing = space.runs(&tables.ram, 0, u64::MAX, 5000);
    assert_eq!(listing.next().map(|extent| extent.last()), Some(0x40_1fff));
    assert_eq!(listing.stopped_at(), Some(0x40_2000));

    let extents: Vec<_> = space.runs(&tables.ram, 0, u64::MAX, 5000).collect();
    let ranges: Vec<_> = extents.iter().map(|extent| (extent.first(), extent.last())).collect();
    assert_eq!(
        ranges,
        [
            (0x40_0000, 0x40_1fff),
            (0x40_2000, 0x40_2fff),
            (0x40_3000, 0x40_3fff),
            (0x60_0000, 0x9f_ffff),
            (0xa0_0000, 0xbf_ffff),
            (0xc0_0000, 0xdf_ffff),
        ]
    );
    let entry = 0xdead_0000;
    let error = WalkError::Unreadable { level: Level::Pt, entry, error: Absent(entry) };
    assert!(matches!(extents[3], Extent::Damaged { error: found, .. } if found == error));
    assert!(matches!(
        extents[4],
        Extent::Damaged { error: WalkError::ReservedBit { level: Level::Pd, .. }, .. }
    ));
    assert!(matches!(
        extents[5],
        Extent::Damaged { error: WalkError::OutsidePhysicalWidth { level: Level::Pd, .. }, .. }
    ));
}
