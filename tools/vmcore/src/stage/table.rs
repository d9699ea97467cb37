//! The table of chunks, checked before anything is read or allocated by it.
//!
//! A disk is untrusted. A table may match its checksum and still claim terabytes,
//! list one chunk a thousand times, or hold memory that the program headers place elsewhere. So
//! each entry is held against the log of its slot, against the program headers, and against all
//! other entries: no memory twice, no stored byte twice. Every check sorts, none compares each
//! with each.

use vmcore_format::area::{ChunkEntry, chunk_area, chunk_kind};
use vmcore_format::reader::{CoreReader, FileSegment};

/// Most chunks a table may list: 16 GiB of memory in pieces of 4 KiB.
pub(super) const MOST_CHUNKS: u64 = 4 << 20;
/// Most bytes of memory in a dump: 16 TiB, the largest file of ext4, and more than any machine
/// that QEMU starts.
const MOST_MEMORY: u64 = 16 << 40;
/// Most bytes of memory in a chunk that is not compressed: the capture image makes 16,384
/// chunks of whatever memory there is, so 1 GiB each of [`MOST_MEMORY`].
const MOST_RAW: u32 = 1 << 30;
/// Most bytes of memory in a chunk of zeros, which may be twice as long.
const MOST_ZERO: u32 = 2 << 30;
/// Entries that contradict others before a damaged table is given up. Each is decided by
/// reading both chunks.
const MOST_CONFLICTS: usize = 64;

/// The slot that chunks of one area are stored in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Home {
    /// Bytes of the slot.
    pub(super) slot_bytes: u64,
    /// Offset behind the last byte of its log that is in use.
    pub(super) log_end: u64,
}

/// Limits for the entries of a table.
#[derive(Debug)]
pub(super) struct Bounds {
    /// The slot of the table.
    pub(super) own: Home,
    /// The slot in the other area; `None` when that is not at hand.
    pub(super) other: Option<Home>,
    /// Offset and bytes of what else stands in the log: the table and the header.
    pub(super) taken: [(u64, u64); 2],
    /// Bytes of the ELF file, and of its header.
    pub(super) elf_bytes: u64,
    pub(super) header_bytes: u64,
    /// Program headers with bytes in the file, sorted by their offset.
    pub(super) segments: Vec<FileSegment>,
}

/// A chunk and its place in the ELF file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    /// Offset of its memory in the file.
    pub(super) start: u64,
    /// Its number in the table.
    pub(super) number: u32,
}

/// Reads a range out of an entry that must not overlap with others of its class: class, start,
/// bytes.
type RangeOf<'a> = dyn Fn(&Placed) -> (u32, u64, u64) + 'a;

/// Reads the program headers that have bytes in the file, sorted by their offset.
///
/// # Errors
/// The program headers are damaged, or two of them share memory or bytes of the file.
pub(super) fn segments(header: &[u8], elf_bytes: u64) -> Result<Vec<FileSegment>, String> {
    let reader = CoreReader::new(header, elf_bytes).map_err(|error| error.to_string())?;
    let mut all: Vec<_> = reader.segments().collect();
    let memory =
        all.iter().map(|segment| (0, segment.load.physical_address, segment.load.memory_bytes, 0));
    if overlap(memory.collect()).is_some() {
        return Err("two program headers share memory".into());
    }
    all.retain(|segment| segment.load.file_bytes > 0);
    let bytes = all.iter().map(|segment| (0, segment.offset, segment.load.file_bytes, 0));
    if overlap(bytes.collect()).is_some() {
        return Err("two program headers share bytes of the file".into());
    }
    all.sort_unstable_by_key(|segment| segment.offset);
    Ok(all)
}

/// Finds two of `ranges` that overlap. Each is a class, in which alone it can overlap, its start,
/// its bytes, and its number; returns the numbers.
fn overlap(mut ranges: Vec<(u32, u64, u64, u32)>) -> Option<(u32, u32)> {
    ranges.retain(|&(_, _, bytes, _)| bytes > 0);
    ranges.sort_unstable();
    let clash = ranges.windows(2).find(|pair| {
        let ((class, start, bytes, _), (next_class, next, ..)) = (pair[0], pair[1]);
        class == next_class && start.saturating_add(bytes) > next
    })?;
    Some((clash[0].3, clash[1].3))
}

