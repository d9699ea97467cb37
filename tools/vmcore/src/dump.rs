//! A dump: what its header says, and its memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use handoff::{BootFacts, CpuRecord, Handoff, LockRecord, WorkloadWords};
use memstamp::StampSlice;
use vmcore_format::area::{SlotOpen, StageSeal, part};
use vmcore_format::core::LoadSegment;
use vmcore_format::notes::{CaptureMetrics, ExcludedRange, ZeroRange, excluded_reason};
use vmcore_format::reader::{CoreReader, FileSegment, ReadError};

use crate::checksums::ChunkTable;
use crate::file::Part;
use crate::source::{OpenOptions, Source};
use crate::stage::{BadChunk, StageFile};
use crate::{Error, Result};

mod checked;
mod damage;
mod notes;
mod virtual_memory;

pub use damage::Damage;
pub use virtual_memory::{MissingPage, Translation, VirtualMemory};

/// Largest header believed: far beyond 512 CPUs and a million segments.
pub(crate) const HEADER_LIMIT: u64 = 256 << 20;

/// Returns the segments and aliases that have a virtual address, sorted by it. Writers that know
/// none leave 0 in all of them.
fn by_virtual(reader: &CoreReader<'_>) -> Vec<LoadSegment> {
    let loads = || reader.segments().chain(reader.aliases()).map(|segment| segment.load);
    if loads().all(|load| load.virtual_address == 0) {
        return Vec::new();
    }
    let known = |load: &LoadSegment| load.virtual_address != 0 || load.physical_address == 0;
    let mut known: Vec<LoadSegment> = loads().filter(known).collect();
    known.sort_by_key(|load| load.virtual_address);
    known
}

/// Why memory could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFault {
    /// In no segment of the dump; holds the first such address.
    NotInDump(u64),
    /// The file ends before it, or could not be read there; holds the address.
    Unreadable(u64),
    /// In the dump, in this chunk, which is not what was sealed.
    Damaged(BadChunk),
}

impl std::fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInDump(address) => write!(f, "{address:#x} is not in this dump"),
            Self::Unreadable(address) => write!(f, "{address:#x} cannot be read from the file"),
            Self::Damaged(bad) => bad.fmt(f),
        }
    }
}

/// Memory at the time of the crash: by physical address that of a [`Dump`], by the virtual
/// addresses of a CPU that of a [`VirtualMemory`].
pub trait Memory {
    /// Fills `buffer` with the bytes at `address`.
    ///
    /// # Errors
    /// When one of them is not in the dump, or is damaged.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryFault>;

    /// The little-endian word at `address`.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn word(&self, address: u64) -> Result<u64, MemoryFault> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Where on a disk a dump was found.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Number of the slot.
    pub slot: u32,
    /// The record that opened it.
    pub open: SlotOpen,
    /// All seals that belong to it, with the index of the stage.
    pub seals: Vec<(usize, StageSeal)>,
    /// Index of the stage that is read.
    pub stage: usize,
    /// The chunks that stage is put together from; `None` for a plain file of version 1.
    pub file: Option<Arc<StageFile>>,
    /// Later stages that were passed over, and why.
    pub refused: Vec<String>,
    /// Later stages that were passed over because half of them is on a disk that is not at hand,
    /// which is named.
    pub absent: Vec<String>,
    /// Whether the other half of a dump in two areas is at hand.
    pub other: bool,
}

impl Stored {
    /// Whether a later stage was passed over because the other half of the dump is not at
    /// hand.
    #[must_use]
    pub fn lacks_half(&self) -> bool {
        self.open.part != part::WHOLE && !self.other && !self.absent.is_empty()
    }

    /// The seal of the stage that is read.
    #[must_use]
    pub fn seal(&self) -> Option<&StageSeal> {
        self.seals.iter().find(|(stage, _)| *stage == self.stage).map(|(_, seal)| seal)
    }
}

