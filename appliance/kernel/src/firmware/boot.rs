//! What the loader says, in one form for both loaders.
//!
//! GRUB hands over Multiboot2 information, QEMU and other monitors a PVH start info. Both
//! end in one [`BootInfo`]; nothing after this module knows which of them it was.

use handoff::devices::{Framebuffer, FramebufferKind};
use handoff::facts::{COMMAND_LINE_BYTES, MAX_RANGES, MemoryKind};
use handoff::{MemoryRange, Range};
use heapless::{String, Vec};
use multiboot2::{
    BootInformation, BootInformationHeader, FramebufferTag, FramebufferType, MemoryAreaType,
};

use crate::base::physical::Physical;

/// Modules kept.
pub const MAX_MODULES: usize = 8;
/// EAX of a Multiboot2 loader (Multiboot2 specification 1.6, §3.3).
const MULTIBOOT2_MAGIC: u32 = multiboot2::MAGIC;
/// First word of a PVH start info (Xen, `arch-x86/hvm/start_info.h`).
const PVH_MAGIC: u32 = 0x336e_c578;
/// A command line that a PVH monitor left without an end is not followed further than this.
const MAX_COMMAND_LINE: usize = 64 << 10;
/// Entries of a PVH memory map that are read.
const MAX_PVH_ENTRIES: u32 = 1024;
/// Larger boot information than this is not believed.
const MAX_INFORMATION: usize = 1 << 20;

/// Who loaded the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// A Multiboot2 loader: GRUB.
    Multiboot2,
    /// A PVH monitor: QEMU `-kernel` and others.
    Pvh,
}

impl Loader {
    /// Its name for a message.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Multiboot2 => "Multiboot2",
            Self::Pvh => "PVH",
        }
    }
}

/// A file that the loader put into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where.
    pub range: Range,
    /// Its command line, cut to 64 bytes; empty where the loader gave none.
    pub name: String<64>,
}

/// What the loader said.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// Who said it.
    pub loader: Loader,
    /// The kernel command line, cut to 1024 bytes.
    pub command_line: String<COMMAND_LINE_BYTES>,
    /// The memory map: sorted, without overlaps, neighbours of one kind merged.
    pub memory: Vec<MemoryRange, MAX_RANGES>,
    /// Modules, in the loader's order.
    pub modules: Vec<Module, MAX_MODULES>,
    /// The part of the loader's information that there was no room for.
    pub left_out: LeftOut,
    /// Physical address of the RSDP, or of the loader's copy of it.
    pub rsdp: Option<u64>,
    /// The screen as the loader left it.
    pub framebuffer: Option<Framebuffer>,
    /// Where the loader's own structure lies: in use until everything is read.
    pub information: Range,
}

/// The part of the loader's information that there was no room for; worth a warning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Memory ranges of every kind. Such memory is neither used nor dumped.
    pub ranges: u32,
    /// Bytes of RAM in those ranges.
    pub ram: u64,
    /// Modules. Their memory may be overwritten.
    pub modules: u32,
    /// Bytes at the end of the command line.
    pub command_line: usize,
}

/// Why there is no [`BootInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Neither loader's magic; holds EAX.
    UnknownLoader(u32),
    /// The structure is not readable or its size is absurd.
    Unreadable,
    /// Its tags are malformed.
    Malformed,
    /// It holds no memory map.
    NoMemoryMap,
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownLoader(eax) => write!(
                f,
                "neither Multiboot2 nor PVH (EAX {eax:#x}); load it with GRUB's `multiboot2` or \
                 QEMU's `-kernel`"
            ),
            Self::Unreadable => f.write_str("the loader's information is not readable"),
            Self::Malformed => f.write_str("the loader's information is malformed"),
            Self::NoMemoryMap => f.write_str("the loader passed no memory map"),
        }
    }
}

