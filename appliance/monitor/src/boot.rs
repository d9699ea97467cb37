//! Where the client's files go, and how QEMU's `fw_cfg` device names them.

use core::ops::Range;

/// Reason why a client cannot be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// The kernel has no header of a Linux arm64 Image.
    NotAnImage,
    /// Kernel and initrd do not fit the memory.
    NoRoom,
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NotAnImage => "the kernel is no arm64 Image (no \"ARM\\x64\" at byte 56)",
            Self::NoRoom => "kernel and initrd do not fit the memory",
        })
    }
}

impl core::error::Error for BootError {}

/// Bytes of the header of a Linux arm64 Image (Linux, `Documentation/arch/arm64/booting.rst`).
pub const IMAGE_HEADER: usize = 64;
/// Offset of the magic number in that header.
pub const IMAGE_MAGIC_OFFSET: usize = 56;
/// That magic number: "ARM\x64".
pub const IMAGE_MAGIC: [u8; 4] = *b"ARM\x64";
/// A kernel lies at its text offset behind an address of this alignment, 2 MiB.
pub const KERNEL_ALIGN: u64 = 2 << 20;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// Bytes between an aligned address and the kernel.
    pub text_offset: u64,
    /// Bytes of memory that the kernel occupies, its uninitialised data included; 0 in kernels
    /// before 3.17.
    pub memory_size: u64,
}

impl ImageHeader {
    /// Reads the header at the start of a kernel.
    ///
    /// # Errors
    /// It is none.
    pub fn read(bytes: &[u8]) -> Result<Self, BootError> {
        let word = |at: usize| {
            let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
            bytes.copied().map(u64::from_le_bytes).ok_or(BootError::NotAnImage)
        };
        let magic = bytes.get(IMAGE_MAGIC_OFFSET..IMAGE_HEADER).ok_or(BootError::NotAnImage)?;
        if !magic.starts_with(&IMAGE_MAGIC) {
            return Err(BootError::NotAnImage);
        }
        Ok(Self { text_offset: word(8)?, memory_size: word(16)? })
    }
}

/// Where kernel and initrd go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Address of the kernel, which is its entry as well.
    pub kernel: u64,
    /// Memory of the initrd; empty if there is none.
    pub initrd: Range<u64>,
}

impl Placement {
    /// Places a kernel of `kernel_size` bytes and an initrd of `initrd_size` bytes in `memory`.
    ///
    /// # Errors
    /// They do not fit.
    pub fn choose(
        memory: &Range<u64>,
        header: ImageHeader,
        kernel_size: u64,
        initrd_size: u64,
    ) -> Result<Self, BootError> {
        let place = || {
            let base = memory.start.checked_next_multiple_of(KERNEL_ALIGN)?;
            let kernel = base.checked_add(header.text_offset)?;
            let end = kernel.checked_add(header.memory_size.max(kernel_size))?;
            let start = end.checked_next_multiple_of(KERNEL_ALIGN)?;
            let initrd = start..start.checked_add(initrd_size)?;
            let last = if initrd_size == 0 { end } else { initrd.end };
            (last <= memory.end).then_some(Self { kernel, initrd })
        };
        place().ok_or(BootError::NoRoom)
    }
}

/// Names and numbers of QEMU's `fw_cfg` device (QEMU, `docs/specs/fw_cfg.rst`).
pub mod fw_cfg {
    /// Item: bytes of the kernel, 4 bytes, little endian.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Item: the kernel.
    pub const KERNEL: u16 = 0x11;
    /// Item: bytes of the initrd, 4 bytes, little endian.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// Item: the initrd.
    pub const INITRD: u16 = 0x12;
    /// Item: the directory of files: a count of 4 bytes, then entries.
    pub const DIRECTORY: u16 = 0x19;
    /// Bytes of an entry.
    pub const ENTRY: usize = 64;
    /// The file that selects a [`crate::Mode`].
    pub const MODE_FILE: &[u8] = b"opt/epitaph/monitor";

    /// A file of the directory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct File {
        /// Item that holds it.
        pub item: u16,
        /// Bytes.
        pub size: u32,
    }

    /// Returns the file that the entry `bytes` describes, if its name is `name`.
    #[must_use]
    pub fn file(bytes: &[u8; ENTRY], name: &[u8]) -> Option<File> {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        let [a, b, c, d, e, f, _, _] = *head;
        let found = rest.split(|byte| *byte == 0).next();
        (found == Some(name)).then_some(File {
            item: u16::from_be_bytes([e, f]),
            size: u32::from_be_bytes([a, b, c, d]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Range<u64> = 0x4020_0000..0x5000_0000;

    fn header(text_offset: u64, memory_size: u64) -> ImageHeader {
        let mut bytes = [0; IMAGE_HEADER];
        bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&memory_size.to_le_bytes());
        assert_eq!(ImageHeader::read(&bytes), Err(BootError::NotAnImage));
        bytes[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(ImageHeader::read(&bytes[..60]), Err(BootError::NotAnImage));
        ImageHeader::read(&bytes).expect("a header")
    }

    #[test]
    fn files_lie_behind_each_other_and_inside_of_memory() {
        let placed = Placement::choose(&MEMORY, header(0, 0x10_0001), 0x10_0000, 5);
        let initrd = 0x4040_0000..0x4040_0005;
        assert_eq!(placed, Ok(Placement { kernel: 0x4020_0000, initrd }));
        let placed = Placement::choose(&MEMORY, header(0x8_0000, 0), 0x20_0000, 0);
        assert_eq!(placed.expect("room").kernel, 0x4028_0000);
        // The kernel alone fills memory; an initrd of one byte is too much.
        let all = MEMORY.end - MEMORY.start;
        assert!(Placement::choose(&MEMORY, header(0, all), 1, 0).is_ok());
        assert_eq!(Placement::choose(&MEMORY, header(0, all), 1, 1), Err(BootError::NoRoom));
        for (offset, size) in [(u64::MAX, 1), (1, u64::MAX), (0, all + 1)] {
            let placed = Placement::choose(&MEMORY, header(offset, size), 1, 0);
            assert_eq!(placed, Err(BootError::NoRoom));
        }
    }

    #[test]
    fn a_file_is_found_by_its_whole_name() {
        let mut entry = [0; fw_cfg::ENTRY];
        entry[3] = 5;
        entry[5] = 0x20;
        entry[8..11].copy_from_slice(b"opt");
        let file = fw_cfg::File { item: 0x20, size: 5 };
        assert_eq!(fw_cfg::file(&entry, b"opt"), Some(file));
        assert_eq!(fw_cfg::file(&entry, b"op"), None);
        entry[8..].fill(b'x');
        assert_eq!(fw_cfg::file(&entry, b"opt"), None);
    }
}
