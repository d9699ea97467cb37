//! What a controller and its namespaces say of themselves (§5.15).

use crate::pci::Address;
use crate::{Error, Identity, MAX_REQUEST_BYTES};

/// What Identify fills.
pub type Page = [u8; 4096];

/// Largest block size taken: a page of the machine, and the block of a dump area.
const MAX_BLOCK_SHIFT: u8 = 12;
/// Smallest block size there is.
const MIN_BLOCK_SHIFT: u8 = 9;

fn le<const N: usize>(page: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word[..N].copy_from_slice(&page[offset..offset + N]);
    u64::from_le_bytes(word)
}

/// The parts of Identify Controller used here (figure 247).
pub struct ControllerFacts {
    /// Serial number, trimmed.
    pub serial: heapless::String<20>,
    /// Most bytes a command may carry.
    pub max_bytes: u64,
    /// Highest namespace identifier.
    pub namespaces: u32,
}

impl ControllerFacts {
    /// From the page the controller filled.
    pub fn read(page: &Page) -> Self {
        let mut serial = heapless::String::new();
        for &byte in page[4..24].trim_ascii() {
            let shown = if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '?' };
            // As many places as bytes.
            let _ = serial.push(shown);
        }
        // MDTS: pages of 4 KiB as a power of two, 0 for no limit.
        let max_bytes = match page[77] {
            0 => MAX_REQUEST_BYTES,
            pages => 4096u64.checked_shl(pages.into()).unwrap_or(MAX_REQUEST_BYTES),
        };
        let max_bytes = max_bytes.clamp(4096, MAX_REQUEST_BYTES);
        Self { serial, max_bytes, namespaces: le::<4>(page, 516) as u32 }
    }
}

/// Adds the identifiers in the list of active namespaces (figure 244, CNS 02h) to `into`:
/// ascending, ended by a 0. Returns true if there are more than it holds.
pub fn active<const N: usize>(page: &Page, into: &mut heapless::Vec<u32, N>) -> bool {
    let ids = page.chunks_exact(4).map(|id| le::<4>(id, 0) as u32);
    // Ascending by the standard; what is not ends the list, so that none is opened twice.
    let mut last = 0;
    for id in ids.take_while(|id| *id != 0) {
        if id <= last {
            break;
        }
        if into.push(id).is_err() {
            return true;
        }
        last = id;
    }
    false
}

/// The identity of namespace `id`, described in `page` (figure 245): `None` when it has no blocks, as
/// one has that is not there.
///
/// # Errors
/// When its blocks are of a size or kind that is not written.
pub fn namespace(
    page: &Page,
    id: u32,
    controller: &ControllerFacts,
    location: Address,
) -> Result<Option<Identity>, Error> {
    let blocks = le::<8>(page, 0);
    if blocks == 0 {
        return Ok(None);
    }
    // FLBAS: the format in use, bits 3:0, and 6:5 above them since 64 formats are possible.
    let format = usize::from(page[26] & 0xf | (page[26] >> 5 & 3) << 4);
    let entry = 128 + 4 * format;
    let (metadata, shift) = (le::<2>(page, entry), page[entry + 2]);
    if metadata != 0 {
        return Err(Error::Setup("blocks with metadata"));
    }
    if !(MIN_BLOCK_SHIFT..=MAX_BLOCK_SHIFT).contains(&shift) {
        return Err(Error::Setup("block size is not 512 to 4096"));
    }
    Ok(Some(Identity {
        driver: "nvme",
        location,
        namespace: id,
        serial: controller.serial.clone(),
        capacity: blocks.saturating_mul(1 << shift) >> shift << shift,
        block_bytes: 1 << shift,
        max_write_bytes: controller.max_bytes,
        // NSATTR bit 0: write protected.
        read_only: page[99] & 1 != 0,
        // Every controller knows the command; without a volatile cache (VWC) it has no
        // effect, so there is nothing to ask.
        can_flush: true,
    }))
}
