//! What a driver and its device share: registers, and pages both of them reach.
//!
//! The drivers above this are plain code: every address they follow is an offset that is
//! checked here.
#![expect(unsafe_code, reason = "reads and writes device registers and memory shared by DMA")]

#[cfg(test)]
pub mod fake;

use core::ptr::{self, NonNull};

use crate::{Error, Platform};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A device's registers, 32 bits wide. A model of a device implements it as well, so that
/// a driver can be tested without one.
pub trait Registers: Clone {
    /// Reads the register at byte `offset`.
    fn read(&self, offset: usize) -> u32;
    /// Writes the register at byte `offset`.
    fn write(&self, offset: usize, value: u32);
}

/// Registers in the machine's address space. A copy reaches the same registers.
#[derive(Clone)]
pub struct Mmio {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mmio {
    /// Makes `bytes` bytes of registers at `physical` accessible.
    ///
    /// # Errors
    /// When the platform cannot map them.
    pub fn map<P: Platform>(physical: u64, bytes: usize) -> Result<Self, Error> {
        let start = P::map_mmio(physical, bytes as u64).ok_or(Error::NoMemory)?;
        Ok(Self { start, bytes })
    }

    /// The register at `offset`; none when there is none.
    fn at(&self, offset: usize) -> Option<NonNull<u32>> {
        let there = offset.is_multiple_of(4) && offset.checked_add(4)? <= self.bytes;
        debug_assert!(there, "no register there");
        // SAFETY: inside the mapped range, as just checked.
        there.then(|| unsafe { self.start.add(offset) }.cast())
    }
}

impl Registers for Mmio {
    fn read(&self, offset: usize) -> u32 {
        // SAFETY: a register of the device, mapped by the platform; reading one cannot
        // touch memory of the program. Where there is none a bus reads as all ones.
        self.at(offset).map_or(u32::MAX, |register| unsafe { register.read_volatile() })
    }

    fn write(&self, offset: usize, value: u32) {
        if let Some(register) = self.at(offset) {
            // SAFETY: as for reading. What the device does with it by DMA is the driver's
            // matter: it names pages that were set aside for it, or memory only to be read.
            unsafe { register.write_volatile(value) }
        }
    }
}

/// Pages a device may read and write at any time. Never taken back: a device that was
/// given up may still use them.
pub struct Dma {
    start: NonNull<u8>,
    bytes: usize,
}

impl Dma {
    /// Takes zeroed pages from the platform.
    ///
    /// # Errors
    /// When there are no more.
    pub fn take<P: Platform>(pages: usize) -> Result<Self, Error> {
        let start = P::dma_pages(pages).ok_or(Error::NoMemory)?;
        Ok(Self { start, bytes: pages * PAGE })
    }

    /// Returns another handle to the same pages, for the next disk of a controller once the
    /// one before is at rest.
    pub const fn again(&self) -> Self {
        Self { start: self.start, bytes: self.bytes }
    }

    /// Where the device finds byte `offset`.
    pub fn address(&self, offset: usize) -> u64 {
        self.start.as_ptr() as u64 + offset as u64
    }

    /// Start of `bytes` bytes at `offset`; none when they are not there. That would be a
    /// mistake of the driver's: a crash has better things to do than to panic over it, so
    /// nothing is then read or written, and the device does not get what it was to get.
    fn at(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        let fits = offset.checked_add(bytes)? <= self.bytes;
        debug_assert!(fits, "outside the pages shared with a device");
        // SAFETY: inside the pages, as just checked.
        fits.then(|| unsafe { self.start.add(offset) })
    }

    fn word(&self, offset: usize) -> Option<NonNull<u32>> {
        debug_assert!(offset.is_multiple_of(4), "no word there");
        self.at(offset, 4).filter(|_| offset.is_multiple_of(4)).map(NonNull::cast)
    }

    /// The little-endian word at `offset`, as the device left it.
    pub fn read(&self, offset: usize) -> u32 {
        // SAFETY: aligned memory of ours to which no reference exists; volatile, because
        // the device writes it behind the compiler's back.
        let word = self.word(offset).map_or(0, |word| unsafe { word.read_volatile() });
        u32::from_le(word)
    }

    /// Writes the little-endian word at `offset`.
    pub fn write(&self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            // SAFETY: as for reading.
            unsafe { word.write_volatile(value.to_le()) }
        }
    }

    /// Writes the little-endian address at `offset`, lower half first.
    pub fn write_address(&self, offset: usize, address: u64) {
        self.write(offset, address as u32);
        self.write(offset + 4, (address >> 32) as u32);
    }

    /// Copies out of the pages. What a device is still writing arrives torn.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let Some(from) = self.at(offset, into.len()) else { return };
        // SAFETY: memory of ours to which no reference exists, so the two are apart.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) }
    }

    /// Copies into the pages.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        let Some(into) = self.at(offset, from.len()) else { return };
        // SAFETY: as for `copy_out`.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), from.len()) }
    }
}
