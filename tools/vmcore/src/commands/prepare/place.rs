//! The stretch of a disk that becomes, or is, a dump area: what is on it, and writing to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmcore_format::area::look;
use vmcore_format::area::{AreaHeader, BLOCK_BYTES, LOOP_OFFSET, MARGIN_BYTES, RECORD_BLOCKS};
use vmcore_format::gpt::ShowGuid;
use zerocopy::IntoBytes;

use crate::commands::collect::Progress;
use crate::file::Part;
use crate::kind::recognise;
use crate::partition::{self, Which};
use crate::{Result, lock};

/// Blocks between the slots' records that are looked at, spread evenly over the whole.
const SPREAD: u64 = 64;
/// Bytes at the start of each slot that hold its records.
pub(super) const RECORD_BYTES: u64 = RECORD_BLOCKS * BLOCK_BYTES;

/// Where the area goes.
pub(crate) struct Place {
    file: File,
    pub(crate) part: Part,
    /// First byte on the disk.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// Identity of the partition.
    pub(crate) partition: Option<String>,
}

impl Place {
    /// Opens a disk, or a partition of it that no other program has open.
    pub(crate) fn open(path: &Path, partition: Option<Which>) -> Result<Self> {
        let file = lock::open_to_write(path)?;
        let whole = Part::open(path)?;
        let Some(which) = partition else {
            let bytes = whole.bytes();
            return Ok(Self { file, part: whole, start: 0, bytes, partition: None });
        };
        let found = partition::find(path, &whole, which)?;
        let part = whole.part(found.start, found.bytes);
        let part = part.map_err(crate::Error::io(path, "open it again"))?;
        let guid = Some(ShowGuid(&found.guid).to_string());
        Ok(Self { file, part, start: found.start, bytes: found.bytes, partition: guid })
    }

    /// Looks for anything that `area` would be written over, and names it. Looked at are the first
    /// and the last MiB, the records of each slot, and 64 blocks spread over the whole; data that
    /// lies in between is not seen.
    pub(crate) fn content(
        &self,
        area: &AreaHeader,
        progress: &mut Progress<'_>,
    ) -> io::Result<Option<String>> {
        let start = self.part.read_up_to(0, MARGIN_BYTES)?;
        if let Some(name) = recognise(&start).or_else(|| look::signature(&start, 0, self.bytes)) {
            return Ok(Some(format!("it holds {name}")));
        }
        let tail = self.bytes.saturating_sub(MARGIN_BYTES);
        let end = self.part.read_up_to(tail, MARGIN_BYTES)?;
        if let Some(name) = look::signature(&end, tail, self.bytes) {
            return Ok(Some(format!("it holds {name}, at its end")));
        }
        let sector = end.len().checked_sub(512).and_then(|at| end.get(at..));
        if sector.is_some_and(|sector| sector.starts_with(b"EFI PART")) {
            return Ok(Some("it holds the second header of a GPT, at its end".into()));
        }
        let slots = (0..area.slot_count).filter_map(|slot| area.slot_offset(slot));
        let spread = (0..SPREAD).map(|number| {
            let at = u128::from(self.bytes) * u128::from(number) / u128::from(SPREAD);
            at as u64 / BLOCK_BYTES * BLOCK_BYTES
        });
        let mut looks = vec![(0, MARGIN_BYTES), (tail, MARGIN_BYTES)];
        looks.extend(slots.map(|at| (at, RECORD_BYTES)));
        looks.extend(spread.map(|at| (at, BLOCK_BYTES)));
        looks.sort_unstable();
        let all = looks.len() as u64;
        for (done, (at, bytes)) in (0..).zip(looks) {
            progress("look", done, all);
            let found = self.part.read_up_to(at, bytes)?;
            if let Some(first) = found.iter().position(|&byte| byte != 0) {
                let first = at + first as u64;
                return Ok(Some(format!("it is not blank (first at byte {first})")));
            }
        }
        Ok(None)
    }

    /// Writes zeros where an area has to be zero, then the copy of the header, then the header:
    /// until that stands, the place is no dump area. With `crashes`, the crash record is kept.
    pub(crate) fn write(
        &self,
        area: &AreaHeader,
        crashes: Option<&[u8]>,
        progress: &mut Progress<'_>,
    ) -> io::Result<()> {
        let tail = area.copy_offset().unwrap_or(area.area_bytes);
        let slots = (0..area.slot_count).filter_map(|slot| area.slot_offset(slot));
        let mut blank = vec![(0, MARGIN_BYTES), (tail, self.bytes - tail)];
        blank.extend(slots.map(|at| (at, RECORD_BYTES)));
        let all = blank.iter().map(|(_, bytes)| bytes).sum();
        let mut done = 0;
        // Block 0 comes first.
        for (at, bytes) in blank {
            progress("prepare", done, all);
            self.zero(at, bytes, &mut |_| ())?;
            done += bytes;
        }
        if let Some(crashes) = crashes {
            self.put(LOOP_OFFSET, crashes)?;
        }
        self.sync()?;
        self.put(tail, area.as_bytes())?;
        self.sync()?;
        self.put(0, area.as_bytes())?;
        self.sync()?;
        progress("prepare", all, all);
        Ok(())
    }

    /// Writes zeros, and says how many bytes are done.
    pub(crate) fn zero(&self, at: u64, bytes: u64, done: &mut dyn FnMut(u64)) -> io::Result<()> {
        let zeros = vec![0; bytes.min(MARGIN_BYTES) as usize];
        let mut written = 0;
        while written < bytes {
            let part = (bytes - written).min(MARGIN_BYTES);
            let zeros = zeros.get(..part as usize).unwrap_or_default();
            self.file.write_all_at(zeros, self.start + at + written)?;
            written += part;
            done(written);
        }
        Ok(())
    }

    fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.start + at)
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