impl BootInfo {
    /// Reads what the loader left, given EAX and EBX as they were at entry.
    ///
    /// # Errors
    /// When it is neither loader, or what it left makes no sense.
    pub fn detect(eax: u32, ebx: u32, memory: &dyn Physical) -> Result<Self, BootError> {
        let address = u64::from(ebx);
        if eax == MULTIBOOT2_MAGIC {
            return Self::from_multiboot2(memory, address);
        }
        match memory.bytes(address, 4) {
            Some(magic) if magic == PVH_MAGIC.to_le_bytes() => Self::from_pvh(memory, address),
            _ => Err(BootError::UnknownLoader(eax)),
        }
    }

    /// Reads Multiboot2 information at `address`.
    ///
    /// # Errors
    /// When its tags are malformed or it has no memory map.
    pub fn from_multiboot2(memory: &dyn Physical, address: u64) -> Result<Self, BootError> {
        let size = u32_at(memory, address, 0)? as usize;
        if !(16..=MAX_INFORMATION).contains(&size) {
            return Err(BootError::Unreadable);
        }
        let bytes = memory.bytes(address, size).ok_or(BootError::Unreadable)?;
        let information = parse_multiboot2(bytes)?;
        let mut info =
            Self::empty(Loader::Multiboot2, Range { start: address, bytes: size as u64 });
        if let Some(tag) = information.command_line_tag() {
            info.take_command_line(tag.cmdline().unwrap_or_default());
        }
        let map = information.memory_map_tag().ok_or(BootError::NoMemoryMap)?;
        let areas = map.memory_areas().iter().map(|area| {
            let kind = match area.typ() {
                MemoryAreaType::Available => MemoryKind::RAM,
                MemoryAreaType::AcpiAvailable => MemoryKind::ACPI,
                MemoryAreaType::ReservedHibernate => MemoryKind::ACPI_NVS,
                MemoryAreaType::Defective => MemoryKind::BAD,
                _ => MemoryKind::RESERVED,
            };
            (Range { start: area.start_address(), bytes: area.size() }, kind)
        });
        info.take_memory(areas);
        for tag in information.module_tags() {
            let range = Range::between(tag.start_address().into(), tag.end_address().into());
            info.add_module(range, tag.cmdline().unwrap_or_default());
        }
        // Both tags hold a copy of the RSDP behind their 8 bytes of header; version 2 has
        // what version 1 has, and the 64-bit table besides.
        let within = |tag: *const u8| address + (tag as u64 - bytes.as_ptr() as u64) + 8;
        info.rsdp =
            information.rsdp_v2_tag().map(|tag| within(core::ptr::from_ref(tag).cast())).or_else(
                || information.rsdp_v1_tag().map(|tag| within(core::ptr::from_ref(tag).cast())),
            );
        info.framebuffer = information.framebuffer_tag().and_then(|tag| screen(tag.ok()?));
        Ok(info)
    }

    /// Reads a PVH start info at `address`.
    ///
    /// # Errors
    /// When it is older than version 1, which brought the memory map.
    pub fn from_pvh(memory: &dyn Physical, address: u64) -> Result<Self, BootError> {
        // magic, version, flags, module count; then module list, command line, RSDP, map.
        let count = u32_at(memory, address, 12)?;
        let modules = u64_at(memory, address, 16)?;
        let command_line = u64_at(memory, address, 24)?;
        let rsdp = u64_at(memory, address, 32)?;
        if u32_at(memory, address, 4)? < 1 {
            return Err(BootError::NoMemoryMap);
        }
        let map = u64_at(memory, address, 40)?;
        let entries = u32_at(memory, address, 48)?;
        let mut info = Self::empty(Loader::Pvh, Range { start: address, bytes: 56 });
        info.take_command_line(text_at(memory, command_line, MAX_COMMAND_LINE));
        if map == 0 || entries == 0 {
            return Err(BootError::NoMemoryMap);
        }
        let areas = (0..u64::from(entries.min(MAX_PVH_ENTRIES))).map_while(|index| {
            let at = map.saturating_add(index * 24);
            let start = u64_at(memory, at, 0).ok()?;
            let bytes = u64_at(memory, at, 8).ok()?;
            // E820 types, which are the memory kinds but for what is unknown.
            let kind = match MemoryKind(u32_at(memory, at, 16).ok()?) {
                kind if kind.name().is_some() => kind,
                _ => MemoryKind::RESERVED,
            };
            Some((Range { start, bytes }, kind))
        });
        info.take_memory(areas);
        info.left_out.ranges += entries.saturating_sub(MAX_PVH_ENTRIES);
        for index in 0..u64::from(count.min(MAX_MODULES as u32)) {
            let at = modules.saturating_add(index * 32);
            let range = Range { start: u64_at(memory, at, 0)?, bytes: u64_at(memory, at, 8)? };
            let name = text_at(memory, u64_at(memory, at, 16)?, 64);
            info.add_module(range, name);
        }
        info.left_out.modules += count.saturating_sub(MAX_MODULES as u32);
        info.rsdp = Some(rsdp).filter(|&rsdp| rsdp != 0);
        Ok(info)
    }

