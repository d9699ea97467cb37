//! `vmcore extract`: turns a dump on a disk into an ELF core file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmcore_format::area::chunk_kind;
use vmcore_format::reader::CoreReader;

mod rewrite;

use crate::dump::{Stored, header_error};
use crate::file::Part;
use crate::json::Hex;
use crate::output::{self, Output, all_steps};
use crate::source::{OpenOptions, Source};
use crate::stage::{ChunkFault, Gap, StageFile};
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
    /// Store runs of zero pages as memory without bytes in the file.
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
    /// True if something is damaged: memory that was left out, or a stage that was passed over.
    pub damaged: bool,
    /// Memory that was left out because it could not be read or did not match its checksum.
    pub left_out: Vec<LeftOut>,
    /// Why it is not complete, and later stages that did not verify.
    pub warnings: Vec<String>,
}

/// Memory that was left out of a core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Physical address.
    pub address: Hex,
    /// Length in bytes.
    pub bytes: Hex,
    /// The damage, in words.
    pub reason: String,
}

/// Lines shown of memory that was left out; all of it is in the JSON.
const MOST_LINES: usize = 32;

/// Renders what was left out, a line each; the first few.
#[must_use]
pub fn render_left_out(left_out: &[LeftOut]) -> String {
    let mut text = String::new();
    for range in left_out.iter().take(MOST_LINES) {
        let (address, length) = (range.address.0, bytes(range.bytes.0));
        text += &format!("left out: {length} at {address:#x}: it {}\n", range.reason);
    }
    if let Some(more) = left_out.len().checked_sub(MOST_LINES).filter(|&more| more > 0) {
        text += &format!("left out: {more} more ranges\n");
    }
    text
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
    let (part, stored) = source.content(options.open)?;
    let warnings = warnings(&dump, stored.as_ref());
    let mut progress = options.progress.take();
    let stage = stored.as_ref().and_then(|stored| stored.file.as_deref());
    let gaps = if options.open.partial {
        gaps(&part, &dump, stage, &mut |done, all| {
            if let Some(progress) = &mut progress {
                progress(done, all);
            }
        })
    } else {
        Vec::new()
    };
    let mut sink = Sparse::new(file, out, part.bytes(), progress);
    let left_out = match stage {
        _ if options.elide_zero || !gaps.is_empty() => {
            let memory = rewrite::Memory { part: &part, stage };
            rewrite::copy(source.path(), &dump, memory, &gaps, options.elide_zero, &mut sink)?
        }
        Some(stage) => {
            copy_stage(source, stored.as_ref(), stage, &mut sink)?;
            Vec::new()
        }
        None => {
            copy(source.path(), &part, &mut sink)?;
            Vec::new()
        }
    };
    let written = sink.finish()?;
    let refused = stored.as_ref().is_some_and(|stored| !stored.refused.is_empty());
    let broken = stage.is_some_and(|stage| !stage.warnings().is_empty());
    Ok(Extracted {
        slot: stored.as_ref().map(|stored| stored.slot),
        sequence: stored.as_ref().map(|stored| Hex(stored.open.sequence)),
        stage: stored.as_ref().map(|stored| stored.stage as u32 + 1),
        stages_planned: stored.as_ref().map(|stored| stored.open.stages),
        complete: dump.is_complete() && left_out.is_empty() && !broken,
        bytes: Hex(written),
        damaged: !left_out.is_empty() || refused || broken,
        left_out,
        warnings,
    })
}

/// Lists the reasons why a dump is incomplete.
fn warnings(dump: &Dump, stored: Option<&Stored>) -> Vec<String> {
    let mut warnings = dump.warnings.clone();
    let Some(stored) = stored else { return warnings };
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

/// Finds the stretches of the file that cannot be read: damaged chunks, and a missing end.
fn gaps(
    part: &Part,
    dump: &Dump,
    stage: Option<&StageFile>,
    progress: &mut dyn FnMut(u64, u64),
) -> Vec<Gap> {
    let mut gaps = stage.map(|stage| stage.gaps(progress)).unwrap_or_default();
    let ends = dump.segments().iter().map(|segment| segment.offset + segment.load.file_bytes);
    let end = ends.max().unwrap_or(0);
    if end > part.bytes() {
        gaps.push(Gap { start: part.bytes(), end, fault: ChunkFault::BehindEnd });
    }
    gaps
}

/// Copies a stage chunk by chunk; chunks of zeros become holes without being looked at.
fn copy_stage(
    source: &Source,
    stored: Option<&Stored>,
    stage: &StageFile,
    sink: &mut Sparse<'_, '_>,
) -> Result<()> {
    let slot = stored.map_or(0, |stored| stored.slot);
    let (header, chunks) = stage.pieces();
    sink.write(header)?;
    for (number, entry) in chunks {
        if entry.kind == chunk_kind::ZERO {
            sink.skip(u64::from(entry.memory_bytes));
            continue;
        }
        let memory = stage
            .chunk(number)
            .map_err(|bad| Error::damaged(source.path(), format!("slot {slot}: {bad}")))?;
        sink.write(&memory)?;
    }
    Ok(())
}

fn copy(path: &Path, part: &Part, sink: &mut Sparse<'_, '_>) -> Result<()> {
    let mut offset = 0;
    let mut buffer = vec![0; CHUNK];
    while offset < part.bytes() {
        let take = (part.bytes() - offset).min(CHUNK as u64) as usize;
        part.read(offset, &mut buffer[..take]).map_err(Error::io(path, "read the dump"))?;
        sink.write(&buffer[..take])?;
        offset += take as u64;
    }
    Ok(())
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
                format!(" from slot {slot}, dump number {}", sequence.0)
            }
            _ => String::new(),
        };
        let mut text = format!("{}: {}, {whole}{from}.\n", out.display(), bytes(self.bytes.0));
        let left_out: u64 = self.left_out.iter().map(|range| range.bytes.0).sum();
        if left_out > 0 {
            text += &format!("DAMAGED: {} left out.\n", bytes(left_out));
        }
        for warning in &self.warnings {
            text += &format!("warning: {}\n", clean(warning));
        }
        text
    }
}
