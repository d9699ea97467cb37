//! Finds out what a file is: a vmcore, or a disk with a dump area.

use std::mem::offset_of;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmcore_format::area::{
    AREA_MAGIC, AreaError, AreaHeader, NEWEST_VERSION, OLDEST_VERSION, OPEN_MAGIC, SLOT_ALIGN,
    StageSeal, seal_offset,
};
use vmcore_format::gpt::{Partition, Partitions, ShowGuid, TYPE_GUID};
use zerocopy::FromBytes;

use crate::dump::{Dump, Stored};
use crate::file::{Part, Storage};
use crate::kind::{self, SIGNATURE_BYTES};
use crate::pair::Beside;
use crate::partition::{self, Which};
use crate::stage::{StageFile, StageSlot};
use crate::{Error, Result, area};

pub use slot::Slot;

mod slot;

/// Versions of records that are known.
const OLDEST_TO_NEWEST: RangeInclusive<u32> = OLDEST_VERSION..=NEWEST_VERSION;

/// How to open a dump.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Slot of the dump area; the newest sealed dump when `None`.
    pub slot: Option<u32>,
    /// Go on with what is good when something is damaged or cut off.
    pub partial: bool,
}

/// A file that holds dumps.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    pub(crate) part: Part,
    /// `None` for a vmcore.
    pub(crate) disk: Option<Arc<Disk>>,
    /// Other areas, which may hold halves of its dumps.
    pub(crate) beside: Vec<Beside>,
}

/// A disk with a dump area.
#[derive(Debug)]
pub struct Disk {
    /// Its header.
    pub area: AreaHeader,
    /// Its slots, in order.
    pub slots: Vec<Slot>,
    /// Bytes that are there and bytes that the header claims, where those are more: the disk, or
    /// the image of it, was cut short.
    pub cut_short: Option<(u64, u64)>,
    /// What is damaged about its header, in words.
    pub damage: Option<&'static str>,
    /// What else is on the disk, in words: then nothing may be written to it.
    pub claimed: Option<String>,
}

