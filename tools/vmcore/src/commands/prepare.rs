//! `vmcore prepare`: makes a disk, or a partition, a dump area, and says how large it has
//! to be.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmcore_format::area::{AreaError, AreaHeader, BLOCK_BYTES, RECORD_BLOCKS, SLOT_ALIGN};
use vmcore_format::gpt::ShowGuid;
use zerocopy::IntoBytes;

use crate::file::Part;
use crate::json::Hex;
use crate::kind::recognise;
use crate::partition::{self, Which};
use crate::text::{bytes, count};
use crate::{Error, Result};

/// What the disk is looked over for before it is written.
const LOOKED_AT: u64 = 1 << 20;
/// GPT keeps a second header in the last sector.
const SECTOR_BYTES: u64 = 512;

/// How far the stages of a dump go; decides how much room one takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pages {
    /// Memory in use: half of it is planned for, since how much is in use is not known. A
    /// slot that turns out too small keeps the stage before.
    Used,
    /// All memory.
    All,
}

/// The room a dump takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPlan {
    /// Dumps there is to be room for.
    pub slots: u32,
    /// Bytes of memory of the machine.
    pub memory: Hex,
    /// Bytes a slot takes.
    pub slot_bytes: Hex,
    /// Bytes the whole area takes.
    pub bytes: Hex,
}

/// For the ELF headers, notes and tables of every stage, and for what the first one writes
/// beside the memory in use.
const BESIDE_MEMORY: u64 = 16 << 20;

impl SlotPlan {
    /// Room for `slots` dumps of a machine with `memory` bytes; `None` when that is more than
    /// a disk can have.
    #[must_use]
    pub fn new(memory: u64, pages: Pages, slots: u32) -> Option<Self> {
        let stored = match pages {
            Pages::Used => memory / 2,
            Pages::All => memory,
        };
        let slot = stored.checked_add(BESIDE_MEMORY)?.checked_next_multiple_of(SLOT_ALIGN)?;
        let bytes = slot.checked_mul(u64::from(slots))?.checked_add(SLOT_ALIGN)?;
        Some(Self { slots, memory: Hex(memory), slot_bytes: Hex(slot), bytes: Hex(bytes) })
    }

    /// The plan for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "{} for a machine with {} take {}: {} each.\n",
            count(u64::from(self.slots), "slot"),
            bytes(self.memory.0),
            bytes(self.bytes.0),
            bytes(self.slot_bytes.0)
        )
    }
}

/// How a disk is to be laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Dumps it holds.
    pub slots: u32,
    /// This partition instead of the whole disk.
    pub partition: Option<Which>,
    /// Bytes a slot has to have at least.
    pub slot_bytes: u64,
    /// Whatever stands there is overwritten.
    pub force: bool,
}

/// The area that was laid out; the JSON of `vmcore prepare`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Identity of the area.
    pub uuid: String,
    /// Identity of its partition; `null` for a whole disk.
    pub partition: Option<String>,
    /// First byte of the area on the disk.
    pub offset: Hex,
    /// Slots.
    pub slots: u32,
    /// Bytes of ELF data that fit into one.
    pub slot_capacity: Hex,
    /// Bytes of the area.
    pub bytes: Hex,
}

/// Where the area goes.
struct Place {
    file: File,
    start: u64,
    bytes: u64,
    partition: Option<String>,
}

/// Writes the header of a dump area to a whole disk or disk image, or to a partition of it.
/// Outside of the partition nothing is written.
///
/// # Errors
/// When something else stands there and `force` is not given, a machine holds the disk, or
/// it is too small.
pub fn prepare(path: &Path, layout: Layout) -> Result<Prepared> {
    let io = |doing| Error::io(path, doing);
    let place = Place::open(path, layout.partition)?;
    let slots = layout.slots;
    let unsuitable = |what| Error::Unsuitable { path: path.to_owned(), what };
    let too_small = |need| {
        let wanted = count(u64::from(slots), "slot");
        let have = bytes(place.bytes);
        unsuitable(format!("{have} are too few for {wanted}: at least {} are needed", bytes(need)))
    };
    let mut area = AreaHeader::plan(place.bytes, slots).map_err(|error| match error {
        AreaError::DiskTooSmall(need) => too_small(need),
        other => unsuitable(other.to_string()),
    })?;
    if area.slot_bytes < layout.slot_bytes {
        return Err(too_small(area.first_slot + u64::from(slots) * layout.slot_bytes));
    }
    if !layout.force
        && let Some(what) = place.content().map_err(io("read it"))?
    {
        return Err(Error::InUse { path: path.to_owned(), what });
    }
    let uuid = uuid::Uuid::new_v4();
    area.uuid = *uuid.as_bytes();
    area.seal();
    place.write(&area).map_err(io("write to it"))?;
    Ok(Prepared {
        uuid: uuid.to_string(),
        partition: place.partition,
        offset: Hex(place.start),
        slots,
        slot_capacity: Hex(area.slot_capacity()),
        bytes: Hex(area.area_bytes),
    })
}

impl Place {
    fn open(path: &Path, partition: Option<Which>) -> Result<Self> {
        let file = crate::lock::open_to_write(path)?;
        let whole = Part::open(path)?;
        let Some(which) = partition else {
            return Ok(Self { file, start: 0, bytes: whole.bytes(), partition: None });
        };
        let found = partition::find(path, &whole, which)?;
        let guid = Some(ShowGuid(&found.guid).to_string());
        Ok(Self { file, start: found.start, bytes: found.bytes, partition: guid })
    }

    /// What stands there, if anything.
    fn content(&self) -> std::io::Result<Option<String>> {
        let mut start = vec![0; LOOKED_AT.min(self.bytes) as usize];
        self.file.read_exact_at(&mut start, self.start)?;
        if let Some(name) = recognise(&start) {
            return Ok(Some(format!("it holds {name}")));
        }
        if let Some(at) = start.iter().position(|&byte| byte != 0) {
            return Ok(Some(format!("it is not blank (first at byte {at})")));
        }
        let mut end = [0; 8];
        self.file.read_exact_at(&mut end, self.start + self.bytes - SECTOR_BYTES)?;
        let second = end == *b"EFI PART";
        Ok(second.then(|| "it holds the second header of a GPT, at its end".into()))
    }

    /// Clears what would be mistaken for something of ours or of somebody else, then writes
    /// the header: until that stands, the place is no dump area.
    fn write(&self, area: &AreaHeader) -> std::io::Result<()> {
        let blank = vec![0; area.first_slot as usize];
        self.file.write_all_at(&blank, self.start)?;
        for slot in 0..area.slot_count {
            let offset = self.start + area.slot_offset(slot).unwrap_or(0);
            let records = &blank[..(RECORD_BLOCKS * BLOCK_BYTES) as usize];
            self.file.write_all_at(records, offset)?;
        }
        let last = self.start + self.bytes - SECTOR_BYTES;
        self.file.write_all_at(&[0; SECTOR_BYTES as usize], last)?;
        self.file.sync_all()?;
        self.file.write_all_at(area.as_bytes(), self.start)?;
        self.file.sync_all()
    }
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
