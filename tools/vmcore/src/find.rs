//! Finds the image that crashed, by its build-id.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object::elf;
use serde::Deserialize;

use crate::file::{Kind, open_seekable};
use crate::image::Image;
use crate::text::{count, hex};
use crate::{Dump, Error, Result, kind};

/// A search that found nothing: what was wanted and what was looked at.
#[derive(Debug, Default)]
pub struct Search {
    /// The build-id wanted, as hexadecimal digits; empty when the dump has none.
    pub wanted: String,
    /// Every file that was there, and what it is.
    pub looked_at: Vec<(PathBuf, String)>,
    /// Every place where there was none.
    pub absent: Vec<PathBuf>,
    /// Whether a file that was looked at by its name is an image of another build.
    pub other_build: bool,
    /// Folders that were searched, and of how many of their files the build-id was read.
    pub searched: Vec<(PathBuf, Searched)>,
}

/// What was looked at in a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// ELF files with another build-id, or without one.
    pub others: usize,
    /// Whether there were more files than are looked at.
    pub cut: bool,
}

impl Display for Search {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.wanted.is_empty() {
            write!(
                f,
                "the dump does not say which image it is of (it has no build-id); one that is \
                 given with --image is taken at its word"
            )?;
        } else {
            write!(f, "the crashed image was not found: wanted build-id {}", self.wanted)?;
        }
        for (path, what) in &self.looked_at {
            write!(f, "\n  looked at {}: {what}", path.display())?;
        }
        for (folder, searched) in &self.searched {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let others = count(searched.others as u64, "other ELF file");
            write!(f, "\n  searched  {}: {others}, none with this build-id", folder.display())?;
            if searched.cut {
                write!(f, "; only the first {FILES} files were looked at")?;
            }
        }
        for path in &self.absent {
            write!(f, "\n  not there {}", path.display())?;
        }
        Ok(())
    }
}

/// Names under which an image may lie in a folder.
const NAMES: [&str; 3] = ["appliance", "appliance.elf", "appliance.debug"];
/// Where the build puts it, seen from the workspace.
const BUILT: [&str; 3] =
    ["images/appliance", "images/appliance-faults", "x86_64-unknown-none/image/appliance"];
/// Most files of a folder that are looked at for a build-id.
const FILES: usize = 1000;
/// Most headers, and most bytes of notes, that are read of such a file.
const HEADERS: u64 = 4096;
const NOTE_BYTES: u64 = 64 << 10;
/// Type of the note with the build-id, of owner `GNU` (`elf.h`).
const NT_GNU_BUILD_ID: usize = 3;
/// Largest `run.json` read.
const RUN_BYTES: u64 = 1 << 20;

/// Finds the image of a dump: `given`, or by build-id beside the vmcore, in the
/// `run.json` there, in the folders (or files) of `EPITAPH_IMAGE_PATH`, and where the
/// build puts it in the workspace around the current folder. In the folders, files of any
/// name count. Of several with the right build-id one with debug information is taken
/// before one with symbols, and that before a stripped one; [`Image::warnings`] says when
/// there is none better.
///
/// # Errors
/// [`Error::NoImage`] with everything that was looked at, or what is wrong with the file
/// that matched.
pub fn find_image(dump: &Dump, given: Option<&Path>) -> Result<Image> {
    let mut image = match given {
        Some(path) => given_image(dump, path),
        None => search(dump),
    }?;
    image.place(dump.facts.as_ref().map_or(&[], |facts| facts.virtual_segments()));
    Ok(image)
}

/// Opens the image that was named, and holds it against the dump's build-id.
fn given_image(dump: &Dump, path: &Path) -> Result<Image> {
    let mut image = Image::open(path)?;
    if dump.build_id.is_empty() {
        image.warnings.push(format!(
            "the dump has no build-id: nothing proves that {} is its image",
            path.display()
        ));
    } else if image.build_id() != dump.build_id {
        let mut search = Search { wanted: hex(&dump.build_id), ..Search::default() };
        search.looked_at.push((path.to_owned(), other_id(image.build_id())));
        search.other_build = true;
        return Err(Error::NoImage(Box::new(search)));
    }
    say_what_it_lacks(&mut image);
    Ok(image)
}

fn other_id(build_id: &[u8]) -> String {
    if build_id.is_empty() {
        "an ELF file without a build-id".into()
    } else {
        format!("another image, of build-id {}", hex(build_id))
    }
}

