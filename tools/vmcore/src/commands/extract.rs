//! `vmcore extract`: turns a dump on a disk into an ELF core file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod aliases;
mod layout;
mod left_out;

pub(crate) use aliases::Mapped;
pub use left_out::{LeftOut, render_left_out};

use crate::file::Part;
use crate::output::{self, Output, all_steps};
use crate::source::{OpenOptions, Source};
use crate::text::{bytes, clean};
use crate::{Dump, Error, Result};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
/// Blocks of the output file system: a block of zeros becomes a hole.
const BLOCK: usize = 4096;

/// How to extract.
#[derive(Default)]
pub struct ExtractOptions<'a> {
    /// Slot and what to do about damage.
    pub open: OpenOptions,
    /// Store runs of zero pages as memory without bytes in the file, rather than as holes.
    pub elide_zero: bool,
    /// Overwrite the output.
    pub force: bool,
    /// Is told bytes done and bytes in all, now and then.
    pub progress: Option<&'a mut dyn FnMut(u64, u64)>,
}

/// What was extracted; the JSON of `vmcore extract`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extracted {
    /// The slot it was in; `null` when the source was a vmcore.
    pub slot: Option<u32>,
    /// Sequence number of the dump; `null` likewise.
    pub sequence: Option<u64>,
    /// Which stage it is, from 1; `null` likewise.
    pub stage: Option<u32>,
    /// How many stages were planned; `null` likewise.
    pub stages_planned: Option<u32>,
    /// Whether everything that was meant to be in the dump is there.
    pub complete: bool,
    /// Bytes of the ELF file.
    pub bytes: u64,
    /// True if something is damaged: memory that was left out, or a stage that was passed over.
    pub damaged: bool,
    /// Memory that was left out because it could not be read or did not match its checksum.
    pub left_out: Vec<LeftOut>,
    /// Why it is not complete, and later stages that did not verify.
    pub warnings: Vec<String>,
}

/// Extracts a dump from `disk` to the file `out`. The output stands under its name only
/// when all of it is there.
///
/// # Errors
/// When there is no dump, it does not verify, or the output cannot be written.
pub fn extract(disk: &Path, out: &Path, options: ExtractOptions<'_>) -> Result<Extracted> {
    extract_with(disk, &[], out, options)
}

/// The same with other disks that may hold the other half of the dump.
///
/// # Errors
/// As [`extract`].
pub fn extract_with(
    disk: &Path,
    others: &[PathBuf],
    out: &Path,
    options: ExtractOptions<'_>,
) -> Result<Extracted> {
    let (folder, name) = output::split(out)?;
    let mut sources = vec![disk];
    sources.extend(others.iter().map(PathBuf::as_path));
    folder.check(&name, &sources, options.force)?;
    let source = Source::open_with(disk, others)?;
    let output = Output::create(&folder)?;
    let force = options.force;
    let extracted = write_core(&source, output.file(), out, options)?;
    output.finish(std::iter::once(name), force, &mut all_steps)?;
    Ok(extracted)
}

/// Writes the dump of `source` to `file`, which is to become `out`.
///
/// # Errors
/// When there is no dump, it does not verify, or the file cannot be written.
pub(super) fn write_core(
    source: &Source,
    file: &File,
    out: &Path,
    mut options: ExtractOptions<'_>,
) -> Result<Extracted> {
    let dump = source.dump(options.open)?;
    let mut progress = options.progress.take();
    let left_out = left_out::find(&dump, options.open.partial, &mut |done, all| {
        if let Some(progress) = &mut progress {
            progress(done, all);
        }
    })?;
    let form = layout::Form { elide_zero: options.elide_zero, left_out: &left_out };
    let mut sink = Sparse::new(file, out, dump.file_bytes(), progress);
    layout::copy(source.path(), &dump, &form, &mut sink)?;
    let written = sink.finish()?;
    let stored = dump.stored.as_ref();
    let broken = dump.stage_file().is_some_and(|stage| !stage.warnings().is_empty());
    Ok(Extracted {
        slot: stored.map(|stored| stored.slot),
        sequence: stored.map(|stored| stored.open.sequence),
        stage: stored.map(|stored| stored.stage as u32 + 1),
        stages_planned: stored.map(|stored| stored.open.stages),
        complete: dump.is_complete() && left_out.is_empty() && !broken,
        bytes: written,
        damaged: !left_out.is_empty() || !dump.damage().is_empty(),
        left_out,
        warnings: warnings(&dump),
    })
}

