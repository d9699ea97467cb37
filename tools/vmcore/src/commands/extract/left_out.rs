//! Memory that an extracted core lacks since it is damaged: where it is, and its listing.

use serde::{Deserialize, Serialize};
use vmcore_format::reader::FileSegment;

use crate::json::Hex;
use crate::stage::{ChunkFault, Gap};
use crate::text::bytes;
use crate::{Dump, Error, Result};

/// Memory that was left out of a core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Physical address.
    pub address: Hex,
    /// Length in bytes.
    pub bytes: u64,
    /// The damage, in words.
    pub reason: String,
}

/// Lines shown of memory that was left out; all of it is in the JSON.
const MOST_LINES: usize = 32;

/// Renders what was left out, a line each; the first few.
#[must_use]
pub fn render_left_out(left_out: &[LeftOut]) -> String {
    let mut text = String::new();
    for range in left_out.iter().take(MOST_LINES) {
        let (address, length) = (range.address.0, bytes(range.bytes));
        text += &format!("left out: {length} at {address:#x}: it {}\n", range.reason);
    }
    if let Some(more) = left_out.len().checked_sub(MOST_LINES).filter(|&more| more > 0) {
        text += &format!("left out: {more} more ranges\n");
    }
    text
}

/// Finds the memory of `dump` that cannot be read or does not match its checksum, by address and
/// without overlaps. Without `partial` a stage on a disk is not looked through: its chunks are
/// verified while they are copied. `progress` hears of bytes done and bytes in all.
///
/// # Errors
/// Without `partial`, when the memory of a core file does not match.
pub(super) fn find(
    dump: &Dump,
    partial: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<LeftOut>> {
    let mut gaps = match dump.stage_file() {
        Some(stage) if partial => stage.gaps(progress),
        _ => Vec::new(),
    };
    let ends = dump.segments().iter().map(end);
    let (have, need) = (dump.file_bytes(), ends.max().unwrap_or(0));
    if need > have {
        gaps.push(Gap { start: have, end: need, fault: ChunkFault::BehindEnd });
    }
    let mut found = by_address(dump.segments(), &gaps);
    if let Some(table) = dump.checksums() {
        for bad in table.damaged(dump) {
            if !partial {
                return Err(Error::damaged(dump.path(), bad.to_string()));
            }
            found.push(left_out(bad.address, bad.bytes, bad.fault));
        }
    }
    found.sort_by_key(|range| range.address);
    let mut all: Vec<LeftOut> = Vec::new();
    for range in found {
        let end = range.address.0.saturating_add(range.bytes);
        match all.last_mut() {
            Some(last) => {
                let behind = last.address.0.saturating_add(last.bytes);
                let joins = range.address.0 == behind && range.reason == last.reason;
                if joins || range.address.0 < behind {
                    last.bytes = end.max(behind) - last.address.0;
                } else {
                    all.push(range);
                }
            }
            None => all.push(range),
        }
    }
    Ok(all)
}

fn left_out(address: u64, bytes: u64, fault: ChunkFault) -> LeftOut {
    LeftOut { address: Hex(address), bytes, reason: fault.to_string() }
}

/// Offset in the file behind the bytes of a segment.
const fn end(segment: &FileSegment) -> u64 {
    segment.offset.saturating_add(segment.load.file_bytes)
}

/// The memory of `segments` whose bytes are in `gaps` of the file, which are sorted.
fn by_address(segments: &[FileSegment], gaps: &[Gap]) -> Vec<LeftOut> {
    let mut found = Vec::new();
    for segment in segments {
        let first = gaps.partition_point(|gap| gap.end <= segment.offset);
        let inside = gaps.get(first..).unwrap_or_default().iter();
        for gap in inside.take_while(|gap| gap.start < end(segment)) {
            let (start, behind) = (gap.start.max(segment.offset), gap.end.min(end(segment)));
            let address = segment.load.physical_address + (start - segment.offset);
            found.push(left_out(address, behind - start, gap.fault));
        }
    }
    found
}
