//! A stretch of a file or block device, read by position.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use vmcore_format::area::BLOCK_BYTES;

use crate::{Error, Result};

/// The kind of a file as the operating system knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A block device.
    Disk,
    /// A directory.
    Folder,
    /// A named pipe, or a pipe behind `/dev/fd` or `/dev/stdin`.
    Pipe,
    /// A socket.
    Socket,
    /// A character device: a terminal, `/dev/zero`.
    Device,
}

impl Kind {
    /// Returns the kind that `metadata` tells of.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let kind = metadata.file_type();
        match () {
            () if kind.is_dir() => Self::Folder,
            () if kind.is_block_device() => Self::Disk,
            () if kind.is_fifo() => Self::Pipe,
            () if kind.is_socket() => Self::Socket,
            () if kind.is_char_device() => Self::Device,
            () => Self::File,
        }
    }

    /// Returns the name with its article.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Disk => "a block device",
            Self::Folder => "a folder",
            Self::Pipe => "a pipe",
            Self::Socket => "a socket",
            Self::Device => "a character device",
        }
    }

    /// Returns true for what has an end and can be read by position.
    pub(crate) const fn is_seekable(self) -> bool {
        matches!(self, Self::File | Self::Disk)
    }
}

/// Opens a file or block device for reading by position. Never waits for a pipe's writer.
///
/// # Errors
/// When it cannot be opened, or `wrong` with its kind when it is of another kind.
pub(crate) fn open_seekable(path: &Path, wrong: impl FnOnce(Kind) -> Error) -> Result<(File, u64)> {
    let look = |metadata: io::Result<Metadata>| {
        metadata.map(|found| Kind::of(&found)).map_err(Error::io(path, "look at it"))
    };
    let kind = look(std::fs::metadata(path))?;
    if !kind.is_seekable() {
        return Err(wrong(kind));
    }
    // Between the look and the opening the name may have become that of a pipe.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let mut file = file.map_err(Error::io(path, "open it"))?;
    let kind = look(file.metadata())?;
    if !kind.is_seekable() {
        return Err(wrong(kind));
    }
    // The metadata of a block device says 0; its end does not.
    let bytes = file.seek(SeekFrom::End(0)).map_err(Error::io(path, "find its end"))?;
    Ok((file, bytes))
}

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

/// Says why a stream is no dump, and what to do.
fn unseekable(what: &str) -> String {
    format!(
        "{what}, which has no end and no place to go back to; write its content to a file first \
         (`cat > FILE`)"
    )
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
        if path == Path::new("-") && !path.exists() {
            return Err(Error::foreign(path, unseekable("standard input")));
        }
        let (file, bytes) = open_seekable(path, |kind| {
            Error::foreign(
                path,
                match kind {
                    Kind::Folder => "a folder, not a vmcore or disk".into(),
                    kind => unseekable(kind.name()),
                },
            )
        })?;
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

    /// Up to `bytes` bytes from the start; zeros for each block of 4 KiB that cannot be read.
    ///
    /// # Errors
    /// When none of them can be read.
    pub(crate) fn read_start(&self, bytes: u64) -> io::Result<Vec<u8>> {
        let error = match self.read_up_to(0, bytes) {
            Ok(start) => return Ok(start),
            Err(error) => error,
        };
        let mut start = vec![0; usize::try_from(bytes.min(self.bytes)).unwrap_or(0)];
        let mut any = false;
        for (number, block) in (0..).zip(start.chunks_mut(BLOCK_BYTES as usize)) {
            match self.read(number * BLOCK_BYTES, block) {
                Ok(()) => any = true,
                Err(_) => block.fill(0),
            }
        }
        if any { Ok(start) } else { Err(error) }
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
