//! A disk with a GUID partition table, written by a library that shares nothing with our
//! reader.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use anyhow::{Context, Result};
use gptman::{GPT, GPTPartitionEntry};

/// A partition to make.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its type, in the order of the bytes in the table.
    pub kind: [u8; 16],
    /// Its own identity, likewise.
    pub guid: [u8; 16],
    /// Its size in bytes, a multiple of the sector.
    pub bytes: u64,
}

/// Type of a partition with a Linux file system, `0fc63daf-8483-4772-8e79-3d69d8477de4`.
pub const LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// Writes a table with these partitions, one behind the other from 1 MiB on, to `disk`, which
/// has its full length. Returns where each begins, in bytes.
///
/// # Errors
/// They do not fit, or the disk cannot be written.
pub fn write(disk: &mut File, sector_bytes: u64, partitions: &[Wanted]) -> Result<Vec<u64>> {
    let mut gpt = GPT::new_from(disk, sector_bytes, [0x5e; 16]).context("a new table")?;
    let mut next = (1 << 20) / sector_bytes;
    let mut starts = Vec::new();
    for (number, wanted) in (1..).zip(partitions) {
        let sectors = wanted.bytes / sector_bytes;
        gpt[number] = GPTPartitionEntry {
            partition_type_guid: wanted.kind,
            unique_partition_guid: wanted.guid,
            starting_lba: next,
            ending_lba: next + sectors - 1,
            attribute_bits: 0,
            partition_name: "dumps".into(),
        };
        starts.push(next * sector_bytes);
        next += sectors;
    }
    gpt.write_into(disk).context("write the table")?;
    GPT::write_protective_mbr_into(disk, sector_bytes).context("write the protective record")?;
    disk.seek(SeekFrom::Start(0)).context("go back")?;
    Ok(starts)
}
