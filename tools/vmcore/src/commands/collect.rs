//! `vmcore collect`: takes every dump off disks that nobody has taken yet.
//!
//! A dump is read with all its checksums, written to a file under a name that says when and
//! what crashed, and only then marked as collected: from then on its slot may be used
//! again. The disk is kept from everybody else meanwhile. One that does not verify stays
//! as it is, for who wants to have a look at it.
//!
//! A dump that two disks shared is taken from both, and marked on both; with one of them alone
//! nothing is done about it, as long as its last stage needs the other.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vmcore_format::area::{BLOCK_BYTES, COLLECTED_BLOCK, Collected, SlotOpen};
use zerocopy::IntoBytes;

use super::extract::{ExtractOptions, extract_from};
use super::verify::verify;
use crate::json::Hex;
use crate::pair::{Needed, Other};
use crate::source::{OpenOptions, Slot, Source};
use crate::text::{bytes, clean, hex};
use crate::{Error, Result, lock};

/// Is told what is done, bytes done and bytes in all.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) + 'a;

/// A dump that was taken, or why it was not; the JSON of each in `vmcore collect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The disk, the one with its records where it was on two.
    pub disk: PathBuf,
    /// Slot it is in.
    pub slot: u32,
    /// Its sequence number.
    pub sequence: Hex,
    /// What happened, in a line.
    pub message: String,
    /// GNU build-id of the crashed image.
    pub build_id: String,
    /// When, in seconds of Unix time; `null` when that is not known.
    pub time: Option<Hex>,
    /// The ELF core file; `null` when there is none.
    pub core: Option<PathBuf>,
    /// Bytes of that.
    pub bytes: Hex,
    /// Whether everything that was meant to be in the dump is there.
    pub complete: bool,
    /// Whether every checksum was right.
    pub verified: bool,
    /// Whether the slot was marked as collected.
    pub marked: bool,
    /// What is not as it should be.
    pub warnings: Vec<String>,
}

/// What was taken off a disk; the JSON of `vmcore collect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// The disks.
    pub disks: Vec<PathBuf>,
    /// Every dump that had not been collected, oldest first on each disk.
    pub dumps: Vec<Taken>,
    /// Dumps that had been collected before.
    pub collected_before: u64,
    /// Slots with memory of a dump whose records are on no disk that was given, in words.
    pub halves: Vec<String>,
}

