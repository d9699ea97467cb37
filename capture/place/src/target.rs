//! Where a dump goes: the `dump_to=` list of the command line.

use core::fmt;

use vmcore_format::gpt::{Guid, parse_guid};

/// A kind of disk, or one place on any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// virtio-blk.
    Virtio,
    /// NVMe.
    Nvme,
    /// SATA behind AHCI.
    Ahci,
    /// The partition of this identity.
    Partition(Guid),
}

/// Every kind, in the order they are tried when nothing is said.
pub const ALL: [Target; 3] = [Target::Virtio, Target::Nvme, Target::Ahci];

/// Targets a list may name; more are passed over.
pub const MAX_TARGETS: usize = 8;

/// Targets in the order they are tried, each at most once.
pub type Targets = heapless::Vec<Target, MAX_TARGETS>;

impl Target {
    /// The word on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Nvme => "nvme",
            Self::Ahci => "ahci",
            Self::Partition(_) => "partition",
        }
    }

    /// What a word of the list names.
    fn read(word: &str) -> Option<Self> {
        let kind = ALL.into_iter().find(|target| target.word() == word);
        kind.or_else(|| parse_guid(word).map(Self::Partition))
    }
}

/// A word of the list that is passed over, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped<'a> {
    /// It means something that does not work yet.
    NotYet(&'a str),
    /// It means nothing.
    Unknown(&'a str),
    /// There are [`MAX_TARGETS`] before it.
    TooMany(&'a str),
    /// No word of the list was left: every target is tried, since a dump in an area that
    /// was prepared for one is better than none.
    All,
}

impl fmt::Display for Skipped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet(word) => write!(f, "dump_to={word}: not yet, skipped"),
            Self::Unknown(word) => write!(f, "dump_to={word}: no such target, skipped"),
            Self::TooMany(word) => write!(f, "dump_to={word}: too many targets, skipped"),
            Self::All => f.write_str("dump_to= names no target that works: every one is tried"),
        }
    }
}

/// The targets that `command_line` asks for; what it asks for in vain goes to `skipped`.
pub fn wanted<'a>(command_line: &'a str, mut skipped: impl FnMut(Skipped<'a>)) -> Targets {
    let lists = command_line.split_ascii_whitespace().filter_map(|w| w.strip_prefix("dump_to="));
    let mut targets = Targets::new();
    let mut asked = false;
    // By bytes: the parts of a text between two commas are text again.
    let words = lists.flat_map(|list| list.as_bytes().split(|&byte| byte == b','));
    let words = words.filter_map(|word| core::str::from_utf8(word).ok());
    for word in words.filter(|word| !word.is_empty()) {
        asked = true;
        match Target::read(word) {
            Some(target) if targets.contains(&target) => {}
            Some(target) => {
                if targets.push(target).is_err() {
                    skipped(Skipped::TooMany(word));
                }
            }
            None if LATER.contains(&word) => skipped(Skipped::NotYet(word)),
            None => skipped(Skipped::Unknown(word)),
        }
    }
    if targets.is_empty() {
        if asked {
            skipped(Skipped::All);
        }
        targets.extend(ALL);
    }
    targets
}

/// Targets that have a name and no driver yet.
const LATER: &[&str] = &["serial"];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (Vec<&'static str>, Vec<String>) {
        let mut skipped = Vec::new();
        let targets = wanted(line, |why| skipped.push(why.to_string()));
        (targets.into_iter().map(Target::word).collect(), skipped)
    }

    fn all() -> Vec<&'static str> {
        ALL.into_iter().map(Target::word).collect()
    }

    #[test]
    fn nothing_said_means_every_target() {
        assert_eq!(read("crash=panic dump=raw"), (all(), vec![]));
        assert_eq!(read("dump_to= x"), (all(), vec![]));
    }

    #[test]
    fn the_order_is_that_of_the_list() {
        assert_eq!(read("a=b dump_to=nvme,virtio"), (vec!["nvme", "virtio"], vec![]));
        assert_eq!(read("dump_to=nvme"), (vec!["nvme"], vec![]));
        // Lists add up, and a word said twice counts once.
        assert_eq!(read("dump_to=nvme,nvme dump_to=virtio,nvme").0, ["nvme", "virtio"]);
    }

    #[test]
    fn what_does_not_work_is_said_and_skipped() {
        let guid = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        let (targets, skipped) = read(&format!("dump_to=floppy,serial,{guid},nvme"));
        assert_eq!(targets, ["partition", "nvme"]);
        assert_eq!(
            skipped,
            [
                "dump_to=floppy: no such target, skipped".to_owned(),
                "dump_to=serial: not yet, skipped".to_owned(),
            ]
        );
        let many: Vec<_> = (0..9).map(|n| guid.replace("0fc6", &format!("000{n}"))).collect();
        let (targets, skipped) = read(&format!("dump_to={}", many.join(",")));
        assert_eq!(targets.len(), MAX_TARGETS);
        assert_eq!(skipped, [format!("dump_to={}: too many targets, skipped", many[8])]);
        let (targets, skipped) = read("dump_to=floppy");
        assert_eq!((targets, skipped.len()), (all(), 2));
    }
}
