//! The note on a disk that a dump is in safety: its slot may be used again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vmcore_format::area::{BLOCK_BYTES, COLLECTED_BLOCK, Collected, SlotOpen};
use zerocopy::IntoBytes;

use super::Waiting;
use crate::output::{Step, Steps};
use crate::pair::Other;
use crate::source::Source;
use crate::{Error, Result};

/// A note to be written that a dump is in safety.
pub(in crate::commands) struct Mark {
    disk: PathBuf,
    /// Byte offset of its block on the disk.
    offset: u64,
    record: Collected,
}

impl Mark {
    pub(super) fn new(source: &Source, slot: u32, open: &SlotOpen) -> Self {
        let area = source.disk().and_then(|found| found.area.slot_offset(slot)).unwrap_or(0);
        Self::at(source.path(), source.base() + area, open)
    }

    /// In the slot at byte `slot` of `disk`.
    fn at(disk: &Path, slot: u64, open: &SlotOpen) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let offset = slot + COLLECTED_BLOCK * BLOCK_BYTES;
        Self { disk: disk.to_owned(), offset, record: Collected::of(open, now) }
    }

    /// The disk it belongs on.
    pub(in crate::commands) fn disk(&self) -> &Path {
        &self.disk
    }
}

/// The notes that a dump is in safety: where its records are, then where the rest is.
pub(in crate::commands) fn marks(source: &Source, waiting: &Waiting) -> Result<Vec<Mark>> {
    let mut marks = vec![Mark::new(source, waiting.slot, &waiting.open)];
    if let Other::Here(half) = source.other_half(&waiting.open)? {
        marks.push(Mark::at(&half.path, half.slot.base(), &half.open));
    }
    Ok(marks)
}

/// Writes down that a dump is in safety. The core, its name and its folder are on the medium
/// before.
pub(in crate::commands) fn mark(
    writers: &[(&Path, File)],
    marks: &[Mark],
    steps: &mut Steps<'_>,
) -> Result<()> {
    for Mark { disk, offset, record } in marks {
        let Some((_, writer)) = writers.iter().find(|(path, _)| path == disk) else { continue };
        let mut block = [0; BLOCK_BYTES as usize];
        block[..size_of::<Collected>()].copy_from_slice(record.as_bytes());
        steps(Step::Mark)
            .and_then(|()| writer.write_all_at(&block, *offset))
            .and_then(|()| writer.sync_all())
            .map_err(Error::io(disk, "mark the dump as collected"))?;
    }
    Ok(())
}
