//! Finds the image that crashed, by its build-id.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::image::Image;
use crate::text::hex;
use crate::{Dump, Error, Result};

/// A search that found nothing: what was wanted and what was looked at.
#[derive(Debug)]
pub struct Search {
    /// The build-id wanted, as hexadecimal digits; empty when the dump has none.
    pub wanted: String,
    /// Every file that was there, and what it is.
    pub looked_at: Vec<(PathBuf, String)>,
    /// Every place where there was none.
    pub absent: Vec<PathBuf>,
}

impl Display for Search {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.wanted.is_empty() {
            write!(f, "the dump does not say which image it is of (it has no build-id)")?;
        } else {
            write!(f, "the crashed image was not found: wanted build-id {}", self.wanted)?;
        }
        for (path, what) in &self.looked_at {
            write!(f, "\n  looked at {}: {what}", path.display())?;
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
const BUILT: [&str; 2] = ["images/appliance", "x86_64-unknown-none/image/appliance"];

/// Finds the image of a dump: `given`, or by build-id beside the vmcore, in the
/// `run.json` there, in the folders (or files) of `EPITAPH_IMAGE_PATH`, and where the
/// build puts it in the workspace around the current folder.
///
/// # Errors
/// [`Error::NoImage`] with everything that was looked at, or what is wrong with the file
/// that matched.
pub fn find_image(dump: &Dump, given: Option<&Path>) -> Result<Image> {
    let wanted = hex(&dump.build_id);
    let mut search = Search { wanted, looked_at: Vec::new(), absent: Vec::new() };
    let candidates = match given {
        Some(path) => vec![path.to_owned()],
        None => candidates(dump),
    };
    for path in candidates {
        if search.looked_at.iter().any(|(seen, _)| *seen == path) || search.absent.contains(&path) {
            continue;
        }
        if !path.is_file() {
            search.absent.push(path);
            continue;
        }
        match Image::open(&path) {
            Ok(image) if !dump.build_id.is_empty() && image.build_id() == dump.build_id => {
                return Ok(image);
            }
            Ok(image) if image.build_id().is_empty() => {
                search.looked_at.push((path, "an ELF file without a build-id".into()));
            }
            Ok(image) => {
                search.looked_at.push((path, format!("build-id {}", hex(image.build_id()))));
            }
            Err(Error::BadImage { what, .. }) => search.looked_at.push((path, what)),
            Err(error) => search.looked_at.push((path, error.to_string())),
        }
    }
    Err(Error::NoImage(Box::new(search)))
}

fn candidates(dump: &Dump) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let beside = dump.path().parent().unwrap_or(Path::new(""));
    in_folder(&mut paths, beside, &dump.build_id);
    if let Some(image) = run_image(&beside.join("run.json")) {
        paths.push(beside.join(image));
    }
    let listed = std::env::var_os("EPITAPH_IMAGE_PATH").unwrap_or_default();
    for entry in std::env::split_paths(&listed).filter(|entry| !entry.as_os_str().is_empty()) {
        if entry.is_dir() {
            in_folder(&mut paths, &entry, &dump.build_id);
        } else {
            paths.push(entry);
        }
    }
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        paths.extend(BUILT.iter().map(|built| Path::new(&target).join(built)));
    }
    // The workspace is the nearest folder upwards with a lock file.
    let here = std::env::current_dir().unwrap_or_default();
    if let Some(root) = here.ancestors().find(|folder| folder.join("Cargo.lock").is_file()) {
        paths.extend(BUILT.iter().map(|built| root.join("target").join(built)));
    }
    paths
}

fn in_folder(paths: &mut Vec<PathBuf>, folder: &Path, build_id: &[u8]) {
    paths.extend(NAMES.iter().map(|name| folder.join(name)));
    // The layout of debug files that distributions use.
    if let [first, rest @ ..] = build_id
        && !rest.is_empty()
    {
        let name = format!(".build-id/{first:02x}/{}.debug", hex(rest));
        paths.push(folder.join(name));
    }
}

/// The `image` of a `run.json`, when there is one.
fn run_image(path: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Run {
        image: PathBuf,
    }
    let text = std::fs::read(path).ok()?;
    serde_json::from_slice::<Run>(&text).ok().map(|run| run.image)
}