/// Lists the reasons why a dump is incomplete.
fn warnings(dump: &Dump) -> Vec<String> {
    let mut warnings = dump.warnings.clone();
    let Some(stored) = &dump.stored else { return warnings };
    warnings.extend(stored.refused.clone());
    warnings.extend(stored.absent.clone());
    if stored.seals.len() < stored.open.stages as usize {
        let (sealed, planned) = (stored.seals.len(), stored.open.stages);
        warnings.push(format!("{sealed} of {planned} planned stages were sealed"));
    }
    if stored.seal().is_some_and(|seal| seal.complete != 1) {
        warnings.push("the capture left out memory that was meant to be in it".into());
    }
    warnings
}

/// Copies `part` to `file`, which is to become `out`, as it lies on the disk. Blocks that cannot be
/// read become holes; returns the bytes written, and how many of them could not be read.
pub(super) fn copy_as_it_is(part: &Part, file: &File, out: &Path) -> Result<(u64, u64)> {
    let mut sink = Sparse::new(file, out, part.bytes(), None);
    let (mut offset, mut unreadable) = (0, 0);
    while offset < part.bytes() {
        let bytes = (part.bytes() - offset).min(CHUNK as u64);
        if let Ok(content) = part.read_up_to(offset, bytes) {
            sink.write(&content)?;
        } else {
            for at in (offset..offset + bytes).step_by(BLOCK) {
                let bytes = (part.bytes() - at).min(BLOCK as u64);
                if let Ok(content) = part.read_up_to(at, bytes) {
                    sink.write(&content)?;
                } else {
                    sink.skip(bytes);
                    unreadable += bytes;
                }
            }
        }
        offset += bytes;
    }
    Ok((sink.finish()?, unreadable))
}

/// Writes a file and leaves holes where blocks are zero.
struct Sparse<'a, 'p> {
    file: &'a File,
    /// Final path of the file, for messages.
    out: &'a Path,
    written: u64,
    total: u64,
    progress: Option<&'p mut dyn FnMut(u64, u64)>,
}

impl<'a, 'p> Sparse<'a, 'p> {
    fn new(
        file: &'a File,
        out: &'a Path,
        total: u64,
        progress: Option<&'p mut dyn FnMut(u64, u64)>,
    ) -> Self {
        Self { file, out, written: 0, total, progress }
    }

    /// Appends `bytes`, which start at a block boundary of the file.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let zero = |block: &&[u8]| is_zero(block);
            let holes: usize = rest.chunks(BLOCK).take_while(zero).map(<[u8]>::len).sum();
            self.skip(holes as u64);
            rest = &rest[holes..];
            let data: usize =
                rest.chunks(BLOCK).take_while(|block| !zero(block)).map(<[u8]>::len).sum();
            self.append(&rest[..data]).map_err(Error::io(self.out, "write it"))?;
            rest = &rest[data..];
        }
        self.show();
        Ok(())
    }

    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.written))?;
        self.file.write_all(data)?;
        self.written += data.len() as u64;
        Ok(())
    }

    /// Leaves a hole.
    fn skip(&mut self, bytes: u64) {
        self.written += bytes;
        self.show();
    }

    fn show(&mut self) {
        if let Some(progress) = &mut self.progress {
            progress(self.written, self.total);
        }
    }

    /// Gives the file its full length, hole at the end included; returns it.
    fn finish(self) -> Result<u64> {
        self.file.set_len(self.written).map_err(Error::io(self.out, "write it"))?;
        Ok(self.written)
    }
}

/// Whether a block or page is all zero.
fn is_zero(block: &[u8]) -> bool {
    // Comparing with zeros is a memcmp, whatever the compiler makes of loops.
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    block.chunks(BLOCK).all(|part| *part == ZEROS[..part.len()])
}

impl Extracted {
    /// Returns true if nothing of it is damaged.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        !self.damaged
    }

    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self, out: &Path) -> String {
        let whole = if self.complete { "complete" } else { "INCOMPLETE" };
        let from = match (self.slot, self.sequence) {
            (Some(slot), Some(sequence)) => {
                format!(" from slot {slot}, dump number {}", sequence)
            }
            _ => String::new(),
        };
        let mut text = format!("{}: {}, {whole}{from}.\n", out.display(), bytes(self.bytes));
        let left_out: u64 = self.left_out.iter().map(|range| range.bytes).sum();
        if left_out > 0 {
            text += &format!("DAMAGED: {} left out.\n", bytes(left_out));
        }
        for warning in &self.warnings {
            text += &format!("warning: {}\n", clean(warning));
        }
        text
    }
}
