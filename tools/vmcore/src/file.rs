//! A stretch of a file or block device, read by position.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result};

/// What dumps can be read from: a file, or whatever behaves like one.
///
/// Reading by position rather than mapping: a mapped file that shrinks under the reader
/// ends in a signal, a read in an error.
pub trait Storage: Send + Sync {
    /// How many bytes there are.
    fn bytes(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read, or end before the buffer is full.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// How many bytes from the start to read at first, when the headers are wanted and
    /// nothing is known of their size.
    fn first_read(&self) -> u64 {
        256 << 10
    }
}

/// A file whose size was taken when it was opened.
struct Sized {
    file: File,
    bytes: u64,
}

impl Storage for Sized {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// Bytes `[base, base + bytes)` of a storage.
#[derive(Clone)]
pub(crate) struct Part {
    storage: Arc<dyn Storage>,
    base: u64,
    bytes: u64,
}

impl Part {
    /// The whole of a file or block device.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path, "open it"))?;
        let kind = file.metadata().map_err(Error::io(path, "look at it"))?.file_type();
        if kind.is_dir() {
            return Err(Error::foreign(path, "a folder, not a vmcore or disk"));
        }
        // The metadata of a block device says 0; its end does not.
        let bytes = file.seek(SeekFrom::End(0)).map_err(Error::io(path, "find its end"))?;
        Ok(Self::whole(Arc::new(Sized { file, bytes })))
    }

    /// The whole of a storage.
    pub(crate) fn whole(storage: Arc<dyn Storage>) -> Self {
        let bytes = storage.bytes();
        Self { storage, base: 0, bytes }
    }

    /// A part of the part; cut off at its end.
    pub(crate) fn part(&self, offset: u64, bytes: u64) -> io::Result<Self> {
        let offset = offset.min(self.bytes);
        let bytes = bytes.min(self.bytes - offset);
        Ok(Self { storage: Arc::clone(&self.storage), base: self.base + offset, bytes })
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it begins in its storage.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    /// Fills `buffer` from `offset`.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.storage.read_at(self.base + offset, buffer)
    }

    /// The first bytes, as many as headers are likely to take.
    pub(crate) fn read_first(&self) -> io::Result<Vec<u8>> {
        self.read_up_to(0, self.storage.first_read())
    }

    /// Up to `bytes` bytes from `offset`; fewer at the end.
    pub(crate) fn read_up_to(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let bytes = bytes.min(self.bytes.saturating_sub(offset));
        let size = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut buffer = vec![0; size];
        self.read(offset, &mut buffer)?;
        Ok(buffer)
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { base, bytes, .. } = self;
        f.debug_struct("Part").field("base", base).field("bytes", bytes).finish_non_exhaustive()
    }
}
