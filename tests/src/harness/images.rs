//! Where the built images are, and how they are built.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

/// The bare-metal target of both images.
const TARGET: &str = "x86_64-unknown-none";

/// The workspace's folder.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // This crate lies one folder below it.
    here.parent().unwrap_or(here)
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_dir() -> PathBuf {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    match given {
        Some(path) if path.is_absolute() => path,
        Some(path) => root().join(path),
        None => root().join("target"),
    }
}

/// The two images a machine is booted with.
#[derive(Debug, Clone)]
pub struct Images {
    /// The appliance with its debug information.
    pub appliance: PathBuf,
    /// The appliance as loaders get it. GRUB reads every section of an ELF into memory,
    /// debug information included, so that is left out.
    pub bootable: PathBuf,
    /// The capture image, without debug information.
    pub capture: PathBuf,
    /// The capture image with its debug information.
    pub capture_debug: PathBuf,
}

impl Images {
    fn at(folder: &Path) -> Self {
        Self {
            appliance: folder.join("appliance"),
            bootable: folder.join("appliance.bootable"),
            capture: folder.join("capture"),
            capture_debug: folder.join("capture.debug"),
        }
    }

    /// The images as they were last built.
    ///
    /// # Errors
    /// They were never built; says how to.
    pub fn find() -> Result<Self> {
        let images = Self::at(&target_dir().join("images"));
        for path in [&images.appliance, &images.bootable, &images.capture] {
            if !path.is_file() {
                bail!("{} is missing: run `cargo xtask build` first", path.display());
            }
        }
        Ok(images)
    }
}

impl Images {
    /// The same images, with the appliance's debug information under a name of its own in
    /// `folder`: the next build puts another image in its place, and a dump is read with the
    /// image that was running.
    pub(super) fn kept_in(mut self, folder: &Path) -> Result<Self> {
        let kept = folder.join("appliance");
        if kept.exists() {
            std::fs::remove_file(&kept).with_context(|| format!("remove {}", kept.display()))?;
        }
        // A build replaces the file and does not change it, so a link keeps this one.
        if std::fs::hard_link(&self.appliance, &kept).is_err() {
            copy(&self.appliance, &kept)?;
        }
        self.appliance = kept;
        Ok(self)
    }
}

/// Builds both images and puts them under `target/images`.
///
/// # Errors
/// The compiler's, after it has printed its own messages.
pub fn build() -> Result<Images> {
    let built = compile(TARGET, &["workloads", "capture-image"])?;
    let folder = folder()?;
    let images = Images::at(&folder);
    replace(&images.appliance, |path| copy(&built.join("appliance"), path))?;
    replace(&images.bootable, |path| strip(&built.join("appliance"), path))?;
    replace(&images.capture_debug, |path| copy(&built.join("capture"), path))?;
    replace(&images.capture, |path| {
        strip(&built.join("capture"), path)?;
        seal(path)
    })?;
    Ok(images)
}

/// Builds `packages` for a bare-metal target. Returns the folder of what was built.
pub(super) fn compile(target: &str, packages: &[&str]) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // A first build takes a minute: somebody who watches sees it move.
    if !std::io::stderr().is_terminal() {
        cargo.arg("--quiet");
    }
    let status = cargo
        .current_dir(root())
        .args(["build", "--profile", "image", "--target", target])
        .arg("--target-dir")
        .arg(target_dir())
        .args(["--config", &remap(target)?])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("the images do not build");
    }
    Ok(target_dir().join(target).join("image"))
}

/// Makes `target/images`.
pub(super) fn folder() -> Result<PathBuf> {
    let folder = target_dir().join("images");
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// A cargo setting that keeps the folders of this host out of the images' debug
/// information and messages, so that the same sources give the same build-id anywhere.
fn remap(target: &str) -> Result<String> {
    let mut flags = vec![flag(root(), "/epitaph")];
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    // One folder per registry; its name says which registry, and that is this host's matter.
    let registries = cargo_home.and_then(|home| home.join("registry/src").read_dir().ok());
    for registry in registries.into_iter().flatten().flatten() {
        flags.push(flag(&registry.path(), "/crates"));
    }
    flags.push(flag(&sysroot()?.join("lib/rustlib/src/rust"), "/rust"));
    Ok(format!("target.{target}.rustflags=[{}]", flags.join(", ")))
}

fn flag(from: &Path, to: &str) -> String {
    format!("'--remap-path-prefix={}={to}'", from.display())
}

/// Makes a file beside `path` and renames it there, so that a machine that boots in this
/// moment gets the old image or the new one, never half of each.
pub(super) fn replace(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    make(&fresh)?;
    std::fs::rename(&fresh, path).with_context(|| format!("rename to {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

/// Leaves the debug information out; the build-id stays, it is a loaded note.
fn strip(from: &Path, to: &Path) -> Result<()> {
    convert("--strip-debug", from, to)
}

/// Fills in the checksum that the appliance compares the capture image with.
fn seal(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    handoff::module::seal(&mut bytes).map_err(|why| anyhow!("{}: {why:?}", path.display()))?;
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Compresses the debug information, for files that are kept.
pub(super) fn compress(from: &Path, to: &Path) -> Result<()> {
    convert("--compress-debug-sections=zlib", from, to)
}

/// Makes a file of the loaded sections alone, as they lie in memory.
pub(super) fn flatten(from: &Path, to: &Path) -> Result<()> {
    convert("--output-target=binary", from, to)
}

fn convert(how: &str, from: &Path, to: &Path) -> Result<()> {
    let objcopy = objcopy()?;
    let status = Command::new(&objcopy)
        .arg(how)
        .args([from, to])
        .status()
        .with_context(|| format!("start {}", objcopy.display()))?;
    if !status.success() {
        bail!("{} {how} failed on {}", objcopy.display(), from.display());
    }
    Ok(())
}

/// The objcopy that comes with rustc, so that no binutils are needed.
fn objcopy() -> Result<PathBuf> {
    let version = rustc(&["-vV"])?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc names no host")?;
    let path = sysroot()?.join("lib/rustlib").join(host).join("bin/rust-objcopy");
    if !path.is_file() {
        bail!("{} is missing: the pinned toolchain carries it", path.display());
    }
    Ok(path)
}

fn sysroot() -> Result<PathBuf> {
    Ok(PathBuf::from(rustc(&["--print", "sysroot"])?.trim()))
}

fn rustc(arguments: &[&str]) -> Result<String> {
    let output = Command::new("rustc")
        .current_dir(root())
        .args(arguments)
        .output()
        .context("start rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
