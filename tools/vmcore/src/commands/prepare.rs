//! `vmcore prepare`: makes a disk, or a partition, a dump area, and says how large it has
//! to be.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vmcore_format::area::{AreaError, AreaHeader, LOOP_OFFSET, MARGIN_BYTES, SLOT_ALIGN};

use super::collect::Progress;
use crate::area;
use crate::partition::Which;
use crate::source::Source;
use crate::text::{bytes, count};
use crate::{Error, Result};

pub(crate) use place::Place;

mod place;

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
    pub memory_bytes: u64,
    /// Bytes a slot takes.
    pub slot_bytes: u64,
    /// Bytes the whole area takes.
    pub bytes: u64,
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
        let bytes = slot.checked_mul(u64::from(slots))?.checked_add(2 * MARGIN_BYTES)?;
        Some(Self { slots, memory_bytes: memory, slot_bytes: slot, bytes })
    }

    /// The plan for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "{} for a machine with {} take {}: {} each.\n",
            count(u64::from(self.slots), "slot"),
            bytes(self.memory_bytes),
            bytes(self.bytes),
            bytes(self.slot_bytes)
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
    pub offset: u64,
    /// Slots.
    pub slots: u32,
    /// Bytes of ELF data that fit into one.
    pub slot_capacity_bytes: u64,
    /// Bytes of the area.
    pub bytes: u64,
    /// Version of the area.
    pub version: u32,
    /// Version that it had before `--upgrade`; `null` when it was made anew.
    pub upgraded_from: Option<u32>,
}

/// Makes a whole disk or disk image, or a partition of it, a dump area. Outside of the partition
/// nothing is written.
///
/// # Errors
/// When something else stands there and `force` is not given, a machine holds the disk, or
/// it is too small.
pub fn prepare(path: &Path, layout: Layout) -> Result<Prepared> {
    prepare_with(path, layout, &mut |_, _, _| ())
}

/// Does what [`prepare`] does, and says how far it is.
///
/// # Errors
/// Those of [`prepare`].
pub fn prepare_with(path: &Path, layout: Layout, progress: &mut Progress<'_>) -> Result<Prepared> {
    let place = Place::open(path, layout.partition)?;
    let mut area = plan(path, &place, layout.slots, layout.slot_bytes)?;
    if !layout.force
        && let Some(what) = place.content(&area, progress).map_err(Error::io(path, "read it"))?
    {
        return Err(Error::InUse { path: path.to_owned(), what });
    }
    area.uuid = *uuid::Uuid::new_v4().as_bytes();
    area.seal();
    place.write(&area, None, progress).map_err(Error::io(path, "write to it"))?;
    Ok(Prepared::of(&area, &place, None))
}

/// Makes an area of an older version one of the newest, with as many slots and the same identity.
/// The crash record is kept; dumps that were collected are not.
///
/// # Errors
/// When there is no older area, a slot holds what was not collected, something else claims the
/// disk, or a machine holds it.
pub fn upgrade(
    path: &Path,
    partition: Option<Which>,
    progress: &mut Progress<'_>,
) -> Result<Prepared> {
    let place = Place::open(path, partition)?;
    let blocked = |what| Error::InUse { path: path.to_owned(), what };
    let source = match partition {
        Some(which) => Source::open_partition(path, which)?,
        None => Source::open(path)?,
    };
    let old = source.disk().map(|disk| disk.area);
    let Some(old) = old.filter(|_| source.base() == place.start) else {
        let what = "no dump area of its own to upgrade (name the --partition)".into();
        return Err(Error::Unsuitable { path: path.to_owned(), what });
    };
    if old.has_copy() {
        let what = format!("its dump area has version {} already", old.version);
        return Err(Error::Unsuitable { path: path.to_owned(), what });
    }
    if let Some(what) = source.waits() {
        return Err(blocked(what));
    }
    let claims = area::claims(&place.part, &old).map_err(Error::io(path, "read it"))?;
    if let Some((at, what)) = claims {
        return Err(blocked(format!("it holds {what} at byte {at}")));
    }
    let mut area = plan(path, &place, old.slot_count, 0)?;
    area.uuid = old.uuid;
    area.seal();
    let crashes = area::block(&place.part, LOOP_OFFSET);
    place.write(&area, crashes.as_deref(), progress).map_err(Error::io(path, "write to it"))?;
    Ok(Prepared::of(&area, &place, Some(old.version)))
}

/// Divides a place into slots that have at least so many bytes.
fn plan(path: &Path, place: &Place, slots: u32, slot_bytes: u64) -> Result<AreaHeader> {
    let unsuitable = |what| Error::Unsuitable { path: path.to_owned(), what };
    let too_small = |need| {
        let wanted = count(u64::from(slots), "slot");
        let have = bytes(place.bytes);
        unsuitable(format!("{have} are too few for {wanted}: at least {} are needed", bytes(need)))
    };
    let area = AreaHeader::plan(place.bytes, slots).map_err(|error| match error {
        AreaError::DiskTooSmall(need) => too_small(need),
        other => unsuitable(other.to_string()),
    })?;
    if area.slot_bytes < slot_bytes {
        return Err(too_small(2 * MARGIN_BYTES + u64::from(slots) * slot_bytes));
    }
    Ok(area)
}

impl Prepared {
    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let from = self.upgraded_from.map_or_else(String::new, |from| {
            format!(" Upgraded from version {from} to {}; collected dumps are gone.", self.version)
        });
        format!(
            "Dump area {} with {} of {}.{from}\n",
            self.uuid,
            count(u64::from(self.slots), "slot"),
            bytes(self.slot_capacity_bytes)
        )
    }

    fn of(area: &AreaHeader, place: &Place, upgraded_from: Option<u32>) -> Self {
        Self {
            uuid: uuid::Uuid::from_bytes(area.uuid).to_string(),
            partition: place.partition.clone(),
            offset: place.start,
            slots: area.slot_count,
            slot_capacity_bytes: area.slot_capacity(),
            bytes: area.area_bytes,
            version: area.version,
            upgraded_from,
        }
    }
}