/// Says when names and lines cannot be had. An image with symbols alone speaks for itself.
fn say_what_it_lacks(image: &mut Image) {
    if image.has_lines() || image.has_names() {
        return;
    }
    image.warnings.push(format!(
        "{} is stripped: no names and no lines; give the ELF file of the same build that was not \
         stripped with --image, or put it beside the dump",
        image.path().display()
    ));
}

/// Looks for the image in all places.
fn search(dump: &Dump) -> Result<Image> {
    let mut search = Search { wanted: hex(&dump.build_id), ..Search::default() };
    if dump.build_id.is_empty() {
        return Err(Error::NoImage(Box::new(search)));
    }
    let mut best: Option<Image> = None;
    let mut failure = None;
    let mut seen = Vec::new();
    let quality = |image: &Image| (image.has_lines(), image.has_names());
    for place in places(dump) {
        let (candidates, named) = match &place {
            Place::File(path) => (vec![path.clone()], true),
            Place::Folder(folder) => (files(folder, &mut search), false),
        };
        let mut others = 0;
        for path in candidates {
            if seen.contains(&path) {
                continue;
            }
            seen.push(path.clone());
            match Found::at(&path) {
                Found::Nothing if named => search.absent.push(path),
                Found::Other(what) if named => search.looked_at.push((path, what)),
                Found::Elf(id) if id != dump.build_id && named => {
                    search.other_build |= !id.is_empty();
                    search.looked_at.push((path, other_id(&id)));
                }
                Found::Elf(id) if id == dump.build_id => match Image::open(&path) {
                    Ok(image) => {
                        if best.as_ref().is_none_or(|best| quality(&image) > quality(best)) {
                            best = Some(image);
                        }
                    }
                    Err(Error::BadImage { what, .. }) => search.looked_at.push((path, what)),
                    Err(error) => failure = Some(error),
                },
                Found::Elf(_) => others += 1,
                Found::Nothing | Found::Other(_) => {}
            }
            if best.as_ref().is_some_and(Image::has_lines) {
                break;
            }
        }
        if let (Place::Folder(folder), Some((last, searched))) =
            (&place, search.searched.last_mut())
            && folder == last
        {
            searched.others = others;
        }
        if best.as_ref().is_some_and(Image::has_lines) {
            break;
        }
    }
    match (best, failure) {
        (Some(mut image), _) => {
            say_what_it_lacks(&mut image);
            Ok(image)
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::NoImage(Box::new(search))),
    }
}

/// A place where the image may be.
enum Place {
    /// This file.
    File(PathBuf),
    /// Any file of this folder.
    Folder(PathBuf),
}

fn places(dump: &Dump) -> Vec<Place> {
    let mut places = Vec::new();
    let beside = dump.path().parent().unwrap_or(Path::new(""));
    in_folder(&mut places, beside, &dump.build_id);
    if let Some(image) = run_image(&beside.join("run.json")) {
        places.push(Place::File(beside.join(image)));
    }
    places.push(Place::Folder(beside.to_owned()));
    let listed = std::env::var_os("EPITAPH_IMAGE_PATH").unwrap_or_default();
    for entry in std::env::split_paths(&listed).filter(|entry| !entry.as_os_str().is_empty()) {
        if entry.is_dir() {
            in_folder(&mut places, &entry, &dump.build_id);
            places.push(Place::Folder(entry));
        } else {
            places.push(Place::File(entry));
        }
    }
    let mut built = |folder: &Path| {
        places.extend(BUILT.iter().map(|built| Place::File(folder.join(built))));
    };
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        built(Path::new(&target));
    }
    // The workspace is the nearest folder upwards with a lock file.
    let here = std::env::current_dir().unwrap_or_default();
    if let Some(root) = here.ancestors().find(|folder| folder.join("Cargo.lock").is_file()) {
        built(&root.join("target"));
    }
    places
}

fn in_folder(places: &mut Vec<Place>, folder: &Path, build_id: &[u8]) {
    places.extend(NAMES.iter().map(|name| Place::File(folder.join(name))));
    // The layout of debug files that distributions use.
    if let [first, rest @ ..] = build_id
        && !rest.is_empty()
    {
        let name = format!(".build-id/{first:02x}/{}.debug", hex(rest));
        places.push(Place::File(folder.join(name)));
    }
}