impl Source {
    /// Opens a file or block device and finds out what it is.
    ///
    /// # Errors
    /// When it is neither a vmcore nor a disk with a dump area; says what it seems to be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let part = Part::open(&path)?;
        Self::from_part(path, part)
    }

    /// The same for what is no file; `name` stands for its path.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn from_storage(name: impl Into<PathBuf>, storage: Arc<dyn Storage>) -> Result<Self> {
        Self::from_part(name.into(), Part::whole(storage))
    }

    /// Opens the dump area in the partition that `which` names.
    ///
    /// # Errors
    /// As [`Source::open`], and when there is no such partition.
    pub fn open_partition(path: impl AsRef<Path>, which: Which) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let whole = Part::open(&path)?;
        let partition = partition::find(&path, &whole, which)?;
        Self::of_partition(path, &whole, &partition)
    }

    /// Opens a whole disk as a dump area, whatever else is on it.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub(crate) fn of_area(path: &Path) -> Result<Self> {
        let (path, part) = (path.to_owned(), Part::open(path)?);
        let start = part.read_start(SIGNATURE_BYTES).map_err(Error::io(&path, "read it"))?;
        let disk = Some(Arc::new(Disk::read(&path, &part, &start)?));
        Ok(Self { path, part, disk, beside: Vec::new() })
    }

    /// Every dump area of a disk: the disk itself, or its partitions for dumps that hold
    /// one.
    ///
    /// # Errors
    /// As [`Source::open`]; there is at least one.
    pub fn every(path: impl AsRef<Path>) -> Result<Vec<Self>> {
        let path = path.as_ref().to_owned();
        let whole = Part::open(&path)?;
        match partition::readable(&path, &whole)?.0 {
            Some(partitions) => Self::in_partitions(path, &whole, &partitions),
            None => Ok(vec![Self::from_part(path, whole)?]),
        }
    }

    fn in_partitions(path: PathBuf, whole: &Part, found: &Partitions) -> Result<Vec<Self>> {
        let (good, mut bad) = Self::open_partitions(&path, whole, found);
        match bad.pop() {
            _ if !good.is_empty() => Ok(good),
            Some(error) => Err(error),
            None => {
                let kind = ShowGuid(&TYPE_GUID);
                let what = format!("a disk with partitions, none of the type for dumps ({kind})");
                Err(Error::Foreign { path, what })
            }
        }
    }

    /// The dump areas in the partitions of a disk, and why others cannot be read.
    fn open_partitions(path: &Path, whole: &Part, found: &Partitions) -> (Vec<Self>, Vec<Error>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for found in found.iter() {
            match Self::of_partition(path.to_owned(), whole, found) {
                Ok(source) => good.push(source),
                Err(error) => bad.push(error),
            }
        }
        (good, bad)
    }

    /// Every dump area of a disk, like [`Source::every`], and the damage to those that cannot be
    /// read beside it.
    pub(crate) fn every_with_damage(path: &Path) -> Result<(Vec<Self>, Vec<Error>)> {
        let whole = Part::open(path)?;
        let (Some(found), _) = partition::readable(path, &whole)? else {
            return Ok((vec![Self::from_part(path.to_owned(), whole)?], Vec::new()));
        };
        let (good, mut bad) = Self::open_partitions(path, &whole, &found);
        if good.is_empty() {
            return Ok((Self::in_partitions(path.to_owned(), &whole, &found)?, Vec::new()));
        }
        // One that was never prepared is no damage.
        bad.retain(|error| !matches!(error, Error::Foreign { .. }));
        Ok((good, bad))
    }

    fn of_partition(path: PathBuf, whole: &Part, partition: &Partition) -> Result<Self> {
        let part = whole.part(partition.start, partition.bytes);
        let part = part.map_err(Error::io(&path, "open it again"))?;
        let start = part.read_start(SIGNATURE_BYTES).map_err(Error::io(&path, "read it"))?;
        let disk = Some(Arc::new(Disk::read(&path, &part, &start)?));
        Ok(Self { path, part, disk, beside: Vec::new() })
    }

    fn from_part(path: PathBuf, part: Part) -> Result<Self> {
        let start = part.read_start(SIGNATURE_BYTES).map_err(Error::io(&path, "read it"))?;
        if start.starts_with(b"\x7fELF") {
            kind::refuse_foreign_elf(&path, &part)?;
            return Ok(Self { path, part, disk: None, beside: Vec::new() });
        }
        let (found, failure) = match start.starts_with(&AREA_MAGIC) {
            true => (None, None),
            false => partition::readable(&path, &part)?,
        };
        if let Some(found) = found {
            // Of several areas the one with the newest dump; the first when there is none.
            let mut all = Self::in_partitions(path, &part, &found)?;
            let first = all.swap_remove(0);
            let newest = all.into_iter().fold(first, |best, next| {
                if next.newest_time() > best.newest_time() { next } else { best }
            });
            return Ok(newest);
        }
        let disk = Disk::read(&path, &part, &start).map_err(|error| failure.unwrap_or(error))?;
        Ok(Self { path, part, disk: Some(Arc::new(disk)), beside: Vec::new() })
    }

    /// When the newest sealed dump was made; `None` when there is none.
    fn newest_time(&self) -> Option<u64> {
        let slots = self.disk.as_ref().map(|disk| disk.slots.as_slice()).unwrap_or_default();
        let sealed = slots.iter().filter(|slot| slot.sealed().is_some());
        let time = |slot: &Slot| match slot {
            Slot::Begun { open, .. } => open.unix_time,
            Slot::Empty | Slot::Unreadable { .. } | Slot::Failed { .. } => 0,
        };
        sealed.map(time).max()
    }

    /// Where the dump area begins on its disk, in bytes: not 0 for one in a partition.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.part.base()
    }

    /// The disk's dump area, when it is a disk.
    #[must_use]
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_deref()
    }

    /// The bytes of a slot, up to the end of its log as far as that is known.
    pub(crate) fn slot(&self, number: u32) -> Result<Part> {
        let disk = self.disk().filter(|disk| (number as usize) < disk.slots.len());
        let disk = disk.ok_or_else(|| {
            let what = "there is no such slot".into();
            Error::NoSuchSlot { path: self.path.clone(), slot: number, what }
        })?;
        let ends = match disk.slots.get(number as usize) {
            Some(Slot::Begun { seals, .. }) => seals.iter().map(|(_, seal)| seal.log_end).max(),
            _ => None,
        };
        // A seal of version 1 does not say where its log ends.
        let bytes = ends.filter(|&end| end > 0).unwrap_or(disk.area.slot_bytes);
        let part = self.part.part(disk.area.slot_offset(number).unwrap_or(0), bytes);
        part.map_err(Error::io(&self.path, "open it again"))
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the dump: that of a vmcore, the newest sealed one of a disk, or the one in
    /// the slot that `options` name.
    ///
    /// # Errors
    /// When there is none or it does not verify.
    pub fn dump(&self, options: OpenOptions) -> Result<Dump> {
        let opened = self.open_dump(options);
        let Err(Error::Damaged { .. } | Error::CutShort { .. }) = opened else { return opened };
        // The hint of these errors offers to read in part; where that fails as well, it must not.
        if options.partial || self.open_dump(OpenOptions { partial: true, ..options }).is_err() {
            return opened.map_err(Error::beyond_partial);
        }
        opened
    }

    fn open_dump(&self, options: OpenOptions) -> Result<Dump> {
        let (part, stored) = self.content(options)?;
        let mut dump = Dump::read(&self.path, part, stored, options)?;
        if let Some((have, need)) = self.disk().and_then(|disk| disk.cut_short) {
            dump.warnings.push(format!("the disk is cut short: {have} of {need} bytes are there"));
        }
        let slots = self.disk().map(|disk| disk.slots.as_slice()).unwrap_or_default();
        for (slot, content) in slots.iter().enumerate() {
            if content.is_unknown() && options.slot.is_none() {
                dump.warnings.push(format!("slot {slot}: {}", content.describe()));
            }
        }
        let read_all_the_same = dump.stage_file().map(|file| file.warnings().to_vec());
        for what in read_all_the_same.unwrap_or_default() {
            dump.note_damage(what);
        }
        if let Some(disk) = self.disk() {
            dump.warnings.extend(disk.damage.map(str::to_owned));
            dump.warnings.extend(disk.claimed.clone());
        }
        Ok(dump)
    }

    /// The stretch that holds the dump's ELF file, and where it was found.
    pub(crate) fn content(&self, options: OpenOptions) -> Result<(Part, Option<Stored>)> {
        let Some(disk) = &self.disk else {
            if let Some(slot) = options.slot {
                let what = "this is a vmcore, which has no slots".into();
                return Err(Error::NoSuchSlot { path: self.path.clone(), slot, what });
            }
            return Ok((self.part.clone(), None));
        };
        if let Some((have, need)) = disk.cut_short.filter(|_| !options.partial) {
            return Err(Error::CutShort { path: self.path.clone(), have, need });
        }
        let number = self.choose(disk, options.slot)?;
        let Some(Slot::Begun { open, seals, torn, .. }) = disk.slots.get(number as usize) else {
            return Err(self.no_such_slot(disk, number));
        };
        if disk.slots.get(number as usize).is_some_and(|slot| slot.memory_of().is_some()) {
            return Err(self.no_such_slot(disk, number));
        }
        let other = self.other_half(open)?.half();
        // The last stage holds the most; one that does not verify is no reason to give
        // up the ones before it.
        let (mut failure, mut refused, mut absent) = (None, Vec::new(), Vec::new());
        let offset = disk.area.slot_offset(number).unwrap_or(0);
        let slot = self.part.part(offset, disk.area.slot_bytes);
        let slot = slot.map_err(Error::io(&self.path, "open it again"))?;
        for (stage, error) in torn {
            let at = slot.base() + seal_offset(*stage).unwrap_or(0);
            let number = stage + 1;
            refused.push(format!(
                "the seal of stage {number}, at byte {at} of the disk, is damaged: {error}"
            ));
        }
        let slot = StageSlot { part: slot, bytes: disk.area.slot_bytes, other: &other, open };
        for (index, seal) in seals.iter().rev() {
            match stage(&self.path, &slot, seal, options.partial) {
                Err(error) => {
                    let number = index + 1;
                    match error {
                        Error::OtherHalf { .. } => {
                            absent.push(format!("stage {number} is not whole here: {error}"));
                        }
                        _ => refused.push(format!("stage {number} does not verify: {error}")),
                    }
                    // That something is damaged says more than that something is absent.
                    let absent = matches!(failure, None | Some(Error::OtherHalf { .. }));
                    if absent && !matches!((&failure, &error), (Some(_), Error::OtherHalf { .. })) {
                        failure = Some(error);
                    }
                }
                Ok((part, file)) => {
                    let stored = Stored {
                        slot: number,
                        open: **open,
                        seals: seals.clone(),
                        stage: *index,
                        file,
                        refused,
                        absent,
                        other: other.is_ok(),
                    };
                    return Ok((part, Some(stored)));
                }
            }
        }
        Err(failure.unwrap_or_else(|| self.no_such_slot(disk, number)))
    }

    fn choose(&self, disk: &Disk, asked: Option<u32>) -> Result<u32> {
        if let Some(slot) = asked {
            return Ok(slot);
        }
        let sealed =
            (0..).zip(&disk.slots).filter_map(|(slot, content)| Some((content.sealed()?, slot)));
        sealed.max().map(|(_, slot)| slot).ok_or_else(|| {
            let path = self.path.clone();
            match disk.slots.iter().find(|slot| slot.memory_of().is_some()) {
                Some(half) => Error::OtherHalf { path, what: half.describe() },
                None if disk.slots.iter().any(Slot::is_unknown) => {
                    let slots = disk.slots.iter().map(Slot::describe).collect();
                    Error::UnknownDump { path, slots }
                }
                None => Error::NoDump {
                    path,
                    slots: disk.slots.iter().map(Slot::describe).collect(),
                    begun: disk.slots.iter().any(|slot| matches!(slot, Slot::Begun { .. })),
                },
            }
        })
    }

    fn no_such_slot(&self, disk: &Disk, slot: u32) -> Error {
        let what = disk.slots.get(slot as usize).map_or_else(
            || format!("the dump area has {} slots, from 0", disk.slots.len()),
            Slot::describe,
        );
        Error::NoSuchSlot { path: self.path.clone(), slot, what }
    }
}

