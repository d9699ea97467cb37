//! Getting ready to be captured, as early as possible.
//!
//! The reserved region (see [`region`](crate::arming::region)), from its start:
//!
//! ```text
//! +0       capture image, .bss included     written once, checksum kept
//! +2 MiB   boot facts                       sealed with a checksum
//! +2.06    park area                        code, tables and stacks of stopped CPUs
//! behind it scratch                         the capture image's own
//! ```
//!
//! Arming happens twice: at once after entry, when only the boot processor runs and the
//! clock is not known, and again with the complete facts before the other CPUs are started.
//! After that the region is read only for everything that runs here.

use core::sync::atomic::{AtomicU32, Ordering};

use handoff::facts::{COMMAND_LINE_BYTES, MemoryKind};
use handoff::module::{self, ModuleError};
use handoff::{BootFacts, PowerFacts, Range, VirtualSegment, crash::set_text};
use machine::boot::Layout;
use machine::cell::SetOnce;
use machine::park::{Park, ParkSum};
use machine::trace;

use crate::arming::{elf, keys, reach, region};
use crate::base::memory::{self, Memory, ReservedRegion};
use crate::base::physical::Physical;
use crate::base::{clock, console, cpus, devices, screen};
use crate::crash::say;
use crate::firmware::boot::{BootInfo, MAX_MODULES};
use crate::trial;
use crate::watch::hw_watchdog;
use crate::{log, options};

const MIB: u64 = 1 << 20;
/// Name of the image's file, without a folder: where it is on the host that reads a dump is not
/// known here, and debuggers take the bare name from the current folder.
const IMAGE_NAME: &str = "appliance";
const FACTS_AT: u64 = 2 * MIB;
const PARK_AT: u64 = FACTS_AT + 64 * 1024;
/// How far the park area may reach.
const PARK_END: u64 = 4 * MIB;

/// The park area as built.
static PARK: SetOnce<ParkSum> = SetOnce::new();
/// Whether CPUs may park there: [`USABLE`], or any other value.
static PARK_USABLE: AtomicU32 = AtomicU32::new(0);
static IMAGE: SetOnce<LoadedImage> = SetOnce::new();
static FACTS: SetOnce<Range> = SetOnce::new();
static BUILD_ID: SetOnce<heapless::Vec<u8, 32>> = SetOnce::new();
/// Whether the image was found whole in the crash under way: [`USABLE`], or any other value.
static WHOLE: AtomicU32 = AtomicU32::new(0);
/// "Yes" in a word that a crash may have damaged.
const USABLE: u32 = 0x3a95_c76e;

/// The capture image as loaded.
#[derive(Clone, Copy, Debug)]
struct LoadedImage {
    range: Range,
    entry: u64,
    /// Of all of it.
    crc32: u32,
    /// Bytes from its start to the last that is not zero.
    filled: u64,
    /// Of those: half of the image is zeros, at which a look is enough.
    filled_crc32: u32,
    /// Its data, which running changes: from here to its end.
    data: Range,
    /// What is in them at first, behind the image; the rest of them is zeros.
    kept: Range,
}

impl LoadedImage {
    /// Whether `bytes` are what they were.
    fn is(&self, bytes: &[u8]) -> bool {
        let Some((filled, zeros)) = bytes.split_at_checked(self.filled as usize) else {
            return false;
        };
        let (words, rest) = zeros.as_chunks::<8>();
        words.iter().all(|word| u64::from_ne_bytes(*word) == 0)
            && rest.iter().all(|&byte| byte == 0)
            && crc32fast::hash(filled) == self.filled_crc32
    }
}

/// What has been going on since the image was looked at ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interference {
    /// Every other CPU has come to its stop by itself, in good order.
    Quiet,
    /// Nobody knows.
    Unknown,
}

/// Where the jump goes.
#[derive(Clone, Copy, Debug)]
pub struct WayOut {
    /// Root of page tables that map all memory, executable.
    pub root: u64,
    /// The capture image's entry.
    pub entry: u64,
}

