//! Finds out what a file is: a vmcore, or a disk with a dump area.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmcore_format::area::{
    AREA_MAGIC, AreaError, AreaHeader, BLOCK_BYTES, COLLECTED_BLOCK, Collected, MAX_STAGES,
    NEWEST_VERSION, SlotOpen, StageSeal, seal_offset,
};
use vmcore_format::gpt::{Partition, Partitions, ShowGuid, TYPE_GUID};

use crate::dump::{Dump, Stored};
use crate::file::{Part, Storage};
use crate::pair::{self, Beside, Half};
use crate::partition::{self, Which};
use crate::stage::StageFile;
use crate::{Error, Result, area};

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
    /// What is damaged about its header, in words.
    pub damage: Option<&'static str>,
    /// What else is on the disk, in words: then nothing may be written to it.
    pub claimed: Option<String>,
}

/// What stands in a slot.
#[derive(Debug)]
pub enum Slot {
    /// No dump was ever begun here.
    Empty,
    /// Something is there that cannot be read; says why.
    Unreadable(String),
    /// A dump that was begun.
    Begun {
        /// Its open record.
        open: Box<SlotOpen>,
        /// The seals that belong to it, with the index of the stage.
        seals: Vec<(usize, StageSeal)>,
        /// The note that it is in safety elsewhere.
        collected: Option<Collected>,
    },
}

impl Slot {
    /// Sequence number of a dump that can be read.
    fn sealed(&self) -> Option<u64> {
        match self {
            Self::Begun { open, seals, .. } if !seals.is_empty() && self.memory_of().is_none() => {
                Some(open.sequence)
            }
            _ => None,
        }
    }