/// The ELF file of a stage, its header held against its seal, and the chunks it is put
/// together from.
fn stage(
    path: &Path,
    slot: &StageSlot<'_>,
    seal: &StageSeal,
    partial: bool,
) -> Result<(Part, Option<Arc<StageFile>>)> {
    if !seal.is_plain() {
        let file = StageFile::open(slot, seal, partial);
        let file = Arc::new(file.map_err(|what| match slot.other {
            Err(why) if *why == what => Error::OtherHalf { path: path.to_owned(), what },
            _ => Error::damaged(path, what),
        })?);
        let storage: Arc<dyn Storage> = file.clone();
        return Ok((Part::whole(storage), Some(file)));
    }
    let part = slot.part.part(seal.header_offset, seal.elf_bytes);
    let part = part.map_err(Error::io(path, "open it again"))?;
    match verify_plain(path, &part, seal) {
        Err(error) if !partial => Err(error),
        _ => Ok((part, None)),
    }
}

/// Holds the ELF header of a stage of version 1 against its seal.
fn verify_plain(path: &Path, part: &Part, seal: &StageSeal) -> Result<()> {
    if part.bytes() < seal.elf_bytes {
        return Err(Error::CutShort {
            path: path.to_owned(),
            have: part.bytes(),
            need: seal.elf_bytes,
        });
    }
    if seal.header_bytes > crate::dump::HEADER_LIMIT {
        return Err(Error::damaged(path, "the seal claims an impossibly large header"));
    }
    let header =
        part.read_up_to(0, seal.header_bytes).map_err(Error::io(path, "read the dump's header"))?;
    let found = crc32fast::hash(&header);
    if found != seal.header_crc32 {
        let what = format!(
            "the dump's header does not match its seal: checksum {:08x} sealed, {found:08x} found",
            seal.header_crc32
        );
        return Err(Error::damaged(path, what));
    }
    Ok(())
}