    fn empty(loader: Loader, information: Range) -> Self {
        Self {
            loader,
            command_line: String::new(),
            memory: Vec::new(),
            modules: Vec::new(),
            left_out: LeftOut::default(),
            rsdp: None,
            framebuffer: None,
            information,
        }
    }

    fn take_memory(&mut self, areas: impl Iterator<Item = (Range, MemoryKind)> + Clone) {
        let (memory, (ranges, ram)) = normalise(areas);
        self.memory = memory;
        self.left_out.ranges += ranges;
        self.left_out.ram += ram;
    }

    fn add_module(&mut self, range: Range, name: &str) {
        let mut module = Module { range, name: String::new() };
        append(&mut module.name, name);
        if self.modules.push(module).is_err() {
            self.left_out.modules += 1;
        }
    }

    fn take_command_line(&mut self, text: &str) {
        append(&mut self.command_line, text);
        self.left_out.command_line = text.len() - self.command_line.len();
    }
}

/// What a tag says of the screen; none for colours that are looked up in a palette.
fn screen(tag: &FramebufferTag) -> Option<Framebuffer> {
    let mut screen = Framebuffer {
        address: tag.address(),
        pitch: tag.pitch(),
        width: tag.width(),
        height: tag.height(),
        bits_per_pixel: tag.bpp(),
        ..Framebuffer::default()
    };
    match tag.buffer_type().ok()? {
        FramebufferType::RGB { red, green, blue } => {
            screen.kind = FramebufferKind::PIXELS;
            (screen.red_at, screen.red_bits) = (red.position, red.size);
            (screen.green_at, screen.green_bits) = (green.position, green.size);
            (screen.blue_at, screen.blue_bits) = (blue.position, blue.size);
        }
        FramebufferType::Text => screen.kind = FramebufferKind::TEXT,
        FramebufferType::Indexed { .. } => return None,
    }
    Some(screen)
}

/// Appends as much of `text` as fits.
fn append<const N: usize>(target: &mut String<N>, text: &str) {
    for character in text.chars() {
        if target.push(character).is_err() {
            return;
        }
    }
}

/// Views the boot information through the crate that knows its tags.
#[expect(unsafe_code, reason = "the multiboot2 crate takes the information as a raw pointer only")]
fn parse_multiboot2(bytes: &[u8]) -> Result<BootInformation<'_>, BootError> {
    let pointer = bytes.as_ptr().cast::<BootInformationHeader>();
    // SAFETY: the pointer is that of a slice that is as long as the structure says it is and
    // that is borrowed for as long as the result lives; the crate checks the alignment.
    unsafe { BootInformation::load(pointer) }.map_err(|_| BootError::Malformed)
}

fn u32_at(memory: &dyn Physical, base: u64, offset: u64) -> Result<u32, BootError> {
    let bytes = memory.bytes(base.saturating_add(offset), 4).ok_or(BootError::Unreadable)?;
    bytes.try_into().map(u32::from_le_bytes).map_err(|_| BootError::Unreadable)
}

fn u64_at(memory: &dyn Physical, base: u64, offset: u64) -> Result<u64, BootError> {
    let bytes = memory.bytes(base.saturating_add(offset), 8).ok_or(BootError::Unreadable)?;
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| BootError::Unreadable)
}

