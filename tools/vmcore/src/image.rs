//! The image that crashed: its code, its symbols, its debug information.

use std::fmt::Write;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addr2line::Context;
use gimli::{EndianArcSlice, LittleEndian, Reader, Section};
use handoff::facts::VirtualSegment;
use object::elf::PF_X;
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SectionKind, SymbolKind};
use vmcore_format::PAGE_BYTES;

use crate::dump::Memory;
use crate::file::{Kind, open_seekable};
use crate::kind::{self, SIGNATURE_BYTES};
use crate::unwind::cfi::CfiTable;
use crate::unwind::{Outcome, Program, Registers};
use crate::{Error, Result};

/// What the DWARF readers read from.
pub(crate) type Bytes = EndianArcSlice<LittleEndian>;

/// Largest file taken for an image. The appliance's own is 10 to 100 MiB.
const IMAGE_BYTES: u64 = 256 << 20;
/// Most bytes of all sections of debug information, unpacked. The appliance's own are 6 MiB.
const SECTION_BYTES: u64 = 64 << 20;
/// What compressed sections may expand to at most: deflate reaches 1032.
const EXPANSION: u64 = 1032;
/// Most symbols, and the bytes of all their names.
const MOST_SYMBOLS: usize = 1 << 20;
const NAME_BYTES: usize = 64 << 20;
/// Longest name of a function that is shown.
const SHOWN_NAME_BYTES: usize = 4096;
/// Most bytes of the tables of lines, each of which may become a row of 32 bytes.
const LINE_BYTES: u64 = 16 << 20;

/// An ELF image with what is needed to read its stacks.
pub struct Image {
    path: PathBuf,
    build_id: Vec<u8>,
    code: Vec<Code>,
    symbols: Vec<Symbol>,
    context: Context<Bytes>,
    cfi: CfiTable,
    /// Where its executable segments are linked.
    code_segments: Vec<u64>,
    /// Distance from the addresses it is linked at to those that it ran at, modulo 2^64.
    slide: u64,
    has_lines: bool,
    /// What is not as it should be, without being in the way.
    pub(crate) warnings: Vec<String>,
}

/// A section of code.
struct Code {
    start: u64,
    bytes: Vec<u8>,
}

/// A function of the symbol table, its name as it stands there.
struct Symbol {
    start: u64,
    end: u64,
    name: String,
}

