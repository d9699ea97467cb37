//! The boot medium: GRUB, the appliance and its capture image.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The template of GRUB's configuration.
const GRUB_CFG: &str = include_str!("../../../images/grub.cfg");

/// What GRUB needs to find its own folder on the medium and start a Multiboot2 kernel,
/// from BIOS and UEFI alike; the rest of its modules would triple the image.
const GRUB_MODULES: &str =
    "multiboot2 normal iso9660 part_msdos part_gpt fat configfile search search_fs_file all_video";

/// The module of the commands that take memory out of GRUB's map.
const GRUB_MEMORY_MODULE: &str = "mmap";

/// Makes a CD image at `iso` that boots by BIOS and by UEFI.
///
/// `capture` is left out when `None`; with `text_mode` GRUB is told to leave the screen in
/// the text mode of a BIOS. `cut`, start and end, is taken out of the memory map that the appliance
/// is given, as `badram` and `cutmem` do. What the image is made from is put together beside
/// it, in a folder that stays when something fails.
///
/// # Errors
/// grub-mkrescue or a program it calls is missing or fails; holds what it said.
pub fn make_iso(
    appliance: &Path,
    capture: Option<&Path>,
    command_line: &str,
    text_mode: bool,
    cut: Option<(u64, u64)>,
    iso: &Path,
) -> Result<()> {
    let tree = iso.with_extension("iso.d");
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("clear {}", tree.display()))?;
    }
    let boot = tree.join("boot");
    std::fs::create_dir_all(boot.join("grub"))
        .with_context(|| format!("create {}", boot.display()))?;
    let place = |from: &Path, name: &str| -> Result<()> {
        std::fs::copy(from, boot.join(name))
            .map(|_| ())
            .with_context(|| format!("copy {}", from.display()))
    };
    place(appliance, "appliance")?;
    let mut line = String::new();
    if let Some(capture) = capture {
        place(capture, "capture")?;
        line.push_str("module2 /boot/capture capture");
    }
    let text = configuration(command_line, &line, text_mode, cut);
    std::fs::write(boot.join("grub/grub.cfg"), text).context("write grub.cfg")?;
    let memory = if cut.is_some() { GRUB_MEMORY_MODULE } else { "" };
    let output = Command::new("grub-mkrescue")
        .arg("-o")
        .arg(iso)
        .args(["--fonts=", "--locales=", "--themes="])
        .arg(format!("--install-modules={GRUB_MODULES} {memory}"))
        .arg(&tree)
        .output()
        .context("start grub-mkrescue: `cargo xtask setup` installs it")?;
    if !output.status.success() {
        bail!("grub-mkrescue: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    std::fs::remove_dir_all(&tree).with_context(|| format!("clear {}", tree.display()))
}

/// GRUB's own script language expands `$` and splits at `;`, so the command line goes in
/// quoted; a quote of its own was refused before.
fn configuration(
    command_line: &str,
    capture: &str,
    text_mode: bool,
    cut: Option<(u64, u64)>,
) -> String {
    let words: Vec<_> = command_line.split_whitespace().map(|word| format!("'{word}'")).collect();
    let video = if text_mode { "set gfxpayload=text" } else { "" };
    let cut = cut.map_or_else(String::new, |(start, end)| format!("cutmem {start:#x} {end:#x}"));
    GRUB_CFG
        .replace("@MEMORY@", &cut)
        .replace("@VIDEO@", video)
        .replace("@COMMAND_LINE@", &words.join(" "))
        .replace("@CAPTURE@", capture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_template_is_left_over() {
        let text =
            configuration("crash=panic,cpu=1 a=b;c", "module2 /boot/capture capture", true, None);
        assert!(text.contains("multiboot2 /boot/appliance 'crash=panic,cpu=1' 'a=b;c'\n"));
        assert!(text.contains("module2 /boot/capture capture\n"));
        assert!(text.contains("set gfxpayload=text\n"));
        let script: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(!script.join("\n").contains('@'), "{text}");
    }
}