/// Where the sealed facts lie.
fn facts_place() -> Range {
    let start = memory::region().start + FACTS_AT;
    Range { start, bytes: size_of::<BootFacts>() as u64 }
}

/// The park area as far as its tables may reach.
fn park_place() -> Range {
    part(memory::region(), PARK_AT, PARK_END)
}

/// Returns true once this run has armed. Two statics know it, so that damage to one does not
/// make the appliance forget it.
fn armed() -> bool {
    FACTS.get().is_some() || IMAGE.get().is_some()
}

/// The park area, when it is built and CPUs may use it.
pub fn park() -> Option<Park> {
    (PARK_USABLE.load(Ordering::Acquire) == USABLE).then(|| Park::at(park_place().start))
}

/// Returns the place of the reserved region: free of the image, of modules and of what the
/// loader left.
fn place_region(layout: &Layout, boot: &BootInfo) -> Option<Range> {
    let image = Range::between(layout.headers.start, layout.data.end());
    let mut taken: heapless::Vec<Range, { MAX_MODULES + 2 }> = heapless::Vec::new();
    taken.extend([image, boot.information]);
    taken.extend(boot.modules.iter().map(|module| module.range));
    region::choose(&boot.memory, layout.region, image.end(), &taken)
}

/// Physical address of the sealed facts.
pub fn facts_address() -> Option<u64> {
    armed().then(|| facts_place().start)
}

/// Returns true if the park area is as it was built.
fn park_intact() -> bool {
    let park = Park::at(park_place().start);
    // Behind the area there is nothing to be summed up.
    let whole = |built: &&ParkSum| built.used <= park_place().bytes;
    PARK.get().filter(whole).is_some_and(|built| park.sum(built.used) == *built)
}

/// Checks the park area before the first CPU is sent there, and builds it again when it is
/// damaged: every stop and the jump run on its code and its page tables, and one wrong bit in
/// them would be a triple fault. What cannot be built again is not used: CPUs then halt where
/// they are. Called by the one CPU that handles the crash.
pub fn mend_park() {
    if !armed() && PARK.get().is_none() {
        return;
    }
    if park_intact() {
        // Should the word that says so be the one that was damaged.
        PARK_USABLE.store(USABLE, Ordering::Release);
        return;
    }
    PARK_USABLE.store(0, Ordering::Release);
    let Ok(facts) = sealed() else { return };
    let ram = facts.memory.iter().take(facts.memory_count as usize);
    let ram = ram.filter(|entry| entry.kind == MemoryKind::RAM).map(|entry| entry.range);
    match Park::rebuild(park_place(), ram) {
        Ok(built) if built.used == facts.park.bytes => {
            say!("crash: the park area was damaged and has been built again");
            PARK_USABLE.store(USABLE, Ordering::Release);
        }
        _ => say!("crash: the park area is damaged and cannot be built again"),
    }
}

/// Checks that the image is what was loaded.
fn check_image(facts: &BootFacts) -> Result<(), &'static str> {
    let loaded = memory::reserved(facts.image).ok_or("the capture image is not in its region")?;
    // The shorter way, as long as its own values are those of the facts.
    let known =
        |image: &&LoadedImage| image.range == facts.image && image.crc32 == facts.image_crc32;
    match IMAGE.get().filter(known) {
        Some(image) if image.is(loaded) => Ok(()),
        _ if crc32fast::hash(loaded) == facts.image_crc32 => Ok(()),
        _ => Err("the capture image is damaged: its checksum is not the one taken at boot"),
    }
}

/// Looks at the image while the other CPUs are on their way to a stop.
pub fn look_ahead() {
    let whole = sealed().and_then(check_image).is_ok();
    WHOLE.store(if whole { USABLE } else { 0 }, Ordering::Relaxed);
}

/// The way out, if everything on it can be trusted still: all values are those of the sealed
/// facts, or follow from where the linker has put the region. An image that was found whole
/// [ahead](look_ahead) is not looked at again if `since_then` nobody can have written to it.
///
/// # Errors
/// Says what is missing or damaged.
pub fn way_out(since_then: Interference) -> Result<WayOut, &'static str> {
    let facts = sealed()?;
    let quiet = since_then == Interference::Quiet;
    if !(quiet && WHOLE.load(Ordering::Relaxed) == USABLE) {
        check_image(facts)?;
    }
    let park = park().ok_or("the park area is damaged")?;
    if !quiet && !park_intact() {
        return Err("the park area is damaged: its checksum is not the one taken at boot");
    }
    Ok(WayOut { root: park.root(), entry: facts.image_entry })
}

