//! Writing a dump into a dump area: open the slot, write, seal.
//!
//! The order on the disk is what makes a dump believable: the slot is opened and flushed
//! before the first byte of the dump, and sealed only after the last byte has been
//! flushed. Cut off anywhere, a reader sees either no dump or one that says it is not
//! complete.

use core::fmt;

use block::{Accepted, BlockDevice, Source};
use vmcore_format::area::{
    AreaError, AreaHeader, BLOCK_BYTES, DATA_OFFSET, MAX_SLOTS, MAX_STAGES, SlotOpen, StageSeal,
};
use vmcore_format::core::LoadSegment;
use zerocopy::IntoBytes;

use crate::rate::{Mib, Progress};
use crate::slot::{self, Choice, Content};

/// A block of the dump area.
pub type Block = [u8; BLOCK_BYTES as usize];

/// Time and the console, as the dump needs them.
pub trait Host {
    /// The time-stamp counter.
    fn tsc(&self) -> u64;
    /// So many ticks of it in nanoseconds.
    fn ns(&self, ticks: u64) -> u64;
    /// Shows a line.
    fn say(&self, line: fmt::Arguments<'_>);

    /// So many bytes of so many are out: said all the time.
    fn progress(&self, done: u64, total: u64);

    /// Now, in nanoseconds of the same counter.
    fn now_ns(&self) -> u64 {
        self.ns(self.tsc())
    }
}

/// Why a disk did not take the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Its first block is not a dump area's.
    NoArea(AreaError),
    /// The area claims to be larger than the disk: bytes of both.
    AreaTooLarge(u64, u64),
    /// A slot takes so many bytes, the dump needs so many.
    SlotTooSmall(u64, u64),
    /// The disk failed.
    Disk(block::Error),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoArea(AreaError::Blank | AreaError::Foreign) => {
                f.write_str("no dump area (run: vmcore prepare)")
            }
            Self::NoArea(why) => write!(f, "dump area damaged: {why} (run: vmcore prepare)"),
            Self::AreaTooLarge(area, disk) => {
                write!(f, "the dump area has {area} bytes, the disk only {disk}")
            }
            Self::SlotTooSmall(slot, dump) => {
                write!(f, "a slot takes {}, the dump needs {}", Mib(*slot), Mib(*dump))
            }
            Self::Disk(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Problem {}

impl From<block::Error> for Problem {
    fn from(error: block::Error) -> Self {
        Self::Disk(error)
    }
}

/// Where on a disk a dump goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    choice: Choice,
    /// Byte offset of the slot.
    offset: u64,
}

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct Core<'a> {
    /// File header, program headers and notes, whole pages.
    pub header: &'a [u8],
    /// The memory, in the order of the program headers.
    pub segments: &'a [LoadSegment],
    /// What stood in the page at address 0, which no reference can name. Written in its
    /// place when a segment starts there.
    pub zero_page: &'a [u8],
}

impl Core<'_> {
    /// Bytes of the whole file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let memory: u64 = self.segments.iter().map(|segment| segment.file_bytes).sum();
        self.header.len() as u64 + memory
    }
}

/// Looks for a dump area on `device` and chooses the slot for a dump of `bytes` bytes.
///
/// # Errors
/// When there is no usable area, or it cannot be read.
pub fn find_place(device: &mut dyn BlockDevice, bytes: u64) -> Result<Place, Problem> {
    let mut block: Block = [0; BLOCK_BYTES as usize];
    device.read(0, &mut block)?;
    let area = AreaHeader::check(&block).map_err(Problem::NoArea)?;
    let capacity = device.identity().capacity;
    if area.area_bytes > capacity {
        return Err(Problem::AreaTooLarge(area.area_bytes, capacity));
    }
    if bytes > area.slot_capacity() {
        return Err(Problem::SlotTooSmall(area.slot_capacity(), bytes));
    }
    let mut contents: heapless::Vec<Content, { MAX_SLOTS as usize }> = heapless::Vec::new();
    for slot in 0..area.slot_count {
        let Some(offset) = area.slot_offset(slot) else { break };
        // The check of the area allows no more slots than there are places.
        let _ = contents.push(read_content(device, &area, offset)?);
    }
    let nothing = Problem::NoArea(AreaError::Bounds);
    let choice = slot::choose(&contents).ok_or(nothing)?;
    let offset = area.slot_offset(choice.slot).ok_or(nothing)?;
    Ok(Place { choice, offset })
}

