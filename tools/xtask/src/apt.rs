//! Installing packages on Debian and Ubuntu.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// QEMU for the appliance.
pub const QEMU: &str = "qemu-system-x86";
/// QEMU for the EL3 monitor. Shares files with the other one, so both are of one version.
pub const QEMU_ARM: &str = "qemu-system-arm";
/// The packages that may have to come from backports.
const QEMUS: [&str; 2] = [QEMU, QEMU_ARM];
/// The first major version of QEMU that emulates x2APIC.
const QEMU_MAJOR: u32 = 9;
/// The source this program adds when it has to.
const SOURCE: &str = "/etc/apt/sources.list.d/epitaph-backports.sources";

/// Installs `packages`, as root or through a sudo that asks no password.
///
/// # Errors
/// Neither is at hand, or apt fails: names the commands to run by hand.
pub fn install(packages: &[&str]) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").is_file() {
        bail!(
            "no apt on this host. Install what Debian packages as: {}\n\
             (QEMU has to be version {QEMU_MAJOR} or newer)",
            packages.join(" ")
        );
    }
    let Some(root) = Root::find() else {
        bail!(
            "not root, and sudo wants a password. Run this once, then again what you ran:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends {}\n\
             (QEMU has to be version {QEMU_MAJOR} or newer; on Debian 12 it comes from \
             bookworm-backports)",
            packages.join(" ")
        );
    };
    root.apt(&["update"])?;
    let is_qemu = |package: &&str| QEMUS.contains(package);
    let backports =
        packages.iter().any(is_qemu) && candidate_major()?.is_none_or(|major| major < QEMU_MAJOR);
    // The release's own packages first: what comes from backports brings newer libraries
    // along, and some of the release's packages insist on exactly the older ones.
    let plain: Vec<_> =
        packages.iter().copied().filter(|package| !backports || !is_qemu(package)).collect();
    if !plain.is_empty() && root.install(&[], &plain).is_err() {
        // A library that QEMU brought from backports earlier is newer than these packages
        // insist on: then they, or what they need, come from there as well.
        println!("    once more, with backports");
        from_backports(&root, &plain)?;
    }
    let qemu: Vec<_> = packages.iter().copied().filter(is_qemu).collect();
    if backports { from_backports(&root, &qemu) } else { Ok(()) }
}

/// The major version apt would install; `None` when it knows no such package.
fn candidate_major() -> Result<Option<u32>> {
    let output = Command::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["policy", QEMU])
        .output()
        .context("start apt-cache")?;
    Ok(major_of(&String::from_utf8_lossy(&output.stdout)))
}

/// `Candidate: 1:10.0.2+ds-2` is major version 10: the epoch stands before the colon.
fn major_of(policy: &str) -> Option<u32> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.split('.').next()?.parse().ok()
}

/// Debian 12's own QEMU is too old; its backports carry a newer one. What is not there comes
/// from the release.
fn from_backports(root: &Root, packages: &[&str]) -> Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let field = |name: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_matches('"'))
    };
    let (Some("debian"), Some(codename)) = (field("ID="), field("VERSION_CODENAME=")) else {
        bail!(
            "apt cannot install {} here, and only Debian has backports to try (QEMU has to be \
             version {QEMU_MAJOR} or newer to emulate x2APIC): install it and try again",
            packages.join(" ")
        );
    };
    let suite = format!("{codename}-backports");
    let sources = read_sources()?;
    if !sources.iter().any(|text| text.split_whitespace().any(|word| word == suite)) {
        let source = sources
            .iter()
            .find_map(|text| backports_source(text, codename))
            .with_context(|| format!("no apt source of {codename} to derive {suite} from"))?;
        println!("    adding the apt source {suite}, beside {codename}: {SOURCE}");
        root.write(SOURCE, &source)?;
        root.apt(&["update"])?;
    }
    root.install(&["-t", &suite], packages)
}

/// Every apt source of this host, one text per file.
fn read_sources() -> Result<Vec<String>> {
    let mut paths = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
    if let Ok(folder) = std::fs::read_dir("/etc/apt/sources.list.d") {
        paths.extend(folder.flatten().map(|entry| entry.path()));
    }
    paths.retain(|path| path.is_file());
    paths
        .iter()
        .map(|path| {
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
        })
        .collect()
}

/// The backports of `codename` from the same mirror under the same key, as a deb822
/// source, when `text` has a source of `codename`'s main component.
fn backports_source(text: &str, codename: &str) -> Option<String> {
    one_line_source(text, codename).or_else(|| stanza_source(text, codename))
}