/// The sealed facts, checksum right.
///
/// # Errors
/// Says what is missing or damaged.
pub fn sealed() -> Result<&'static BootFacts, &'static str> {
    if !armed() {
        return Err(match PARK.get() {
            Some(_) => "not armed: no capture image was loaded",
            None => "not armed: there is no park area",
        });
    }
    let bytes = memory::reserved(facts_place()).ok_or("the boot facts are not in the region")?;
    BootFacts::check(bytes).map_err(|_| "the boot facts are damaged")
}

/// Reads the appliance's own build-id, where the linker left it.
pub fn identify(layout: &Layout) {
    let notes = Memory.bytes(layout.notes.start, layout.notes.bytes as usize);
    if let Some(id) = notes.and_then(elf::build_id) {
        // 20 bytes for SHA-1; what is longer than the room is cut.
        BUILD_ID.set(id.iter().copied().take(32).collect());
    }
}

/// The appliance's build-id; empty when it has none.
pub fn build_id() -> &'static [u8] {
    BUILD_ID.get().map_or(&[], |id| id.as_slice())
}

/// Where the capture image lies and what it weighs, for a message.
#[derive(Debug)]
pub struct Loaded;

impl core::fmt::Display for Loaded {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (Some(image), Some(park)) = (IMAGE.get(), PARK.get()) else {
            return f.write_str("none");
        };
        let (start, kib) = (image.range.start, image.range.bytes >> 10);
        write!(f, "at {start:#x}, {kib} KiB, crc32 {:08x}; ", image.crc32)?;
        write!(f, "park area {} KiB in use", park.used >> 10)
    }
}

/// The reserved region while it is being filled.
#[derive(Debug)]
pub struct Arming {
    region: ReservedRegion,
    layout: Layout,
    power: PowerFacts,
    /// 0 for none.
    pvpanic_port: u16,
}

fn part(region: Range, from: u64, to: u64) -> Range {
    Range::between(region.start + from, region.start + to)
}