    /// What stands here, in a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Empty => "empty".into(),
            Self::Unreadable(why) => format!("unreadable: {why}"),
            Self::Begun { open, collected, .. } if self.memory_of().is_some() => {
                let collected = if collected.is_some() { ", collected" } else { "" };
                let whole = pair::name(&open.other_area, open.other_slot);
                format!(
                    "memory of dump {}, the rest of which is in {whole}{collected}",
                    open.other_sequence
                )
            }
            Self::Begun { open, seals, .. } if seals.is_empty() => {
                format!("dump {} was begun and never sealed ({})", open.sequence, open.message())
            }
            Self::Begun { open, seals, collected } => {
                let collected = if collected.is_some() { ", collected" } else { "" };
                let (sealed, planned) = (seals.len(), open.stages);
                format!("dump {}, {sealed} of {planned} stages sealed{collected}", open.sequence)
            }
        }
    }
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
        let start = part.read_up_to(0, SIGNATURE_BYTES).map_err(Error::io(&path, "read it"))?;
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
        match partition::partitions(&path, &whole)? {
            Some(partitions) => Self::in_partitions(path, &whole, &partitions),
            None => Ok(vec![Self::from_part(path, whole)?]),
        }
    }

    fn in_partitions(path: PathBuf, whole: &Part, found: &Partitions) -> Result<Vec<Self>> {
        let opened = found.iter().map(|found| Self::of_partition(path.clone(), whole, found));
        let (good, mut bad): (Vec<_>, Vec<_>) = opened.partition(Result::is_ok);
        let good: Vec<_> = good.into_iter().flatten().collect();
        match bad.pop() {
            _ if !good.is_empty() => Ok(good),
            Some(Err(error)) => Err(error),
            _ => {
                let kind = ShowGuid(&TYPE_GUID);
                let what = format!("a disk with partitions, none of the type for dumps ({kind})");
                Err(Error::Foreign { path, what })
            }
        }
    }

    fn of_partition(path: PathBuf, whole: &Part, partition: &Partition) -> Result<Self> {
        let part = whole.part(partition.start, partition.bytes);
        let part = part.map_err(Error::io(&path, "open it again"))?;
        let start = part.read_up_to(0, SIGNATURE_BYTES).map_err(Error::io(&path, "read it"))?;
        let disk = Some(Arc::new(Disk::read(&path, &part, &start)?));
        Ok(Self { path, part, disk, beside: Vec::new() })
    }

    fn from_part(path: PathBuf, part: Part) -> Result<Self> {
        let start = part.read_up_to(0, SIGNATURE_BYTES).map_err(Error::io(&path, "read it"))?;
        if start.starts_with(b"\x7fELF") {
            return Ok(Self { path, part, disk: None, beside: Vec::new() });
        }
        if !start.starts_with(&AREA_MAGIC)
            && let Some(found) = partition::partitions(&path, &part)?
        {
            // Of several areas the one with the newest dump; the first when there is none.
            let mut all = Self::in_partitions(path, &part, &found)?;
            let first = all.swap_remove(0);
            let newest = all.into_iter().fold(first, |best, next| {
                if next.newest_time() > best.newest_time() { next } else { best }
            });
            return Ok(newest);
        }
        let disk = Some(Arc::new(Disk::read(&path, &part, &start)?));
        Ok(Self { path, part, disk, beside: Vec::new() })
    }

    /// When the newest sealed dump was made; `None` when there is none.
    fn newest_time(&self) -> Option<u64> {
        let slots = self.disk.as_ref().map(|disk| disk.slots.as_slice()).unwrap_or_default();
        let sealed = slots.iter().filter(|slot| slot.sealed().is_some());
        let time = |slot: &Slot| match slot {
            Slot::Begun { open, .. } => open.unix_time,
            Slot::Empty | Slot::Unreadable(_) => 0,
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
        let (part, stored) = self.content(options)?;
        let mut dump = Dump::read(&self.path, part, stored, options)?;
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
        let number = self.choose(disk, options.slot)?;
        let Some(Slot::Begun { open, seals, .. }) = disk.slots.get(number as usize) else {
            return Err(self.no_such_slot(disk, number));
        };
        if disk.slots.get(number as usize).is_some_and(|slot| slot.memory_of().is_some()) {
            return Err(self.no_such_slot(disk, number));
        }
        let other = self.other_half(open)?.half();
        // The last stage holds the most; one that does not verify is no reason to give
        // up the ones before it.
        let (mut failure, mut refused) = (None, Vec::new());
        let offset = disk.area.slot_offset(number).unwrap_or(0);
        let slot = self.part.part(offset, disk.area.slot_bytes);
        let slot = slot.map_err(Error::io(&self.path, "open it again"))?;
        for (index, seal) in seals.iter().rev() {
            match stage(&self.path, &slot, &other, open, seal, options.partial) {
                Err(error) => {
                    let what = match error {
                        Error::OtherHalf { .. } => "is not whole here",
                        _ => "does not verify",
                    };
                    refused.push(format!("stage {} {what}: {error}", index + 1));
                    failure.get_or_insert(error);
                }
                Ok((part, file)) => {
                    let stored = Stored {
                        slot: number,
                        open: **open,
                        seals: seals.clone(),
                        stage: *index,
                        file,
                        refused,
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
    slot: &Part,
    other: &std::result::Result<Half, String>,
    open: &SlotOpen,
    seal: &StageSeal,
    partial: bool,
) -> Result<(Part, Option<Arc<StageFile>>)> {
    if !seal.is_plain() {
        let file = StageFile::open(slot.clone(), other, open, seal, partial);
        let file = Arc::new(file.map_err(|what| match other {
            Err(why) if *why == what => Error::OtherHalf { path: path.to_owned(), what },
            _ => Error::damaged(path, what),
        })?);
        let storage: Arc<dyn Storage> = file.clone();
        return Ok((Part::whole(storage), Some(file)));
    }
    let part = slot.part(seal.header_offset, seal.elf_bytes);
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
        let found = area::find(part).map_err(|error| header_error(path, start, error))?;
        let area = found.header;
        if area.area_bytes > part.bytes() {
            return Err(Error::CutShort {
                path: path.to_owned(),
                have: part.bytes(),
                need: area.area_bytes,
            });
        }
        let slots = (0..area.slot_count)
            .filter_map(|slot| area.slot_offset(slot))
            .map(|offset| Slot::read(path, part, &area, offset))
            .collect::<Result<_>>()?;
        let claims = area::claims(part, &area).map_err(Error::io(path, "read it"))?;
        let claimed = claims.map(|(at, what)| format!("the disk holds {what} at byte {at}"));
        Ok(Self { area, slots, damage: found.damage, claimed })
    }
}

impl Slot {
    fn read(path: &Path, part: &Part, area: &AreaHeader, offset: u64) -> Result<Self> {
        let block = |at: u64| {
            part.read_up_to(offset + at, BLOCK_BYTES).map_err(Error::io(path, "read a slot"))
        };
        let open = match SlotOpen::check(&block(0)?) {
            Ok(open) => open,
            Err(AreaError::Blank) => return Ok(Self::Empty),
            Err(AreaError::Version(version)) => {
                let what = format!("a dump of version {version}, which is not known here");
                return Ok(Self::Unreadable(what));
            }
            Err(error) => return Ok(Self::Unreadable(error.to_string())),
        };
        let mut seals = Vec::new();
        for stage in 0..MAX_STAGES {
            let Some(at) = seal_offset(stage) else { break };
            // What is torn or left over from an older dump seals nothing.
            if let Ok(seal) = StageSeal::check(&block(at)?, area)
                && seal.belongs_to(&open)
            {
                seals.push((stage, seal));
            }
        }
        let collected = Collected::check(&block(COLLECTED_BLOCK * BLOCK_BYTES)?)
            .ok()
            .filter(|collected| collected.belongs_to(&open));
        Ok(Self::Begun { open: Box::new(open), seals, collected })
    }
}

/// Bytes at the start of a disk that tell what is on it.
pub(crate) const SIGNATURE_BYTES: u64 = 128 << 10;

/// Names what begins with `start`, as far as it is known.
pub(crate) fn recognise(start: &[u8]) -> Option<&'static str> {
    /// Where a signature stands, what it is, and whose.
    const SIGNATURES: &[(usize, &[u8], &str)] = &[
        (0, &AREA_MAGIC, "a dump area"),
        (0, b"QFI\xfb", "a qcow2 image; turn it into a raw one with `qemu-img convert -O raw`"),
        (0, b"KDMV", "a VMware image; turn it into a raw one with `qemu-img convert -O raw`"),
        (0, b"conectix", "a VHD image; turn it into a raw one with `qemu-img convert -O raw`"),
        (0, b"vhdxfile", "a VHDX image; turn it into a raw one with `qemu-img convert -O raw`"),
        (0, b"KDUMP   ", "a kdump-compressed vmcore of Linux; `crash` reads it"),
        (0, b"PAGEDU64", "a Windows crash dump"),
        (0, b"MDMP", "a minidump"),
        (0, b"\x28\xb5\x2f\xfd", "a zstd file; unpack it with `zstd -d`"),
        (0, b"\xfd7zXZ\0", "an xz file; unpack it with `xz -d`"),
        (0, b"\x1f\x8b", "a gzip file; unpack it with `gzip -d`"),
        (0, b"hsqs", "a squashfs"),
        (0, b"XFSB", "an XFS file system"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (3, b"NTFS    ", "an NTFS file system"),
        (512, b"EFI PART", "a GPT partition table"),
        (512, b"LABELONE", "an LVM volume"),
        (1080, b"\x53\xef", "an ext file system"),
        (4086, b"SWAPSPACE2", "a Linux swap area"),
        (4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
        (32769, b"CD001", "an ISO 9660 image"),
        (65600, b"_BHRfS_M", "a btrfs file system"),
        (510, b"\x55\xaa", "an MBR partition table or boot sector"),
    ];
    SIGNATURES.iter().find_map(|&(at, signature, name)| {
        (start.get(at..at + signature.len())? == signature).then_some(name)
    })
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
        AreaError::Foreign | AreaError::TooShort => {
            let what = match recognise(start) {
                Some(name) => format!("this is {name}"),
                None if start.is_empty() => "an empty file".into(),
                None => "neither an ELF core nor a disk with a dump area".into(),
            };
            Error::Foreign { path, what }
        }
        other => Error::Damaged { path, what: format!("header of the dump area: {other}") },
    }
}
