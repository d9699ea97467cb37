//! A dump: what its header says, and its memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use handoff::stamp::StampSlice;
use handoff::{BootFacts, CpuRecord, Handoff, LockRecord, WorkloadWords};
use vmcore_format::area::{SlotOpen, StageSeal, part};
use vmcore_format::notes::{CaptureMetrics, ExcludedRange, ZeroRange};
use vmcore_format::reader::{CoreReader, FileSegment, ReadError};

use crate::file::Part;
use crate::source::{OpenOptions, Source};
use crate::stage::StageFile;
use crate::{Error, Result};

mod notes;

/// Largest header believed: far beyond 512 CPUs and a million segments.
pub(crate) const HEADER_LIMIT: u64 = 256 << 20;

/// Why memory could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFault {
    /// In no segment of the dump; holds the first such address.
    NotInDump(u64),
    /// The file ends before it, or could not be read there; holds the address.
    Unreadable(u64),
}

/// Physical memory at the time of the crash. The appliance is mapped one to one, so its
/// pointers are physical addresses.
pub trait Memory {
    /// Fills `buffer` with the bytes at `address`.
    ///
    /// # Errors
    /// When one of them is not in the dump.
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
    /// Whether the other half of a dump in two areas is at hand.
    pub other: bool,
}

impl Stored {
    /// Whether a later stage was passed over because the other half of the dump is not at
    /// hand.
    #[must_use]
    pub fn lacks_half(&self) -> bool {
        self.open.part != part::WHOLE && !self.other && !self.refused.is_empty()
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
    /// By physical address.
    segments: Vec<FileSegment>,
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
        let mut dump = Self {
            path: path.to_owned(),
            part,
            segments,
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
        };
        dump.take_notes(&reader, options.partial)?;
        Ok(dump)
    }

    /// The file it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The segments, by physical address.
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
        whole && last_stage && sealed && self.capture_fault.is_none()
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
        let mut address = address;
        let mut rest = buffer;
        while !rest.is_empty() {
            let segment = self.segment(address).ok_or(MemoryFault::NotInDump(address))?;
            let inside = address - segment.load.physical_address;
            let filled = inside < segment.load.file_bytes;
            let end = if filled { segment.load.file_bytes } else { segment.load.memory_bytes };
            let take = usize::try_from(end - inside).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(take);
            if filled {
                self.part
                    .read(segment.offset + inside, now)
                    .map_err(|_| MemoryFault::Unreadable(address))?;
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
