//! Files of other kinds, by their first bytes: what they are, and how to get at what is in them.

use std::path::{Path, PathBuf};

use vmcore_format::area::AREA_MAGIC;

use crate::Error;

/// Bytes at the start of a disk that tell what is on it.
pub(crate) const SIGNATURE_BYTES: u64 = 128 << 10;

/// The wrapping of a disk or core.
#[derive(Clone, Copy)]
enum Wrap {
    /// Not at all: it is something else.
    None,
    /// In an image format of a virtual machine.
    Image,
    /// Compressed, by the program of this name.
    Compressed(&'static str),
}

/// A kind of file: where its signature stands, the signature, its name, and how it is wrapped.
type Kind = (usize, &'static [u8], &'static str, Wrap);

const KINDS: &[Kind] = &[
    (0, &AREA_MAGIC, "a dump area", Wrap::None),
    (0, b"QFI\xfb", "a qcow2 image", Wrap::Image),
    (0, b"QED\0", "a QED image", Wrap::Image),
    (0, b"KDMV", "a VMware image (VMDK)", Wrap::Image),
    (0, b"COWD", "a VMware image (VMDK)", Wrap::Image),
    (0, b"# Disk DescriptorFile", "the description of a VMware image (VMDK)", Wrap::Image),
    (0, b"conectix", "a VHD image", Wrap::Image),
    (0, b"vhdxfile", "a VHDX image", Wrap::Image),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox image (VDI)", Wrap::Image),
    (0, b"WithoutFreeSpace", "a Parallels image", Wrap::Image),
    (0, b"WithouFreSpacExt", "a Parallels image", Wrap::Image),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", Wrap::Compressed("zstd")),
    (0, b"\xfd7zXZ\0", "an xz file", Wrap::Compressed("xz")),
    (0, b"\x1f\x8b", "a gzip file", Wrap::Compressed("gzip")),
    (0, b"BZh", "a bzip2 file", Wrap::Compressed("bzip2")),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file", Wrap::Compressed("lz4")),
    (0, b"KDUMP   ", "a kdump-compressed vmcore of Linux; `crash` reads it", Wrap::None),
    (0, b"PAGEDU64", "a Windows crash dump", Wrap::None),
    (0, b"MDMP", "a minidump", Wrap::None),
    (0, b"hsqs", "a squashfs", Wrap::None),
    (0, b"XFSB", "an XFS file system", Wrap::None),
    (0, b"LUKS\xba\xbe", "a LUKS volume", Wrap::None),
    (3, b"NTFS    ", "an NTFS file system", Wrap::None),
    (512, b"EFI PART", "a GPT partition table", Wrap::None),
    (512, b"LABELONE", "an LVM volume", Wrap::None),
    (1080, b"\x53\xef", "an ext file system", Wrap::None),
    (4086, b"SWAPSPACE2", "a Linux swap area", Wrap::None),
    (4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member", Wrap::None),
    (32769, b"CD001", "an ISO 9660 image", Wrap::None),
    (65600, b"_BHRfS_M", "a btrfs file system", Wrap::None),
    (510, b"\x55\xaa", "an MBR partition table or boot sector", Wrap::None),
];

fn kind(start: &[u8]) -> Option<&'static Kind> {
    let is = |&&(at, signature, ..): &&Kind| start.get(at..at + signature.len()) == Some(signature);
    KINDS.iter().find(is)
}

/// Names what begins with `start`, as far as it is known.
pub(crate) fn recognise(start: &[u8]) -> Option<&'static str> {
    kind(start).map(|&(_, _, name, _)| name)
}

/// The error for a file that begins with `start` and is neither a core nor a dump area.
pub(crate) fn refuse(path: &Path, start: &[u8]) -> Error {
    let (what, wrap) = match kind(start) {
        Some(&(_, _, name, wrap)) => (format!("this is {name}"), wrap),
        None if start.is_empty() => ("an empty file".into(), Wrap::None),
        None => ("neither an ELF core nor a disk with a dump area".into(), Wrap::None),
    };
    let from = quoted(path);
    let command = match wrap {
        Wrap::None => return Error::foreign(path, what),
        Wrap::Image => format!("qemu-img convert -O raw {from} {}", quoted(&raw(path))),
        Wrap::Compressed(program @ ("zstd" | "lz4")) => {
            let to = quoted(&raw(path));
            let to = if program == "zstd" { format!("-o {to}") } else { to };
            format!("{program} -d {from} {to}")
        }
        Wrap::Compressed(program) => format!("{program} -d -c {from} > {}", quoted(&raw(path))),
    };
    let image = matches!(wrap, Wrap::Image);
    Error::Wrapped { path: path.to_owned(), what, command, image }
}

/// The path of the file that is made of the one at `path`.
fn raw(path: &Path) -> PathBuf {
    let bare = path.with_extension("raw");
    if bare == path { path.with_extension("copy.raw") } else { bare }
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) && !text.starts_with('-') {
        return text;
    }
    let dot = if text.starts_with('-') { "./" } else { "" };
    format!("'{dot}{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let said = |path: &str, start: &[u8]| refuse(Path::new(path), start).to_string();
        let found = said("a b'c.qcow2", b"QFI\xfb");
        assert!(found.contains("qemu-img convert -O raw 'a b'\\''c.qcow2' 'a b'\\''c.raw'"));
        let found = said("-x", b"\x1f\x8b");
        assert!(found.ends_with("gzip -d -c './-x' > './-x.raw'"), "{found}");
        let found = said("disk.raw", b"\x04\x22\x4d\x18");
        assert!(found.ends_with("lz4 -d disk.raw disk.copy.raw"), "{found}");
    }
}