/// A dump, opened and checked.
pub struct Dump {
    path: PathBuf,
    part: Part,
    /// By physical address, without aliases.
    segments: Vec<FileSegment>,
    /// The segments and aliases that have a virtual address, sorted by it.
    by_virtual: Vec<LoadSegment>,
    /// What the crashing CPU left; `None` when the capture found it damaged.
    pub handoff: Option<Box<Handoff>>,
    /// What was known before; `None` when the capture found it damaged.
    pub facts: Option<Box<BootFacts>>,
    /// All CPUs in index order.
    pub cpus: Vec<CpuRecord>,
    /// The table of stamped memory.
    pub stamps: Vec<StampSlice>,
    /// The locks; none in a dump of version 1.
    pub locks: Vec<LockRecord>,
    /// What workloads said after the crash; none in a dump of version 1.
    pub words: Vec<WorkloadWords>,
    /// Memory that was left out, and why.
    pub excluded: Vec<ExcludedRange>,
    /// Memory that was all zero and takes no space in the file.
    pub zero: Vec<ZeroRange>,
    /// How the capture went.
    pub metrics: Option<CaptureMetrics>,
    /// The fault of the capture image that the dump ends with.
    pub capture_fault: Option<String>,
    /// GNU build-id of the crashed image.
    pub build_id: Vec<u8>,
    /// Where on a disk it was found; `None` for a file.
    pub stored: Option<Stored>,
    /// What is not as it should be, without being in the way.
    pub warnings: Vec<String>,
    /// The checksums of a core file; `None` for a disk, whose [`StageFile`] has them.
    checks: Option<checked::Checks>,
    met: damage::Met,
}

impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dump").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Dump {
    /// Opens a vmcore, or the newest sealed dump of a disk.
    ///
    /// # Errors
    /// As [`Source::open`] and [`Source::dump`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Source::open(path)?.dump(OpenOptions::default())
    }

    pub(crate) fn read(
        path: &Path,
        part: Part,
        stored: Option<Stored>,
        options: OpenOptions,
    ) -> Result<Self> {
        let header = read_header(path, &part)?;
        let reader = CoreReader::new(&header, part.bytes())
            .map_err(|error| header_error(path, part.bytes(), error))?;
        let mut warnings = Vec::new();
        let need = reader.needed_bytes();
        if need > part.bytes() {
            let error = Error::CutShort { path: path.to_owned(), have: part.bytes(), need };
            if !options.partial {
                return Err(error);
            }
            warnings.push(format!("cut short: {} of {need} bytes are there", part.bytes()));
        }
        let mut segments: Vec<FileSegment> = reader.segments().collect();
        segments.sort_by_key(|segment| segment.load.physical_address);
        let by_virtual = by_virtual(&reader);
        let mut dump = Self {
            path: path.to_owned(),
            part,
            segments,
            by_virtual,
            handoff: None,
            facts: None,
            cpus: Vec::new(),
            stamps: Vec::new(),
            locks: Vec::new(),
            words: Vec::new(),
            excluded: Vec::new(),
            zero: Vec::new(),
            metrics: None,
            capture_fault: None,
            build_id: Vec::new(),
            stored,
            warnings,
            checks: None,
            met: damage::Met::default(),
        };
        dump.take_checksums(&reader, options.partial)?;
        dump.take_notes(&reader, options.partial)?;
        if let Some(stored) = &dump.stored {
            stored.refused.iter().for_each(|why| dump.met.record(why.clone()));
        }
        Ok(dump)
    }

    /// The file it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ELF file.
    pub(crate) const fn part(&self) -> &Part {
        &self.part
    }

    /// The segments, by physical address, without aliases.
    #[must_use]
    pub fn segments(&self) -> &[FileSegment] {
        &self.segments
    }

    /// The chunks it is put together from, each under a checksum of its own; `None` for a
    /// plain file.
    #[must_use]
    pub fn stage_file(&self) -> Option<&StageFile> {
        self.stored.as_ref()?.file.as_deref()
    }

    /// The checksums that came with a core file; `None` when it has none, or is a disk.
    pub(crate) fn checksums(&self) -> Option<&ChunkTable> {
        self.checks.as_ref().map(checked::Checks::table)
    }

    /// The damage that was met so far: records and stages that did not verify when the dump was
    /// opened, and memory that was asked for since and is not what was sealed.
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.met.all()
    }

    /// Bytes of the ELF file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.part.bytes()
    }

    /// Whether everything that was meant to be in the dump is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let whole = self
            .segments
            .iter()
            .all(|segment| segment.offset + segment.load.file_bytes <= self.part.bytes());
        let last_stage = self.metrics.is_some_and(|metrics| metrics.stage >= metrics.stages);
        let sealed = self.stored.as_ref().is_none_or(|stored| {
            // A stage whose seal could not be written is sealed one block behind its own.
            let all = stored.stage + 1 >= stored.open.stages as usize;
            all && stored.seal().is_some_and(|seal| seal.complete == 1)
        });
        // Left out on the way off the disk, by `vmcore extract --partial`.
        let damaged = self.excluded.iter().any(|range| range.reason == excluded_reason::DAMAGED);
        let left_out = damaged || self.checks.as_ref().is_some_and(checked::Checks::lack_chunks);
        whole && last_stage && sealed && !left_out && self.capture_fault.is_none()
    }

    /// The CPU that crashed, when that is known.
    #[must_use]
    pub fn crashed_cpu(&self) -> Option<u32> {
        self.handoff.as_ref().map(|handoff| handoff.cause.cpu)
    }

    /// The record of the CPU with this index.
    ///
    /// # Errors
    /// When there is none.
    pub fn cpu(&self, index: u32) -> Result<&CpuRecord> {
        self.cpus.iter().find(|record| record.index == index).ok_or_else(|| Error::NoSuchCpu {
            cpu: index,
            last: self.cpus.last().map_or(0, |record| record.index),
        })
    }

    /// The CPUs a command is about: the one asked for, or all.
    ///
    /// # Errors
    /// When the one asked for is not there.
    pub fn select(&self, cpu: Option<u32>) -> Result<Vec<&CpuRecord>> {
        match cpu {
            Some(index) => Ok(vec![self.cpu(index)?]),
            None => Ok(self.cpus.iter().collect()),
        }
    }

    /// Time-stamp counter ticks as nanoseconds, when the rate is known.
    #[must_use]
    pub fn nanoseconds(&self, ticks: u64) -> Option<u64> {
        let rate = self.facts.as_ref().map_or(0, |facts| facts.tsc_hz);
        let nanoseconds =
            u128::from(ticks) * 1_000_000_000 / u128::from((rate > 0).then_some(rate)?);
        u64::try_from(nanoseconds).ok()
    }

    /// Where the first segment behind `address` begins.
    pub(crate) fn next_segment(&self, address: u64) -> Option<u64> {
        let behind =
            self.segments.partition_point(|segment| segment.load.physical_address <= address);
        self.segments.get(behind).map(|segment| segment.load.physical_address)
    }

    /// Where the segment that holds `address` ends, when the file ends in front of the byte at
    /// `address`; `None` where that byte is in the file.
    pub(crate) fn behind_end_of_file(&self, address: u64) -> Option<u64> {
        let load = self.segment(address)?;
        let inside = address - load.load.physical_address;
        let missing = load.offset.saturating_add(inside) >= self.part.bytes();
        missing.then(|| load.load.physical_address.saturating_add(load.load.memory_bytes))
    }

    /// The segment that holds `address`.
    fn segment(&self, address: u64) -> Option<&FileSegment> {
        let behind =
            self.segments.partition_point(|segment| segment.load.physical_address <= address);
        let segment = self.segments.get(behind.checked_sub(1)?)?;
        (address - segment.load.physical_address < segment.load.memory_bytes).then_some(segment)
    }
}