impl Bounds {
    /// Checks an entry by itself; returns the fault in words.
    fn fault(&self, entry: &ChunkEntry) -> Option<&'static str> {
        let home = match (entry.area, self.other) {
            (chunk_area::OTHER, Some(other)) => other,
            _ => self.own,
        };
        let most = match entry.kind {
            chunk_kind::ZERO => MOST_ZERO,
            _ => MOST_RAW,
        };
        if !entry.is_sound(home.slot_bytes) {
            Some("leads nowhere")
        } else if entry.memory_bytes > most {
            Some("claims an impossible size")
        } else if entry.stored_bytes > 0
            && entry.offset.saturating_add(u64::from(entry.stored_bytes)) > home.log_end
        {
            Some("leads behind the end of its log")
        } else {
            None
        }
    }

    /// Offset in the file of a chunk's memory, by the program headers.
    fn place(&self, by_address: &[FileSegment], entry: &ChunkEntry) -> Option<u64> {
        let behind =
            by_address.partition_point(|segment| segment.load.physical_address <= entry.address);
        let segment = by_address.get(behind.checked_sub(1)?)?;
        let start = (entry.address - segment.load.physical_address).checked_add(segment.offset)?;
        self.holds(entry, start).then_some(start)
    }

    /// Returns true if the program headers have just this memory at `start` of the file.
    fn holds(&self, entry: &ChunkEntry, start: u64) -> bool {
        let Some(end) = start.checked_add(u64::from(entry.memory_bytes)) else { return false };
        let mut at = start;
        let first = self.segments.partition_point(|segment| segment.offset <= start);
        for segment in self.segments.get(first.saturating_sub(1)..).unwrap_or_default() {
            if at >= end {
                break;
            }
            let behind = segment.offset.saturating_add(segment.load.file_bytes);
            let inside = segment.offset <= at && at < behind;
            let address = entry.address + (at - start);
            if !inside || segment.load.physical_address + (at - segment.offset) != address {
                return false;
            }
            at = behind;
        }
        at >= end
    }

    /// Checks all entries and places them in the file, in the order of the table.
    ///
    /// # Errors
    /// In words, the first thing that is wrong.
    pub(super) fn check(&self, entries: &[ChunkEntry]) -> Result<Vec<Placed>, String> {
        if self.elf_bytes > MOST_MEMORY {
            return Err(format!("the seal claims {} bytes of memory", self.elf_bytes));
        }
        let mut placed = Vec::with_capacity(entries.len());
        let mut start = self.header_bytes;
        for (number, entry) in (0..).zip(entries) {
            if let Some(what) = self.fault(entry) {
                return Err(format!("the table of chunks: entry {number} {what}"));
            }
            placed.push(Placed { start, number });
            start = start.saturating_add(u64::from(entry.memory_bytes));
        }
        if start != self.elf_bytes {
            let sealed = self.elf_bytes;
            return Err(format!("the chunks make a file of {start} bytes, the seal says {sealed}"));
        }
        if let Some((one, other)) = overlap(memory(entries)) {
            return Err(format!("the table of chunks: entries {one} and {other} share memory"));
        }
        if let Some((one, other)) = overlap(self.storage(entries)) {
            let with = match other.max(one) {
                u32::MAX => "the table or the header".into(),
                _ => format!("entry {}", other.max(one)),
            };
            let one = one.min(other);
            return Err(format!("the table of chunks: entry {one} shares its place with {with}"));
        }
        for (place, entry) in placed.iter().zip(entries) {
            if !self.holds(entry, place.start) {
                let number = place.number;
                return Err(format!(
                    "the table of chunks: entry {number} is not where the program headers say"
                ));
            }
        }
        Ok(placed)
    }

    /// The stretches of the log that are in use.
    fn storage(&self, entries: &[ChunkEntry]) -> Vec<(u32, u64, u64, u32)> {
        let chunks = (0..).zip(entries).map(|(number, entry)| {
            (entry.area, entry.offset, u64::from(entry.stored_bytes), number)
        });
        let taken = self.taken.iter().map(|&(at, bytes)| (chunk_area::OWN, at, bytes, u32::MAX));
        chunks.chain(taken).collect()
    }

    /// Takes of a damaged table what can be believed, sorted by place in the file. Memory is placed
    /// by the program headers and the address of each chunk, which its checksum proves;
    /// `is_good` tells whether it does. A chunk of zeros proves nothing: unless the table is
    /// `proven` as a whole, it counts only where it joins its neighbours without a gap.
    ///
    /// # Errors
    /// Too many entries contradict each other.
    pub(super) fn salvage(
        &self,
        entries: &[ChunkEntry],
        proven: bool,
        is_good: &dyn Fn(&ChunkEntry) -> bool,
    ) -> Result<Vec<Placed>, String> {
        let mut by_address = self.segments.clone();
        by_address.sort_unstable_by_key(|segment| segment.load.physical_address);
        let sound = |entry: &ChunkEntry| match self.fault(entry) {
            None => self.place(&by_address, entry),
            Some(_) => None,
        };
        let starts: Vec<Option<u64>> = entries.iter().map(sound).collect();
        let end = |number: usize| {
            let start = starts.get(number).copied().flatten()?;
            Some(start + u64::from(entries.get(number)?.memory_bytes))
        };
        let joins = |number: usize| {
            let before = number.checked_sub(1).map_or(Some(self.header_bytes), end);
            let behind = match starts.get(number + 1) {
                Some(start) => *start,
                None => Some(self.elf_bytes),
            };
            before == starts[number] && behind == end(number)
        };
        let mut kept: Vec<Placed> = (0..)
            .zip(entries)
            .filter(|&(number, entry): &(u32, _)| {
                proven || entry.kind != chunk_kind::ZERO || joins(number as usize)
            })
            .filter_map(|(number, _)| Some(Placed { start: starts[number as usize]?, number }))
            .collect();
        let mut conflicts = MOST_CONFLICTS;
        let entry = |place: &Placed| &entries[place.number as usize];
        let memory = |place: &Placed| (0, place.start, u64::from(entry(place).memory_bytes));
        let stored = |place: &Placed| {
            let entry = entry(place);
            (entry.area, entry.offset, u64::from(entry.stored_bytes))
        };
        let ranges: [&RangeOf<'_>; 2] = [&stored, &memory];
        for key in ranges {
            kept.sort_unstable_by_key(|place| (key(place), place.number));
            let mut rest: Vec<Placed> = Vec::with_capacity(kept.len());
            for place in kept {
                let (class, start, bytes) = key(&place);
                let clash = rest.last().filter(|last| {
                    let (last_class, last_start, last_bytes) = key(last);
                    bytes > 0 && last_class == class && last_start + last_bytes > start
                });
                let Some(&last) = clash else {
                    rest.push(place);
                    continue;
                };
                conflicts = conflicts
                    .checked_sub(1)
                    .ok_or("the table of chunks: too many entries contradict each other")?;
                let is_zero = |place: &Placed| entry(place).kind == chunk_kind::ZERO;
                let better = is_zero(&last) && !is_zero(&place) && is_good(entry(&place));
                if better || !is_good(entry(&last)) {
                    rest.pop();
                    rest.push(place);
                }
            }
            kept = rest;
        }
        Ok(kept)
    }
}

/// The memory of each entry.
fn memory(entries: &[ChunkEntry]) -> Vec<(u32, u64, u64, u32)> {
    let range = |(number, entry): (u32, &ChunkEntry)| {
        (0, entry.address, u64::from(entry.memory_bytes), number)
    };
    (0..).zip(entries).map(range).collect()
}
