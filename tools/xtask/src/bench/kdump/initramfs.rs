//! The two small systems: the one that crashes and the one that dumps it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::{NewcBuilder, newc::trailer};
use flate2::Compression;
use flate2::write::GzEncoder;
use object::{Object, ObjectSection};

use super::packages::Packages;

/// The module that drives the disk; it names those it needs.
const DISK_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Where an initramfs has its libraries: first where the loader itself is looked for.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// Kinds of file, as in `st_mode`.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An initramfs while it is put together.
pub struct Initramfs {
    archive: GzEncoder<Vec<u8>>,
    folders: BTreeSet<PathBuf>,
    inode: u32,
}

impl Initramfs {
    /// One with `busybox` and the script that is run first.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(packages: &Packages, script: &str) -> Result<Self> {
        let archive = GzEncoder::new(Vec::new(), Compression::default());
        let mut new = Self { archive, folders: BTreeSet::new(), inode: 1 };
        for name in ["proc", "sys", "dev", "fill", "tmp"] {
            new.folder(Path::new(name))?;
        }
        new.file("bin/busybox", &packages.root.join("bin/busybox"))?;
        new.bytes("init", script.as_bytes())?;
        Ok(new)
    }

    /// Adds the program at `path` of the packages, with its libraries.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn program(&mut self, packages: &Packages, path: &str) -> Result<()> {
        self.file(path, &packages.root.join(path))?;
        for library in packages.libraries(path)? {
            let name = library.file_name().unwrap_or_default().display().to_string();
            let folder = if name.starts_with("ld-") { "lib64" } else { LIBRARIES };
            self.file(&format!("{folder}/{name}"), &library)?;
        }
        Ok(())
    }

    /// Adds the modules for the disk; returns their paths in the order they are loaded in.
    ///
    /// # Errors
    /// One is missing.
    pub fn disk_modules(&mut self, packages: &Packages) -> Result<Vec<String>> {
        let mut files = Vec::new();
        collect(&packages.root.join("lib/modules"), &mut files)?;
        let mut order = Vec::new();
        for name in DISK_MODULES {
            in_order(name, &files, &mut order)?;
        }
        let mut paths = Vec::new();
        for file in order {
            let name = file.file_name().unwrap_or_default().display().to_string();
            let path = format!("modules/{name}");
            self.file(&path, &file)?;
            paths.push(format!("/{path}"));
        }
        Ok(paths)
    }

    /// Adds a file of the host as `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn file(&mut self, path: &str, from: &Path) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.bytes(path, &bytes)
    }

    fn folder(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.folder(path.parent().unwrap_or(Path::new("")))?;
        self.entry(&path.display().to_string(), FOLDER, &[])?;
        self.folders.insert(path.to_owned());
        Ok(())
    }

    fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.folder(Path::new(path).parent().unwrap_or(Path::new("")))?;
        self.entry(path, PROGRAM, bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).context("a file of 4 GiB or more")?;
        let entry = NewcBuilder::new(path).ino(self.inode).nlink(1).mode(mode);
        let mut writer = entry.write(&mut self.archive, length);
        writer.write_all(bytes).and_then(|()| writer.finish()).context("pack a file")?;
        self.inode += 1;
        Ok(())
    }

    /// Writes it to `path`; returns how many bytes it has.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(self, path: &Path) -> Result<u64> {
        let packed = trailer(self.archive).and_then(GzEncoder::finish).context("pack")?;
        std::fs::write(path, &packed).with_context(|| format!("write {}", path.display()))?;
        Ok(packed.len() as u64)
    }
}

/// Every file below `folder`.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in folder.read_dir().with_context(|| format!("read {}", folder.display()))? {
        let path = entry.context("read the modules")?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// Appends module `name` to `order`, behind those it needs.
fn in_order(name: &str, files: &[PathBuf], order: &mut Vec<PathBuf>) -> Result<()> {
    // A file may be named with hyphens where the module has underscores.
    let is = |file: &&PathBuf| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
        stem == name && file.extension().is_some_and(|extension| extension == "ko")
    };
    let file = files.iter().find(is).with_context(|| format!("no module {name}"))?;
    if order.contains(file) {
        return Ok(());
    }
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let object = object::File::parse(&*bytes).with_context(|| format!("{}", file.display()))?;
    let section = object.section_by_name(".modinfo").context("a module without .modinfo")?;
    let data = section.data().context("read .modinfo")?;
    let fields = data.split(|&byte| byte == 0).filter_map(|field| std::str::from_utf8(field).ok());
    for needed in fields.filter_map(|field| field.strip_prefix("depends=")) {
        for name in needed.split(',').filter(|name| !name.is_empty()) {
            in_order(name, files, order)?;
        }
    }
    order.push(file.clone());
    Ok(())
}
