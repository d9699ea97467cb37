//! Looks at the few blocks of a disk by which a dump area is told from anything else.
//!
//! `vmcore prepare` leaves the first and the last MiB of an area zero, but for the header, its
//! copy and the crash record. Every common format keeps a superblock, label or partition table at
//! a fixed place there. So an area is still an area when a fixed number of blocks, [`BLOCKS`], are
//! as they were left: one word of eight bytes may differ in each, since a bad bit or a bad byte
//! must not cost the area, and no format fits into one word that has no signature.

use super::{AreaHeader, BLOCK_BYTES};

/// Blocks that are looked at besides block 0, the crash record and the copy of the header.
pub const BLOCKS: usize = 10;

/// Bytes that are compared at a time: damage inside of one such word is a bad bit or byte.
const WORD: usize = 8;

/// Magic of a Linux RAID superblock, little endian.
const RAID: &[u8] = b"\xfc\x4e\x2b\xa9";

/// Block numbers at the start of a disk: GPT entries of 4 KiB sectors, UFS (2); ZFS labels, second
/// LUKS2 headers (4); ISO 9660, JFS (8); btrfs, ReiserFS (16); ZFS uberblocks (32); the second ZFS
/// label (64); UDF (128).
const FRONT: [u64; BLOCKS - 3] = [2, 4, 8, 16, 32, 64, 128];

