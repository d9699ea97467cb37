//! The part of a disk that is a dump area: all of it, or a partition.

use std::path::Path;
use std::str::FromStr;

use vmcore_format::gpt::{self, GptError, Guid, Partition, Partitions, ShowGuid};

use crate::file::Part;
use crate::{Error, Result};

/// Sizes a disk's sectors may have, in bytes. An image does not say which.
const SECTORS: [u64; 2] = [512, 4096];

/// Which partition is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Its place in the table, from 1.
    Number(u32),
    /// Its own identity.
    Guid(Guid),
}

impl Which {
    fn is(self, partition: &Partition) -> bool {
        match self {
            Self::Number(number) => partition.number == number,
            Self::Guid(guid) => partition.guid == guid,
        }
    }
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(guid) = gpt::parse_guid(text) {
            return Ok(Self::Guid(guid));
        }
        match text.parse() {
            Ok(number) if number > 0 => Ok(Self::Number(number)),
            _ => Err("a number from 1, or the partition's own GUID".into()),
        }
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Guid(guid) => ShowGuid(guid).fmt(f),
        }
    }
}

/// The partitions for dumps on a disk; `None` when it has no partition table.
///
/// # Errors
/// The disk cannot be read, or its table is damaged.
pub(crate) fn partitions(path: &Path, disk: &Part) -> Result<Option<Partitions>> {
    let mut damaged = false;
    for sector in SECTORS {
        let mut read = |offset, into: &mut [u8]| disk.read(offset, into);
        match gpt::partitions(disk.bytes(), sector, &mut read) {
            Ok(found) => return Ok(Some(found)),
            Err(GptError::Damaged) => damaged = true,
            Err(GptError::None) => {}
            Err(GptError::Disk(error)) => return Err(Error::io(path, "read it")(error)),
        }
    }
    if damaged {
        let what = "both copies of its partition table".into();
        return Err(Error::AreaDamaged { path: path.to_owned(), what });
    }
    Ok(None)
}

/// The partition of a disk that `which` names.
///
/// # Errors
/// There is no table, no such partition, or it is not one for dumps.
pub(crate) fn find(path: &Path, disk: &Part, which: Which) -> Result<Partition> {
    let unsuitable = |what: String| Error::Unsuitable { path: path.to_owned(), what };
    let Some(found) = partitions(path, disk)? else {
        return Err(unsuitable("it has no GUID partition table".into()));
    };
    found.into_iter().find(|partition| which.is(partition)).ok_or_else(|| {
        let (kind, number) = (ShowGuid(&gpt::TYPE_GUID), match which {
            Which::Number(number) => number.to_string(),
            Which::Guid(_) => "N".into(),
        });
        unsuitable(format!(
            "there is no partition {which} of the type {kind} (set it with: sgdisk -t {number}:{kind})"
        ))
    })
}

/// The partitions of a disk, or the error of a disk that fails where their table would be: it may
/// be a dump area all the same.
///
/// # Errors
/// What else is wrong with the table.
pub(crate) fn readable(path: &Path, part: &Part) -> Result<(Option<Partitions>, Option<Error>)> {
    match partitions(path, part) {
        Err(error @ Error::Io { .. }) => Ok((None, Some(error))),
        found => found.map(|found| (found, None)),
    }
}
