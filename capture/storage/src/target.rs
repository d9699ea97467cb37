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

/// Steps a list may have; more are passed over.
pub const MAX_STEPS: usize = 8;

/// A step of the search: a target, and another one where two share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where the dump goes.
    pub target: Target,
    /// Where memory goes as well: the other word of `A+B`. Without it the dump goes to the
    /// first alone.
    pub with: Option<Target>,
}

/// Steps in the order they are tried, each at most once.
pub type Steps = heapless::Vec<Step, MAX_STEPS>;

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
    /// There are [`MAX_STEPS`] before it.
    TooMany(&'a str),
    /// Two targets before it share the work already, which a third cannot.
    Third(&'a str),
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
            Self::Third(word) => write!(f, "dump_to=…+{word}: only two share a dump, skipped"),
            Self::All => f.write_str("dump_to= names no target that works: every one is tried"),
        }
    }
}

/// The steps that `command_line` asks for; what it asks for in vain goes to `skipped`.
///
/// `A+B` is a step in which both share the work, and one for the second alone, for when there
/// is no dump on the first.
pub fn wanted<'a>(command_line: &'a str, mut skipped: impl FnMut(Skipped<'a>)) -> Steps {
    let lists = command_line.split_ascii_whitespace().filter_map(|w| w.strip_prefix("dump_to="));
    let mut steps = Steps::new();
    let mut asked = false;
    // By bytes: the parts of a text between two commas are text again.
    let words = lists.flat_map(|list| list.as_bytes().split(|&byte| byte == b','));
    let words = words.filter_map(|word| core::str::from_utf8(word).ok());
    for word in words.filter(|word| !word.is_empty()) {
        asked = true;
        let (mut target, mut with) = (None, None);
        let parts = word.as_bytes().split(|&byte| byte == b'+');
        for part in parts.filter_map(|part| core::str::from_utf8(part).ok()) {
            match Target::read(part) {
                Some(found) if target.is_none() => target = Some(found),
                Some(found) if with.is_none() => with = Some(found),
                Some(_) => skipped(Skipped::Third(part)),
                None if LATER.contains(&part) => skipped(Skipped::NotYet(part)),
                None => skipped(Skipped::Unknown(part)),
            }
        }
        let Some(target) = target else { continue };
        // A kind of disk named twice is tried in one go.
        let alone = with.filter(|with| *with != target);
        let first = Some(Step { target, with });
        let second = alone.map(|target| Step { target, with: None });
        for step in [first, second].into_iter().flatten() {
            if !steps.contains(&step) && steps.push(step).is_err() {
                skipped(Skipped::TooMany(word));
            }
        }
    }
    if steps.is_empty() {
        if asked {
            skipped(Skipped::All);
        }
        steps.extend(ALL.map(|target| Step { target, with: None }));
    }
    steps
}

/// Targets that have a name and no driver yet.
const LATER: &[&str] = &["serial"];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (Vec<&'static str>, Vec<String>) {
        let mut skipped = Vec::new();
        let targets = wanted(line, |why| skipped.push(why.to_string()));
        assert!(targets.iter().all(|step| step.with.is_none()), "{targets:?}");
        (targets.into_iter().map(|step| step.target.word()).collect(), skipped)
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
    fn two_together_are_a_step_and_the_second_alone_another() {
        let read = |line| {
            let mut skipped = Vec::new();
            let steps = wanted(line, |why| skipped.push(why.to_string()));
            let words = |step: Step| (step.target.word(), step.with.map(Target::word));
            (steps.into_iter().map(words).collect::<Vec<_>>(), skipped)
        };
        let (steps, skipped) = read("dump_to=virtio+nvme,ahci");
        assert_eq!(steps, [("virtio", Some("nvme")), ("nvme", None), ("ahci", None)]);
        assert!(skipped.is_empty());
        // Two of a kind: whichever is left takes it, in the same step.
        assert_eq!(read("dump_to=virtio+virtio").0, [("virtio", Some("virtio"))]);
        let (steps, skipped) = read("dump_to=nvme+floppy,virtio+ahci+nvme");
        assert_eq!(steps[..2], [("nvme", None), ("virtio", Some("ahci"))]);
        assert_eq!(
            skipped,
            [
                "dump_to=floppy: no such target, skipped",
                "dump_to=…+nvme: only two share a dump, skipped"
            ]
        );
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
        assert_eq!(targets.len(), MAX_STEPS);
        assert_eq!(skipped, [format!("dump_to={}: too many targets, skipped", many[8])]);
        let (targets, skipped) = read("dump_to=floppy");
        assert_eq!((targets, skipped.len()), (all(), 2));
    }
}
