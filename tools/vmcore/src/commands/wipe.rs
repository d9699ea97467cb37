//! `vmcore wipe`: removes a dump area, which `wipefs` does not know.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vmcore_format::area::{
    AREA_MAGIC, AreaHeader, BLOCK_BYTES, COLLECTED_MAGIC, LOOP_MAGIC, LOOP_OFFSET, OPEN_MAGIC,
    RECORD_BLOCKS, SEAL_MAGIC, look,
};
use zerocopy::IntoBytes;

use super::collect::Progress;
use super::prepare::Place;
use crate::area;
use crate::partition::Which;
use crate::source::Source;
use crate::text::{bytes, count};
use crate::{Error, Result};

/// What is to be removed.
#[derive(Clone, Copy, Debug, Default)]
pub struct WipeOptions {
    /// The area in this partition instead of the whole disk.
    pub partition: Option<Which>,
    /// Everything in the area is overwritten with zeros, dumps included.
    pub all: bool,
    /// Dumps that were not collected are removed as well.
    pub force: bool,
}

/// What was removed; the JSON of `vmcore wipe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiped {
    /// Identity of the area.
    pub uuid: String,
    /// First byte of the area on the disk.
    pub offset: u64,
    /// Records removed: headers, crash record, open records, seals and collected records.
    pub records: u64,
    /// Bytes overwritten with zeros.
    pub bytes: u64,
}

/// Removes the dump area of a disk, or of a partition of it: the header and its copy, and every
/// record. Nothing that is not a record of ours is touched, unless `all` is asked for.
///
/// # Errors
/// When there is no dump area, a slot holds what was not collected and `force` is not given,
/// `all` would overwrite something else, or a machine holds the disk.
pub fn wipe(path: &Path, options: WipeOptions, progress: &mut Progress<'_>) -> Result<Wiped> {
    let reading = || Error::io(path, "read it");
    let writing = || Error::io(path, "write to it");
    let place = Place::open(path, options.partition)?;
    let found = area::find(&place.part).map_err(|why| Error::Foreign {
        path: path.to_owned(),
        what: format!("there is no dump area to wipe: {why}"),
    })?;
    let header = found.header;
    let blocked = |what| Error::InUse { path: path.to_owned(), what };
    if !options.force {
        let source = match options.partition {
            Some(which) => Source::open_partition(path, which)?,
            None => Source::of_area(path)?,
        };
        if let Some(what) = source.waits() {
            return Err(blocked(what));
        }
        let claims = area::claims(&place.part, &header).map_err(reading())?;
        if let Some((at, what)) = claims.filter(|_| options.all) {
            return Err(blocked(format!("it holds {what} at byte {at}")));
        }
    }
    let records = own_records(&place, &header);
    let mut zeroed = 0;
    for &(at, bytes) in &records {
        place.zero(at, bytes, &mut |_| ()).map_err(writing())?;
        zeroed += bytes;
    }
    place.sync().map_err(writing())?;
    if options.all {
        zeroed = header.area_bytes.min(place.bytes);
        let mut done = |done| progress("wipe", done, zeroed);
        place.zero(0, zeroed, &mut done).map_err(writing())?;
        place.sync().map_err(writing())?;
    }
    Ok(Wiped {
        uuid: uuid::Uuid::from_bytes(header.uuid).to_string(),
        offset: place.start,
        records: records.len() as u64,
        bytes: zeroed,
    })
}

/// The records of an area: offset and bytes of each. The header comes last, so that what is left
/// when this is interrupted is an area still.
fn own_records(place: &Place, header: &AreaHeader) -> Vec<(u64, u64)> {
    let mut records = Vec::new();
    let mut add = |at: u64, magics: &[[u8; 8]], bytes: u64| {
        let block = area::block(&place.part, at).unwrap_or_default();
        if magics.iter().any(|magic| block.starts_with(magic)) {
            records.push((at, bytes));
        }
    };
    for slot in 0..header.slot_count {
        let offset = header.slot_offset(slot).unwrap_or(0);
        for block in 0..RECORD_BLOCKS {
            let magics = [OPEN_MAGIC, SEAL_MAGIC, COLLECTED_MAGIC];
            add(offset + block * BLOCK_BYTES, &magics, BLOCK_BYTES);
        }
    }
    // Behind these something else may stand in the same block.
    add(LOOP_OFFSET, &[LOOP_MAGIC], 192);
    for at in header.copy_offset().into_iter().chain([0]) {
        let block = area::block(&place.part, at).unwrap_or_default();
        let damaged = look::odd_words(&block, header.as_bytes()) <= 1;
        if block.starts_with(&AREA_MAGIC) || damaged {
            records.push((at, size_of::<AreaHeader>() as u64));
        }
    }
    records
}

impl Wiped {
    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "Dump area {} is removed: {}, {} of zeros written.\n",
            self.uuid,
            count(self.records, "record"),
            bytes(self.bytes)
        )
    }
}
