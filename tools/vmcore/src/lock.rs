//! Opening a disk to write to it, when nobody else does.
//!
//! QEMU locks single bytes of an image it uses: byte 100 + n for each thing it does with
//! it, byte 200 + n for each thing nobody else may do (`docs/system/images.rst` and
//! `block/file-posix.c` in its sources). Whoever takes all of them for writing is alone:
//! it fails while a machine runs, and no machine starts while it lasts. The locks belong
//! to the open file and go with it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Error, Result};

/// First byte of each range that QEMU locks, and how many it may use in each.
const RANGES: [i64; 2] = [100, 200];
const RANGE_BYTES: i64 = 8;
/// How long a machine that has said goodbye may take to end.
const LETTING_GO: Duration = Duration::from_secs(5);

/// The same for a machine that is about to end: QMP closes a moment before QEMU lets go of
/// its disks.
///
/// # Errors
/// As [`open_to_write`], and when the machine goes on after all.
pub(crate) fn open_when_free(path: &Path) -> Result<File> {
    let deadline = Instant::now() + LETTING_GO;
    loop {
        match open_to_write(path) {
            Err(Error::Held { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

/// Opens a disk or image for reading and writing, and keeps everybody else away for as
/// long as the file is open.
///
/// # Errors
/// It cannot be opened, or a machine or file system has it.
pub(crate) fn open_to_write(path: &Path) -> Result<File> {
    let opening = Error::io(path, "open it for writing");
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let kind = std::fs::metadata(path).map_err(Error::io(path, "open it"))?.file_type();
    let device = kind.is_block_device();
    if !device && !kind.is_file() {
        return Err(Error::foreign(path, "neither a disk nor an image of one"));
    }
    // For a block device it means: nobody has mounted it.
    if device {
        options.custom_flags(libc::O_EXCL);
    }
    let file = match options.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(Error::Held { path: path.to_owned(), by: "this system" });
        }
        opened => opened.map_err(opening)?,
    };
    for start in RANGES {
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start,
            l_len: RANGE_BYTES,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Err(Error::Held { path: path.to_owned(), by: "a running machine" });
            }
            Err(error) => return Err(Error::io(path, "lock it")(error.into())),
        }
    }
    Ok(file)
}
