//! What other tools leave on a disk is never written over.
//!
//! The images in `foreign/` are the blocks that differ from zero after a tool was run on a file
//! of 64 MiB that held a dump area of version 4: `foreign/make.sh` makes them anew. Each line is
//! the number of a sector of 512 bytes and its bytes in hexadecimal, runs of zeros shortened.

use super::*;

/// Byte offset and bytes of a superblock, by the documentation of its format.
type Superblock = (u64, Vec<u8>);

/// Superblocks of Linux RAID, as in `md_p.h`: `mdadm --create` needs a kernel with md.
fn raid() -> Vec<(&'static str, Superblock)> {
    const MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
    let version_1 = |at: u64| {
        let mut block = vec![0; 256];
        block[..4].copy_from_slice(&MAGIC);
        block[4] = 1;
        block[16..32].fill(0x77);
        block[128..136].copy_from_slice(&(at / 512).to_le_bytes());
        (at, block)
    };
    let end = DISK_BYTES / 512;
    let mut version_0 = vec![0; 4096];
    version_0[..4].copy_from_slice(&MAGIC);
    version_0[8..12].copy_from_slice(&90_u32.to_le_bytes());
    version_0[20..24].fill(0x77);
    vec![
        ("0.90", (DISK_BYTES - (64 << 10), version_0)),
        ("1.0", version_1((end - 16) / 8 * 8 * 512)),
        ("1.1", version_1(0)),
        ("1.2", version_1(4096)),
    ]
}

/// Asserts that the disk is refused, and that nothing was written to it.
fn assert_refused(disk: &mut FakeDisk, name: &str) {
    disk.events.clear();
    let problem = find_area(disk).expect_err(name);
    assert!(
        matches!(problem, StorageError::Claimed(..) | StorageError::NoArea(_)),
        "{name}: {problem}"
    );
    assert!(disk.events.is_empty(), "{name}");
}

#[test]
fn a_raid_member_is_refused() {
    for (name, (at, bytes)) in raid() {
        for mut disk in [FakeDisk::prepared(2), FakeDisk::prepared_before(2)] {
            disk.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
            assert_refused(&mut disk, name);
        }
    }
}

#[test]
fn a_few_blocks_are_read() {
    for mut disk in [FakeDisk::prepared(2), FakeDisk::prepared_before(32)] {
        find_area(&mut disk).unwrap();
        assert!(disk.reads <= LOOKED_AT, "{}", disk.reads);
    }
}

#[test]
fn a_superblock_in_a_dump_disowns_no_area() {
    // Memory that looks like the start, or the end, of a disk with something else on it.
    let mut disk = FakeDisk::prepared(1);
    let slots = (1 << 20)..(63 << 20);
    for (_, (_, bytes)) in raid() {
        for at in slots.clone().step_by(4096) {
            disk.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    assert!(find_area(&mut disk).is_ok());
}

#[test]
fn what_is_written_behind_the_header_is_seen() {
    for at in (128..4096).step_by(8) {
        let mut disk = FakeDisk::prepared_before(1);
        disk.bytes[at] = 1;
        assert_refused(&mut disk, "one byte behind an old header");
        let mut disk = FakeDisk::prepared(1);
        disk.bytes[at..at + 9].fill(1);
        if at + 9 <= 4096 {
            assert_refused(&mut disk, "data behind the header");
        }
    }
    // A boot sector of nothing but its signature.
    let mut disk = FakeDisk::prepared(1);
    disk.bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_refused(&mut disk, "a boot sector");
    // The start of the disk wiped: the copy alone makes no area.
    let mut disk = FakeDisk::prepared(1);
    disk.bytes[..4096].fill(0);
    assert_refused(&mut disk, "a wiped disk");
}

#[test]
fn a_foreign_block_where_crashes_are_counted_is_kept() {
    let mut disk = FakeDisk::prepared(1);
    let at = LOOP_OFFSET as usize;
    disk.bytes[at..at + 4096].fill(0x5a);
    assert_eq!(
        note_crash(&mut disk, 7, 0, 1),
        Err(StorageError::Claimed(LOOP_OFFSET, "data that is not known"))
    );
    assert!(disk.events.is_empty() && disk.bytes[at..at + 4096].iter().all(|&byte| byte == 0x5a));
}