fn read_content(
    device: &mut dyn BlockDevice,
    area: &AreaHeader,
    offset: u64,
) -> Result<Content, Problem> {
    let mut open: Block = [0; BLOCK_BYTES as usize];
    device.read(offset, &mut open)?;
    let Ok(record) = SlotOpen::check(&open) else { return Ok(Content::Nothing) };
    let mut content = Content::Abandoned(record.sequence);
    for stage in 1..=(record.stages as usize).min(MAX_STAGES) as u64 {
        let mut seal: Block = [0; BLOCK_BYTES as usize];
        device.read(offset + stage * BLOCK_BYTES, &mut seal)?;
        let of_stage = slot::content(area, &open, &seal);
        if matches!(of_stage, Content::Sealed(_)) {
            content = of_stage;
        }
    }
    Ok(content)
}

impl Place {
    /// The slot, its new sequence number, and what it replaces.
    #[must_use]
    pub const fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Opens the slot: whatever it held before is gone from now on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(
        &self,
        device: &mut dyn BlockDevice,
        mut open: SlotOpen,
    ) -> Result<SlotOpen, Problem> {
        open.sequence = self.choice.sequence;
        open.seal();
        self.write_record(device, 0, open.as_bytes())?;
        Ok(open)
    }

    /// Writes the dump, with a progress line a second, and flushes it. Returns how long
    /// that took in nanoseconds.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(
        &self,
        device: &mut dyn BlockDevice,
        core: &Core<'_>,
        host: &dyn Host,
    ) -> Result<u64, Problem> {
        let start = host.tsc();
        let mut offset = self.offset + DATA_OFFSET;
        device.write(offset, core.header)?;
        offset += core.header.len() as u64;
        let mut stream = Stream {
            done: core.header.len() as u64,
            total: core.bytes(),
            progress: Progress::new(core.bytes(), host.now_ns()),
            device,
            host,
        };
        for segment in core.segments {
            stream.segment(offset, segment, core.zero_page)?;
            offset += segment.file_bytes;
        }
        block::drain(device)?;
        device.flush()?;
        Ok(host.ns(host.tsc().wrapping_sub(start)))
    }

    /// Seals a stage: what was flushed before is complete from now on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn seal(&self, device: &mut dyn BlockDevice, mut seal: StageSeal) -> Result<(), Problem> {
        seal.elf_offset = DATA_OFFSET;
        seal.seal();
        self.write_record(device, 1, seal.as_bytes())
    }

    /// Writes and flushes one record block of the slot.
    fn write_record(
        &self,
        device: &mut dyn BlockDevice,
        index: u64,
        record: &[u8],
    ) -> Result<(), Problem> {
        let mut block: Block = [0; BLOCK_BYTES as usize];
        block[..record.len()].copy_from_slice(record);
        device.write(self.offset + index * BLOCK_BYTES, &block)?;
        device.flush()?;
        Ok(())
    }
}

/// Memory on its way to the disk.
struct Stream<'a> {
    device: &'a mut dyn BlockDevice,
    host: &'a dyn Host,
    done: u64,
    total: u64,
    progress: Progress,
}

impl Stream<'_> {
    /// Sends one segment to byte `offset`, straight out of memory.
    fn segment(
        &mut self,
        offset: u64,
        segment: &LoadSegment,
        zero_page: &[u8],
    ) -> Result<(), Problem> {
        let most = self.device.identity().max_write_bytes;
        let mut sent = 0;
        if segment.physical_address == 0 && segment.file_bytes > 0 {
            self.device.write(offset, zero_page)?;
            sent = zero_page.len() as u64;
            self.done += sent;
        }
        while sent < segment.file_bytes {
            let address = segment.physical_address + sent;
            let bytes = most.min(segment.file_bytes - sent);
            match self.device.submit_write(offset + sent, Source { address, bytes })? {
                Accepted::Yes => sent += bytes,
                Accepted::Full => self.collect()?,
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Problem> {
        self.done += self.device.poll()?;
        self.host.progress(self.done, self.total);
        if let Some((percent, done, rate)) = self.progress.due(self.done, self.host.now_ns()) {
            self.host.say(format_args!("capture: {percent} % ({done}), {rate} MiB/s"));
        }
        core::hint::spin_loop();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
