//! Files that hold memory of a crashed machine: how they are created, made durable and named.
//!
//! A file is written under a random temporary name in the folder's own descriptor, created
//! exclusively and readable by its owner only. It gets its name when all of it is on the medium,
//! and the folder is flushed behind that. A name is replaced and never opened, so that a link
//! that stands under it leads nowhere.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::{Error, Result};

/// Access to an output: its owner may read and write it. It holds all that the machine had in
/// memory.
const MODE: u32 = 0o600;

/// The steps between the last byte of a core and the mark on its disk, in the order in which
/// they have to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The file is flushed.
    FlushFile,
    /// The file gets its name.
    Name,
    /// The folder is flushed.
    FlushFolder,
    /// The slot is marked as collected.
    Mark,
}

/// Is called before each step, which is not done when this fails.
pub(crate) type Steps<'a> = dyn FnMut(Step) -> io::Result<()> + 'a;

/// Lets every step be done.
#[expect(clippy::unnecessary_wraps, reason = "it stands where a test lets a step fail")]
pub(crate) const fn all_steps(_: Step) -> io::Result<()> {
    Ok(())
}

/// A folder for outputs, opened once: what its path leads to later does not matter.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    descriptor: File,
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY);
        let descriptor = options.open(path).map_err(Error::io(path, "open the folder"))?;
        Ok(Self { path: path.to_owned(), descriptor })
    }

    /// Opens a folder, and makes it before, with those above it, when there is none. Their names
    /// are flushed: a file is no safer than the folder that leads to it.
    ///
    /// # Errors
    /// The folder cannot be made or opened.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let made: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
        fs::create_dir_all(path).map_err(Error::io(path, "create it"))?;
        for above in made.iter().filter_map(|path| path.parent()) {
            Self::open(above)?.flush()?;
        }
        Self::open(path)
    }

    /// The path of a file in it.
    fn join(&self, name: &OsStr) -> PathBuf {
        if self.path == Path::new(".") { name.into() } else { self.path.join(name) }
    }

    fn flush(&self) -> Result<()> {
        match self.descriptor.sync_all() {
            // A file system that has nothing to flush for a folder.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            flushed => flushed.map_err(Error::io(&self.path, "flush the folder")),
        }
    }

    /// Looks up a name: of a link the link itself, or with `follow` its target.
    fn look(&self, name: &OsStr, follow: bool) -> Result<Option<FileStat>> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
        match fstatat(&self.descriptor, name, flags) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP) if follow => Ok(None),
            Err(error) => Err(Error::io(&self.join(name), "look at it")(error.into())),
        }
    }

    /// Checks that an output may get this name: that nothing stands there but a plain file, or a
    /// link to one, which `force` allows to replace, and that it is none of the `sources`.
    ///
    /// # Errors
    /// Says what stands there.
    pub(crate) fn check(&self, name: &OsStr, sources: &[&Path], force: bool) -> Result<()> {
        let path = self.join(name);
        let (Some(found), target) = (self.look(name, false)?, self.look(name, true)?) else {
            return Ok(());
        };
        for found in [Some(&found), target.as_ref()].into_iter().flatten() {
            let kind = match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFREG | SFlag::S_IFLNK => continue,
                SFlag::S_IFDIR => "a folder",
                SFlag::S_IFBLK => "a block device",
                SFlag::S_IFCHR => "a character device",
                SFlag::S_IFIFO => "a pipe",
                SFlag::S_IFSOCK => "a socket",
                _ => "no plain file",
            };
            let what =
                format!("not written: this is {kind}, and a core is written to a plain file");
            return Err(Error::Output { path, what });
        }
        let is = |source: &fs::Metadata, found: &FileStat| {
            (source.dev(), source.ino()) == (found.st_dev, found.st_ino)
        };
        for source in sources {
            let Ok(data) = fs::metadata(source) else { continue };
            if is(&data, &found) || target.as_ref().is_some_and(|target| is(&data, target)) {
                let source = source.display();
                let what = format!("not written: this is {source} itself, which is read");
                return Err(Error::Output { path, what });
            }
        }
        if force { Ok(()) } else { Err(Error::Exists(path)) }
    }
}

