//! Dumps that lie in two dump areas, on disks that shared the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use vmcore_format::area::{SlotOpen, part};

use crate::file::Part;
use crate::source::{Disk, OpenOptions, Slot, Source};
use crate::{Error, Result};

/// A dump area at hand beside the one that is read.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    path: PathBuf,
    part: Part,
    disk: Arc<Disk>,
}

/// The slot with the other half of a dump.
#[derive(Debug)]
pub(crate) struct Half {
    /// Its disk.
    pub(crate) path: PathBuf,
    /// What stands in it.
    pub(crate) slot: Part,
    /// Bytes it has by the header of its area.
    pub(crate) slot_bytes: u64,
    /// Offset behind the last byte of its log that is in use.
    pub(crate) log_end: u64,
    /// Its open record.
    pub(crate) open: SlotOpen,
    /// It is of use: the dump is sealed, and nobody has it in safety elsewhere.
    waits: bool,
}

/// What is known of the other half of a dump.
#[derive(Debug)]
pub(crate) enum Other {
    /// There is none: the dump is in one area.
    None,
    /// It is at hand.
    Here(Box<Half>),
    /// Its area is at hand, and the slot holds something else now; says what.
    Gone(String),
    /// Its area is not at hand; says which it is.
    Missing(String),
}

impl Other {
    /// The half; without it, why it is not there.
    pub(crate) fn half(self) -> std::result::Result<Half, String> {
        match self {
            Self::Here(half) => Ok(*half),
            Self::Gone(why) | Self::Missing(why) => Err(why),
            Self::None => Err("it has no other half".into()),
        }
    }
}

/// A slot that holds only memory of a dump.
#[derive(Debug)]
pub(crate) struct MemoryHalf {
    /// Its number.
    pub(crate) slot: u32,
    /// Its open record.
    pub(crate) open: SlotOpen,
    /// Whether it is of use.
    pub(crate) needed: Needed,
}

/// Whether the records of a dump need memory in another area.
#[derive(Debug)]
pub(crate) enum Needed {
    /// They are sealed, and nobody has the dump in safety.
    Yes,
    /// They are gone, were never sealed, or the dump is in safety.
    No,
    /// Their disk is not at hand; says what is here.
    Unknown(String),
}

/// What is said of an area by its identity.
pub(crate) fn name(area: &[u8; 16], slot: u32) -> String {
    format!("slot {slot} of the dump area {}", Uuid::from_bytes(*area))
}

impl Source {
    /// Every dump area of several disks, each of which knows the others: a dump may lie in two
    /// of them.
    ///
    /// # Errors
    /// As [`Source::every`], for each of the disks.
    pub fn together(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for path in paths {
            all.extend(Self::every(path)?);
        }
        Self::introduce(&mut all);
        Ok(all)
    }

    /// Opens the dump on `path` with other disks that may hold the other half of it; when there
    /// is none that begins on `path`, that of the first of the others.
    ///
    /// # Errors
    /// As [`Source::open`], for each of the disks.
    pub fn open_with(path: &Path, others: &[PathBuf]) -> Result<Self> {
        let mut all = vec![Self::open(path)?];
        for other in others {
            all.push(Self::open(other)?);
        }
        Self::introduce(&mut all);
        let first = all.iter().position(Self::has_dump).unwrap_or(0);
        Ok(all.swap_remove(first))
    }

    /// Makes each of several areas known to the others.
    pub(crate) fn introduce(all: &mut [Self]) {
        let beside: Vec<_> = all.iter().filter_map(Self::as_beside).collect();
        for source in all {
            source.beside = beside.clone();
        }
    }

    fn as_beside(&self) -> Option<Beside> {
        let disk = Arc::clone(self.disk.as_ref()?);
        Some(Beside { path: self.path().to_owned(), part: self.part.clone(), disk })
    }

    /// Looks for the other half of the dump that `open` begins, or is half of.
    ///
    /// # Errors
    /// When the other disk cannot be read.
    pub(crate) fn other_half(&self, open: &SlotOpen) -> Result<Other> {
        if open.part == part::WHOLE {
            return Ok(Other::None);
        }
        let here = self.disk.as_ref().map(|disk| disk.area.uuid);
        let name = name(&open.other_area, open.other_slot);
        // Two disks with one identity are copies, and a copy of this one is not the other.
        let of_area = |beside: &&Beside| {
            beside.disk.area.uuid == open.other_area && here != Some(open.other_area)
        };
        let Some(beside) = self.beside.iter().find(of_area) else {
            return Ok(Other::Missing(format!(
                "the rest of it is in {name}: give that disk as well"
            )));
        };
        let (area, slot) = (&beside.disk.area, open.other_slot);
        let Some(Slot::Begun { open: other, seals, collected, .. }) =
            beside.disk.slots.get(slot as usize).filter(|slot| slot.is_half_of(open))
        else {
            let found = beside.disk.slots.get(slot as usize);
            let unknown = found.is_some_and(Slot::is_unknown);
            let found = found.map_or_else(|| "not there".into(), Slot::describe);
            if unknown {
                // It may be there: nothing of this half is given up.
                return Ok(Other::Missing(format!(
                    "the rest of it is in {name}, which is: {found}"
                )));
            }
            return Ok(Other::Gone(format!("the rest of it was in {name}, which is: {found}")));
        };
        let offset = area.slot_offset(slot).unwrap_or(0);
        let part = beside.part.part(offset, area.slot_bytes);
        let slot = part.map_err(Error::io(&beside.path, "open it again"))?;
        let waits = !seals.is_empty() && collected.is_none();
        // Sealed there before it is here; without a seal the end of the log is not known.
        let log_end = seals.iter().map(|(_, seal)| seal.log_end).max().unwrap_or(area.slot_bytes);
        let half = Half {
            path: beside.path.clone(),
            slot,
            slot_bytes: area.slot_bytes,
            log_end,
            open: **other,
            waits,
        };
        Ok(Other::Here(Box::new(half)))
    }

    /// The slots that hold only memory of a dump, which nobody has collected.
    ///
    /// # Errors
    /// When another disk cannot be read.
    pub(crate) fn halves(&self) -> Result<Vec<MemoryHalf>> {
        let slots = self.disk().map(|disk| disk.slots.as_slice()).unwrap_or_default();
        let mut halves = Vec::new();
        for (slot, content) in (0..).zip(slots) {
            let Some(open) = content.memory_of() else { continue };
            let Slot::Begun { seals, collected: None, .. } = content else { continue };
            // Without a seal the slot is used again in any case.
            if seals.is_empty() {
                continue;
            }
            let needed = match self.other_half(open)? {
                Other::Here(half) if half.waits => Needed::Yes,
                Other::Missing(_) => {
                    let path = self.path().display();
                    Needed::Unknown(format!("{path}: slot {slot}: {}", content.describe()))
                }
                _ => Needed::No,
            };
            halves.push(MemoryHalf { slot, open: *open, needed });
        }
        Ok(halves)
    }

    fn has_dump(&self) -> bool {
        self.disk().is_none() || self.content(OpenOptions { slot: None, partial: true }).is_ok()
    }
}

impl Slot {
    /// Whether it holds the other half of the dump of `open`.
    fn is_half_of(&self, open: &SlotOpen) -> bool {
        matches!(self, Self::Begun { open: other, .. } if open.is_pair_with(other))
    }

    /// The open record, when only memory of a dump is here, whose records are elsewhere.
    pub(crate) fn memory_of(&self) -> Option<&SlotOpen> {
        match self {
            Self::Begun { open, .. } if open.part == part::MEMORY => Some(open),
            _ => None,
        }
    }
}