/// The files of a folder by their names, as many as are looked at.
fn files(folder: &Path, search: &mut Search) -> Vec<PathBuf> {
    let path = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<PathBuf> =
        entries.flatten().take(FILES + 1).map(|entry| folder.join(entry.file_name())).collect();
    let cut = names.len() > FILES;
    names.truncate(FILES);
    names.sort();
    search.searched.push((folder.to_owned(), Searched { others: 0, cut }));
    names
}

/// The `image` of a `run.json`, when there is one.
fn run_image(path: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Run {
        image: PathBuf,
    }
    let (file, bytes) = open_seekable(path, |kind| Error::foreign(path, kind.name())).ok()?;
    let mut text = vec![0; usize::try_from(bytes.min(RUN_BYTES)).ok()?];
    file.read_exact_at(&mut text, 0).ok()?;
    serde_json::from_slice::<Run>(&text).ok().map(|run| run.image)
}

/// What is at a place.
enum Found {
    /// No file.
    Nothing,
    /// Something that is no ELF image; says what.
    Other(String),
    /// An ELF image with this build-id, which is empty when it has none.
    Elf(Vec<u8>),
}

impl Found {
    /// Looks at the headers and notes of a file and at nothing else.
    fn at(path: &Path) -> Self {
        let mut kind = Kind::File;
        let opened = open_seekable(path, |found| {
            kind = found;
            Error::foreign(path, found.name())
        });
        let Ok((file, bytes)) = opened else {
            return match (path.exists(), kind) {
                (false, _) => Self::Nothing,
                (true, Kind::File | Kind::Disk) => Self::Other("cannot be opened".into()),
                (true, kind) => Self::Other(kind.name().into()),
            };
        };
        let mut start = vec![0; bytes.min(64) as usize];
        if file.read_exact_at(&mut start, 0).is_err() {
            return Self::Other("cannot be read".into());
        }
        if !start.starts_with(b"\x7fELF") {
            let name = kind::name(&start).map_or(String::new(), |name| format!(": {name}"));
            return Self::Other(format!("not an ELF file{name}"));
        }
        let half =
            |at: usize| start.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        if half(16) == Some(elf::ET_CORE.0) {
            return Self::Other("a core, not an image".into());
        }
        Self::Elf(build_id(&file, &start).unwrap_or_default())
    }
}

/// Reads the GNU build-id out of the note segments or sections of an ELF file of 64 bits.
fn build_id(file: &File, start: &[u8]) -> Option<Vec<u8>> {
    let long =
        |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half =
        |at: usize| Some(u64::from(u16::from_le_bytes(start.get(at..at + 2)?.try_into().ok()?)));
    // (offset of the table, size of an entry, number of entries, type of a note, offset and
    // size of the content in an entry)
    let programs = (long(start, 32)?, half(54)?, half(56)?, elf::PT_NOTE.0, 8, 32);
    let sections = (long(start, 40)?, half(58)?, half(60)?, elf::SHT_NOTE.0, 24, 32);
    for (table, size, entries, wanted, at, length) in [programs, sections] {
        let kind_at = if wanted == elf::SHT_NOTE.0 { 4 } else { 0 };
        let mut left = NOTE_BYTES;
        for index in 0..entries.min(HEADERS) {
            let mut entry = [0; 56];
            let place = table.checked_add(index * size)?;
            if size < entry.len() as u64 || file.read_exact_at(&mut entry, place).is_err() {
                break;
            }
            let kind = entry.get(kind_at..kind_at + 4)?;
            if u32::from_le_bytes(kind.try_into().ok()?) != wanted {
                continue;
            }
            let bytes = long(&entry, length)?;
            let Some(rest) = left.checked_sub(bytes) else { continue };
            left = rest;
            let mut notes = vec![0; usize::try_from(bytes).ok()?];
            if file.read_exact_at(&mut notes, long(&entry, at)?).is_ok()
                && let Some(id) = gnu_build_id(&notes)
            {
                return Some(id);
            }
        }
    }
    None
}

/// The descriptor of the note of owner `GNU` and type 3 (NT_GNU_BUILD_ID).
fn gnu_build_id(notes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = notes;
    loop {
        let word = |at: usize| {
            let bytes: [u8; 4] = rest.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes) as usize)
        };
        let (owner, desc, kind) = (word(0)?, word(4)?, word(8)?);
        let content = 12_usize.checked_add(owner.checked_next_multiple_of(4)?)?;
        let end = content.checked_add(desc)?;
        if kind == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") && owner == 4 {
            return rest.get(content..end).map(<[u8]>::to_vec);
        }
        rest = rest.get(end.checked_next_multiple_of(4)?..)?;
    }
}