/// A place in the source, as one address maps to several when functions are inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The function, demangled; `None` when no symbol covers the address.
    pub function: Option<String>,
    /// The source file, without what only the machine that built it has.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// Whether the function was inlined into the one of the next place.
    pub inlined: bool,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Image {
    /// Reads an ELF image.
    ///
    /// # Errors
    /// When it cannot be read or is no ELF image.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |what: String| Error::BadImage { path: path.to_owned(), what };
        let (mut opened, size) = open_seekable(path, |kind| {
            bad(match kind {
                Kind::Folder => "this is a folder; name the ELF file in it, or give the folder in \
                                 EPITAPH_IMAGE_PATH"
                    .into(),
                kind => format!("this is {}, not an ELF file", kind.name()),
            })
        })?;
        if size > IMAGE_BYTES {
            let most = IMAGE_BYTES >> 20;
            return Err(bad(format!("too large for an image: more than {most} MiB")));
        }
        let mut data = Vec::new();
        opened.rewind().map_err(Error::io(path, "read it"))?;
        opened.take(size).read_to_end(&mut data).map_err(Error::io(path, "read it"))?;
        if !data.starts_with(b"\x7fELF") {
            let start = data.get(..SIGNATURE_BYTES as usize).unwrap_or(&data);
            let what = kind::name(start).map_or(String::new(), |name| format!(": this is {name}"));
            return Err(bad(format!("not an ELF file{what}")));
        }
        let file = object::File::parse(&*data).map_err(|error| bad(error.to_string()))?;
        if !file.is_64() || !file.is_little_endian() {
            return Err(bad("not a 64-bit little-endian ELF file".into()));
        }
        if file.kind() == object::ObjectKind::Core {
            return Err(bad("a core, not an image; give it in place of the dump".into()));
        }
        let build_id = file.build_id().ok().flatten().unwrap_or_default().to_vec();
        let mut left = SECTION_BYTES;
        let mut section = |name: &str| -> Result<Bytes, Error> {
            let bytes = match file.section_by_name(name) {
                Some(section) => unpack(&section, &mut left)
                    .map_err(|error| bad(format!("section {name}: {error}")))?,
                None => Default::default(),
            };
            Ok(Bytes::new(Arc::from(&*bytes), LittleEndian))
        };
        let mut dwarf = gimli::Dwarf::load(|id| section(id.name()))?;
        if dwarf.debug_line.reader().len() as u64 > LINE_BYTES {
            return Err(bad(format!(
                "its tables of lines take more than {} MiB",
                LINE_BYTES >> 20
            )));
        }
        let cfi = CfiTable::new(section(".debug_frame")?);
        let count = crate::debug_info::check(&mut dwarf).map_err(bad)?;
        let context = Context::from_dwarf(dwarf)
            .map_err(|error| bad(format!("its debug information is damaged: {error}")))?;
        Ok(Self {
            path: path.to_owned(),
            build_id,
            code: code(&file, data.len())
                .ok_or_else(|| bad("it claims more code than it has bytes".into()))?,
            symbols: symbols(&file).ok_or_else(|| bad("it has too many symbols".into()))?,
            context,
            cfi,
            code_segments: code_segments(&file),
            slide: 0,
            has_lines: count > 0,
            warnings: Vec::new(),
        })
    }

    /// What is not as it should be, without being in the way: that it is stripped, or that
    /// nothing proves that it is the image of the dump.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns true if it has debug information with lines.
    pub(crate) const fn has_lines(&self) -> bool {
        self.has_lines
    }

    /// Returns true if it has names of functions.
    pub(crate) const fn has_names(&self) -> bool {
        !self.symbols.is_empty()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its GNU build-id; empty when it has none.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// Moves the image to where it ran. `segments` are its segments by virtual address, none
    /// when it ran where it is linked. An address that the other functions take or return is
    /// one of the running image.
    pub(crate) fn place(&mut self, segments: &[VirtualSegment]) {
        let code = |address: u64| {
            segments.iter().any(|segment| {
                let inside = address.wrapping_sub(segment.virtual_start);
                segment.flags & PF_X.0 != 0 && inside < segment.bytes
            })
        };
        let fits =
            |slide: u64| self.code_segments.iter().all(|start| code(start.wrapping_add(slide)));
        // The offset of a segment in its first page is the same in memory.
        let first = self.code_segments.first().map_or(0, |start| start & !(PAGE_BYTES - 1));
        let starts = segments.iter().map(|segment| segment.virtual_start.wrapping_sub(first));
        match std::iter::once(0).chain(starts).find(|&slide| fits(slide)) {
            Some(slide) => self.slide = slide,
            None if segments.is_empty() => {}
            None => self.warnings.push(
                "the dump does not say where the image ran: no distance fits its segments".into(),
            ),
        }
    }

    /// Returns the address at which the image is linked that was `address` when it ran.
    const fn linked(&self, address: u64) -> u64 {
        address.wrapping_sub(self.slide)
    }

    fn code_at(&self, address: u64) -> Option<(&[u8], usize)> {
        let address = self.linked(address);
        self.code.iter().find_map(|code| {
            let at = usize::try_from(address.checked_sub(code.start)?).ok()?;
            (at < code.bytes.len()).then_some((&*code.bytes, at))
        })
    }

    /// The functions at `address`: the innermost inlined one first, the real one last.
    /// Never empty.
    #[must_use]
    pub fn places(&self, address: u64) -> Vec<Place> {
        let nothing = Place { function: None, file: None, line: None, inlined: false };
        // Functions the linker dropped are still described, at addresses around 0, which
        // is where wild pointers lead.
        if !self.is_code(address) {
            return vec![nothing];
        }
        let address = self.linked(address);
        let mut places = self.dwarf_places(address).unwrap_or_default();
        if places.is_empty() {
            places.push(nothing);
        }
        let last = places.len() - 1;
        for (index, place) in places.iter_mut().enumerate() {
            place.inlined = index < last;
        }
        if places[last].function.is_none() {
            places[last].function = self.symbol(address).map(demangle);
        }
        places
    }

    fn dwarf_places(&self, address: u64) -> Result<Vec<Place>, gimli::Error> {
        let folder = self.build_folder(address);
        let mut frames = self.context.find_frames(address).skip_all_loads()?;
        let mut places = Vec::new();
        while let Some(frame) = frames.next()? {
            let function = match &frame.function {
                Some(name) => Some(demangle(&name.raw_name()?)),
                None => None,
            };
            let location = frame.location.as_ref();
            let file = location.and_then(|location| location.file);
            let line = location.and_then(|location| location.line);
            // Only the innermost place is from the table of lines; the others are from calls.
            let near = match (places.is_empty(), line) {
                (true, None) => self.line_before(address, file),
                _ => None,
            };
            let (file, line) = near.map_or((file, line), |(file, line)| (Some(file), Some(line)));
            places.push(Place {
                function,
                file: file.map(|file| shorten(file, folder.as_deref())),
                line,
                inlined: false,
            });
        }
        Ok(places)
    }

    /// Returns the last file and line in front of `address` in its function. Compilers give
    /// line 0 to instructions of no statement, such as those that several share; one in the
    /// same file is preferred, as the function may have others inlined.
    fn line_before(&self, address: u64, file: Option<&str>) -> Option<(&str, u32)> {
        /// How far to look where no symbol says where the function begins.
        const REACH: u64 = 4096;
        let start = self.symbol_at(address).map(|symbol| symbol.start);
        let start =
            start.unwrap_or(address.saturating_sub(REACH)).max(address.saturating_sub(REACH));
        let rows = self.context.find_location_range(start, address.checked_add(1)?).ok()?;
        let (mut same, mut any) = (None, None);
        for (_, _, row) in rows.filter(|&(at, ..)| at <= address) {
            let Some(found) = row.file.zip(row.line) else { continue };
            if row.file == file {
                same = Some(found);
            }
            any = Some(found);
        }
        same.or(any)
    }

    /// The folder in which the code at `address` was compiled.
    fn build_folder(&self, address: u64) -> Option<String> {
        let unit = self.context.find_dwarf_and_unit(address).skip_all_loads()?;
        let folder = unit.comp_dir.as_ref()?.to_string_lossy().ok()?;
        Some(folder.trim_end_matches('/').to_owned())
    }

    fn symbol(&self, address: u64) -> Option<&str> {
        self.symbol_at(address).map(|symbol| &*symbol.name)
    }

    fn symbol_at(&self, address: u64) -> Option<&Symbol> {
        let behind = self.symbols.partition_point(|symbol| symbol.start <= address);
        let symbol = self.symbols.get(behind.checked_sub(1)?)?;
        (address < symbol.end).then_some(symbol)
    }
}

