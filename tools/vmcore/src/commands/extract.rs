//! `vmcore extract`: turns a dump on a disk into an ELF core file.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod layout;

use crate::json::Hex;
use crate::source::{OpenOptions, Source};
use crate::text::{bytes, clean};
use crate::{Error, Result};

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
    pub sequence: Option<Hex>,
    /// Which stage it is, from 1; `null` likewise.
    pub stage: Option<u32>,
    /// How many stages were planned; `null` likewise.
    pub stages_planned: Option<u32>,
    /// Whether everything that was meant to be in the dump is there.
    pub complete: bool,
    /// Bytes of the ELF file.
    pub bytes: Hex,
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
    if !options.force && out.exists() {
        return Err(Error::Exists(out.to_owned()));
    }
    extract_from(&Source::open_with(disk, others)?, out, options)
}

/// The same from a source that is open already.
pub(super) fn extract_from(
    source: &Source,
    out: &Path,
    mut options: ExtractOptions<'_>,
) -> Result<Extracted> {
    let dump = source.dump(options.open)?;
    let (part, stored) = source.content(options.open)?;
    let left_out = crate::checksums::damaged(&dump, options.open.partial)?;
    let mut warnings: Vec<String> = dump.warnings.clone();
    if let Some(stored) = &stored {
        warnings.extend(stored.refused.clone());
        if stored.seals.len() < stored.open.stages as usize {
            let (sealed, planned) = (stored.seals.len(), stored.open.stages);
            warnings.push(format!("{sealed} of {planned} planned stages were sealed"));
        }
        if stored.seal().is_some_and(|seal| seal.complete != 1) {
            warnings.push("the capture left out memory that was meant to be in it".into());
        }
    }
    warnings.extend(left_out.iter().map(|bad| format!("left out: {bad}")));
    let ranges: Vec<_> = left_out
        .iter()
        .map(|bad| handoff::Range { start: bad.address, bytes: bad.bytes })
        .collect();
    let form = layout::Form { elide_zero: options.elide_zero, left_out: &ranges };
    let mut temporary = out.as_os_str().to_owned();
    temporary.push(".partial");
    let temporary = Path::new(&temporary);
    let outcome = File::create(temporary)
        .map_err(Error::io(temporary, "create it"))
        .and_then(|file| {
            let progress = options.progress.take();
            let mut sink = Sparse::new(file, part.bytes(), progress);
            layout::copy((source.path(), temporary), &dump, &part, &form, &mut sink)?;
            sink.finish().map_err(Error::io(temporary, "write to it"))
        })
        .and_then(|written| {
            fs::rename(temporary, out).map_err(Error::io(out, "give it its name"))?;
            Ok(written)
        });
    let written = outcome.inspect_err(|_| {
        // Half a dump is worse than none; that it cannot be removed changes nothing.
        let _ = fs::remove_file(temporary);
    })?;
    Ok(Extracted {
        slot: stored.as_ref().map(|stored| stored.slot),
        sequence: stored.as_ref().map(|stored| Hex(stored.open.sequence)),
        stage: stored.as_ref().map(|stored| stored.stage as u32 + 1),
        stages_planned: stored.as_ref().map(|stored| stored.open.stages),
        complete: dump.is_complete() && left_out.is_empty(),
        bytes: Hex(written),
        warnings,
    })
}

/// Writes a file and leaves holes where blocks are zero.
struct Sparse<'a> {
    file: File,
    written: u64,
    total: u64,
    progress: Option<&'a mut dyn FnMut(u64, u64)>,
}

impl<'a> Sparse<'a> {
    fn new(file: File, total: u64, progress: Option<&'a mut dyn FnMut(u64, u64)>) -> Self {
        Self { file, written: 0, total, progress }
    }

    /// Appends `bytes`, which start at a block boundary of the file.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let length: usize = run.iter().map(|block| block.len()).sum();
            if !run.first().is_some_and(|block| is_zero(block)) {
                let start = run[0].as_ptr() as usize - bytes.as_ptr() as usize;
                self.file.seek(SeekFrom::Start(self.written))?;
                self.file.write_all(&bytes[start..start + length])?;
            }
            self.written += length as u64;
        }
        if let Some(progress) = &mut self.progress {
            progress(self.written, self.total);
        }
        Ok(())
    }

    /// Appends `bytes` zeros, which take no space.
    fn hole(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
    }

    /// Gives the file its full length, hole at the end included; returns it.
    fn finish(self) -> io::Result<u64> {
        self.file.set_len(self.written)?;
        self.file.sync_all()?;
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
    /// The outcome for the terminal.
    #[must_use]
    pub fn render(&self, out: &Path) -> String {
        let whole = if self.complete { "complete" } else { "INCOMPLETE" };
        let from = match (self.slot, self.sequence) {
            (Some(slot), Some(sequence)) => {
                format!(" from slot {slot}, dump number {}", sequence.0)
            }
            _ => String::new(),
        };
        let mut text = format!("{}: {}, {whole}{from}.\n", out.display(), bytes(self.bytes.0));
        for warning in &self.warnings {
            text += &format!("warning: {}\n", clean(warning));
        }
        text
    }
}
