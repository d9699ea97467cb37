//! Finds what tests say about themselves.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::harness;

/// A test that proves a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The row.
    pub row: String,
    /// The test, as the test program calls it.
    pub test: String,
    /// Where it is, when it is no end-to-end test.
    pub folder: Option<String>,
}

impl Proof {
    /// The folder, for the table.
    pub fn place(&self) -> String {
        self.folder.as_ref().map(|folder| format!(" (`{folder}`)")).unwrap_or_default()
    }
}

/// The word that introduces the rows.
const PROVES: &str = "Proves ";

/// Every proof in the tree, and what is wrong with those that are none.
pub fn tree() -> Result<(Vec<Proof>, Vec<String>)> {
    let output = Command::new("git")
        .current_dir(harness::root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs"])
        .output()
        .context("start git")?;
    ensure!(output.status.success(), "git ls-files failed");
    let (mut proofs, mut wrong) = (Vec::new(), Vec::new());
    let ours = Path::new(file!()).parent().unwrap_or(Path::new(""));
    for path in String::from_utf8_lossy(&output.stdout).lines() {
        // The marker stands in this folder as an example.
        if Path::new(path).starts_with(ours) {
            continue;
        }
        // One that was just removed is still listed.
        let Ok(text) = std::fs::read_to_string(harness::root().join(path)) else { continue };
        file(path, &text, &mut proofs, &mut wrong);
    }
    Ok((proofs, wrong))
}

/// The proofs of one file.
fn file(path: &str, text: &str, proofs: &mut Vec<Proof>, wrong: &mut Vec<String>) {
    let mut comment = String::new();
    let mut is_test = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(words) = line.strip_prefix("///") {
            comment.push_str(words);
            continue;
        }
        if line.starts_with("#[") {
            is_test |= line == "#[test]";
            continue;
        }
        if let Some((_, rows)) = comment.rsplit_once(PROVES) {
            match item(line, is_test) {
                Some(name) => proofs.extend(names(rows).map(|row| Proof {
                    row,
                    test: test_path(path, name),
                    folder: folder(path),
                })),
                None => {
                    wrong.push(format!("{path}:{}: proves something, and is no test", number + 1))
                }
            }
        }
        comment.clear();
        is_test = false;
    }
}

/// The test that begins on `line`: a function, or a line of a macro that makes one.
fn item(line: &str, is_test: bool) -> Option<&str> {
    if let Some(rest) = line.strip_prefix("fn ") {
        return rest.split('(').next().filter(|_| is_test);
    }
    let (name, _) = line.split_once(" =")?;
    name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_').then_some(name)
}

/// `R1, L5.` up to the full stop.
fn names(rows: &str) -> impl Iterator<Item = String> {
    let list = rows.split('.').next().unwrap_or_default();
    list.split(',').map(|row| row.trim().to_owned())
}

/// What the test program calls the test `name` of the file at `path`.
fn test_path(path: &str, name: &str) -> String {
    let (_, inside) =
        path.rsplit_once("/tests/").or(path.rsplit_once("/src/")).unwrap_or(("", path));
    let module = inside.trim_end_matches(".rs").replace('/', "::");
    if let Some(module) = module.strip_prefix("e2e::") {
        return format!("{module}::{name}");
    }
    if path.contains("/src/") {
        let module = module.trim_end_matches("::mod").trim_end_matches("lib");
        return format!("{module}::tests::{name}").trim_start_matches("::").to_owned();
    }
    // A test program of its own.
    name.to_owned()
}

/// The folder of the crate, when it is not the end-to-end tests'.
fn folder(path: &str) -> Option<String> {
    let (folder, _) = path.split_once("/tests/").or(path.split_once("/src/"))?;
    (!path.starts_with("tests/")).then(|| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
//! Proves R9.
/// Something. Proves R1,
/// L5.
#[test]
#[ignore = \"boots QEMU\"]
fn one() {
stories! {
    /// Proves R2.
    two = Story::PANIC;
}
/// Proves R3.
fn no_test() {
/// Nothing.
#[test]
fn three() {
";

    #[test]
    fn a_test_says_what_it_proves_and_what_is_no_test_proves_nothing() {
        let (mut proofs, mut wrong) = (Vec::new(), Vec::new());
        file("tests/tests/e2e/wedges.rs", TEXT, &mut proofs, &mut wrong);
        let found: Vec<_> = proofs.iter().map(|p| (p.row.as_str(), p.test.as_str())).collect();
        assert_eq!(found, [("R1", "wedges::one"), ("L5", "wedges::one"), ("R2", "wedges::two")]);
        assert_eq!(wrong.len(), 1);
        assert_eq!(proofs[0].folder, None);
    }

    #[test]
    fn tests_have_the_names_that_their_programs_give_them() {
        assert_eq!(test_path("tests/tests/e2e/races.rs", "a"), "races::a");
        assert_eq!(test_path("capture/stop/tests/loom.rs", "a"), "a");
        assert_eq!(test_path("capture/stop/src/mask.rs", "a"), "mask::tests::a");
        assert_eq!(test_path("tests/src/harness/mod.rs", "a"), "harness::tests::a");
        assert_eq!(folder("capture/stop/tests/loom.rs").as_deref(), Some("capture/stop"));
    }
}
