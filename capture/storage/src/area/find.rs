//! Finds the dump area on a disk, and makes sure that the disk is nothing else.
//!
//! Block 0 or the copy of the header has to be as `vmcore prepare` left it; the other may be
//! damaged in one word, or not be readable. Every other block that is looked at has to be zero
//! but for one word, or not be readable. So one bad bit or sector costs nothing, and anything that
//! was written since by a partitioning tool, a file system or a volume manager is seen before a
//! dump is written over it.

use core::fmt;

use block::BlockDevice;
use vmcore_format::area::look::{self, Verdict};
use vmcore_format::area::{AreaError, AreaHeader, BLOCK_BYTES, CrashLoop, LOOP_OFFSET};
use zerocopy::IntoBytes;

use super::{BLANK, Block, StorageError, read_block};

/// Blocks that are read at most: block 0, the copy of the header, the crash record, and those by
/// which other formats are known.
pub const LOOKED_AT: usize = look::BLOCKS + 3;

/// A dump area that was found.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Its header, out of block 0 or of the copy.
    pub header: AreaHeader,
    /// A block that is damaged, though not needed.
    pub damage: Option<AreaDamage>,
}

/// A block of the area that is not as it was left. Dumps can be written all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaDamage {
    /// Block 0: the copy is used.
    Header,
    /// The copy of the header.
    Copy,
    /// The block at this byte offset.
    Block(u64),
}

impl fmt::Display for AreaDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("its header is damaged, the copy is used"),
            Self::Copy => f.write_str("the copy of its header is damaged"),
            Self::Block(offset) => write!(f, "the block at byte {offset} is damaged"),
        }
    }
}

/// Looks for a dump area on `device`, by at most [`LOOKED_AT`] blocks.
///
/// # Errors
/// When there is none that can be used, something else claims the disk, or the disk fails as a
/// whole.
pub fn find_area(device: &mut dyn BlockDevice) -> Result<Area, StorageError> {
    let capacity = device.identity().capacity;
    let (header, mut damage) = find_header(device, capacity)?;
    if header.area_bytes > capacity {
        return Err(StorageError::AreaTooLarge(header.area_bytes, capacity));
    }
    let mut note = |offset| damage = damage.or(Some(AreaDamage::Block(offset)));
    let mut buffer = BLANK;
    match read_block(device, LOOP_OFFSET, &mut buffer)? {
        None => note(LOOP_OFFSET),
        Some(block) => {
            if let Some(name) = look::signature(block, LOOP_OFFSET, capacity) {
                return Err(StorageError::Claimed(LOOP_OFFSET, name));
            }
            if !CrashLoop::owns(block) {
                return Err(StorageError::Claimed(LOOP_OFFSET, "data that is not known"));
            }
            if matches!(CrashLoop::check(block), Err(why) if why != AreaError::Blank) {
                note(LOOP_OFFSET);
            }
        }
    }
    for offset in look::blocks(capacity) {
        // One of a disk that is too small for it; block 0 was looked at.
        if offset == 0 || offset.saturating_add(BLOCK_BYTES) > capacity {
            continue;
        }
        let Some(block) = read_block(device, offset, &mut buffer)? else {
            note(offset);
            continue;
        };
        match look::judge(&header, block, offset, capacity) {
            Verdict::Same => {}
            Verdict::Damaged => note(offset),
            Verdict::Foreign(what) => return Err(StorageError::Claimed(offset, what)),
        }
    }
    Ok(Area { header, damage })
}

/// Finds the header in block 0, or in the copy.
fn find_header(
    device: &mut dyn BlockDevice,
    capacity: u64,
) -> Result<(AreaHeader, Option<AreaDamage>), StorageError> {
    let (mut front, mut copy) = (BLANK, BLANK);
    let front = read_block(device, 0, &mut front)?;
    let checked = front.as_ref().map(|block| AreaHeader::check(&block[..]));
    let (place, own) = match &checked {
        // There is no copy, and nothing of the area is known without its header.
        Some(Ok(header)) if !header.has_copy() => {
            let block = front.as_ref().map_or(&[][..], |block| &block[..]);
            return match look::signature(block, 0, capacity) {
                Some(name) => Err(StorageError::Claimed(0, name)),
                None => Ok((*header, None)),
            };
        }
        Some(Ok(header)) => (header.copy_offset(), Some(*header)),
        Some(Err(AreaError::Blank)) => return Err(StorageError::NoArea(AreaError::Blank)),
        Some(Err(_)) | None => (AreaHeader::copy_place(capacity), None),
    };
    let fits = |place: &u64| place.saturating_add(BLOCK_BYTES) <= capacity;
    let copy = match place.filter(fits) {
        Some(place) => read_block(device, place, &mut copy)?,
        None => None,
    };
    let compare = |found: &[u8], header: &AreaHeader, offset| {
        look::compare(found, header.as_bytes(), offset, capacity)
    };
    if let Some(header) = own {
        let offset = place.unwrap_or(0);
        return match copy.as_ref().map(|copy| compare(&copy[..], &header, offset)) {
            Some(Verdict::Same) => Ok((header, None)),
            Some(Verdict::Foreign(_)) if copy.is_some_and(|copy| is_blank(copy)) => {
                Ok((header, Some(AreaDamage::Copy)))
            }
            Some(Verdict::Foreign(what)) => Err(StorageError::Claimed(offset, what)),
            Some(Verdict::Damaged) | None => Ok((header, Some(AreaDamage::Copy))),
        };
    }
    let copied = copy.as_ref().and_then(|copy| AreaHeader::check(&copy[..]).ok());
    let copied = copied.filter(|header| header.copy_offset() == place);
    let why = match checked {
        Some(Err(why)) => StorageError::NoArea(why),
        _ => StorageError::Disk(block::Error::Io(0)),
    };
    let header = copied.ok_or(why)?;
    match front.as_ref().map(|front| compare(&front[..], &header, 0)) {
        Some(Verdict::Foreign(what)) => Err(StorageError::Claimed(0, what)),
        _ => Ok((header, Some(AreaDamage::Header))),
    }
}

/// Returns true if a block is all zero.
pub(crate) fn is_blank(block: &Block) -> bool {
    block.iter().all(|&byte| byte == 0)
}