impl Program for Image {
    fn is_code(&self, address: u64) -> bool {
        self.code_at(address).is_some()
    }

    fn follows_call(&self, address: u64) -> bool {
        let Some((bytes, at)) = self.code_at(address) else { return false };
        // Calls end here when they are: E8 and a 32-bit distance; or FF /2 with its ModRM
        // byte and what that asks for, with or without a REX prefix in front (Intel SDM
        // volume 2A, CALL).
        let indirect = |length: usize, modrm: fn(u8) -> bool| {
            at.checked_sub(length).is_some_and(|start| {
                bytes[start] == 0xff && bytes[start + 1] & 0x38 == 0x10 && modrm(bytes[start + 1])
            })
        };
        at.checked_sub(5).is_some_and(|start| bytes[start] == 0xe8)
            || indirect(2, |modrm| {
                modrm >= 0xc0 || (modrm < 0x40 && modrm & 7 != 4 && modrm & 7 != 5)
            })
            || indirect(3, |modrm| (0x40..0x80).contains(&modrm) || modrm & 0xc7 == 4)
            || indirect(4, |modrm| modrm & 0xc7 == 0x44)
            || indirect(6, |modrm| (0x80..0xc0).contains(&modrm) || modrm & 0xc7 == 5)
            || indirect(7, |modrm| modrm & 0xc7 == 0x84 || modrm & 0xc7 == 4)
    }

    fn caller(&self, address: u64, registers: &Registers, memory: &impl Memory) -> Outcome {
        self.cfi.step(self.linked(address), registers, memory)
    }
}

/// Returns the content of a section, unpacked, and takes its size off what is left.
fn unpack<'a>(
    section: &object::Section<'a, '_>,
    left: &mut u64,
) -> Result<std::borrow::Cow<'a, [u8]>, String> {
    let packed = section.compressed_data().map_err(|error| error.to_string())?;
    let claimed = packed.uncompressed_size;
    // The size is what its header says; nothing has been allocated yet.
    if claimed > (packed.data.len() as u64).saturating_mul(EXPANSION) {
        let packed = packed.data.len();
        return Err(format!("{packed} bytes that claim to unpack to {claimed}"));
    }
    *left = left.checked_sub(claimed).ok_or_else(|| {
        format!("the debug information takes more than {} MiB unpacked", SECTION_BYTES >> 20)
    })?;
    packed.decompress().map_err(|error| error.to_string())
}