/// Offset, signature and name of what stands at a fixed place from the start of a disk; of two
/// that fit, the first is meant.
const SIGNATURES: &[(u64, &[u8], &str)] = &[
    (0, b"hsqs", "a squashfs"),
    (0, b"XFSB", "an XFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, RAID, "a Linux RAID member"),
    (0, b"LABELONE", "an LVM volume"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (54, b"FAT", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (512, b"EFI PART", "a GPT partition table"),
    (512, b"LABELONE", "an LVM volume"),
    (1024, b"LABELONE", "an LVM volume"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (1030, b"\x34\x34", "a NILFS2 file system"),
    (1080, b"\x53\xef", "an ext file system"),
    (1536, b"LABELONE", "an LVM volume"),
    (4086, b"SWAPSPACE2", "a Linux swap area"),
    (4086, b"SWAP-SPACE", "a Linux swap area"),
    (4096, RAID, "a Linux RAID member"),
    (4096, b"EFI PART", "a GPT partition table"),
    (4120, b"\xc6\x85\x73\xf6", "a bcache or bcachefs device"),
    (5120, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (16384, b"SKUL\xba\xbe", "a LUKS volume"),
    (32768, b"SKUL\xba\xbe", "a LUKS volume"),
    (32768, b"JFS1", "a JFS file system"),
    (32769, b"CD001", "an ISO 9660 image"),
    (65536, b"SKUL\xba\xbe", "a LUKS volume"),
    (65588, b"ReIsEr", "a ReiserFS file system"),
    (65600, b"_BHRfS_M", "a btrfs file system"),
    // Beside many of the others.
    (510, b"\x55\xaa", "an MBR partition table or boot sector"),
];

/// How a block compares with what `vmcore prepare` left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs.
    Same,
    /// One word differs: a bad bit or byte.
    Damaged,
    /// Something else was written there; says what, as far as that is known.
    Foreign(&'static str),
}

/// Offsets of the blocks that are looked at on a disk of `disk_bytes`, besides block 0, the crash
/// record and the copy of the header. Some may be the same on a small disk.
#[must_use]
pub fn blocks(disk_bytes: u64) -> [u64; BLOCKS] {
    let [mut last, mut v1, mut v0] = [0; 3];
    if disk_bytes >= 2 * RAID_0_ALIGN {
        last = disk_bytes - BLOCK_BYTES;
        v1 = raid_1_0(disk_bytes);
        v0 = raid_0_90(disk_bytes);
    }
    let [a, b, c, d, e, f, g] = FRONT.map(|block| block * BLOCK_BYTES);
    [a, b, c, d, e, f, g, last, v1, v0]
}

/// A superblock of version 0.90 lies in the last but one or the last such stretch.
const RAID_0_ALIGN: u64 = 64 << 10;

/// Offset of the superblock of a Linux RAID member of version 1.0, in `md(4)` and
/// `super1.c` of mdadm: at least 8 KiB before the end, a multiple of 4 KiB.
const fn raid_1_0(disk_bytes: u64) -> u64 {
    let sectors = (disk_bytes / 512).saturating_sub(16);
    sectors / 8 * 8 * 512
}

/// Offset of the superblock of version 0.90, in `md_p.h` of Linux.
const fn raid_0_90(disk_bytes: u64) -> u64 {
    (disk_bytes / RAID_0_ALIGN * RAID_0_ALIGN).saturating_sub(RAID_0_ALIGN)
}

/// Names what is known to have its signature inside `block`, which was read at byte `offset` of a
/// disk of `disk_bytes`. At the end of a disk a signature alone is not enough: a superblock there
/// has to say that this is its place, since in an old area memory may stand there.
#[must_use]
pub fn signature(block: &[u8], offset: u64, disk_bytes: u64) -> Option<&'static str> {
    let at = |place: u64, bytes: usize| {
        let start = usize::try_from(place.checked_sub(offset)?).ok()?;
        block.get(start..start.checked_add(bytes)?)
    };
    let fixed = SIGNATURES.iter().find(|(place, bytes, _)| at(*place, bytes.len()) == Some(bytes));
    if let Some((_, _, name)) = fixed {
        return Some(name);
    }
    let word = |place: u64| Some(u64::from_le_bytes(at(place, WORD)?.try_into().ok()?));
    for sector in [512, 4096] {
        let place = disk_bytes.saturating_sub(sector);
        let own = word(place.saturating_add(24))
            == disk_bytes.checked_div(sector).and_then(|n| n.checked_sub(1));
        if own && at(place, 8) == Some(b"EFI PART") {
            return Some("the second header of a GPT partition table");
        }
    }
    let (v1, v0) = (raid_1_0(disk_bytes), raid_0_90(disk_bytes));
    let is_v1 = at(v1, 8) == Some(b"\xfc\x4e\x2b\xa9\x01\0\0\0")
        && word(v1.saturating_add(128)) == Some(v1 / 512);
    // Major version 0, minor version 90.
    let is_v0 = at(v0, 12) == Some(b"\xfc\x4e\x2b\xa9\0\0\0\0\x5a\0\0\0");
    (is_v1 || is_v0).then_some("a Linux RAID member")
}

/// Counts the words of `block` that differ from `expected`, which is zero behind its end.
#[must_use]
pub fn odd_words(block: &[u8], expected: &[u8]) -> usize {
    let mut expected = expected.chunks(WORD);
    let differs = |found: &[u8]| {
        let expected = expected.next().unwrap_or_default();
        let zeros = found.iter().skip(expected.len()).any(|&byte| byte != 0);
        zeros || !found.iter().zip(expected).all(|(one, other)| one == other)
    };
    block.chunks(WORD).map(differs).filter(|&differs| differs).count()
}

/// Compares `block`, read at byte `offset` of a disk of `disk_bytes`, with `expected`, which is
/// zero behind its end.
#[must_use]
pub fn compare(block: &[u8], expected: &[u8], offset: u64, disk_bytes: u64) -> Verdict {
    match (odd_words(block, expected), signature(block, offset, disk_bytes)) {
        (0, _) => Verdict::Same,
        (_, Some(name)) => Verdict::Foreign(name),
        (1, None) => Verdict::Damaged,
        _ => Verdict::Foreign("data that is not known"),
    }
}

/// Judges a block that is no header, no copy and no crash record, read at byte `offset` of a disk
/// of `disk_bytes` with the area `area`. Where `vmcore prepare` left zeros, zeros have to be;
/// in a slot, and behind the area on a disk that has grown, only what names itself counts.
#[must_use]
pub fn judge(area: &AreaHeader, block: &[u8], offset: u64, disk_bytes: u64) -> Verdict {
    let slots = area.slot_bytes.saturating_mul(u64::from(area.slot_count));
    let slots_end = area.first_slot.saturating_add(slots);
    let end = offset.saturating_add(BLOCK_BYTES);
    let front = end <= area.first_slot;
    // Up to a part of a block may be behind an area that takes all of its disk.
    let tail = area.has_copy()
        && offset >= slots_end
        && end < area.area_bytes.saturating_add(BLOCK_BYTES)
        && disk_bytes.saturating_sub(area.area_bytes) < BLOCK_BYTES;
    if front || tail {
        return compare(block, &[], offset, disk_bytes);
    }
    signature(block, offset, disk_bytes).map_or(Verdict::Same, Verdict::Foreign)
}
