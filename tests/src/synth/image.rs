//! A program that never ran: an ELF image with code, symbols and call frame information.

use super::bytes::Record;

/// Address of the code.
pub const TEXT: u64 = 0x100_0000;
/// The outermost function: its call frame information says that nobody called it.
pub const START: u64 = TEXT;
/// A function with call frame information, through its frame pointer.
pub const MAIN: u64 = TEXT + 0x100;
/// A function with a frame pointer and no call frame information.
pub const WORKER: u64 = TEXT + 0x200;
/// A function with neither.
pub const HELPER: u64 = TEXT + 0x300;
/// A function with call frame information and no frame pointer.
pub const LEAF: u64 = TEXT + 0x400;
/// Bytes of each.
const FUNCTION_BYTES: u64 = 0x80;
/// From the start of a function to the address behind the call in it.
pub const RETURN: u64 = 0x25;
/// Its build-id.
pub const BUILD_ID: [u8; 20] =
    [0xe9, 0x17, 0xaf, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];

const FUNCTIONS: [(&str, u64); 5] = [
    ("_start", START),
    // The second generation of mangled names, and the first.
    ("_RNvCs1234_9appliance4main", MAIN),
    ("_ZN9workloads5sieve4mark17h0123456789abcdefE", WORKER),
    ("helper", HELPER),
    ("leaf", LEAF),
];

/// The code: one page, a call in every function, NOPs elsewhere.
#[must_use]
pub fn text() -> Vec<u8> {
    let mut text = vec![0x90; 4096];
    for (_, start) in FUNCTIONS {
        let call = (start - TEXT + RETURN - 5) as usize;
        text[call..call + 5].copy_from_slice(&[0xe8, 0, 0, 0, 0]);
    }
    text
}

/// `.debug_frame`: one CIE of version 4, one FDE per function that has one.
fn debug_frame() -> Vec<u8> {
    let mut section = Vec::new();
    let mut entry = |body: &[u8]| {
        let padded = (body.len() + 4).next_multiple_of(8) - 4;
        section.extend((padded as u32).to_le_bytes());
        section.extend(body);
        // DW_CFA_nop is 0.
        section.resize(section.len() + padded - body.len(), 0);
    };
    // CIE: no augmentation, 8-byte addresses, code alignment 1, data alignment -8,
    // return address in column 16; CFA = rsp + 8, return address at CFA - 8.
    let mut cie = u32::MAX.to_le_bytes().to_vec();
    cie.extend([4, 0, 8, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1]);
    entry(&cie);
    let mut fde = |start: u64, instructions: &[u8]| {
        let mut body = 0u32.to_le_bytes().to_vec();
        body.extend(start.to_le_bytes());
        body.extend(FUNCTION_BYTES.to_le_bytes());
        body.extend(instructions);
        entry(&body);
    };
    // DW_CFA_undefined r16.
    fde(START, &[0x07, 16]);
    // push %rbp: CFA = rsp + 16, rbp at CFA - 16; mov %rsp,%rbp: CFA = rbp + 16.
    fde(MAIN, &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6]);
    fde(LEAF, &[]);
    section
}

