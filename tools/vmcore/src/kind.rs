//! Names what a file is that is no dump of an appliance, and what reads it.
//!
//! Only the first bytes, the ELF header and the notes are looked at.

use std::path::Path;

use vmcore_format::notes::EPITAPH_OWNER;
use vmcore_format::reader::{CoreReader, ReadError};

use crate::dump::read_header;
use crate::file::Part;
use crate::source::recognise;
use crate::{Error, Result};

/// `e_machine` of x86_64 (System V ABI AMD64, section 4.1.1).
const X86_64: u16 = 62;
/// Note types of a process: NT_PRPSINFO, NT_AUXV, NT_FILE (`elf.h`).
const PROCESS_NOTES: [u32; 3] = [3, 6, 0x4649_4c45];
/// Begin of a line of last words.
const LAST_WORDS: &[u8] = b"~EP ";

/// Where a signature stands, what it is, and what to do with the file.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0x202, b"HdrS", "a Linux kernel image (bzImage), not a dump; it is no image of an appliance"),
    (56, b"ARM\x64", "a Linux kernel image (arm64), not a dump; it is no image of an appliance"),
    (
        0,
        b"makedumpfile\0",
        "a flattened vmcore of makedumpfile, or of QEMU's dump-guest-memory -z, -l or -s; `makedumpfile -R OUT < FILE` makes \
      a plain one, and `crash` reads that",
    ),
    (
        0,
        b"KDUMP   ",
        "a kdump-compressed vmcore, of Linux or of QEMU's dump-guest-memory -z, -l \
      or -s; `crash` reads it",
    ),
    (0, b"\x04\x22\x4d\x18", "an lz4 file; unpack it with `lz4 -d`"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file of the old format; unpack it with `lz4 -d`"),
    (0, b"BZh", "a bzip2 file; unpack it with `bzip2 -d`"),
    (0, b"\x89LZO", "an lzop file; unpack it with `lzop -d`"),
    (0, b"PK\x03\x04", "a zip file; unpack it with `unzip`"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z file; unpack it with `7z x`"),
    (257, b"ustar", "a tar file; unpack it with `tar -xf`"),
    (0, b"MZ", "a PE file, such as a UEFI program"),
];

/// Names what begins with `start` and is neither ELF nor a dump area.
pub(crate) fn name(start: &[u8]) -> Option<&'static str> {
    let is = |&&(at, signature, _): &&(usize, &[u8], &str)| {
        start.get(at..).is_some_and(|bytes| bytes.starts_with(signature))
    };
    if let Some(&(.., name)) = SIGNATURES.iter().find(is) {
        return Some(name);
    }
    recognise(start).or_else(|| {
        if start.windows(LAST_WORDS.len()).any(|bytes| bytes == LAST_WORDS) {
            return Some(
                "the text of a console with last words; `vmcore last-words FILE` shows them",
            );
        }
        is_text(start).then_some(
            "a text; if it is what a console showed, `vmcore last-words FILE` looks for last words",
        )
    })
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
pub(crate) fn not_a_console(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(b"\x7fELF") {
        return Some("an ELF file; if it is a vmcore, `vmcore info FILE` reads it");
    }
    let binary = start.iter().filter(|&&byte| byte == 0).count() > start.len() / 4;
    recognise(start).or_else(|| name(start)).filter(|_| binary || !is_text(start))
}
