//! Tables that the hand-off points at, each under a checksum of its own.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::crash::{set_text, text};
use crate::{MAX_CPUS, RecordError};

/// Most locks in the table; those that are held or waited for come first.
pub const MAX_LOCKS: usize = 64;
/// Most workloads that say something in a crash.
pub const MAX_WORDS: usize = 8;
/// "Nobody" in [`LockRecord::owner`].
pub const NO_OWNER: u32 = u32::MAX;

/// Where a table of equal records lies.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Table {
    /// Physical address of the first record; 0 for no table.
    pub address: u64,
    /// How many records.
    pub count: u32,
    /// CRC32 of all of them.
    pub crc32: u32,
}

impl Table {
    /// The table of `records`, which lie at `address`.
    #[must_use]
    pub fn of<T: IntoBytes + Immutable>(address: u64, records: &[T]) -> Self {
        let crc32 = crc32fast::hash(records.as_bytes());
        Self { address, count: records.len() as u32, crc32 }
    }

    /// Bytes of all records of type `T`.
    #[must_use]
    pub const fn bytes<T>(&self) -> u64 {
        // 2³² records of some hundred bytes are far below 2⁶⁴.
        self.count as u64 * size_of::<T>() as u64
    }

    /// Checks the records' bytes.
    ///
    /// # Errors
    /// Says what is wrong; nothing in them may then be believed.
    pub fn check(&self, bytes: &[u8]) -> Result<(), RecordError> {
        let computed = crc32fast::hash(bytes);
        if self.crc32 == computed {
            Ok(())
        } else {
            Err(RecordError::Checksum(self.crc32, computed))
        }
    }
}

/// Where a table lies that only the workload and its tool on the host can read.
///
/// The workload may be writing the table when it is stopped, so the table has no checksum. The
/// capture image copies its bytes into the dump and does not look into them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct WorkloadTable {
    /// Physical address of the first entry, a multiple of 8; 0 for no table.
    pub address: u64,
    /// Number of entries; 0 for no table.
    pub count: u32,
    /// Bytes of an entry, a multiple of 8. 0 stands for [`Self::DEFAULT_ENTRY_BYTES`]: hand-offs
    /// that are older than the field have 0 here.
    pub entry_bytes: u32,
}

const _: () = assert!(size_of::<WorkloadTable>() == 16);

impl WorkloadTable {
    /// Bytes of an entry when `entry_bytes` is 0.
    pub const DEFAULT_ENTRY_BYTES: u32 = 24;

    /// Returns the bytes of all entries. The product of two 32-bit numbers fits 64 bits.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        let entry = match self.entry_bytes {
            0 => Self::DEFAULT_ENTRY_BYTES,
            bytes => bytes,
        };
        self.count as u64 * entry as u64
    }
}

/// One lock, as the crashing CPU found it after the others were stopped.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LockRecord {
    /// Its name, zero padded.
    pub name: [u8; 16],
    /// Its virtual address.
    pub address: u64,
    /// 1 when it is held.
    pub held: u32,
    /// Index of the CPU that holds it; [`NO_OWNER`] when nobody does.
    pub owner: u32,
    /// The instruction behind the one that acquired it last; 0 when it never was.
    pub acquired_at: u64,
    /// Time-stamp counter when it was acquired last.
    pub acquired_tsc: u64,
    /// CPUs that were waiting for it, one bit per CPU index.
    pub waiters: [u64; MAX_CPUS / 64],
    /// How often someone had to wait for it.
    pub contended: u64,
    /// Zero.
    pub reserved: u64,
}

/// What a workload said when it was asked after the crash.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WorkloadWords {
    /// Its name, zero padded.
    pub name: [u8; 16],
    /// Its words, UTF-8, zero padded.
    pub text: [u8; 240],
}

const _: () = {
    assert!(size_of::<Table>() == 16);
    assert!(size_of::<LockRecord>() == 128);
    assert!(size_of::<WorkloadWords>() == 256);
};

impl LockRecord {
    /// The lock's name without its padding.
    #[must_use]
    pub fn name(&self) -> &str {
        text(&self.name)
    }

    /// Indices of the CPUs that were waiting.
    pub fn waiters(&self) -> impl Iterator<Item = u32> {
        let words = self.waiters;
        (0..MAX_CPUS as u32).filter(move |cpu| words[*cpu as usize / 64] >> (cpu % 64) & 1 == 1)
    }
}

impl WorkloadWords {
    /// What `name` said.
    #[must_use]
    pub fn new(name: &str, words: &str) -> Self {
        let mut record = Self { name: [0; 16], text: [0; 240] };
        set_text(&mut record.name, name);
        set_text(&mut record.text, words);
        record
    }

    /// The workload's name.
    #[must_use]
    pub fn name(&self) -> &str {
        text(&self.name)
    }

    /// What it said.
    #[must_use]
    pub fn text(&self) -> &str {
        text(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workloads_table_reads_as_in_older_hand_offs() {
        // Address, and a count of 64 bits whose upper half is now the size of an entry.
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&0x5000_u64.to_le_bytes());
        bytes[8..].copy_from_slice(&3_u64.to_le_bytes());
        let mut table = WorkloadTable::read_from_bytes(&bytes).unwrap();
        assert_eq!(table, WorkloadTable { address: 0x5000, count: 3, entry_bytes: 0 });
        assert_eq!(table.bytes(), 72);
        table.entry_bytes = 8;
        assert_eq!(table.bytes(), 24);
        let most = WorkloadTable { address: 0, count: u32::MAX, entry_bytes: u32::MAX };
        assert_eq!(most.bytes(), u64::from(u32::MAX).pow(2));
    }
}
