//! `vmcore collect`: takes every dump off disks that nobody has taken yet.
//!
//! A dump is read with all its checksums, written to a file under a name that says when and
//! what crashed, and only then marked as collected: from then on its slot may be used
//! again. The disk is kept from everybody else meanwhile. A dump that does not verify stays
//! as it is, unless what is good of it is to be salvaged.
//!
//! A dump that two disks shared is taken from both, and marked on both; with one of them alone
//! nothing is done about it, as long as its last stage needs the other.
//!
//! A disk that cannot be read is reported, and does not stop the others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use vmcore_format::area::SlotOpen;

use super::extract::{ExtractOptions, Extracted, copy_as_it_is, write_core};
use super::verify::{State, verify};
use crate::output::{Folder, Output, Steps, all_steps};
use crate::pair::{Needed, Other};
use crate::source::{OpenOptions, Slot, Source};
use crate::text::hex;
use crate::{Error, Result, lock};

mod mark;
mod report;
#[cfg(test)]
mod tests;

pub(super) use mark::{Mark, mark, marks};
pub use report::{Collection, Failure, Taken, Unknown};

/// Is told what is done, bytes done and bytes in all.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) + 'a;

/// Takes every dump off `disks` that is sealed and not collected, into `folder`. What is left
/// on one disk of a dump that was collected from the other, or is gone there, is marked as
/// well.
///
/// # Errors
/// The folder cannot be made. What goes wrong with a disk stands in the answer.
pub fn collect(
    disks: &[PathBuf],
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Collection> {
    run(disks, folder, false, &mut all_steps, progress)
}

/// Takes dumps like [`collect`], and of those that do not verify what is good. Their slots are
/// free again as well.
///
/// # Errors
/// As [`collect`].
pub fn salvage(
    disks: &[PathBuf],
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Collection> {
    run(disks, folder, true, &mut all_steps, progress)
}

fn run(
    disks: &[PathBuf],
    folder: &Path,
    salvage: bool,
    steps: &mut Steps<'_>,
    progress: &mut Progress<'_>,
) -> Result<Collection> {
    let folder = Folder::create(folder)?;
    let mut collection = Collection::new();
    let writers = collection.open(disks);
    let sources = collection.sources(&writers);
    for source in &sources {
        collection.note_damage(source);
        collection.unknown.extend(unknown(source));
        for waiting in waiting(source, &mut collection.collected_before) {
            let outcome = take(source, &waiting, &folder, salvage, steps, progress);
            let mut taken = match outcome {
                Ok(taken) => taken,
                Err(error) => {
                    collection.fail(source.path(), &error);
                    continue;
                }
            };
            if taken.is_safe() && !source.is_claimed() {
                let marked = marks(source, &waiting);
                match marked.and_then(|marks| mark(&writers, &marks, steps)) {
                    Ok(()) => taken.marked = true,
                    Err(error) => {
                        taken.warnings.push(format!("not marked as collected: {error}"));
                        collection.fail(source.path(), &error);
                    }
                }
            }
            collection.dumps.push(taken);
        }
    }
    drop(sources);
    // Opened again: dumps were marked meanwhile.
    let readable = |(disk, _): &(&Path, File)| Source::every(disk).ok();
    let mut again: Vec<Source> = writers.iter().filter_map(readable).flatten().collect();
    Source::introduce(&mut again);
    for source in again {
        if let Err(error) = collection.halves(&source, &writers, steps) {
            collection.fail(source.path(), &error);
        }
    }
    Ok(collection)
}

/// Returns the identity of a disk, by which two of its paths are told to be one: the device number
/// of a block device, otherwise device and inode.
fn identity(disk: &Path) -> Option<(bool, u64, u64)> {
    let data = std::fs::metadata(disk).ok()?;
    let device = data.file_type().is_block_device();
    Some(if device { (true, data.rdev(), 0) } else { (false, data.dev(), data.ino()) })
}

impl Collection {
    const fn new() -> Self {
        Self {
            disks: Vec::new(),
            dumps: Vec::new(),
            collected_before: 0,
            halves: Vec::new(),
            unknown: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn fail(&mut self, disk: &Path, error: &Error) {
        self.failures.push(Failure::new(disk.to_owned(), error));
    }

    /// Reports damage of an area that is no dump's: to its header, and to the notes by which
    /// collected dumps are told.
    fn note_damage(&mut self, source: &Source) {
        let disk = source.path();
        let mut report = |what: String, hint: &str| {
            self.failures.push(Failure {
                disk: disk.to_owned(),
                reason: format!("{}: {what}", disk.display()),
                hint: Some(hint.to_owned()),
                damaged: true,
            });
        };
        // Where something else is on the disk, that is told, and nothing is written.
        let own = source.disk().filter(|_| !source.is_claimed());
        if let Some(damage) = own.and_then(|disk| disk.damage) {
            let hint = "when its dumps are taken, write the area anew: vmcore prepare --force";
            report(damage.to_owned(), hint);
        }
        for (slot, _, content) in slots(source) {
            if let Slot::Begun { note_failure: Some(why), .. } = content {
                let what = format!(
                    "slot {slot}: whether its dump was collected cannot be read ({why}); it is \
                     taken as one that was not"
                );
                report(what, "replace the disk: it fails to read what was written");
            }
        }
    }

    /// Opens each disk once, and keeps it from others.
    fn open<'a>(&mut self, disks: &'a [PathBuf]) -> Vec<(&'a Path, File)> {
        let mut known = BTreeMap::new();
        let mut writers = Vec::new();
        for disk in disks {
            if let Some(first) = identity(disk).and_then(|disk_id| known.insert(disk_id, disk)) {
                let (disk, first) = (disk.display(), first.display());
                self.notes.push(format!("{disk} is the same disk as {first}: taken once"));
                continue;
            }
            self.disks.push(disk.clone());
            match lock::open_to_write(disk) {
                Ok(file) => writers.push((disk.as_path(), file)),
                Err(error) => self.fail(disk, &error),
            }
        }
        writers
    }

    /// The dump areas of the disks, each of which knows the others.
    fn sources(&mut self, writers: &[(&Path, File)]) -> Vec<Source> {
        let mut sources = Vec::new();
        for (disk, _) in writers {
            match Source::every_with_damage(disk) {
                Ok((areas, damage)) => {
                    sources.extend(areas);
                    damage.iter().for_each(|error| self.fail(disk, error));
                }
                Err(error) => self.fail(disk, &error),
            }
        }
        Source::introduce(&mut sources);
        sources
    }

    /// Marks slots with memory that is needed no more; reports those of which that is not known.
    fn halves(
        &mut self,
        source: &Source,
        writers: &[(&Path, File)],
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        for half in source.halves()? {
            match half.needed {
                Needed::No => mark(writers, &[Mark::new(source, half.slot, &half.open)], steps)?,
                Needed::Unknown(what) => self.halves.push(what),
                Needed::Yes => {}
            }
        }
        Ok(())
    }
}

/// A sealed dump that was not collected.
pub(super) struct Waiting {
    pub(super) slot: u32,
    pub(super) open: Box<SlotOpen>,
    /// Stages that are sealed.
    pub(super) sealed: usize,
    /// The last of them lacks something, and says so: no other will follow.
    pub(super) closed: bool,
}

fn slots(source: &Source) -> impl Iterator<Item = (u32, u64, &Slot)> {
    let disk = source.disk();
    let slots = disk.map(|disk| disk.slots.as_slice()).unwrap_or_default();
    (0..).zip(slots).map(move |(slot, content)| {
        let offset = disk.and_then(|disk| disk.area.slot_offset(slot)).unwrap_or(0);
        (slot, source.base() + offset, content)
    })
}

/// Those of a disk, oldest first; counts the others.
pub(super) fn waiting(source: &Source, collected: &mut u64) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for (slot, _, content) in slots(source) {
        match content {
            _ if content.memory_of().is_some() => {}
            Slot::Begun { collected: Some(_), .. } => *collected += 1,
            Slot::Begun { open, seals, .. } => {
                let Some((_, last)) = seals.last() else { continue };
                let (sealed, closed) = (seals.len(), last.complete != 1);
                let open = open.clone();
                waiting.push(Waiting { slot, open, sealed, closed });
            }
            Slot::Empty | Slot::Unreadable { .. } | Slot::Failed { .. } => {}
        }
    }
    waiting.sort_by_key(|dump| dump.open.sequence);
    waiting
}

/// Slots of which it is not known whether a dump is there.
pub(super) fn unknown(source: &Source) -> Vec<Unknown> {
    let unknown = slots(source).filter(|(_, _, content)| content.is_unknown());
    let report = |(slot, offset, content): (u32, u64, &Slot)| Unknown {
        disk: source.path().to_owned(),
        slot,
        offset,
        reason: format!("{}; left as it is", content.describe()),
    };
    unknown.map(report).collect()
}

/// Verifies a dump and writes it to a file in `folder`; with `salvage` what is good of it.
pub(super) fn take(
    source: &Source,
    waiting: &Waiting,
    folder: &Folder,
    salvage: bool,
    steps: &mut Steps<'_>,
    progress: &mut Progress<'_>,
) -> Result<Taken> {
    let open = &waiting.open;
    let mut taken = Taken {
        disk: source.path().to_owned(),
        slot: waiting.slot,
        sequence: open.sequence,
        message: open.message().to_owned(),
        build_id: hex(open.build_id()),
        unix_s: (open.unix_time != 0).then_some(open.unix_time),
        core: None,
        slot_copy: None,
        bytes: 0,
        complete: false,
        verified: false,
        salvaged: false,
        marked: false,
        left_out: Vec::new(),
        warnings: Vec::new(),
    };
    let options = OpenOptions { slot: Some(waiting.slot), partial: false };
    let left = |why: &dyn std::fmt::Display| format!("left where it is: {why}");
    // Half of a dump that may yet come is waited for; one that is gone is not.
    let other = source.other_half(open)?;
    let salvage = salvage && !matches!(other, Other::Missing(_));
    match source.dump(options) {
        Ok(dump) if dump.stored.as_ref().is_some_and(|stored| stored.lacks_half()) => {
            let absent = dump.stored.iter().flat_map(|stored| &stored.absent);
            taken.warnings.extend(absent.map(|why| left(why)));
            if !salvage {
                return Ok(taken);
            }
        }
        Ok(dump) => {
            let verified = verify(&dump, &mut |done, all| progress("verify", done, all));
            // A dump of version 1 has no checksums, and is taken as it is.
            taken.verified = matches!(verified.state, State::Good | State::NoChecksums);
            taken.complete = verified.complete && taken.verified;
            taken.warnings.extend(verified.bad);
        }
        Err(error @ Error::OtherHalf { .. }) => {
            taken.warnings.push(left(&error));
            return Ok(taken);
        }
        Err(error) => taken.warnings.push(error.to_string()),
    }
    if !taken.verified && !salvage {
        let offer = if let Other::Missing(why) = other {
            left(&why)
        } else if source.dump(OpenOptions { partial: true, ..options }).is_ok() {
            "left where it is; `vmcore extract --partial` reads what is good, `vmcore collect \
             --salvage` takes that and frees the slot"
                .into()
        } else {
            "left where it is; nothing of it can be read. `vmcore collect --salvage` copies the slot \
             as it is, and frees it"
                .into()
        };
        taken.warnings.push(offer);
        return Ok(taken);
    }
    let partial = !taken.verified;
    let extracted = match write(source, waiting, folder, partial, steps, progress) {
        Ok((core, extracted)) => {
            taken.core = Some(core);
            extracted
        }
        Err(error) if partial && error.is_damage() => {
            let (copy, bytes, unreadable) = copy_slot(source, waiting, folder, steps)?;
            taken.warnings.push(format!(
                "nothing of it can be read: {error}; its slot was copied as it is, for a look by hand"
            ));
            if unreadable > 0 {
                taken.warnings.push(format!("{unreadable} bytes of the slot cannot be read"));
            }
            (taken.slot_copy, taken.bytes) = (Some(copy), bytes);
            return Ok(taken);
        }
        Err(error) => return Err(error),
    };
    taken.bytes = extracted.bytes;
    taken.salvaged = partial;
    taken.left_out = extracted.left_out;
    for warning in extracted.warnings {
        if !taken.warnings.contains(&warning) {
            taken.warnings.push(warning);
        }
    }
    Ok(taken)
}

/// Writes a dump to a file of its own in `folder`, and returns its path.
fn write(
    source: &Source,
    waiting: &Waiting,
    folder: &Folder,
    partial: bool,
    steps: &mut Steps<'_>,
    progress: &mut Progress<'_>,
) -> Result<(PathBuf, Extracted)> {
    let output = Output::create(folder)?;
    let mut copied = |done, all| progress("extract", done, all);
    let options = ExtractOptions {
        open: OpenOptions { slot: Some(waiting.slot), partial },
        progress: Some(&mut copied),
        ..ExtractOptions::default()
    };
    let extracted = write_core(source, output.file(), &output.path(), options)?;
    let end = if partial { "salvaged.core" } else { "core" };
    let core = output.finish(names(&waiting.open, end), false, steps)?;
    Ok((core, extracted))
}

/// Copies the slot of a dump to a file in `folder`, as far as its log is in use; returns the
/// file's path, its bytes, and how many of them could not be read.
fn copy_slot(
    source: &Source,
    waiting: &Waiting,
    folder: &Folder,
    steps: &mut Steps<'_>,
) -> Result<(PathBuf, u64, u64)> {
    let output = Output::create(folder)?;
    let part = source.slot(waiting.slot)?;
    let (bytes, unreadable) = copy_as_it_is(&part, output.file(), &output.path())?;
    let copy = output.finish(names(&waiting.open, "salvaged.slot"), false, steps)?;
    Ok((copy, bytes, unreadable))
}

/// `YYYYMMDDTHHMMSSZ-BUILDID8.END`, and the same with a number, for when there is one already.
fn names(open: &SlotOpen, end: &'static str) -> impl Iterator<Item = OsString> {
    let date = crate::text::compact_date(open.unix_time);
    let build_id: String = hex(open.build_id()).chars().take(8).collect();
    let build_id = if build_id.is_empty() { "unknown".into() } else { build_id };
    let numbers =
        std::iter::once(String::new()).chain((2..1000).map(|number| format!("-{number}")));
    numbers.map(move |number| format!("{date}-{build_id}{number}.{end}").into())
}