/// Splits the path of an output into its folder and its name there.
///
/// # Errors
/// The path ends in no name.
pub(crate) fn split(out: &Path) -> Result<(Folder, OsString)> {
    let Some(name) = out.file_name() else {
        let what = "not written: this names no file".into();
        return Err(Error::Output { path: out.to_owned(), what });
    };
    Ok((Folder::open(out.parent().unwrap_or(Path::new(".")))?, name.to_owned()))
}

/// Writes a small output in one piece.
///
/// # Errors
/// As [`Folder::check`], and when it cannot be written.
pub(crate) fn write(out: &Path, sources: &[&Path], force: bool, content: &[u8]) -> Result<()> {
    let (folder, name) = split(out)?;
    folder.check(&name, sources, force)?;
    let output = Output::create(&folder)?;
    output.file().write_all(content).map_err(Error::io(out, "write it"))?;
    output.finish(std::iter::once(name), force, &mut all_steps)?;
    Ok(())
}

/// A file that is being written, under a temporary name until it is finished. It is removed when
/// it is dropped before that.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    folder: &'a Folder,
    temporary: OsString,
    file: File,
    named: bool,
}

impl<'a> Output<'a> {
    /// Creates it.
    ///
    /// # Errors
    /// The folder takes no files.
    pub(crate) fn create(folder: &'a Folder) -> Result<Self> {
        let temporary: OsString = format!(".vmcore-{}.partial", uuid::Uuid::new_v4()).into();
        let path = folder.join(&temporary);
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(MODE);
        let file = openat(&folder.descriptor, temporary.as_os_str(), flags, mode)
            .map_err(|error| Error::io(&path, "create it")(error.into()))?;
        let file = File::from(file);
        // The umask may have taken from the owner's rights; it never adds any. A file system
        // without rights refuses this, and there is nothing to give back there.
        let _ = file.set_permissions(Permissions::from_mode(MODE));
        Ok(Self { folder, temporary, file, named: false })
    }

    /// Its temporary path.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(&self.temporary)
    }

    /// The file, to be written to.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Makes it durable under the first of `names` that is free, or under the first whatever
    /// stands there with `replace`; returns its path.
    ///
    /// # Errors
    /// No name is free, or a step fails. Behind the last step the file is on the medium.
    pub(crate) fn finish(
        mut self,
        names: impl Iterator<Item = OsString>,
        replace: bool,
        steps: &mut Steps<'_>,
    ) -> Result<PathBuf> {
        let temporary = self.path();
        steps(Step::FlushFile)
            .and_then(|()| self.file.sync_all())
            .map_err(Error::io(&temporary, "flush it"))?;
        steps(Step::Name).map_err(Error::io(&temporary, "give it its name"))?;
        let mut last = self.temporary.clone();
        for name in names {
            if self.name(&name, replace)? {
                self.named = true;
                steps(Step::FlushFolder)
                    .map_err(Error::io(&self.folder.path, "flush the folder"))?;
                self.folder.flush()?;
                return Ok(self.folder.join(&name));
            }
            last = name;
        }
        Err(Error::Exists(self.folder.join(&last)))
    }

    /// Gives it a name; returns false when that is taken.
    fn name(&self, name: &OsStr, replace: bool) -> Result<bool> {
        let (folder, old) = (&self.folder.descriptor, self.temporary.as_os_str());
        let keep = RenameFlags::RENAME_NOREPLACE;
        let mut renamed = if replace {
            renameat(folder, old, folder, name)
        } else {
            renameat2(folder, old, folder, name, keep)
        };
        // Not every file system can do it in one step.
        if matches!(renamed, Err(Errno::EINVAL | Errno::ENOSYS)) && !replace {
            if self.folder.look(name, false)?.is_some() {
                return Ok(false);
            }
            renamed = renameat(folder, old, folder, name);
        }
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(error) => Err(Error::io(&self.folder.join(name), "give it its name")(error.into())),
        }
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if !self.named {
            // Half a dump is worse than none; that it cannot be removed changes nothing.
            let name = self.temporary.as_os_str();
            let _ = unlinkat(&self.folder.descriptor, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}