/// A section without an address: its name, its flags, its content.
pub type Extra = (&'static str, u64, Vec<u8>);

/// The ELF image, with `build_id`.
#[must_use]
pub fn build(build_id: &[u8]) -> Vec<u8> {
    build_parts(build_id, FUNCTIONS[2].0, &[])
}

/// The same with another name for the function at [`WORKER`].
#[must_use]
pub fn build_named(build_id: &[u8], worker: &str) -> Vec<u8> {
    build_parts(build_id, worker, &[])
}

/// The sections of DWARF 4 that give lines to [`MAIN`]: line 10 at its start, 11 from 0x10 on,
/// 0 from 0x20 on, which is where its call is.
#[must_use]
pub fn debug_lines() -> Vec<Extra> {
    let with_length = |body: Vec<u8>| {
        let mut section = (body.len() as u32).to_le_bytes().to_vec();
        section.extend(body);
        section
    };
    // A unit without children: name, table of lines, folder, first address, length.
    let abbrev =
        [&[1, 0x11, 0, 0x03, 0x08, 0x10, 0x17, 0x1b, 0x08][..], &[0x11, 0x01, 0x12, 0x07, 0, 0, 0]];
    let mut info = vec![4, 0, 0, 0, 0, 0, 8, 1];
    info.extend(b"main.rs\0\0\0\0\0/build\0");
    info.extend(MAIN.to_le_bytes());
    info.extend(FUNCTION_BYTES.to_le_bytes());
    // Instructions of one byte, rows are statements, no special opcodes used.
    let mut header = vec![1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0];
    header.extend(b"main.rs\0\0\0\0\0");
    let mut line = vec![4, 0];
    line.extend((header.len() as u32).to_le_bytes());
    line.extend(header);
    // Set the address; then advance line and address between the rows, and end.
    line.extend([0, 9, 2]);
    line.extend(MAIN.to_le_bytes());
    line.extend([3, 9, 1, 2, 0x10, 3, 1, 1, 2, 0x10, 3, 0x75, 1, 2, 0x60, 0, 1, 1]);
    vec![
        (".debug_abbrev", 0, abbrev.concat()),
        (".debug_info", 0, with_length(info)),
        (".debug_line", 0, with_length(line)),
    ]
}

/// The ELF image, with `build_id` and further sections.
#[must_use]
pub fn build_with(build_id: &[u8], extra: &[Extra]) -> Vec<u8> {
    build_parts(build_id, FUNCTIONS[2].0, extra)
}

fn build_parts(build_id: &[u8], worker: &str, extra: &[Extra]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend(4u32.to_le_bytes());
    note.extend((build_id.len() as u32).to_le_bytes());
    note.extend(3u32.to_le_bytes());
    note.extend(b"GNU\0");
    note.extend(build_id);
    note.resize(note.len().next_multiple_of(4), 0);

    let mut names = vec![0];
    let mut symbols = vec![0; 24];
    // A function the linker dropped leaves its description behind, at address 0.
    for (name, start) in [("dropped", 0)].into_iter().chain(FUNCTIONS) {
        // STB_GLOBAL, STT_FUNC, in section 1.
        symbols.extend((names.len() as u32).to_le_bytes());
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend(start.to_le_bytes());
        symbols.extend(FUNCTION_BYTES.to_le_bytes());
        let name = if start == WORKER { worker } else { name };
        names.extend(name.as_bytes());
        names.push(0);
    }
    // Name, type, flags, address, content, link, info, entry size.
    type Section<'a> = (&'a str, u32, u64, u64, Vec<u8>, u32, u32, u64);
    let mut sections: Vec<Section<'_>> = vec![
        (".text", 1, 6, TEXT, text(), 0, 0, 0),
        (".note.gnu.build-id", 7, 2, TEXT + 4096, note, 0, 0, 0),
        (".debug_frame", 1, 0, 0, debug_frame(), 0, 0, 0),
        (".symtab", 2, 0, 0, symbols, 5, 1, 24),
        (".strtab", 3, 0, 0, names, 0, 0, 0),
        (".shstrtab", 3, 0, 0, Vec::new(), 0, 0, 0),
    ];
    let plain = |(name, flags, content): &Extra| (*name, 1, *flags, 0, content.clone(), 0, 0, 0);
    sections.extend(extra.iter().map(plain));
    let count = sections.len() as u16 + 1;
    let mut all_names = vec![0];
    for (name, ..) in &sections {
        all_names.extend(name.as_bytes());
        all_names.push(0);
    }
    let mut section_names = vec![0];
    let mut headers = vec![0; 64];
    let mut file = vec![0; 4096];
    for (name, kind, flags, address, content, link, info, entry) in sections {
        let mut header = Record::new(64);
        header.u32(0, section_names.len() as u32);
        section_names.extend(name.as_bytes());
        section_names.push(0);
        let content = if name == ".shstrtab" { all_names.clone() } else { content };
        file.resize(file.len().next_multiple_of(16), 0);
        header
            .u32(4, kind)
            .u64(8, flags)
            .u64(16, address)
            .u64(24, file.len() as u64)
            .u64(32, content.len() as u64)
            .u32(40, link)
            .u32(44, info)
            .u64(48, 4)
            .u64(56, entry);
        headers.extend(header.0);
        file.extend(content);
    }
    file.resize(file.len().next_multiple_of(16), 0);
    let section_offset = file.len() as u64;
    file.extend(headers);
    let mut start = Record::new(64 + 56);
    start
        .put(0, b"\x7fELF\x02\x01\x01")
        .put(16, &2u16.to_le_bytes())
        .put(18, &62u16.to_le_bytes())
        .u32(20, 1)
        .u64(24, START)
        .u64(32, 64)
        .u64(40, section_offset)
        .put(52, &64u16.to_le_bytes())
        .put(54, &56u16.to_le_bytes())
        .put(56, &1u16.to_le_bytes())
        .put(58, &64u16.to_le_bytes())
        .put(60, &count.to_le_bytes())
        .put(62, &6u16.to_le_bytes());
    // PT_LOAD, readable and executable.
    start.u32(64, 1).u32(68, 5).u64(72, 4096).u64(80, TEXT).u64(88, TEXT);
    start.u64(96, 4096).u64(104, 4096).u64(112, 4096);
    file[..start.0.len()].copy_from_slice(&start.0);
    file
}