impl Memory for Dump {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        if let Some(checks) = &self.checks {
            let end = address.saturating_add(buffer.len() as u64);
            if let Err(bad) = checks.check(address, end, &Unchecked(self)) {
                self.met.chunk(&bad);
                return Err(MemoryFault::Damaged(bad));
            }
        }
        Unchecked(self).read(address, buffer)
    }
}

/// The memory of a dump without the checksums that came with a core file. A disk's are
/// computed by its [`StageFile`] in any case.
pub(crate) struct Unchecked<'a>(pub(crate) &'a Dump);

impl Unchecked<'_> {
    /// Whether the byte at `address` is in the file, rather than zero without being there, and
    /// where that ends.
    ///
    /// # Errors
    /// When no segment has it.
    pub(crate) fn extent(&self, address: u64) -> Result<(bool, u64), MemoryFault> {
        let load = &self.0.segment(address).ok_or(MemoryFault::NotInDump(address))?.load;
        let filled = address - load.physical_address < load.file_bytes;
        let bytes = if filled { load.file_bytes } else { load.memory_bytes };
        Ok((filled, load.physical_address + bytes))
    }
}

impl Memory for Unchecked<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        let dump = self.0;
        let mut address = address;
        let mut rest = buffer;
        while !rest.is_empty() {
            let segment = dump.segment(address).ok_or(MemoryFault::NotInDump(address))?;
            let inside = address - segment.load.physical_address;
            let filled = inside < segment.load.file_bytes;
            let end = if filled { segment.load.file_bytes } else { segment.load.memory_bytes };
            let take = usize::try_from(end - inside).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(take);
            if filled {
                let read = dump.part.read(segment.offset + inside, now);
                read.map_err(|error| dump.fault(address, take as u64, &error))?;
            } else {
                now.fill(0);
            }
            rest = later;
            // Wraps only when nothing is left to read.
            address = address.wrapping_add(take as u64);
        }
        Ok(())
    }
}

impl Dump {
    /// Notes that `bytes` bytes at `address` could not be read, and says why.
    fn fault(&self, address: u64, bytes: u64, error: &std::io::Error) -> MemoryFault {
        match bad_chunk(error) {
            Some(bad) => {
                self.met.chunk(&bad);
                MemoryFault::Damaged(bad)
            }
            None => {
                self.met.unreadable(address, bytes);
                MemoryFault::Unreadable(address)
            }
        }
    }
}

/// The damaged chunk that an error of reading a stage is about.
pub(crate) fn bad_chunk(error: &std::io::Error) -> Option<BadChunk> {
    error.get_ref()?.downcast_ref::<BadChunk>().copied()
}

/// Reads as much of the start as the headers and notes take.
pub(crate) fn read_header(path: &Path, part: &Part) -> Result<Vec<u8>> {
    let mut header = part.read_first().map_err(Error::io(path, "read it"))?;
    loop {
        match CoreReader::new(&header, part.bytes()) {
            Err(ReadError::NeedMore(more)) if more > HEADER_LIMIT => {
                return Err(Error::damaged(path, "its headers claim an impossible size"));
            }
            Err(ReadError::NeedMore(more)) if more > header.len() as u64 => {
                header = part.read_up_to(0, more).map_err(Error::io(path, "read it"))?;
            }
            _ => return Ok(header),
        }
    }
}

pub(crate) fn header_error(path: &Path, have: u64, error: ReadError) -> Error {
    match error {
        ReadError::NotElf | ReadError::Unsupported | ReadError::NotCore(_) => {
            Error::foreign(path, error.to_string())
        }
        ReadError::CutShort(need) | ReadError::NeedMore(need) => {
            Error::CutShort { path: path.to_owned(), have, need }
        }
        _ => Error::damaged(path, error.to_string()),
    }
}
