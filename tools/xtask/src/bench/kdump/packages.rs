//! Linux, kexec and makedumpfile as Debian packages, unpacked below a folder: nothing is
//! installed, and nobody has to be root.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Depends on the present kernel; a small one, made for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the kernel's own packages are called.
const KERNEL_IMAGE: &str = "linux-image-";
/// What stands in the two small systems.
const TOOLS: [&str; 3] = ["busybox-static", "kexec-tools", "makedumpfile"];
/// There once everything is unpacked; holds what it was.
const LIST: &str = "packages.txt";

/// The unpacked packages.
pub struct Packages {
    /// The folder that stands for `/`.
    pub root: PathBuf,
    /// File names of the packages: names and versions.
    pub list: Vec<String>,
}

/// Fetches and unpacks them below `folder`, unless that was done before.
///
/// # Errors
/// apt or dpkg fails, or has never heard of a package.
pub fn fetch(folder: &Path) -> Result<Packages> {
    let (root, list) = (folder.join("root"), folder.join(LIST));
    if let Ok(text) = std::fs::read_to_string(&list) {
        return Ok(Packages { root, list: text.lines().map(str::to_owned).collect() });
    }
    let packed = folder.join("packed");
    for folder in [&root, &packed] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let wanted = wanted()?;
    // apt puts them into the current folder.
    let mut apt = Command::new("apt-get");
    run(apt.args(["-qq", "download"]).args(&wanted).current_dir(&packed))?;
    let mut names = Vec::new();
    for entry in packed.read_dir().context("read the packages")? {
        let path = entry.context("read the packages")?.path();
        run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&root))?;
        names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    std::fs::write(&list, names.join("\n")).with_context(|| format!("write {}", list.display()))?;
    Ok(Packages { root, list: names })
}

/// The kernel, the tools, and every library they need.
fn wanted() -> Result<BTreeSet<String>> {
    let kernel = depends(KERNEL)?.into_iter().find(|name| name.starts_with(KERNEL_IMAGE));
    let kernel = kernel.with_context(|| format!("{KERNEL} depends on no kernel"))?;
    let mut found = BTreeSet::from([kernel]);
    let mut open: Vec<String> = TOOLS.map(str::to_owned).into();
    while let Some(name) = open.pop() {
        if found.insert(name.clone()) {
            // Not perl for a script, nor a system to ask questions by.
            let library = |name: &String| name.starts_with("lib") || name.starts_with("zlib");
            open.extend(depends(&name)?.into_iter().filter(library));
        }
    }
    Ok(found)
}

/// What a package cannot do without.
fn depends(package: &str) -> Result<Vec<String>> {
    let output = Command::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["depends", "--important", package])
        .output()
        .context("start apt-cache")?;
    if !output.status.success() {
        bail!("apt knows no package {package}: on Debian, run `apt-get update` first");
    }
    Ok(dependencies(&String::from_utf8_lossy(&output.stdout)))
}

fn dependencies(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| !name.starts_with('<')).map(str::to_owned).collect()
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Packages {
    /// The kernel.
    ///
    /// # Errors
    /// There is none.
    pub fn kernel(&self) -> Result<PathBuf> {
        let boot = self.root.join("boot");
        let mut entries = boot.read_dir().context("read the kernel's folder")?.flatten();
        let found =
            entries.find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"));
        Ok(found.context("no kernel in the packages")?.path())
    }

    /// The libraries that the program at `path` of the packages needs, and its loader.
    ///
    /// # Errors
    /// The loader does not run, or misses one.
    pub fn libraries(&self, path: &str) -> Result<Vec<PathBuf>> {
        let folders = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
        let folders = folders.map(|folder| self.root.join(folder).display().to_string());
        let loader = self.root.join("lib64/ld-linux-x86-64.so.2");
        let output = Command::new(&loader)
            .args(["--library-path", &folders.join(":"), "--list"])
            .arg(self.root.join(path))
            .output()
            .context("start the packaged loader")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || text.contains("not found") {
            bail!("{path} misses a library: {text}");
        }
        let found = text.lines().filter_map(|line| line.split_once("=> "));
        let found = found.filter_map(|(_, path)| path.split_whitespace().next()).map(PathBuf::from);
        let mut all: Vec<_> = found.filter(|path| *path != loader).collect();
        if let Some(stray) = all.iter().find(|path| !path.starts_with(&self.root)) {
            bail!("{path} needs {}, which is in none of the packages", stray.display());
        }
        all.push(loader);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_that_exist_are_asked_for() {
        let text =
            "makedumpfile\n  Depends: <perl:any>\n    perl\n  Depends: libc6\n |Depends: a\n";
        assert_eq!(dependencies(text), ["libc6"]);
    }
}
