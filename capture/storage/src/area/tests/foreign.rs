//! What other tools leave on a disk is never written over.
//!
//! The files in `foreign/` hold sectors as tools have left them on a file of 64 MiB with an area of
//! version 4: of the blocks that are looked at, the first twelve sectors that a tool has changed,
//! each as its number and its bytes in hexadecimal without zeros at the end. The tools, of Debian
//! 12: `sfdisk` with `label: dos` or `gpt` and one partition, `sgdisk -n 1:2048:0`,
//! `parted mklabel msdos|gpt mkpart`, `mkfs.ext4` on the disk and, by `-E offset=1048576`, in the
//! partition, `mkfs.xfs -f`, `mkfs.btrfs -f -M`, `mkfs.vfat`, `mkfs.exfat`, `mkfs.f2fs`, `mkswap`,
//! `cryptsetup luksFormat --type luks1|luks2`. `pvcreate` and `mdadm --create` want a block device
//! and a kernel with md: what they write is made here, by its documentation.

use super::*;

/// What each tool has left.
const TOOLS: &[(&str, &str)] = &[
    ("sfdisk-dos", include_str!("foreign/sfdisk-dos.txt")),
    ("sfdisk-gpt", include_str!("foreign/sfdisk-gpt.txt")),
    ("sgdisk", include_str!("foreign/sgdisk.txt")),
    ("parted-msdos", include_str!("foreign/parted-msdos.txt")),
    ("parted-gpt", include_str!("foreign/parted-gpt.txt")),
    ("mkfs-ext4", include_str!("foreign/mkfs-ext4.txt")),
    ("mkfs-ext4-in-partition", include_str!("foreign/mkfs-ext4-in-partition.txt")),
    ("mkfs-xfs", include_str!("foreign/mkfs-xfs.txt")),
    ("mkfs-btrfs", include_str!("foreign/mkfs-btrfs.txt")),
    ("mkfs-vfat", include_str!("foreign/mkfs-vfat.txt")),
    ("mkfs-exfat", include_str!("foreign/mkfs-exfat.txt")),
    ("mkfs-f2fs", include_str!("foreign/mkfs-f2fs.txt")),
    ("mkswap", include_str!("foreign/mkswap.txt")),
    ("luks1", include_str!("foreign/luks1.txt")),
    ("luks2", include_str!("foreign/luks2.txt")),
];

/// Byte offset and bytes of each sector in a file.
fn sectors(file: &str) -> impl Iterator<Item = (usize, Vec<u8>)> {
    file.lines().map(|line| {
        let (number, digits) = line.split_once(' ').expect("a number and bytes");
        let digits = digits.trim_matches('-');
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
        let mut bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        bytes.resize(512, 0);
        (number.parse::<usize>().expect("a number") * 512, bytes)
    })
}

#[test]
fn what_other_tools_have_written_is_never_dumped_over() {
    for (name, file) in TOOLS {
        // Of the version that the tool was run on; in an older one the last MiB may be a dump's.
        let mut disk = FakeDisk::prepared(2);
        sectors(file).for_each(|(at, bytes)| disk.bytes[at..at + 512].copy_from_slice(&bytes));
        assert_refused(&mut disk, name);
        let mut disk = FakeDisk::prepared_before(2);
        let header = disk.bytes[..128].to_vec();
        sectors(file).for_each(|(at, bytes)| disk.bytes[at..at + 512].copy_from_slice(&bytes));
        if disk.bytes[..8] == header[..8] {
            disk.bytes[..128].copy_from_slice(&header);
        }
        assert_refused(&mut disk, name);
        // Each sector with more than a word in it would do by itself, in front of the slots.
        for (at, bytes) in sectors(file).filter(|(at, _)| (4096..1 << 20).contains(at)) {
            let mut disk = FakeDisk::prepared(2);
            disk.bytes[at..at + 512].copy_from_slice(&bytes);
            let refused = find_area(&mut disk).is_err();
            let odd = vmcore_format::area::look::odd_words(&bytes, &[]);
            assert!(refused || odd <= 1, "{name}: {at}");
        }
    }
}

#[test]
fn a_physical_volume_is_refused() {
    // Label in sector 1, header of the volume behind it, and its metadata from 4096.
    for mut disk in [FakeDisk::prepared(2), FakeDisk::prepared_before(2)] {
        disk.bytes[512..520].copy_from_slice(b"LABELONE");
        disk.bytes[536..544].copy_from_slice(b"LVM2 001");
        assert_refused(&mut disk, "label");
    }
    let mut disk = FakeDisk::prepared(2);
    disk.bytes[4100..4116].copy_from_slice(b" LVM2 x[5A%r0N*>");
    assert_refused(&mut disk, "metadata");
}

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
