//! What a disk says of itself (ACS-3, §7.12.7).

use crate::pci::Address;
use crate::{Error, Identity, MAX_REQUEST_BYTES};

/// What IDENTIFY DEVICE sends: 256 little-endian words.
pub type Data = [u8; 512];

/// Largest block size taken: a page of the machine, and the block of a dump area.
const MAX_BLOCK_BYTES: u32 = 4096;

fn word(data: &Data, index: usize) -> u16 {
    u16::from_le_bytes([data[2 * index], data[2 * index + 1]])
}

/// Returns how many commands the disk's queue holds, 1 to 32; 1 where it has none.
pub fn queue_depth(data: &Data) -> usize {
    // Word 76: bit 8, native command queueing; 0 and all ones, not valid. Word 75: the depth in
    // bits 4:0, less one.
    match word(data, 76) {
        u16::MAX => 1,
        serial_ata if serial_ata & 1 << 8 == 0 => 1,
        _ => usize::from(word(data, 75) & 0x1f) + 1,
    }
}

/// The identity of the disk.
///
/// # Errors
/// When the disk knows no 48-bit commands, or has blocks of a size that is not written.
pub fn read(data: &Data, location: Address) -> Result<Identity, Error> {
    // Word 83: bits 15:14 = 1 say that it is valid; bit 10: 48-bit addresses.
    let commands = word(data, 83);
    if commands >> 14 != 1 || commands & 1 << 10 == 0 {
        return Err(Error::Setup("no 48-bit commands"));
    }
    // Word 106: bits 15:14 = 1, valid; bit 12: blocks longer than 256 words.
    let sectors = word(data, 106);
    let block_bytes = if sectors >> 14 == 1 && sectors & 1 << 12 != 0 {
        2 * (u32::from(word(data, 117)) | u32::from(word(data, 118)) << 16)
    } else {
        512
    };
    if !block_bytes.is_power_of_two() || !(512..=MAX_BLOCK_BYTES).contains(&block_bytes) {
        return Err(Error::Setup("block size is not 512 to 4096"));
    }
    let blocks = (0..4).fold(0, |blocks, at| blocks | u64::from(word(data, 100 + at)) << (16 * at));
    let mut serial = [0; 20];
    // Words 10 to 19: two characters each, the first one in the upper half.
    for (place, pair) in serial.chunks_exact_mut(2).zip(data[20..40].chunks_exact(2)) {
        place.copy_from_slice(&[pair[1], pair[0]]);
    }
    let mut identity = Identity {
        driver: "ahci",
        location,
        namespace: 0,
        serial: heapless::String::new(),
        capacity: blocks.saturating_mul(block_bytes.into()) / u64::from(block_bytes)
            * u64::from(block_bytes),
        block_bytes,
        max_write_bytes: MAX_REQUEST_BYTES,
        read_only: false,
        // Word 83 bit 13: FLUSH CACHE EXT.
        can_flush: commands & 1 << 13 != 0,
    };
    for &byte in serial.trim_ascii() {
        let shown = if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '?' };
        // As many places as bytes.
        let _ = identity.serial.push(shown);
    }
    Ok(identity)
}
