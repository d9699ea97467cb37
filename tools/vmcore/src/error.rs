//! What can go wrong, in words for who has to act on it.

use std::path::{Path, PathBuf};

use crate::find::Search;

/// What this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. [`Error::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system said no.
    #[error("{}: cannot {doing}: {source}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried, as a verb.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Neither a vmcore nor a disk with a dump area.
    #[error("{}: {what}", .path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What it is instead, as far as that can be told.
        what: String,
    },
    /// Not the text of a console.
    #[error("{}: {what}", .path.display())]
    NotConsole {
        /// Which file.
        path: PathBuf,
        /// What it is instead, or what is wrong with it.
        what: String,
    },
    /// It is ours, and something in it is wrong.
    #[error("{}: damaged: {what}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Damaged so much that nothing can be read, in part neither.
    #[error("{}: damaged, and nothing of it can be read in part: {what}", .path.display())]
    NothingLeft {
        /// Which file.
        path: PathBuf,
        /// The damage.
        what: String,
    },
    /// The header of a dump area or the partition table of its disk is damaged.
    #[error("{}: damaged: {what}", .path.display())]
    AreaDamaged {
        /// Which disk.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Slots of which nothing is known, and no dump that can be read.
    #[error("{}: no dump that can be read, and what a slot holds is unknown{}", .path.display(), slot_list(.slots))]
    UnknownDump {
        /// Which disk.
        path: PathBuf,
        /// State of each slot.
        slots: Vec<String>,
    },
    /// A disk or core inside a file of another format.
    #[error("{}: {what}; to read what is in it: {command}", .path.display())]
    Wrapped {
        /// Which file.
        path: PathBuf,
        /// Its format.
        what: String,
        /// The command that makes a readable copy.
        command: String,
        /// True for a disk image, false for a compressed file.
        image: bool,
    },
    /// The output cannot get the name it is to have.
    #[error("{}: {what}", .path.display())]
    Output {
        /// Which file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// The file ends too early.
    #[error("{}: cut short: {have} of {need} bytes are there", .path.display())]
    CutShort {
        /// Which file.
        path: PathBuf,
        /// Bytes it has.
        have: u64,
        /// Bytes it should have.
        need: u64,
    },
    /// Written by a later version of Epitaph.
    #[error("{}: {what}", .path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Which record, and its version.
        what: String,
    },
    /// A dump area without a sealed dump.
    #[error("{}: no sealed dump in the dump area{}", .path.display(), slot_list(.slots))]
    NoDump {
        /// Which disk.
        path: PathBuf,
        /// What each slot holds instead.
        slots: Vec<String>,
        /// A dump was begun, and not even its first stage was sealed.
        begun: bool,
    },
    /// Half of a dump, and the other half is not at hand.
    #[error("{}: {what}", .path.display())]
    OtherHalf {
        /// Which disk.
        path: PathBuf,
        /// What there is, and in which dump area the rest is.
        what: String,
    },
    /// `--slot` names one that is not there, or holds no dump.
    #[error("{}: slot {slot}: {what}", .path.display())]
    NoSuchSlot {
        /// Which disk.
        path: PathBuf,
        /// The number asked for.
        slot: u32,
        /// Why it will not do.
        what: String,
    },
    /// `--cpu` names one the dump does not have.
    #[error("there is no CPU {cpu} in this dump, only 0 to {last}")]
    NoSuchCpu {
        /// The index asked for.
        cpu: u32,
        /// The highest there is.
        last: u32,
    },
    /// The dump does not hold what the command is about.
    #[error("{0}")]
    NotInDump(String),
    /// The crashed image is nowhere to be found.
    #[error("{0}")]
    NoImage(Box<Search>),
    /// The image was found and cannot be used.
    #[error("{}: {what}", .path.display())]
    BadImage {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The output is there already.
    #[error("{}: exists already", .0.display())]
    Exists(PathBuf),
    /// A disk that holds something else.
    #[error("{}: not prepared: {what}", .path.display())]
    InUse {
        /// Which disk.
        path: PathBuf,
        /// What stands on it.
        what: String,
    },
    /// A disk that somebody else has.
    #[error("{}: in use by {by}", .path.display())]
    Held {
        /// Which disk.
        path: PathBuf,
        /// Who has it, as far as that is known.
        by: &'static str,
    },
    /// A disk that does not do for a dump area.
    #[error("{}: {what}", .path.display())]
    Unsuitable {
        /// Which disk.
        path: PathBuf,
        /// Why not.
        what: String,
    },
}

fn slot_list(slots: &[String]) -> String {
    slots.iter().enumerate().map(|(slot, state)| format!("\n  slot {slot}: {state}")).collect()
}

impl Error {
    pub(crate) fn io(
        path: &Path,
        doing: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn foreign(path: &Path, what: impl Into<String>) -> Self {
        Self::Foreign { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn not_a_console(path: &Path, what: String) -> Self {
        Self::NotConsole { path: path.to_owned(), what }
    }

    /// The error to report where reading in part has failed as well.
    pub(crate) fn beyond_partial(self) -> Self {
        match self {
            Self::Damaged { path, what } => Self::NothingLeft { path, what },
            Self::CutShort { path, have, need } => {
                let what = format!("cut short: {have} of {need} bytes are there");
                Self::NothingLeft { path, what }
            }
            other => other,
        }
    }

    /// Returns true if something is damaged, rather than absent, in use or not asked rightly.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::NothingLeft { .. }
                | Self::AreaDamaged { .. }
                | Self::UnknownDump { .. }
                | Self::CutShort { .. }
        )
    }

    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Io { .. } | Self::NoSuchCpu { .. } | Self::NotInDump(_) => return None,
            Self::Foreign { .. } => {
                "give a vmcore, or a raw disk or disk image that `vmcore prepare` has set up"
            }
            Self::NotConsole { .. } => {
                "give the text that the machine's console showed, as a file, or as - through a pipe"
            }
            Self::Damaged { .. } => {
                "copy or extract it again if you can; --partial reads what is still good"
            }
            Self::NothingLeft { .. } => {
                "copy it again if you can; keep the disk: what is on it may still be read by hand"
            }
            Self::AreaDamaged { .. } => {
                "keep a copy of the disk: its dumps are found by that alone, and `vmcore prepare` \
                 would make room for new ones over them"
            }
            Self::UnknownDump { .. } => {
                "keep a copy of the disk before it is used again: a dump is likely to be there"
            }
            Self::Wrapped { image: true, .. } => {
                "that makes a copy, for `vmcore extract`: `vmcore collect` would mark the dump in \
                 the copy only, and the machine would find its slot still taken. To collect, attach \
                 the image itself: `qemu-nbd --connect=/dev/nbd0 IMAGE`, then `vmcore collect \
                 /dev/nbd0 -o DIR`"
            }
            Self::Wrapped { image: false, .. } => {
                "that makes a copy: `vmcore collect` would mark the dump in the copy only, and the \
                 machine would find its slot still taken. To collect, give the disk that the \
                 machine uses"
            }
            Self::Output { .. } => "name another file with -o",
            Self::CutShort { .. } => {
                "copy or extract it again if you can; --partial reads what is there"
            }
            Self::Newer { .. } => "read it with the `vmcore` that belongs to the crashed image",
            Self::NoDump { begun: true, .. } => {
                "the capture was cut off before its first seal; its console may hold last words"
            }
            Self::NoDump { begun: false, .. } => {
                "nothing was ever dumped here; the console may hold last words"
            }
            Self::OtherHalf { .. } => {
                "two disks shared this dump: name the other one by --with, or give both to \
                 `vmcore collect`; `vmcore prepare` has said the identity of each"
            }
            Self::NoSuchSlot { .. } => "`vmcore info DISK` without --slot takes the newest dump",
            Self::NoImage(_) => {
                "give it with --image, put it beside the vmcore, or name its folder in \
                 EPITAPH_IMAGE_PATH; all commands but bt work without it"
            }
            Self::BadImage { .. } => "give the ELF file with debug information that was booted",
            Self::Exists(_) => "choose another name with -o, or overwrite it with --force",
            Self::InUse { .. } => "be sure that nobody needs it, then say --force",
            Self::Held { .. } => "try again when it is free: two writers would spoil the disk",
            Self::Unsuitable { .. } => {
                "give a larger disk, fewer --slots, or a partition of the type for dumps"
            }
        })
    }
}
