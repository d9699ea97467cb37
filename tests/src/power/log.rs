//! The log of QEMU's `blklogwrites` driver, which is that of the Linux device mapper target
//! `log-writes` (documented in the kernel's `admin-guide/device-mapper/log-writes`).
//!
//! Sector 0 holds a super block: magic, version, number of entries (64 bits each), bytes of
//! a sector (32 bits). Then every entry: a sector with place, length in sectors, flags and
//! length of its own data (64 bits each), and behind it what was written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One write, as the disk got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// First byte on the disk.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// Where its content stands in the log.
    pub at: u64,
    /// How many flushes came before it.
    pub epoch: usize,
}

/// Every write of a recording, in order.
pub struct WriteLog {
    file: File,
    /// In the order the disk got them.
    pub writes: Vec<Write>,
    /// How many flushes there were.
    pub flushes: usize,
}

impl WriteLog {
    /// Reads the log at `path`.
    ///
    /// # Errors
    /// It cannot be read, is no such log, or holds what this does not know.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let read = |at: u64| {
            let mut words = [0; 32];
            file.read_exact_at(&mut words, at).context("the log ends too early")?;
            Ok::<_, anyhow::Error>([0, 1, 2, 3].map(|word| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&words[word * 8..word * 8 + 8]);
                u64::from_le_bytes(bytes)
            }))
        };
        let [magic, version, count, sector] = read(0)?;
        let sector = sector & 0xffff_ffff;
        ensure!(magic == MAGIC && version == VERSION, "{}: no log of writes", path.display());
        ensure!(sector.is_power_of_two() && sector >= super::SECTOR, "sectors of {sector} bytes");
        let (mut writes, mut flushes, mut at) = (Vec::new(), 0, sector);
        for _ in 0..count {
            let [place, length, flags, own] = read(at)?;
            let (offset, bytes) = (place * sector, length * sector);
            at += sector;
            if flags & !(FLUSH | FUA) != 0 || own != 0 {
                bail!("an entry with flags {flags:#x} (discard is {DISCARD}) at byte {at}");
            }
            // A write that brings its own flush would be durable at once; none does, and to
            // take it for a plain one only makes more states than there can be.
            if bytes > 0 {
                writes.push(Write { offset, bytes, at, epoch: flushes });
                at += bytes;
            }
            if flags & FLUSH != 0 {
                flushes += 1;
            }
        }
        Ok(Self { file, writes, flushes })
    }

    /// Fills `buffer` with what stands at byte `at` of the log.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: [u64; 4]) -> Vec<u8> {
        let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        sector.resize(512, 0);
        sector
    }

    #[test]
    fn entries_are_read_in_order() {
        let path = std::env::temp_dir().join(format!("epitaph-log-{}", std::process::id()));
        let mut log = words([MAGIC, VERSION, 4, 512]);
        log.extend(words([8, 2, 0, 0]));
        log.extend([7; 1024]);
        log.extend(words([0, 0, FLUSH, 0]));
        log.extend(words([16, 1, 0, 0]));
        log.extend([9; 512]);
        log.extend(words([0, 0, FLUSH, 0]));
        std::fs::write(&path, &log).expect("a file");
        let read = WriteLog::open(&path).expect("a log");
        let first = Write { offset: 4096, bytes: 1024, at: 1024, epoch: 0 };
        let second = Write { offset: 8192, bytes: 512, at: 3072, epoch: 1 };
        assert_eq!((read.writes.as_slice(), read.flushes), (&[first, second][..], 2));
        let mut byte = [0];
        read.read(3072, &mut byte).expect("content");
        assert_eq!(byte, [9]);
        // Cut short, and of another kind.
        std::fs::write(&path, &log[..2000]).expect("a file");
        assert!(WriteLog::open(&path).is_err());
        std::fs::write(&path, vec![0; 512]).expect("a file");
        assert!(WriteLog::open(&path).is_err());
        std::fs::remove_file(&path).expect("gone");
    }
}
