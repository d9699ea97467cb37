//! The disks of a run: prepared before it, read after it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vmcore::{Dump, Error, ExtractOptions, OpenOptions, Source};

use super::verdict::DumpFound;
use super::{Disk, Options, Outcome};

/// Room for records, ELF headers and notes beside the memory itself.
const SLACK: u64 = 16 << 20;

/// Makes every disk of the run, sparse unless asked otherwise; the first is `disk.img`.
pub(super) fn create_all(options: &Options) -> Result<Vec<PathBuf>> {
    let create = |(index, disk): (usize, &Disk)| {
        let name = if index == 0 { "disk.img".to_owned() } else { format!("disk{index}.img") };
        let path = options.out.join(name);
        if disk.recorded {
            let log = path.with_extension("img.writes");
            File::create(&log).with_context(|| format!("create {}", log.display()))?;
        }
        if let Some(image) = options.disk_image.as_ref().filter(|_| index == 0) {
            copy_sparse(image, &path)?;
            return Ok(path);
        }
        // Truncated first: no block of an earlier run may shine through.
        let made = File::create(&path).and_then(|file| {
            let needed = u64::from(disk.slots) * (options.memory + SLACK);
            let bytes = disk.bytes.unwrap_or(needed);
            file.set_len(bytes)?;
            match disk.kept_bytes {
                Some(kept) => describe_split(&path, kept, bytes),
                None if options.dense_disks => fill(file, bytes),
                None => Ok(()),
            }
        });
        made.with_context(|| format!("create {}", path.display()))?;
        if disk.prepared {
            vmcore::prepare(&path, vmcore::Layout { slots: disk.slots, ..Default::default() })
                .context("prepare the dump area")?;
        }
        Ok(path)
    };
    options.disks.iter().enumerate().map(create).collect()
}

/// The description of a disk in two extents: the first `kept` bytes of the image, and behind
/// them nothing that keeps what it is given. A flat extent is the only way QEMU has of putting
/// one block device behind another.
fn describe_split(image: &Path, kept: u64, bytes: u64) -> std::io::Result<()> {
    let name = image.file_name().unwrap_or_default().display();
    let (kept, rest) = (kept / 512, (bytes - kept) / 512);
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n\
         RW {kept} FLAT \"{name}\" 0\nRW {rest} FLAT \"/dev/null\" 0\n"
    );
    std::fs::write(image.with_extension("vmdk"), text)
}

/// Makes the data disk, where one is asked for: `data.img`.
pub(super) fn create_data(options: &Options) -> Result<Option<PathBuf>> {
    let Some(disk) = options.data_disk() else { return Ok(None) };
    let path = options.out.join("data.img");
    let made = File::create(&path).and_then(|mut file| {
        file.write_all(&disk.first_sector.unwrap_or([0; 512]))?;
        file.set_len(disk.bytes)
    });
    made.with_context(|| format!("create {}", path.display()))?;
    Ok(Some(path))
}

/// Copies an image and leaves out what is zero.
fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut source, bytes) = (open(from)?, open(from)?.metadata()?.len());
    let target = File::create(to).with_context(|| format!("create {}", to.display()))?;
    target.set_len(bytes)?;
    let mut chunk = vec![0; 64 << 10];
    let mut at = 0;
    while at < bytes {
        let count = (bytes - at).min(chunk.len() as u64) as usize;
        source.read_exact(&mut chunk[..count])?;
        if chunk[..count].iter().any(|&byte| byte != 0) {
            target.write_all_at(&chunk[..count], at)?;
        }
        at += count as u64;
    }
    Ok(())
}

/// Writes every block once, as zeros.
fn fill(mut file: File, bytes: u64) -> std::io::Result<()> {
    let chunk = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(chunk.len() as u64);
        file.write_all(&chunk[..count as usize])?;
        left -= count;
    }
    file.sync_all()
}

/// Takes the newest dump off the first disk that has a whole one, else off the first that
/// has any, into `vmcore`, and reads it back. Two disks may have shared it.
pub(super) fn harvest(disks: &[PathBuf], vmcore: &Path) -> DumpFound {
    let has_area = |disk: &&PathBuf| Source::open(disk).is_ok();
    let areas: Vec<_> = disks.iter().filter(has_area).cloned().collect();
    let found: Vec<_> = disks.iter().map(|disk| (disk, look(disk, &areas))).collect();
    let best = |wanted: fn(&DumpFound) -> bool| found.iter().find(|(_, found)| wanted(found));
    match best(|found| *found == DumpFound::Complete)
        .or_else(|| best(|found| matches!(found, DumpFound::Incomplete(_))))
    {
        Some((disk, _)) => take(disk, &areas, vmcore),
        None => best(|found| *found != DumpFound::Nothing)
            .map_or(DumpFound::Nothing, |(_, found)| found.clone()),
    }
}

fn look(disk: &Path, areas: &[PathBuf]) -> DumpFound {
    let source = Source::open_with(disk, areas);
    let opened = source.and_then(|source| source.dump(OpenOptions::default()));
    match opened {
        // Nobody prepared the disk, or nothing was ever sealed on it.
        Err(Error::Foreign { .. } | Error::NoDump { .. } | Error::OtherHalf { .. }) => {
            DumpFound::Nothing
        }
        Err(error) => DumpFound::Broken(error.to_string()),
        Ok(dump) if dump.is_complete() => DumpFound::Complete,
        Ok(_) => DumpFound::Incomplete(String::new()),
    }
}

fn take(disk: &Path, areas: &[PathBuf], vmcore: &Path) -> DumpFound {
    let options = ExtractOptions::default();
    let read_back = vmcore::extract_with(disk, areas, vmcore, options)
        .and_then(|extracted| Dump::open(vmcore).map(|dump| (extracted, dump)));
    match read_back {
        Err(error) => DumpFound::Broken(error.to_string()),
        Ok((extracted, dump)) if extracted.complete && dump.is_complete() => DumpFound::Complete,
        Ok((extracted, dump)) => {
            let mut why = extracted.warnings;
            why.extend(dump.warnings);
            why.insert(0, "the dump is not whole".into());
            DumpFound::Incomplete(why.join("; "))
        }
    }
}

/// Keeps the dump of a run as a small one in `folder`, with its image: zero pages left
/// out, debug information compressed. Returns the bytes both take.
///
/// # Errors
/// The dump cannot be extracted again, or a file cannot be written.
pub fn save_core(outcome: &Outcome, folder: &Path) -> Result<u64> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let (vmcore, image) = (folder.join("vmcore"), folder.join("appliance"));
    let options = ExtractOptions { elide_zero: true, force: true, ..ExtractOptions::default() };
    vmcore::extract(&outcome.out.join("disk.img"), &vmcore, options).context("extract")?;
    super::images::compress(&outcome.report.image, &image)?;
    let bytes = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
    Ok(bytes(&vmcore)? + bytes(&image)?)
}
