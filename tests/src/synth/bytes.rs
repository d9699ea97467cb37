//! Bytes at given offsets, and their checksum.

/// A record of a fixed size, all zero at first.
pub(super) struct Record(pub(super) Vec<u8>);

impl Record {
    pub(super) fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(super) fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }

    /// Puts the checksum of the whole record, with these four bytes as zero, at `at`.
    pub(super) fn seal(&mut self, at: usize) -> &mut Self {
        self.u32(at, 0);
        let crc = crc32(&self.0);
        self.u32(at, crc)
    }
}

/// CRC32 of IEEE 802.3, bit by bit.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_the_one_everybody_knows() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
    }
}