impl Arming {
    /// Loads the capture image, builds the park area and seals what is known so far.
    ///
    /// # Errors
    /// Says why the appliance cannot be captured; it may run all the same.
    pub fn begin(layout: Layout, boot: &BootInfo, power: PowerFacts) -> Result<Self, &'static str> {
        let ram = |entry: &&handoff::MemoryRange| entry.kind == MemoryKind::RAM;
        let region = place_region(&layout, boot).ok_or(
            "no 8 MiB of RAM below 4 GiB for the reserved region; give the machine at least 96 MiB",
        )?;
        if region.start != layout.region.start {
            log!(
                "arming: 64 to 72 MiB are not free RAM here: the reserved region is at {:#x}",
                region.start
            );
        }
        let mut region = ReservedRegion::take(region).ok_or("already armed")?;
        if region.range() != layout.region
            && let Some(bytes) = region.bytes_mut(region.range())
        {
            // The loader has zeroed the image's own segment and nothing else.
            bytes.fill(0);
        }
        trial::stage("region");
        let ram = boot.memory.iter().filter(ram).map(|entry| entry.range);
        let (_, built, left_out) = Park::build(part(region.range(), PARK_AT, PARK_END), ram)
            .map_err(|_| "too much memory for the page tables of the park area")?;
        PARK.set(built);
        PARK_USABLE.store(USABLE, Ordering::Release);
        let scratch = part(region.range(), PARK_AT + built.used, region.range().bytes).bytes;
        reach::tell_of_less(left_out, scratch, boot);
        trial::stage("park-area");
        let module = boot
            .modules
            .iter()
            .find(|module| module.name.contains("capture"))
            .or_else(|| boot.modules.first())
            .ok_or("the loader passed no capture module (module2 in grub.cfg, -initrd in QEMU)")?;
        let file = Memory
            .bytes(module.range.start, module.range.bytes as usize)
            .ok_or("the capture module is not mapped")?;
        let image = load(&mut region, file)?;
        IMAGE.set(image);
        trial::stage("image-loaded");
        let mut arming = Self { region, layout, power, pvpanic_port: devices::pvpanic_port() };
        arming.seal(boot, 1)?;
        Ok(arming)
    }

    /// Seals the facts: what is known now, with `cpu_count` CPUs.
    ///
    /// # Errors
    /// When the region has no room for them.
    pub fn seal(&mut self, boot: &BootInfo, cpu_count: usize) -> Result<(), &'static str> {
        let image = IMAGE.get().ok_or("no capture image")?;
        let region = self.region.range();
        let mut facts = BootFacts::new();
        facts.machine = machine::ELF_MACHINE;
        facts.region = region;
        facts.image = image.range;
        facts.image_entry = image.entry;
        facts.image_crc32 = image.crc32;
        facts.policy = crate::base::power::crash_policy();
        let park_used = PARK.get().map_or(0, |built| built.used);
        if let Some(park) = park() {
            for index in 0..cpu_count {
                park.assign(index, cpus::apic_id(index));
            }
            facts.mailboxes = park.mailboxes(cpu_count);
        }
        facts.park = part(region, PARK_AT, PARK_AT + park_used);
        facts.scratch = part(region, PARK_AT + park_used, region.bytes);
        facts.tsc_hz = clock::hz();
        facts.boot_tsc = clock::start_tsc();
        facts.boot_unix_time = clock::boot_unix_time();
        facts.rsdp = boot.rsdp.unwrap_or(0);
        facts.serial_port = u32::from(console::port());
        facts.cpu_count = cpu_count as u32;
        facts.power = self.power;
        if let Some(options) = options() {
            options.describe(&mut facts);
        }
        facts.frames = memory::frame_map();
        facts.trace = trace::range();
        for (slot, range) in facts.never_dump.iter_mut().zip(keys::never_dump()) {
            *slot = range;
            facts.never_dump_count += 1;
        }
        facts.framebuffer = screen::facts();
        facts.watchdog = hw_watchdog::facts();
        for (slot, space) in facts.config_spaces.iter_mut().zip(devices::config_spaces()) {
            *slot = space;
            facts.config_space_count += 1;
        }
        facts.root_buses = devices::root_buses();
        facts.pvpanic_port = self.pvpanic_port.into();
        for (slot, entry) in facts.memory.iter_mut().zip(&boot.memory) {
            *slot = *entry;
            facts.memory_count += 1;
        }
        self.describe_image(&mut facts)?;
        let line = boot.command_line.as_bytes();
        let line = &line[..line.len().min(COMMAND_LINE_BYTES)];
        set_text(&mut facts.command_line, core::str::from_utf8(line).unwrap_or_default());
        facts.seal();
        let place = Range { start: region.start + FACTS_AT, bytes: size_of::<BootFacts>() as u64 };
        let bytes = self.region.bytes_mut(place).ok_or("no room for the boot facts")?;
        bytes.copy_from_slice(zerocopy::IntoBytes::as_bytes(&facts));
        FACTS.set(place);
        Ok(())
    }

    /// Makes the image's data what they were before it ran. Its code it does not change, so that
    /// stays as it is. All memory must be writable at this moment.
    ///
    /// # Errors
    /// When the image is not what it was after that.
    pub fn reload(&mut self) -> Result<(), &'static str> {
        let image = IMAGE.get().ok_or("no capture image")?;
        let range = Range::between(image.range.start, image.kept.end());
        let bytes = self.region.bytes_mut(range).ok_or("no room for the capture image")?;
        let (bytes, behind) = bytes.split_at_mut(image.range.bytes as usize);
        let kept = behind.get(behind.len() - image.kept.bytes as usize..).unwrap_or_default();
        let data = bytes.get_mut((image.data.start - range.start) as usize..).unwrap_or_default();
        data.fill(0);
        data.iter_mut().zip(kept).for_each(|(to, from)| *to = *from);
        match image.is(bytes) {
            true => Ok(()),
            false => Err("the capture image has changed its own code"),
        }
    }

    /// Flips one bit of the loaded image, to show that damage is noticed.
    pub fn damage_image(&mut self) {
        if let Some(image) = IMAGE.get()
            && let Some(bytes) = self.region.bytes_mut(image.range)
            && let Some(byte) = bytes.get_mut(image.range.bytes as usize / 2)
        {
            *byte ^= 1;
        }
    }

    fn describe_image(&self, facts: &mut BootFacts) -> Result<(), &'static str> {
        let headers = self.layout.headers;
        let bytes = Memory
            .bytes(headers.start, headers.bytes as usize)
            .ok_or("the image's own headers are not mapped")?;
        let own = elf::describe(bytes).map_err(|_| "the image's own ELF header is damaged")?;
        facts.elf_header = headers.start;
        facts.elf_entry = own.entry;
        facts.elf_program_headers = u32::from(own.program_headers);
        let region = self.region.range();
        let loads = own.segments.iter().filter(|segment| !segment.range.overlaps(&region));
        for (slot, segment) in facts.segments.iter_mut().zip(loads.clone()) {
            *slot = *segment;
            facts.segment_count += 1;
        }
        for (slot, segment) in facts.virtual_segments.iter_mut().zip(loads) {
            // Everything is mapped one to one.
            *slot = VirtualSegment {
                virtual_start: segment.range.start,
                physical_start: segment.range.start,
                bytes: segment.range.bytes,
                flags: segment.flags,
                reserved: 0,
            };
            facts.virtual_segment_count += 1;
        }
        set_text(&mut facts.image_name, IMAGE_NAME);
        if let Some(id) = BUILD_ID.get() {
            facts.build_id[..id.len()].copy_from_slice(id);
            facts.build_id_bytes = id.len() as u32;
        }
        Ok(())
    }
}