/// Takes every dump off `disks` that is sealed and not collected, into `folder`. What is left
/// on one disk of a dump that was collected from the other, or is gone there, is marked as
/// well.
///
/// # Errors
/// A machine holds a disk, it has no dump area, or a file cannot be written. What was taken
/// before that is marked.
pub fn collect(
    disks: &[PathBuf],
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Collection> {
    let mut writers = Vec::new();
    for disk in disks {
        writers.push((disk.as_path(), lock::open_to_write(disk)?));
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create it"))?;
    let (dumps, halves) = (Vec::new(), Vec::new());
    let mut collection = Collection { disks: disks.to_owned(), dumps, collected_before: 0, halves };
    for source in Source::together(disks)? {
        for waiting in waiting(&source, &mut collection.collected_before) {
            let mut taken = take(&source, &waiting, folder, progress)?;
            if taken.core.is_some() && !source.is_claimed() {
                mark(&writers, &marks(&source, &waiting)?)?;
                taken.marked = true;
            }
            collection.dumps.push(taken);
        }
    }
    // Opened again: dumps were marked meanwhile.
    for source in Source::together(disks)? {
        for half in source.halves()? {
            match half.needed {
                Needed::No => mark(&writers, &[Mark::new(&source, half.slot, &half.open)])?,
                Needed::Unknown(what) => collection.halves.push(what),
                Needed::Yes => {}
            }
        }
    }
    Ok(collection)
}

/// A sealed dump that nobody has collected.
pub(super) struct Waiting {
    pub(super) slot: u32,
    pub(super) open: Box<SlotOpen>,
    /// Stages that are sealed.
    pub(super) sealed: usize,
    /// The last of them lacks something, and says so: no other will follow.
    pub(super) closed: bool,
}

/// Those of a disk, oldest first; counts the others.
pub(super) fn waiting(source: &Source, collected: &mut u64) -> Vec<Waiting> {
    let slots = source.disk().map(|disk| disk.slots.as_slice()).unwrap_or_default();
    let mut waiting = Vec::new();
    for (slot, content) in (0..).zip(slots) {
        match content {
            _ if content.memory_of().is_some() => {}
            Slot::Begun { collected: Some(_), .. } => *collected += 1,
            Slot::Begun { open, seals, .. } => {
                let Some((_, last)) = seals.last() else { continue };
                let (sealed, closed) = (seals.len(), last.complete != 1);
                waiting.push(Waiting { slot, open: open.clone(), sealed, closed });
            }
            Slot::Empty | Slot::Unreadable(_) => {}
        }
    }
    waiting.sort_by_key(|dump| dump.open.sequence);
    waiting
}

/// Verifies a dump and writes it to a file in `folder`.
pub(super) fn take(
    source: &Source,
    waiting: &Waiting,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Taken> {
    let open = &waiting.open;
    let mut taken = Taken {
        disk: source.path().to_owned(),
        slot: waiting.slot,
        sequence: Hex(open.sequence),
        message: open.message().to_owned(),
        build_id: hex(open.build_id()),
        time: (open.unix_time != 0).then_some(Hex(open.unix_time)),
        core: None,
        bytes: Hex(0),
        complete: false,
        verified: false,
        marked: false,
        warnings: Vec::new(),
    };
    let options = OpenOptions { slot: Some(waiting.slot), partial: false };
    let dump = match source.dump(options) {
        Ok(dump) => dump,
        Err(error) => {
            taken.warnings.push(format!("left where it is: {error}"));
            return Ok(taken);
        }
    };
    if let Some(stored) = dump.stored.as_ref().filter(|stored| stored.lacks_half()) {
        taken.warnings.extend(stored.refused.iter().map(|why| format!("left where it is: {why}")));
        return Ok(taken);
    }
    let verified = verify(&dump, &mut |done, all| progress("verify", done, all));
    taken.verified = verified.is_good();
    taken.complete = verified.complete;
    if !taken.verified {
        taken.warnings = verified.bad;
        let left = "left where it is; `vmcore extract --partial` takes what is good";
        taken.warnings.push(left.into());
        return Ok(taken);
    }
    let core = free_name(folder, open)?;
    let mut copied = |done, all| progress("extract", done, all);
    let options =
        ExtractOptions { open: options, progress: Some(&mut copied), ..ExtractOptions::default() };
    let extracted = extract_from(source, &core, options)?;
    taken.bytes = extracted.bytes;
    taken.warnings = extracted.warnings;
    taken.core = Some(core);
    Ok(taken)
}

/// `YYYYMMDDTHHMMSSZ-BUILDID8.core`, with a number behind it when there is one already.
fn free_name(folder: &Path, open: &SlotOpen) -> Result<PathBuf> {
    let date = crate::text::compact_date(open.unix_time);
    let build_id: String = hex(open.build_id()).chars().take(8).collect();
    let build_id = if build_id.is_empty() { "unknown".into() } else { build_id };
    let names = std::iter::once(String::new()).chain((2..1000).map(|number| format!("-{number}")));
    let mut paths = names.map(|number| folder.join(format!("{date}-{build_id}{number}.core")));
    paths.find(|path| !path.exists()).ok_or_else(|| Error::Exists(folder.to_owned()))
}

/// A note to be written that a dump is in safety.
pub(super) struct Mark {
    disk: PathBuf,
    /// Byte offset of its block on the disk.
    offset: u64,
    record: Collected,
}

impl Mark {
    fn new(source: &Source, slot: u32, open: &SlotOpen) -> Self {
        let area = source.disk().and_then(|found| found.area.slot_offset(slot)).unwrap_or(0);
        Self::at(source.path(), source.base() + area, open)
    }

    /// In the slot at byte `slot` of `disk`.
    fn at(disk: &Path, slot: u64, open: &SlotOpen) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let offset = slot + COLLECTED_BLOCK * BLOCK_BYTES;
        Self { disk: disk.to_owned(), offset, record: Collected::of(open, now) }
    }

    /// The disk it belongs on.
    pub(super) fn disk(&self) -> &Path {
        &self.disk
    }
}

/// The notes that a dump is in safety: where its records are, then where the rest is.
pub(super) fn marks(source: &Source, waiting: &Waiting) -> Result<Vec<Mark>> {
    let mut marks = vec![Mark::new(source, waiting.slot, &waiting.open)];
    if let Other::Here(half) = source.other_half(&waiting.open)? {
        marks.push(Mark::at(&half.path, half.slot.base(), &half.open));
    }
    Ok(marks)
}

/// Writes down that a dump is in safety, behind its last byte: the file is flushed before.
pub(super) fn mark(writers: &[(&Path, File)], marks: &[Mark]) -> Result<()> {
    for Mark { disk, offset, record } in marks {
        let Some((_, writer)) = writers.iter().find(|(path, _)| path == disk) else { continue };
        let mut block = [0; BLOCK_BYTES as usize];
        block[..size_of::<Collected>()].copy_from_slice(record.as_bytes());
        writer
            .write_all_at(&block, *offset)
            .and_then(|()| writer.sync_all())
            .map_err(Error::io(disk, "mark the dump as collected"))?;
    }
    Ok(())
}

impl Taken {
    /// One line, and what is wrong below it.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = match &self.core {
            Some(core) => {
                let whole = if self.complete { "" } else { ", INCOMPLETE" };
                format!("{}: {}{whole}", core.display(), bytes(self.bytes.0))
            }
            None => format!("{}: slot {}: NOT TAKEN", self.disk.display(), self.slot),
        };
        out += &format!(", dump {}: {}\n", self.sequence.0, clean(&self.message));
        for warning in &self.warnings {
            out += &format!("  warning: {}\n", clean(warning));
        }
        out
    }
}

impl Collection {
    /// Whether every dump verified, and nothing is left of one.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.halves.is_empty() && self.dumps.iter().all(|dump| dump.verified)
    }

    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out: String = self.dumps.iter().map(Taken::render).collect();
        if self.dumps.is_empty() {
            let before = match self.collected_before {
                0 => "there is none".into(),
                number => format!("{number} of them collected before"),
            };
            let disks: Vec<_> = self.disks.iter().map(|disk| disk.display().to_string()).collect();
            out = format!("{}: no dump to collect, {before}.\n", disks.join(", "));
        }
        for half in &self.halves {
            out += &format!("left where it is: {}\n", clean(half));
        }
        out
    }
}
