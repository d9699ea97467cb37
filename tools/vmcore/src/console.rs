//! The text of a console: read up to a bound, from a file or a stream.
//!
//! A file is searched from its end in windows, so that a log of many gigabytes costs no
//! more memory than a short one. Of a stream only its end is kept.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmcore_format::last_words::records;

use crate::file::Kind;
use crate::{Error, Result};

mod rejoin;

pub(crate) use rejoin::rejoin;

/// Bytes of a console that are in memory at a time. The longest record has 65,535 lines of
/// 221 bytes, 13.8 MiB.
pub const WINDOW_BYTES: u64 = 64 << 20;
/// Bytes that a window goes back when the newest record may begin before it. At least
/// twice a record, so that no record is in two pieces in both windows.
const STEP_BYTES: u64 = 32 << 20;
/// Most bytes read from a stream, and most bytes at the end of a file that are searched.
pub const STREAM_BYTES: u64 = 1 << 30;
/// Seconds without a byte after which a stream counts as stuck.
const IDLE_SECONDS: u16 = 10;

/// Reads the part of a console's text that holds its newest record, or its end when it
/// holds none, with wrapped lines joined again. `-` is standard input.
///
/// # Errors
/// When it cannot be read, or is not a text that ends.
pub(crate) fn read(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return stream(path, io::stdin().lock());
    }
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "look at it"))?;
    match Kind::of(&metadata) {
        Kind::Folder | Kind::Socket => {
            Err(Error::not_a_console(path, format!("this is {}", Kind::of(&metadata).name())))
        }
        Kind::Pipe | Kind::Device => {
            // Without this flag the opening of a pipe waits for a writer.
            let file = File::options()
                .read(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(path)
                .map_err(Error::io(path, "open it"))?;
            stream(path, file)
        }
        Kind::File | Kind::Disk => {
            let file = File::open(path).map_err(Error::io(path, "open it"))?;
            search(path, file)
        }
    }
}

/// Reads a file from its end, window by window, up to one that holds a whole record.
fn search(path: &Path, mut file: File) -> Result<String> {
    let end = file.seek(SeekFrom::End(0)).map_err(Error::io(path, "find its end"))?;
    let last = end.saturating_sub(WINDOW_BYTES);
    let mut start = last;
    loop {
        let bytes = WINDOW_BYTES.min(end - start);
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
        file.read_exact_at(&mut buffer, start).map_err(Error::io(path, "read it"))?;
        // The prefix of a line begins with this character.
        let text = match buffer.contains(&b'~') {
            true => rejoin(&String::from_utf8_lossy(&buffer)),
            false => String::new(),
        };
        drop(buffer);
        let newest = records(&text).last();
        // The text of a record is a part of the whole, and what stands before it is where it
        // begins.
        let begins = newest.map(|record| record.text.as_ptr().addr() - text.as_ptr().addr());
        let whole = begins.is_some_and(|at| at as u64 >= WINDOW_BYTES / 4);
        if start == 0 || whole || last - start >= STREAM_BYTES {
            return Ok(text);
        }
        start = start.saturating_sub(STEP_BYTES);
    }
}

/// Reads a stream to its end and keeps the last window of it.
fn stream(path: &Path, mut from: impl Read + AsFd) -> Result<String> {
    let window = usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX);
    let mut kept = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0_u64;
    loop {
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(IDLE_SECONDS * 1000));
        if ready == Ok(0) {
            let what = format!(
                "nothing came for {IDLE_SECONDS} seconds, after {total} bytes; write the text to a \
                 file first"
            );
            return Err(Error::not_a_console(path, what));
        }
        let bytes = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Error::io(path, "read it")(error)),
        };
        total += bytes as u64;
        if total > STREAM_BYTES {
            let what = format!(
                "a stream of more than {} MiB, no text of a console; write its end to a file, \
                 as with `tail -c 64M`",
                STREAM_BYTES >> 20
            );
            return Err(Error::not_a_console(path, what));
        }
        kept.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
        if kept.len() >= 2 * window {
            kept.drain(..kept.len() - window);
        }
    }
    if total == 0 {
        return Err(Error::not_a_console(path, "no byte came out of it".into()));
    }
    kept.drain(..kept.len().saturating_sub(window));
    Ok(rejoin(&String::from_utf8_lossy(&kept)))
}