/// A zero-terminated text of at most `limit` bytes; what is not UTF-8 is cut off.
fn text_at(memory: &dyn Physical, address: u64, limit: usize) -> &str {
    if address == 0 {
        return "";
    }
    let mut length = 0;
    while length < limit {
        match memory.bytes(address.saturating_add(length as u64), 1) {
            Some(&[byte]) if byte != 0 => length += 1,
            _ => break,
        }
    }
    let bytes = memory.bytes(address, length).unwrap_or_default();
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// How strongly a kind insists: where ranges overlap, the strongest wins.
const fn strength(kind: MemoryKind) -> u32 {
    match kind {
        MemoryKind::RAM => 0,
        MemoryKind::ACPI => 1,
        MemoryKind::ACPI_NVS => 2,
        MemoryKind::RESERVED => 3,
        _ => 4,
    }
}

/// Sorts the firmware's ranges, lets the stronger kind win where they overlap, and merges
/// neighbours of one kind. Where there are more ranges than the map holds, RAM is kept before
/// memory that is only reserved, and large ranges before small ones, wherever they are. Returns
/// the map, how many ranges were left out, and how many bytes of RAM are in those.
///
/// Goes over the firmware's list again and again instead of keeping it: UEFI lists can be
/// far longer than the map they amount to.
fn normalise(
    areas: impl Iterator<Item = (Range, MemoryKind)> + Clone,
) -> (Vec<MemoryRange, MAX_RANGES>, (u32, u64)) {
    let mut sorted: Vec<MemoryRange, MAX_RANGES> = Vec::new();
    let mut left_out = (0, 0);
    // The range under way: complete when the next one of another kind, or a gap, begins.
    let mut growing: Option<MemoryRange> = None;
    let mut keep = |range: MemoryRange| {
        if let Some(lost) = push(&mut sorted, range) {
            left_out.0 += 1;
            left_out.1 += if lost.kind == MemoryKind::RAM { lost.range.bytes } else { 0 };
        }
    };
    // Between two neighbouring boundaries nothing changes.
    let mut at = areas.clone().map(|(range, _)| range.start).min();
    while let Some(start) = at {
        let boundaries = areas.clone().flat_map(|(range, _)| [range.start, range.end()]);
        let Some(end) = boundaries.filter(|&boundary| boundary > start).min() else { break };
        let kinds = areas.clone().filter(|(range, _)| range.holds(start, end - start));
        if let Some(kind) = kinds.map(|(_, kind)| kind).max_by_key(|&kind| strength(kind)) {
            match &mut growing {
                Some(last) if last.kind == kind && last.range.end() == start => {
                    last.range.bytes += end - start;
                }
                _ => {
                    let range = Range::between(start, end);
                    let next = MemoryRange { range, kind, reserved: 0 };
                    growing.replace(next).into_iter().for_each(&mut keep);
                }
            }
        }
        at = Some(end);
    }
    growing.into_iter().for_each(&mut keep);
    (sorted, left_out)
}

/// Appends a range to the map. When the map is full, the range that matters least makes
/// room, and is returned; it may be the new one.
fn push(map: &mut Vec<MemoryRange, MAX_RANGES>, range: MemoryRange) -> Option<MemoryRange> {
    let Err(range) = map.push(range) else { return None };
    let weight = |range: &MemoryRange| {
        let class = match range.kind {
            // Firmware tables are few, small, and how the machine is switched off.
            MemoryKind::ACPI | MemoryKind::ACPI_NVS => 2,
            MemoryKind::RAM => 1,
            _ => 0,
        };
        (class, range.range.bytes)
    };
    let least = (0..map.len()).min_by_key(|&at| weight(&map[at]))?;
    if weight(&map[least]) >= weight(&range) {
        return Some(range);
    }
    let lost = map.remove(least);
    // There is room for one now.
    let _ = map.push(range);
    Some(lost)
}

#[cfg(test)]
mod tests;