impl Disk {
    fn read(path: &Path, part: &Part, start: &[u8]) -> Result<Self> {
        let found = area::find(part).map_err(|error| match damaged_header(part, start) {
            Some(what) => Error::AreaDamaged { path: path.to_owned(), what },
            None => header_error(path, start, error),
        })?;
        let area = found.header;
        let slots = (0..area.slot_count)
            .filter_map(|slot| area.slot_offset(slot))
            .map(|offset| Slot::read(part, &area, offset))
            .collect();
        let cut_short = area.area_bytes > part.bytes();
        let cut_short = cut_short.then_some((part.bytes(), area.area_bytes));
        let claims = area::readable_claims(part, &area);
        let claimed = claims.map(|(at, what)| format!("the disk holds {what} at byte {at}"));
        Ok(Self { area, slots, cut_short, damage: found.damage, claimed })
    }
}

/// Tells a damaged header of a dump area from something else; returns the damage in words.
fn damaged_header(part: &Part, start: &[u8]) -> Option<String> {
    let record = start.get(..size_of::<AreaHeader>())?;
    let mut mended = record.to_vec();
    mended.get_mut(..AREA_MAGIC.len())?.copy_from_slice(&AREA_MAGIC);
    if record.get(..AREA_MAGIC.len())? != AREA_MAGIC && AreaHeader::check(&mended).is_ok() {
        return Some("header of the dump area: its first bytes are not what they were".into());
    }
    let header = AreaHeader::read_from_bytes(record).ok()?;
    if header.magic == AREA_MAGIC && !OLDEST_TO_NEWEST.contains(&header.version) {
        // A newer version has a checksum that matches.
        let mut whole = start.get(..header.size as usize)?.to_vec();
        let at = offset_of!(AreaHeader, crc32);
        whole.get_mut(at..at + size_of::<u32>())?.fill(0);
        let (version, matches) = (header.version, crc32fast::hash(&whole) == header.crc32);
        return (!matches).then(|| {
            format!(
                "header of the dump area: it claims version {version}, and its checksum is wrong"
            )
        });
    }
    let mut magic = [0; OPEN_MAGIC.len()];
    // Where `vmcore prepare` puts the first slot.
    part.read(SLOT_ALIGN, &mut magic).ok()?;
    let lost = magic == OPEN_MAGIC && kind::recognise(start).is_none();
    lost.then(|| format!("there is no header, and a dump begins at byte {SLOT_ALIGN} of the area"))
}

fn header_error(path: &Path, start: &[u8], error: AreaError) -> Error {
    let path = path.to_owned();
    match error {
        AreaError::Version(version) => Error::Newer {
            path,
            what: format!(
                "a dump area of version {version}; this program knows those up to {NEWEST_VERSION}"
            ),
        },
        AreaError::Blank => {
            let rest = if start.iter().all(|&byte| byte == 0) { "blank" } else { "not prepared" };
            Error::Foreign { path, what: format!("a {rest} disk without a dump area") }
        }
        AreaError::Foreign | AreaError::TooShort => kind::refuse(&path, start),
        other => Error::AreaDamaged { path, what: format!("header of the dump area: {other}") },
    }
}
