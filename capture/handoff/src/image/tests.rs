extern crate std;

use std::vec::Vec;

use zerocopy::IntoBytes;

use super::*;
use crate::module::ChecksumNote;

/// An ELF file of `kind` with program headers, each of type, offset, virtual and physical
/// address, bytes in the file and in memory, and a note for its checksum at 0x300.
fn file(kind: u16, entry: u64, headers: &[(u32, [u64; 5])]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.resize(16, 0);
    bytes.extend([kind.to_le_bytes(), 62_u16.to_le_bytes()].concat());
    bytes.extend([1, 0, 0, 0]);
    bytes.extend([entry, 64, 0].as_bytes());

    bytes.resize(52, 0);
    for half in [64, 56, headers.len() as u16, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for (kind, [offset, at, physical, in_file, in_memory]) in headers {
        bytes.extend([*kind, 5].as_bytes());
        bytes.extend([*offset, *at, *physical, *in_file, *in_memory, 4096].as_bytes());
    }
    bytes.resize(0x300, 0xcc);
    bytes.extend(ChecksumNote::unsealed().as_bytes());
    bytes.resize(0x3000, 0xcc);
    bytes
}

fn sealed(kind: u16, entry: u64, headers: &[(u32, [u64; 5])]) -> Vec<u8> {
    let mut bytes = file(kind, entry, headers);
    module::seal(&mut bytes).unwrap();
    bytes
}

const GOOD: (u32, [u64; 5]) = (PT_LOAD, [0, 0, 0, 0x800, 0x800]);

#[test]
fn an_image_lies_in_memory_as_its_headers_say() {
    let file = sealed(3, 0x1010, &[GOOD, (PT_LOAD, [0x1000, 0x1000, 0x1000, 0x1234, 0x8ff0])]);
    let mut room = [0x55; 0xb000];
    let loaded = load(&file, &mut room).unwrap();
    assert_eq!((loaded.bytes, loaded.entry_offset), (0xa000, 0x1010));
    assert_eq!(room[..0x800], file[..0x800]);
    assert!(room[0x800..0x1000].iter().all(|&byte| byte == 0));
    assert_eq!(room[0x1000..0x2234], file[0x1000..0x2234]);
    assert!(room[0x2234..0xa000].iter().all(|&byte| byte == 0));
    assert!(room[0xa000..].iter().all(|&byte| byte == 0x55));
    assert_eq!(loaded.crc32, crc32fast::hash(&room[..0xa000]));
}

#[test]
fn what_cannot_be_an_image_is_refused() {
    let refused = |file: &[u8]| load(file, &mut [0; 0x2000]).unwrap_err();
    let one = |load: [u64; 5]| refused(&sealed(3, 0, &[(PT_LOAD, load)]));
    assert_eq!(refused(b"#!/bin/sh"), ImageError::Checksum(ModuleError::NoChecksum));
    assert_eq!(refused(&file(3, 0, &[GOOD])), ImageError::Checksum(ModuleError::Unsealed));
    assert_eq!(refused(&sealed(2, 0, &[GOOD])), ImageError::NotAnImage);
    assert_eq!(refused(&sealed(3, 0x900, &[GOOD])), ImageError::NotAnImage);
    assert_eq!(refused(&sealed(3, 0, &[])), ImageError::NotAnImage);
    assert_eq!(refused(&sealed(3, 0, &[GOOD, (PT_INTERP, [0; 5])])), ImageError::NotAnImage);
    assert_eq!(one([0, 0, 0, 0x4000, 0x4000]), ImageError::Damaged);
    assert_eq!(one([u64::MAX, 0, 0, 2, 2]), ImageError::Damaged);
    assert_eq!(one([0, 0, 0, 0x20, 0x10]), ImageError::Damaged);
    assert_eq!(one([0, 0x2000, 0, 1, 1]), ImageError::TooLarge);
    assert_eq!(one([0, u64::MAX, 0, 1, 1]), ImageError::TooLarge);
    assert_eq!(one([0, 0, 0, 1, u64::MAX]), ImageError::TooLarge);
    let overlap = [(PT_LOAD, [0, 0, 0, 0x800, 0x1800]), (PT_LOAD, [0, 0x1000, 0, 1, 1])];
    assert_eq!(refused(&sealed(3, 0, &overlap)), ImageError::Damaged);
}

#[test]
fn no_damage_makes_it_panic() {
    let whole = file(3, 0x10, &[GOOD, (PT_NOTE, [0x300, 0x300, 0x300, 24, 24])]);
    for at in 0..0x300 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = BootFacts::new().describe_image(&damaged, 0);
            let _ = BootFacts::new().describe_image(&damaged[..at], u64::MAX);
            if module::seal(&mut damaged).is_ok() {
                let _ = load(&damaged, &mut [0; 0x2000]);
            }
        }
    }
}

#[test]
fn a_kernel_describes_itself() {
    const HALF: u64 = 0xffff_ffff_8020_0000;
    let mut bytes = file(
        2,
        HALF + 0x1000,
        &[
            (PT_LOAD, [0, HALF, 0x20_0000, 0x800, 0x800]),
            (PT_LOAD, [0x1000, HALF + 0x1000, 0x20_1000, 0x1234, 0x3456]),
            (PT_NOTE, [0x400, HALF + 0x400, 0x20_0400, 56, 56]),
        ],
    );
    let note = |kind: u32, value: u8| [[4, 16, kind].as_bytes(), b"GNU\0", &[value; 16]].concat();
    bytes[0x400..0x420].copy_from_slice(&note(5, 1));
    bytes[0x420..0x440].copy_from_slice(&note(NT_GNU_BUILD_ID, 0xab));
    let mut facts = BootFacts::new();
    facts.add_virtual_segment(0xffff_8880_0000_0000, Range::between(0, 0x20_0000), 6).unwrap();
    facts.describe_image(&bytes, 0x20_0000).unwrap();
    assert_eq!((facts.machine, facts.elf_entry), (62, HALF + 0x1000));
    assert_eq!((facts.elf_header, facts.elf_program_headers), (0x20_0000, 3));
    // The note has room for one and three quarters.
    assert_eq!(facts.build_id(), &[] as &[u8]);
    let ranges: Vec<_> = facts.segments().iter().map(|segment| segment.range).collect();
    let second = Range { start: 0x20_1000, bytes: 0x3456 };
    assert_eq!(ranges, [Range { start: 0x20_0000, bytes: 0x800 }, second]);
    let places: Vec<_> = facts
        .virtual_segments()
        .iter()
        .map(|segment| (segment.virtual_start, segment.physical_start, segment.bytes))
        .collect();
    assert_eq!(
        places,
        [
            (0xffff_8880_0000_0000, 0, 0x20_0000),
            (HALF, 0x20_0000, 0x1000),
            (HALF + 0x1000, 0x20_1000, 0x4000)
        ]
    );
    bytes[64 + 2 * 56 + 32] = 64;
    facts = BootFacts::new();
    facts.describe_image(&bytes, 0x20_0000).unwrap();
    assert_eq!(facts.build_id(), [0xab; 16]);
    let full = (0..MAX_VIRTUAL_SEGMENTS as u64)
        .map(|page| facts.add_virtual_segment(0, Range { start: page << 12, bytes: 1 }, 4));
    assert_eq!(full.last(), Some(Err(ImageError::TooLarge)));
}