/// Returns the addresses at which executable segments are linked.
fn code_segments(file: &object::File<'_>) -> Vec<u64> {
    let executable = |segment: &object::Segment<'_, '_>| {
        let object::SegmentFlags::Elf { p_flags, .. } = segment.flags() else { return false };
        p_flags.0 & PF_X.0 != 0
    };
    file.segments().filter(executable).map(|segment| segment.address()).collect()
}

/// Returns the sections of code; `None` when they are larger than the file, which holds each
/// of them once.
fn code(file: &object::File<'_>, bytes: usize) -> Option<Vec<Code>> {
    let mut left = bytes;
    let mut all = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let Ok(bytes) = section.data() else { continue };
        left = left.checked_sub(bytes.len())?;
        all.push(Code { start: section.address(), bytes: bytes.to_vec() });
    }
    Some(all)
}

/// Returns the functions by address; `None` when there are too many to believe in.
fn symbols(file: &object::File<'_>) -> Option<Vec<Symbol>> {
    // Assembly labels have no type; they count where they are in code.
    let wanted = |kind| matches!(kind, SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown);
    let mut symbols = Vec::new();
    let mut left = NAME_BYTES;
    for symbol in file.symbols().filter(|symbol| wanted(symbol.kind()) && symbol.is_definition()) {
        let Some(name) = symbol.name().ok().filter(|name| !name.is_empty()) else { continue };
        left = left.checked_sub(name.len())?;
        if symbols.len() == MOST_SYMBOLS {
            return None;
        }
        let (start, end) = (symbol.address(), symbol.address().saturating_add(symbol.size()));
        symbols.push(Symbol { start, end, name: name.to_owned() });
    }
    symbols.sort_by_key(|symbol| (symbol.start, symbol.end));
    // A label without a size reaches to the next one.
    for index in 0..symbols.len() {
        if symbols[index].end == symbols[index].start {
            let next = symbols.get(index + 1).map_or(u64::MAX, |next| next.start);
            symbols[index].end = next;
        }
    }
    Some(symbols)
}

/// Returns a name as it stands in the source. One that is longer than is shown is cut.
fn demangle(name: &str) -> String {
    let mut shown = Shown(String::new());
    // Fails only when there is no more room.
    let _ = write!(shown, "{:#}", rustc_demangle::demangle(name));
    shown.0
}

/// Collects a name up to [`SHOWN_NAME_BYTES`].
struct Shown(String);

impl std::fmt::Write for Shown {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = SHOWN_NAME_BYTES.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let cut = (0..=room).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        self.0.push_str(&text[..cut]);
        self.0.push('…');
        Err(std::fmt::Error)
    }
}

/// A source path without what only the machine that built the image has: the folder it
/// was built in, the compiler's, the package registry's.
fn shorten(path: &str, folder: Option<&str>) -> String {
    if let Some(folder) = folder.filter(|folder| !folder.is_empty())
        && let Some(rest) = path.strip_prefix(folder)
        && let Some(rest) = rest.strip_prefix('/')
    {
        return rest.to_owned();
    }
    if let Some(rest) = path.strip_prefix("/rustc/")
        && let Some((_commit, rest)) = rest.split_once('/')
    {
        return rest.to_owned();
    }
    // …/registry/src/NAME/CRATE-VERSION/…
    if let Some((_, rest)) = path.split_once("/registry/src/")
        && let Some((_, rest)) = rest.split_once('/')
    {
        return rest.to_owned();
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::shorten;

    #[test]
    fn source_paths_are_those_of_the_project() {
        let short = |path| shorten(path, Some("/build/epitaph"));
        assert_eq!(
            short("/build/epitaph/appliance/kernel/src/lib.rs"),
            "appliance/kernel/src/lib.rs"
        );
        assert_eq!(short("/build/epitaph2/x.rs"), "/build/epitaph2/x.rs");
        assert_eq!(
            short("/rustc/5980/library/core/src/panicking.rs"),
            "library/core/src/panicking.rs"
        );
        let registry = "/home/me/.cargo/registry/src/index-1/heapless-0.9.3/src/vec.rs";
        assert_eq!(short(registry), "heapless-0.9.3/src/vec.rs");
    }
}
