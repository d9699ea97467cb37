//! Names what a file is that is no dump of an appliance, and what reads it or how to get at what
//! is in it.
//!
//! Only the first bytes, the ELF header and the notes are looked at.

use std::path::{Path, PathBuf};

use vmcore_format::area::{AREA_MAGIC, look};
use vmcore_format::notes::EPITAPH_OWNER;
use vmcore_format::reader::{CoreReader, ReadError};

use crate::dump::read_header;
use crate::file::Part;
use crate::{Error, Result};

/// Bytes at the start of a disk that tell what is on it.
pub(crate) const SIGNATURE_BYTES: u64 = 128 << 10;
/// `e_machine` of x86_64 (System V ABI AMD64, section 4.1.1).
const X86_64: u16 = 62;
/// Note types of a process: NT_PRPSINFO, NT_AUXV, NT_FILE (`elf.h`).
const PROCESS_NOTES: [u32; 3] = [3, 6, 0x4649_4c45];
/// Begin of a line of last words.
const LAST_WORDS: &[u8] = b"~EP ";

/// What to do with a file of another kind.
#[derive(Clone, Copy)]
enum Use {
    /// Nothing: it holds no dump.
    Nothing,
    /// Something else than reading a dump; says what.
    Other(&'static str),
    /// It is a disk image in a format of a virtual machine: make a raw one of it.
    Convert,
    /// It is compressed, by the program of this name: unpack it.
    Unpack(&'static str),
}

/// A kind of file: where its signature stands, the signature, its name, and what to do with it.
type Kind = (usize, &'static [u8], &'static str, Use);

/// Kinds of files, and none of what is on a disk, which [`look::signature`] knows; of two that
/// fit, the first is meant.
const KINDS: &[Kind] = &[
    (0, &AREA_MAGIC, "a dump area", Use::Nothing),
    (
        0x202,
        b"HdrS",
        "a Linux kernel image (bzImage), not a dump; it is no image of an appliance",
        Use::Nothing,
    ),
    (
        56,
        b"ARM\x64",
        "a Linux kernel image (arm64), not a dump; it is no image of an appliance",
        Use::Nothing,
    ),
    (
        0,
        b"makedumpfile\0",
        "a flattened vmcore of makedumpfile, or of QEMU's dump-guest-memory -z, -l or -s",
        Use::Other("`makedumpfile -R OUT < FILE` makes a plain one, and `crash` reads that"),
    ),
    (
        0,
        b"KDUMP   ",
        "a kdump-compressed vmcore, of Linux or of QEMU's dump-guest-memory -z, -l or -s",
        Use::Other("`crash` reads it"),
    ),
    (0, b"QFI\xfb", "a qcow2 image", Use::Convert),
    (0, b"QED\0", "a QED image", Use::Convert),
    (0, b"KDMV", "a VMware image (VMDK)", Use::Convert),
    (0, b"COWD", "a VMware image (VMDK)", Use::Convert),
    (0, b"# Disk DescriptorFile", "the description of a VMware image (VMDK)", Use::Convert),
    (0, b"conectix", "a VHD image", Use::Convert),
    (0, b"vhdxfile", "a VHDX image", Use::Convert),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox image (VDI)", Use::Convert),
    (0, b"WithoutFreeSpace", "a Parallels image", Use::Convert),
    (0, b"WithouFreSpacExt", "a Parallels image", Use::Convert),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", Use::Unpack("zstd")),
    (0, b"\xfd7zXZ\0", "an xz file", Use::Unpack("xz")),
    (0, b"\x1f\x8b", "a gzip file", Use::Unpack("gzip")),
    (0, b"BZh", "a bzip2 file", Use::Unpack("bzip2")),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file", Use::Unpack("lz4")),
    (0, b"\x02\x21\x4c\x18", "an LZ4 file of the old format", Use::Unpack("lz4")),
    (0, b"\x89LZO", "an lzop file", Use::Unpack("lzop")),
    (0, b"PK\x03\x04", "a zip file", Use::Other("unpack it with `unzip`")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z file", Use::Other("unpack it with `7z x`")),
    (257, b"ustar", "a tar file", Use::Other("unpack it with `tar -xf`")),
    (0, b"PAGEDU64", "a Windows crash dump", Use::Nothing),
    (0, b"MDMP", "a minidump", Use::Nothing),
    (0, b"MZ", "a PE file, such as a UEFI program", Use::Nothing),
];

/// Finds the name of what begins with `start`, and what to do with it.
fn kind(start: &[u8]) -> Option<(&'static str, Use)> {
    let known = KINDS.iter().find(|&&(at, signature, ..)| {
        start.get(at..).is_some_and(|bytes| bytes.starts_with(signature))
    });
    // Only the start of a disk is at hand; its size is that of no other superblock.
    let on_disk = || look::signature(start, 0, u64::MAX).map(|name| (name, Use::Nothing));
    known.map(|&(_, _, name, how)| (name, how)).or_else(on_disk)
}

/// Names what begins with `start`, as far as it is known by a signature.
pub(crate) fn recognise(start: &[u8]) -> Option<&'static str> {
    kind(start).map(|(name, _)| name)
}

/// Names what begins with `start` and is neither ELF nor a dump area, and what to do with it.
pub(crate) fn name(start: &[u8]) -> Option<String> {
    if let Some((name, how)) = kind(start) {
        return Some(match how {
            Use::Nothing => name.into(),
            Use::Other(how) => format!("{name}; {how}"),
            Use::Convert => {
                format!("{name}; turn it into a raw one with `qemu-img convert -O raw`")
            }
            Use::Unpack(program) => format!("{name}; unpack it with `{program} -d`"),
        });
    }
    if start.windows(LAST_WORDS.len()).any(|bytes| bytes == LAST_WORDS) {
        return Some(
            "the text of a console with last words; `vmcore last-words FILE` shows them".into(),
        );
    }
    is_text(start).then(|| {
        "a text; if it is what a console showed, `vmcore last-words FILE` looks for last words"
            .into()
    })
}

/// Refuses a file that begins with `start` and is neither ELF nor a dump area, and gives the
/// command that makes a readable copy of one that is converted or compressed.
pub(crate) fn refuse(path: &Path, start: &[u8]) -> Error {
    let from = quoted(path);
    let to = quoted(&raw(path));
    let (command, image) = match kind(start).map(|(_, how)| how) {
        Some(Use::Convert) => (format!("qemu-img convert -O raw {from} {to}"), true),
        Some(Use::Unpack("zstd")) => (format!("zstd -d {from} -o {to}"), false),
        Some(Use::Unpack("lz4")) => (format!("lz4 -d {from} {to}"), false),
        Some(Use::Unpack(program)) => (format!("{program} -d -c {from} > {to}"), false),
        Some(Use::Nothing | Use::Other(_)) | None => {
            let neither = "neither an ELF core nor a disk with a dump area";
            return Error::foreign(
                path,
                match name(start) {
                    Some(name) => format!("{neither}, but {name}"),
                    None if start.is_empty() => "an empty file".into(),
                    None => neither.into(),
                },
            );
        }
    };
    let what = format!("this is {}", recognise(start).unwrap_or_default());
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

/// Returns true for bytes that hold no control characters but those of a console.
fn is_text(start: &[u8]) -> bool {
    let control = |byte: &u8| byte.is_ascii_control() && !b"\n\r\t\x08\x1b\x0c\x07".contains(byte);
    !start.is_empty() && !start.iter().any(control)
}

/// Refuses an ELF file that is no core of an appliance, and says what it is.
///
/// # Errors
/// [`Error::Foreign`] with its kind; others when it cannot be read.
pub(crate) fn refuse_foreign_elf(path: &Path, part: &Part) -> Result<()> {
    let header = read_header(path, part)?;
    let foreign = |what: String| Err(Error::foreign(path, what));
    let reader = match CoreReader::new(&header, part.bytes()) {
        Ok(reader) => reader,
        Err(error @ (ReadError::NotCore(_) | ReadError::Unsupported)) => {
            return foreign(no_core(&header, error));
        }
        // What is damaged may be ours: the reader of the dump says so.
        Err(_) => return Ok(()),
    };
    let (mut ours, mut qemu, mut linux, mut process, mut any) = (false, false, false, None, false);
    for note in reader.notes() {
        // A damaged note may be ours: the reader of the dump says so.
        let Ok(note) = note else { return Ok(()) };
        any = true;
        match note.owner {
            EPITAPH_OWNER => ours = true,
            "QEMU" => qemu = true,
            "VMCOREINFO" => linux = true,
            "CORE" if PROCESS_NOTES.contains(&note.kind) => {
                let name = (note.kind == 3).then(|| program_name(note.desc)).flatten();
                process = Some(name.or(process.flatten()));
            }
            _ => {}
        }
    }
    // QEMU calls a machine that is not in long mode i386.
    if reader.machine() != X86_64 && !qemu {
        return foreign(format!(
            "a core of {}, where this program reads those of x86_64; use a gdb for that machine",
            machine(reader.machine())
        ));
    }
    if ours {
        return Ok(());
    }
    foreign(match process {
        _ if qemu => "a dump that QEMU made of a machine (dump-guest-memory), not of an Epitaph \
                      appliance's own capture: it holds memory and registers, and no record of a \
                      crash; `gdb IMAGE FILE` reads it"
            .into(),
        _ if linux => "a vmcore of a Linux kernel (VMCOREINFO), not of an Epitaph appliance; \
                       `crash vmlinux FILE` or drgn reads it"
            .into(),
        Some(name) => {
            let name = name.map_or(String::new(), |name| format!(" `{name}`"));
            format!(
                "a core of a process{name}, not of an Epitaph appliance; `gdb PROGRAM FILE` reads it"
            )
        }
        None => format!(
            "an ELF core, but not of an Epitaph appliance: it has {}; gdb may read it",
            if any { "no EPITAPH note" } else { "no notes at all" }
        ),
    })
}

/// Says what an ELF file is that is no 64-bit core.
fn no_core(header: &[u8], error: ReadError) -> String {
    let half = |at: usize| {
        let bytes = header.get(at..at + 2)?;
        Some(u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    let ReadError::NotCore(kind) = error else {
        let class = match header.get(4..6) {
            Some([1, _]) => "a 32-bit one",
            Some([2, 2]) => "a big-endian one",
            _ => "one of another kind",
        };
        return format!("{error}: {class}");
    };
    let of = half(18).map_or(String::new(), |found| format!(" for {}", machine(found)));
    let linux = header.windows(6).any(|bytes| bytes == b"Linux\0");
    match kind {
        1 => format!("an object file or kernel module{of}, not a core (type 4)"),
        2 | 3 if linux => format!("a Linux kernel image or program{of}, not a core (type 4)"),
        2 | 3 => format!(
            "a program{of}, not a core (type 4); if it is the image that crashed, give it with \
             --image"
        ),
        _ => error.to_string(),
    }
}

/// The name in an NT_PRPSINFO of 64 bits: 16 bytes at offset 40 (`elf_prpsinfo`).
fn program_name(desc: &[u8]) -> Option<String> {
    let name = desc.get(40..56)?.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned()).filter(|name| !name.is_empty())
}

/// The name of an `e_machine`, and its number.
fn machine(number: u16) -> String {
    let name = match number {
        2 => "SPARC",
        3 => "i386",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "PowerPC64",
        22 => "S/390",
        40 => "ARM",
        43 => "SPARC V9",
        50 => "IA-64",
        X86_64 => "x86_64",
        183 => "AArch64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return format!("a machine of type {number} (e_machine)"),
    };
    format!("{name} (e_machine {number})")
}

/// Names a file that was taken for the text of a console, when it is something else.
pub(crate) fn not_a_console(start: &[u8]) -> Option<String> {
    if start.starts_with(b"\x7fELF") {
        return Some("an ELF file; if it is a vmcore, `vmcore info FILE` reads it".into());
    }
    let binary = start.iter().filter(|&&byte| byte == 0).count() > start.len() / 4;
    name(start).filter(|_| binary || !is_text(start))
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
