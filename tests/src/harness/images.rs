//! Where the built images are, and how they are built.

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use object::{Object, ObjectSymbol};

use super::{Appliance, Options, Refusal};

/// The bare-metal target of all images.
const TARGET: &str = "x86_64-unknown-none";
/// The path that every function and static of the faults on request has in its name.
const FAULTS: &str = "kernel::trial::inject";

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
    fn at(folder: &Path, appliance: &str) -> Self {
        Self {
            appliance: folder.join(appliance),
            bootable: folder.join(format!("{appliance}.bootable")),
            capture: folder.join("capture"),
            capture_debug: folder.join("capture.debug"),
        }
    }

    /// Returns the images as they were last built, with the appliance as it is shipped.
    ///
    /// # Errors
    /// They were never built; says how to.
    pub fn find() -> Result<Self> {
        Self::named("appliance")
    }

    /// Returns the images as they were last built, with the appliance that has faults on request.
    ///
    /// # Errors
    /// They were never built; says how to.
    pub fn find_with_faults() -> Result<Self> {
        Self::named("appliance-faults")
    }

    fn named(appliance: &str) -> Result<Self> {
        let images = Self::at(&target_dir().join("images"), appliance);
        for path in [&images.appliance, &images.bootable, &images.capture] {
            if !path.is_file() {
                bail!("{} is missing: run `cargo xtask build` first", path.display());
            }
        }
        Ok(images)
    }
}

impl Images {
    /// Returns the images that `options` boot. The one with faults is taken where a fault is
    /// asked for, and the one that is shipped for everything else.
    ///
    /// # Errors
    /// An image is missing; or a fault is asked for, and the image that was given has none.
    pub fn of(options: &Options) -> Result<Self> {
        match &options.appliance {
            Appliance::ByNeed if options.wants_faults() => Self::find_with_faults(),
            Appliance::Faults => Self::find_with_faults(),
            Appliance::ByNeed | Appliance::Shipped => Self::find(),
            Appliance::File(path) => {
                if options.wants_faults() && fault_symbols(path)?.is_empty() {
                    return Err(Refusal::Wrong(format!(
                        "{} is built without faults, and crash= or wedge= ask for one: build it \
                         with the feature `faults` (`cargo xtask build` makes {})",
                        path.display(),
                        Self::find_with_faults()?.appliance.display()
                    ))
                    .into());
                }
                Ok(Self { appliance: path.clone(), bootable: path.clone(), ..Self::find()? })
            }
        }
    }

    /// Returns the same images, with the appliance's debug information under a name of its own in
    /// `folder`: the next build puts another image in its place, and a dump is read with the
    /// image that was running.
    pub(super) fn kept_in(mut self, folder: &Path) -> Result<Self> {
        if self.bootable == self.appliance {
            // A file of the caller's, with whatever debug information it has.
            self.bootable = folder.join("appliance.bootable");
            strip(&self.appliance, &self.bootable)?;
        }
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

/// Returns the names of what the appliance at `path` has of the faults on request: none in an
/// image that is built without the feature `faults`.
///
/// # Errors
/// It is no ELF file, or has no symbols to tell by.
pub fn fault_symbols(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| path.display().to_string())?;
    let mut symbols = file.symbols().peekable();
    if symbols.peek().is_none() {
        bail!("{} has no symbols: give the image as the linker made it", path.display());
    }
    let names = symbols.filter_map(|symbol| Some(symbol.name().ok()?.to_owned()));
    let names = names.map(|name| format!("{:#}", rustc_demangle::demangle(&name)));
    Ok(names.filter(|name| name.contains(FAULTS)).collect())
}

/// Name of the kernel that is not ours.
const FOREIGN: &str = "foreign";

/// Returns the kernel that is not ours, `tests/foreign`, as it was last built.
///
/// # Errors
/// It was never built; says how to.
pub fn foreign_kernel() -> Result<PathBuf> {
    let path = target_dir().join("images").join(FOREIGN);
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask build` first", path.display());
    }
    Ok(path)
}

/// Builds all images and puts them under `target/images`: the capture image, and the appliance
/// as it is shipped and with faults on request. Returns those with the shipped appliance.
///
/// Only the two crates that have the feature `faults` are compiled twice.
///
/// # Errors
/// The compiler's, after it has printed its own messages.
pub fn build() -> Result<Images> {
    let folder = folder()?;
    // Cargo puts both appliances under one name, so another build must not come between cargo's
    // end and the copy.
    let lock = folder.join("building.lock");
    let lock = File::create(&lock).with_context(|| format!("create {}", lock.display()))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, why)| why)
        .context("wait for another build of the images")?;
    let keep = |images: &Images, built: &Path| -> Result<()> {
        replace(&images.appliance, |path| copy(&built.join("appliance"), path))?;
        replace(&images.bootable, |path| strip(&built.join("appliance"), path))
    };
    let built = compile(TARGET, &["workloads"], &["workloads/faults"])?;
    keep(&Images::at(&folder, "appliance-faults"), &built)?;
    // The shipped one last: it stays where cargo has put it.
    let built = compile(TARGET, &["workloads", "capture-image", "foreign-kernel"], &[])?;
    replace(&folder.join(FOREIGN), |path| copy(&built.join(FOREIGN), path))?;
    let images = Images::at(&folder, "appliance");
    keep(&images, &built)?;
    replace(&images.capture_debug, |path| copy(&built.join("capture"), path))?;
    replace(&images.capture, |path| {
        strip(&built.join("capture"), path)?;
        seal(path)
    })?;
    Ok(images)
}

/// Builds `packages` with `features` for a bare-metal target. Returns the folder of what was
/// built.
pub(super) fn compile(target: &str, packages: &[&str], features: &[&str]) -> Result<PathBuf> {
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
        .args(features.iter().flat_map(|feature| ["--features", feature]))
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
