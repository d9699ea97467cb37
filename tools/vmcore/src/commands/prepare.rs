//! `vmcore prepare`: makes a disk a dump area.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmcore_format::area::{AreaError, AreaHeader, BLOCK_BYTES, RECORD_BLOCKS};
use zerocopy::IntoBytes;

use crate::json::Hex;
use crate::source::recognise;
use crate::text::{bytes, count};
use crate::{Error, Result};

/// What the disk is looked over for before it is written.
const LOOKED_AT: u64 = 1 << 20;
/// GPT keeps a second header in the last sector.
const SECTOR_BYTES: u64 = 512;

/// The area that was laid out; the JSON of `vmcore prepare`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Identity of the area.
    pub uuid: String,
    /// Slots.
    pub slots: u32,
    /// Bytes of ELF data that fit into one.
    pub slot_capacity: Hex,
    /// Bytes of the area.
    pub bytes: Hex,
}

/// Writes the header of a dump area with `slots` slots to a whole disk or disk image.
///
/// # Errors
/// When something else stands on the disk and `force` is not given, or the disk is too
/// small.
pub fn prepare(path: &Path, slots: u32, force: bool) -> Result<Prepared> {
    let io = |doing| Error::io(path, doing);
    let mut file =
        OpenOptions::new().read(true).write(true).open(path).map_err(io("open it for writing"))?;
    let size = file.seek(SeekFrom::End(0)).map_err(io("find its end"))?;
    let mut area = AreaHeader::plan(size, slots).map_err(|error| {
        let what = match error {
            AreaError::DiskTooSmall(need) => format!(
                "{} are too few for {}: at least {} are needed",
                bytes(size),
                count(u64::from(slots), "slot"),
                bytes(need)
            ),
            other => other.to_string(),
        };
        Error::Unsuitable { path: path.to_owned(), what }
    })?;
    if !force && let Some(what) = content(&file, size).map_err(io("read it"))? {
        return Err(Error::InUse { path: path.to_owned(), what });
    }
    let uuid = uuid::Uuid::new_v4();
    area.uuid = *uuid.as_bytes();
    area.seal();
    write(&file, size, &area).map_err(io("write to it"))?;
    Ok(Prepared {
        uuid: uuid.to_string(),
        slots,
        slot_capacity: Hex(area.slot_capacity()),
        bytes: Hex(area.area_bytes),
    })
}

/// What stands on the disk, if anything.
fn content(file: &File, size: u64) -> std::io::Result<Option<String>> {
    let mut start = vec![0; LOOKED_AT.min(size) as usize];
    file.read_exact_at(&mut start, 0)?;
    if let Some(name) = recognise(&start) {
        return Ok(Some(format!("it holds {name}")));
    }
    if let Some(at) = start.iter().position(|&byte| byte != 0) {
        return Ok(Some(format!("it is not blank (first at byte {at})")));
    }
    let mut end = [0; 8];
    file.read_exact_at(&mut end, size - SECTOR_BYTES)?;
    Ok((end == *b"EFI PART").then(|| "it holds the second header of a GPT, at its end".into()))
}

/// Clears what would be mistaken for something of ours or of somebody else, then writes
/// the header: until that stands, the disk is no dump area.
fn write(file: &File, size: u64, area: &AreaHeader) -> std::io::Result<()> {
    let blank = vec![0; area.first_slot as usize];
    file.write_all_at(&blank, 0)?;
    for slot in 0..area.slot_count {
        let offset = area.slot_offset(slot).unwrap_or(0);
        file.write_all_at(&blank[..(RECORD_BLOCKS * BLOCK_BYTES) as usize], offset)?;
    }
    file.write_all_at(&[0; SECTOR_BYTES as usize], size - SECTOR_BYTES)?;
    file.sync_all()?;
    file.write_all_at(area.as_bytes(), 0)?;
    file.sync_all()
}

impl Prepared {
    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "Dump area {} with {} of {}.\n",
            self.uuid,
            count(u64::from(self.slots), "slot"),
            bytes(self.slot_capacity.0)
        )
    }
}