/// `deb [signed-by=KEY] URI SUITE COMPONENT…`
fn one_line_source(text: &str, codename: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        if suite != codename || !words.any(|component| component == "main") {
            return None;
        }
        let key = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        let key = key.map(|key| format!("Signed-By: {key}\n"));
        Some(render(uri, codename, &key.unwrap_or_default()))
    })
}

/// A stanza of `Field: value` lines; a value may go on in indented lines.
fn stanza_source(text: &str, codename: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let lines: Vec<_> = stanza.lines().filter(|line| !line.starts_with('#')).collect();
        let field =
            |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let has = |name: &str, word: &str| {
            field(name).is_some_and(|value| value.split_whitespace().any(|found| found == word))
        };
        if !has("Types:", "deb") || !has("Suites:", codename) || !has("Components:", "main") {
            return None;
        }
        let mut key = String::new();
        let mut inside = false;
        for line in &lines {
            inside = line.starts_with("Signed-By:") || (inside && line.starts_with(' '));
            if inside {
                writeln!(key, "{line}").ok()?;
            }
        }
        Some(render(field("URIs:")?, codename, &key))
    })
}

fn render(uris: &str, codename: &str, key: &str) -> String {
    format!("Types: deb\nURIs: {uris}\nSuites: {codename}-backports\nComponents: main\n{key}")
}

/// The way to run something as root.
struct Root {
    sudo: bool,
}

impl Root {
    fn find() -> Option<Self> {
        let id = Command::new("id").arg("-u").output().ok()?;
        if String::from_utf8_lossy(&id.stdout).trim() == "0" {
            return Some(Self { sudo: false });
        }
        let quiet = Command::new("sudo").args(["-n", "true"]).output().ok()?;
        quiet.status.success().then_some(Self { sudo: true })
    }

    fn command(&self, program: &str) -> Command {
        if self.sudo {
            let mut command = Command::new("sudo");
            command.args(["-n", program]);
            command
        } else {
            Command::new(program)
        }
    }

    /// Runs apt-get, and shows what it said only when it fails.
    fn apt(&self, arguments: &[&str]) -> Result<()> {
        let output = self
            .command("env")
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"])
            .args(arguments)
            .output()
            .context("start apt-get")?;
        if !output.status.success() {
            eprint!("{}", String::from_utf8_lossy(&output.stdout));
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            bail!("`apt-get {}` failed", arguments.join(" "));
        }
        Ok(())
    }

    fn install(&self, options: &[&str], packages: &[&str]) -> Result<()> {
        println!("    {}", packages.join(" "));
        let fixed = ["install", "-y", "--no-install-recommends"];
        self.apt(&[&fixed[..], options, packages].concat())
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let script = format!("cat > {path} <<'END'\n{text}END\n");
        let status = self.command("sh").args(["-c", &script]).status().context("start sh")?;
        if !status.success() {
            bail!("cannot write {path}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &str = "Types: deb\nURIs: http://mirror.example/debian\n\
                          Suites: bookworm-backports\nComponents: main\n";

    #[test]
    fn backports_come_from_the_same_mirror_under_the_same_key() {
        let stanzas = "# the mirror\nTypes: deb\nURIs: http://mirror.example/debian\n\
                       Suites: bookworm bookworm-updates\nComponents: main\n\
                       Signed-By: /usr/share/keyrings/archive.gpg\n\n\
                       Types: deb\nURIs: http://other.example/\nSuites: bookworm-security\n\
                       Components: main\n";
        let wanted = format!("{WANTED}Signed-By: /usr/share/keyrings/archive.gpg\n");
        assert_eq!(backports_source(stanzas, "bookworm"), Some(wanted));
        assert_eq!(backports_source(stanzas, "trixie"), None);
    }

    #[test]
    fn one_line_sources_and_inline_keys_are_read_as_well() {
        let line = "# deb http://no.example/ bookworm main\n\
                    deb http://mirror.example/debian bookworm main contrib\n";
        assert_eq!(backports_source(line, "bookworm").as_deref(), Some(WANTED));
        let signed = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main";
        let wanted = format!("{WANTED}Signed-By: /k.gpg\n");
        assert_eq!(backports_source(signed, "bookworm"), Some(wanted));
        let inline = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n\
                      Signed-By:\n -----BEGIN\n .\n abc\nComponents: main\n";
        let wanted = format!("{WANTED}Signed-By:\n -----BEGIN\n .\n abc\n");
        assert_eq!(backports_source(inline, "bookworm"), Some(wanted));
    }

    #[test]
    fn the_epoch_is_no_version() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:10.0.2+ds-2\n";
        assert_eq!(major_of(policy), Some(10));
        assert_eq!(major_of("  Candidate: (none)\n"), None);
    }
}