fn load(region: &mut ReservedRegion, file: &[u8]) -> Result<LoadedImage, &'static str> {
    let room = part(region.range(), 0, FACTS_AT);
    let plan = elf::ImagePlan::new(file, room.bytes).map_err(|error| error.hint())?;
    module::check(file).map_err(|unfit| match unfit {
        ModuleError::NoChecksum | ModuleError::Unsealed => {
            "the capture module has no checksum: build it with `cargo xtask build`"
        }
        ModuleError::Damaged(..) => {
            "the capture module is damaged: its checksum is not the one it was built with"
        }
    })?;
    let range = Range { start: room.start, bytes: plan.memory_bytes };
    let bytes = region.bytes_mut(range).ok_or("no room for the capture image")?;
    bytes.fill(0);
    for segment in &plan.segments {
        let from = segment.file_offset as usize;
        let to = segment.memory_offset as usize;
        let length = segment.file_bytes as usize;
        let (Some(source), Some(target)) =
            (file.get(from..from + length), bytes.get_mut(to..to + length))
        else {
            return Err("the capture module's segments do not fit its size");
        };
        target.copy_from_slice(source);
    }
    let filled = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let filled_crc32 = crc32fast::hash(bytes.get(..filled).unwrap_or_default());
    let crc32 = crc32fast::hash(bytes);
    let first = plan.segments.iter().find(|segment| segment.writable);
    let data = first.map_or(plan.memory_bytes, |segment| segment.memory_offset);
    let data = Range::between(range.start + data, range.end());
    let kept_bytes = (range.start + filled as u64).saturating_sub(data.start);
    let kept = Range { start: range.end(), bytes: kept_bytes };
    if !room.holds(kept.start, kept.bytes) {
        return Err("the capture module's data are more than there is room for, twice");
    }
    let both = region.bytes_mut(Range::between(data.start, kept.end()));
    let both = both.ok_or("no room for the capture image's data")?;
    both.copy_within(..kept.bytes as usize, data.bytes as usize);
    let entry = range.start + plan.entry_offset;
    Ok(LoadedImage { range, entry, crc32, filled: filled as u64, filled_crc32, data, kept })
}
