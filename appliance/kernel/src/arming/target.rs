//! The disk that a dump would go to: looked at when the appliance arms, and when `ready` asks.
//!
//! The search is the capture image's own ([`place`]): the same list, the same order, the same
//! checks of the area, the same choice of a slot. It only reads, and leaves every disk reset
//! and without a way to memory, as it found it. A disk that a workload has is left alone.
//!
//! A look takes a moment, but for a disk that does not answer: waits are shorter than those of
//! a dump, and the first disk that misses one ends a look that the console asked for. What
//! missed a deadline is not touched again, not by a crash either, until it has answered all the
//! same ([`late_disks`]): the reset of a disk whose request hangs may never return, nor the end of
//! its way to memory. A disk that is being looked at is on the list of functions with requests in
//! flight.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use block::{BlockDevice, Error, pci};
use handoff::crash::CauseKind;
use heapless::String;
use machine::boot::{STACK_BLOCK_BYTES, layout};
use machine::lock::Lock;
use storage::area::{self, SlotLocation, StorageError};
use storage::disks::{self, Avoided, Controllers, Tried, Wanted};
use storage::partition::with_area;
use storage::slot::FoundDump;
use storage::target::{self, Step, Target};
use vmcore_format::area::{AreaHeader, DATA_OFFSET, part, stage_kind};

use crate::arming::arm;
use crate::arming::estimate::{Need, Pace, Room};
use crate::arming::late_disks::{self, give_up};
use crate::base::devices::in_flight;
use crate::base::devices::visit::{self, Visit, Visitor};
use crate::base::{clock, cpus, memory};
use crate::firmware::calendar::Date;
use crate::firmware::cmdline::{Options, Pages, Slots};
use crate::work::disk;
use crate::{log, options};

/// Nanoseconds between two looks at disks that were given up.
const LOOK_EVERY_NS: u64 = 2_000_000_000;
static NEXT_LOOK_NS: AtomicU64 = AtomicU64::new(0);

/// Bytes read at once to see how fast a disk is.
const SAMPLE: usize = 64 << 10;
/// It is read from until so many bytes have come, or so much time has passed.
const SAMPLE_BYTES: u64 = 4 << 20;
const SAMPLE_NS: u64 = 20_000_000;
static BUFFER: Lock<[u8; SAMPLE]> = Lock::new("disk-sample", [0; SAMPLE]);

/// Bytes of the first stage that are neither the image nor a stack: lists, rings, tables.
const MINI_REST: u64 = 1 << 20;

/// What a person reads of a disk.
type Message = String<192>;

/// A disk that would take a dump.
#[derive(Debug)]
pub struct DumpTarget {
    /// Its number in the order of the search, driver and address.
    disk: Message,
    version: u32,
    slots: u32,
    place: SlotLocation,
    room: Room,
    pace: Pace,
    /// The disk that would share the work, or that it was asked for in vain.
    beside: Beside,
    /// Crashes of late, and how many within how many minutes are one too many.
    crashes: (usize, u32, u32),
}

/// Whether another disk shares the work.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, and nothing to allocate it from")]
enum Beside {
    /// Nobody asked for it.
    Nobody,
    /// It has this name and slot, of so many.
    Disk(Message, SlotLocation, u32),
    /// There is none of this kind.
    Missing(Target),
}

/// What a look has found.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, and nothing to allocate it from")]
pub enum Outlook {
    /// There is a disk for a dump.
    Found(DumpTarget),
    /// There is none; says why.
    None(Message),
    /// Somebody is opening a disk at this moment.
    Busy,
}

impl DumpTarget {
    /// Whether the next crash is one too many: there would be last words only.
    #[must_use]
    pub const fn is_loop(&self) -> bool {
        let (lately, most, _) = self.crashes;
        most > 0 && lately as u64 >= most as u64
    }

    /// How long the dump would take, in milliseconds.
    #[must_use]
    pub fn ms(&self) -> u64 {
        self.pace.ms(self.room.memory())
    }

    /// By what that is known.
    #[must_use]
    pub const fn pace(&self) -> Pace {
        self.pace
    }

    /// The last stage there would be.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        self.room.kept.map_or("nothing", stage_kind::name)
    }

    /// Bytes of memory to write.
    #[must_use]
    pub const fn memory(&self) -> u64 {
        self.room.memory()
    }
}

impl fmt::Display for DumpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choice = self.place.choice();
        write!(f, "{}, area v{}, slot {} of {}", self.disk, self.version, choice.slot, self.slots)?;
        write!(f, ", {}", choice.replaces)?;
        match &self.beside {
            Beside::Nobody => {}
            Beside::Disk(disk, place, slots) => {
                let choice = place.choice();
                write!(f, ", with {disk}, slot {} of {slots}, {}", choice.slot, choice.replaces)?;
            }
            Beside::Missing(target) => {
                write!(f, ", alone: no disk ({}) to share the work", target.word())?;
            }
        }
        write!(f, ": {}", self.room)?;
        let (lately, _, minutes) = self.crashes;
        if self.is_loop() {
            write!(f, "; {lately} crashes within {minutes} minutes: the next is a crash loop")?;
        }
        Ok(())
    }
}

/// Looks when the appliance arms, and says what it has found: whether a crash would be dumped.
pub fn look_at_boot() -> bool {
    if arm::sealed().is_err() {
        // Without a capture image nobody would write to it; that was said.
        return false;
    }
    visit::prepare();
    let outlook = look(&mut |line| log!("{line}"));
    match &outlook {
        Outlook::Found(found) => log!("armed: {found}"),
        Outlook::None(why) => log!("not armed: {why}; a crash leaves last words only"),
        Outlook::Busy => {}
    }
    visit::armed();
    matches!(outlook, Outlook::Found(_))
}

/// Looks again, at most every few seconds and while the machine works, once a disk that was
/// given up has answered after all; says whether a crash would be dumped.
pub fn look_again_when_due() {
    let now = clock::now_ns();
    if !late_disks::any() || now < NEXT_LOOK_NS.load(Ordering::Relaxed) {
        return;
    }
    NEXT_LOOK_NS.store(now.saturating_add(LOOK_EVERY_NS), Ordering::Relaxed);
    let answered = Visit::begin().is_some_and(|_visit| late_disks::release_answered(now) > 0);
    if !answered {
        return;
    }
    log!("target: a disk that was given up has answered: looked at again");
    match look(&mut |line| log!("{line}")) {
        Outlook::Found(found) => log!("armed: {found}; the capture was not rehearsed with it"),
        Outlook::None(why) => log!("not armed: {why}; a crash leaves last words only"),
        Outlook::Busy => {}
    }
}

/// Looks for the disk that a dump would go to; `say` gets a line about each that is passed
/// over, and about dumps that wait to be collected.
pub fn look(say: &mut dyn FnMut(fmt::Arguments<'_>)) -> Outlook {
    let (Ok(facts), Some(options)) = (arm::sealed(), options()) else {
        return Outlook::None(words(format_args!("there is no capture image to write a dump")));
    };
    let Some(visit) = Visit::begin() else { return Outlook::Busy };
    if late_disks::release_answered(clock::now_ns()) > 0 {
        say(format_args!("target: a disk that was given up has answered: looked at again"));
    }
    let command_line = facts.command_line();
    let steps = target::wanted(command_line, |why| say(format_args!("target: {why}")));
    let avoided = Avoided::new(in_flight::given_up());
    let mut search = TargetSearch { options, number: 0, found: None, with: None, last: None };
    search.walk(&visit, &steps, &avoided, say);
    if let Some((_, with)) = search.with {
        search.walk(&visit, &[Step { target: with, with: None }], &avoided, say);
    }
    match (search.found, search.last) {
        (Some(found), _) => Outlook::Found(found),
        (None, Some(why)) if search.number == 1 => Outlook::None(why),
        (None, Some(why)) => Outlook::None(words(format_args!("no disk takes a dump; {why}"))),
        (None, None) => Outlook::None(words(format_args!(
            "no disk found that there is a driver for (virtio-blk, NVMe, AHCI)"
        ))),
    }
}

/// A search under way.
struct TargetSearch<'a> {
    options: &'a Options,
    /// Of the next disk.
    number: usize,
    found: Option<DumpTarget>,
    /// Where that is, and what is to share the work with it: looked for next.
    with: Option<(pci::Address, Target)>,
    /// What was wrong with the last disk.
    last: Option<Message>,
}

impl TargetSearch<'_> {
    /// Opens one disk after the other until one takes the dump, or shares the work with the
    /// one that was found before.
    fn walk(
        &mut self,
        visit: &Visit,
        steps: &[Step],
        avoided: &Avoided,
        say: &mut dyn FnMut(fmt::Arguments<'_>),
    ) {
        let mut lines = Message::new();
        let controllers = Controllers::find::<Visitor>();
        disks::each_function(
            &controllers,
            steps,
            avoided,
            // One line at most, and `say` is needed below.
            &mut |line| {
                let _ = write!(lines, "{line}");
            },
            &mut |kind, wanted, function| {
                if self.with.is_some_and(|(taken, _)| taken == function.address) {
                    return Tried::Next;
                }
                if disk::uses(function.address) {
                    self.number += 1;
                    return Tried::Next;
                }
                visit.pages_for_the_next();
                let entry = in_flight::Entry::of(function.address);
                entry.begin(visit::memory());
                let tried = disks::try_function::<Visitor>(
                    kind,
                    wanted,
                    function,
                    &mut |address, wanted, opened| self.try_disk(address, wanted, opened, say),
                );
                match tried {
                    Tried::GivenUp => {
                        entry.give_up();
                        give_up(function.address, visit.keep_pages());
                        // One more that does not answer would be one too many for the console.
                        if visit::is_armed() { Tried::Took } else { tried }
                    }
                    _ if disks::quiet::<Visitor>(kind, function).is_err() => {
                        say(format_args!("target: {} does not come to rest", function.address));
                        entry.give_up();
                        give_up(function.address, visit.keep_pages());
                        tried
                    }
                    _ => {
                        entry.end();
                        tried
                    }
                }
            },
        );
        if !lines.is_empty() {
            say(format_args!("target: {lines}"));
        }
        if self.number == 0 {
            for controller in controllers.without_driver() {
                say(format_args!("target: no driver for {controller}"));
            }
        }
    }

    /// Looks at a disk that was opened.
    fn try_disk(
        &mut self,
        address: pci::Address,
        wanted: Wanted,
        opened: Result<&mut dyn BlockDevice, Error>,
        say: &mut dyn FnMut(fmt::Arguments<'_>),
    ) -> Tried {
        let number = self.number;
        self.number += 1;
        let disk = match &opened {
            Ok(disk) => words(format_args!("disk {number}, {}", disk.identity().name())),
            Err(_) => words(format_args!("disk {number}, at {address}")),
        };
        let looked = opened.map_err(StorageError::Disk).and_then(|opened| {
            with_area(opened, wanted.partition, |area| match self.found {
                None => self.look_at(&disk, area, (address, wanted), say),
                Some(_) => self.look_beside(&disk, area, say),
            })
        });
        self.conclude(&disk, looked, say)
    }

    /// Looks at the area on one disk.
    fn look_at(
        &mut self,
        disk: &Message,
        area: &mut dyn BlockDevice,
        (address, wanted): (pci::Address, Wanted),
        say: &mut dyn FnMut(fmt::Arguments<'_>),
    ) -> Result<(), StorageError> {
        let (header, place, newest) = self.choose(disk, area, say)?;
        let room = self.room(place.bytes());
        if room.kept.is_none() {
            return Err(StorageError::SlotTooSmall(place.bytes()));
        }
        let (most, minutes) = self.options.crash_loop;
        let minutes = u32::try_from(minutes).unwrap_or(u32::MAX);
        let lately = area::lately(area, clock::unix_time(), minutes)?;
        let pace = match newest {
            Some((sequence, bytes, ns)) => Pace::Dump(sequence, bytes, ns),
            None => sample(area, &header, &place)?,
        };
        self.with = wanted.with.map(|with| (address, with));
        self.found = Some(DumpTarget {
            disk: disk.clone(),
            version: header.version,
            slots: header.slot_count,
            place,
            room,
            pace,
            beside: wanted.with.map_or(Beside::Nobody, Beside::Missing),
            crashes: (lately, u32::try_from(most).unwrap_or(u32::MAX), minutes),
        });
        Ok(())
    }

    /// Looks at the area on a disk that would share the work with the one that was found.
    fn look_beside(
        &mut self,
        disk: &Message,
        area: &mut dyn BlockDevice,
        say: &mut dyn FnMut(fmt::Arguments<'_>),
    ) -> Result<(), StorageError> {
        let (header, place, _) = self.choose(disk, area, say)?;
        let first = self.found.as_ref().map_or(0, |found| found.place.bytes());
        let room = self.room(first.saturating_add(place.bytes()));
        if let Some(found) = &mut self.found {
            found.beside = Beside::Disk(disk.clone(), place, header.slot_count);
            found.room = room;
        }
        Ok(())
    }

    /// Chooses the slot in the area on a disk, and tells of the dumps in others; returns what
    /// is known of the newest.
    fn choose(
        &self,
        disk: &Message,
        area: &mut dyn BlockDevice,
        say: &mut dyn FnMut(fmt::Arguments<'_>),
    ) -> Result<(AreaHeader, SlotLocation, Option<Newest>), StorageError> {
        let found = area::find_area(area)?;
        if let Some(damage) = found.damage {
            say(format_args!("target: warning: {disk}, dump area: {damage}"));
        }
        let header = found.header;
        let mut dumps = Dumps::default();
        let overwrite = self.options.slots == Slots::OverwriteOldest;
        let place = area::choose_place(area, &header, overwrite, &mut |dump| dumps.add(dump));
        dumps.announce(disk, say);
        Ok((header, place?, dumps.newest))
    }

    /// How far a dump gets in slots of so many bytes together.
    fn room(&self, bytes: u64) -> Room {
        let wanted = match self.options.pages {
            Pages::Mini => stage_kind::MINI,
            Pages::Used => stage_kind::USED,
            Pages::All => stage_kind::ALL,
        };
        Room::new(bytes, wanted, need())
    }

    /// Keeps what a disk came to, and says whether to go on.
    fn conclude(
        &mut self,
        disk: &Message,
        looked: Result<(), StorageError>,
        say: &mut dyn FnMut(fmt::Arguments<'_>),
    ) -> Tried {
        match looked {
            Ok(()) => Tried::Took,
            Err(problem) => {
                say(format_args!("target: {disk}: {problem}"));
                self.last = Some(words(format_args!("{disk}: {problem}")));
                match problem {
                    StorageError::Disk(Error::Deadline(_) | Error::GivenUp) => Tried::GivenUp,
                    _ => Tried::Next,
                }
            }
        }
    }
}

/// A dump: sequence number, bytes of memory, nanoseconds to write them.
type Newest = (u64, u64, u64);

/// The dumps that are on a disk already.
#[derive(Default)]
struct Dumps {
    newest: Option<Newest>,
    uncollected: u32,
    /// Of the newest that nobody has collected: sequence number, when, and why.
    waiting: Option<(u64, u64, CauseKind)>,
}

impl Dumps {
    fn add(&mut self, dump: FoundDump<'_>) {
        let (open, sequence) = (dump.open, dump.open.sequence);
        let newer = |than: Option<u64>| than.is_none_or(|than| sequence > than);
        // What a dump took that begins elsewhere is not known here.
        if open.part != part::MEMORY && newer(self.newest.map(|(sequence, ..)| sequence)) {
            self.newest = Some((sequence, dump.memory_bytes, dump.write_ns));
        }
        if dump.uncollected {
            self.uncollected += 1;
            if newer(self.waiting.map(|(sequence, ..)| sequence)) {
                self.waiting = Some((sequence, open.unix_time, CauseKind(open.cause_kind)));
            }
        }
    }

    fn announce(&self, disk: &Message, say: &mut dyn FnMut(fmt::Arguments<'_>)) {
        let Some((sequence, time, kind)) = self.waiting else { return };
        let dumps = if self.uncollected == 1 { "dump" } else { "dumps" };
        say(format_args!(
            "target: {} uncollected {dumps} on {disk}, the newest of {}: dump {sequence}, {}; \
             collect with vmcore collect",
            self.uncollected,
            Date(time),
            kind,
        ));
    }
}

/// How fast the slot that was chosen can be read.
fn sample(
    device: &mut dyn BlockDevice,
    header: &AreaHeader,
    place: &SlotLocation,
) -> Result<Pace, StorageError> {
    // Only one look is under way, so nobody has it.
    let Some(mut buffer) = BUFFER.lock_unless(machine::identity::here(), || true) else {
        return Ok(Pace::Unknown);
    };
    let bytes = SAMPLE_BYTES.min(header.slot_capacity());
    let (start, mut done) = (clock::now_ns(), 0);
    while done + SAMPLE as u64 <= bytes && clock::now_ns().saturating_sub(start) < SAMPLE_NS {
        device.read(place.offset() + DATA_OFFSET + done, &mut *buffer)?;
        done += SAMPLE as u64;
    }
    Ok(Pace::Reading(done, clock::now_ns().saturating_sub(start)))
}

/// What there is to write, as far as it can be known.
fn need() -> Need {
    let image = layout();
    let image_bytes = image.data.end().saturating_sub(image.headers.start);
    let cpus = cpus::count() as u64;
    let all = memory::bytes_of_ram();
    // While somebody allocates, all there is is the safe answer.
    let used = memory::counts_if_free().map_or(all, |(free, _)| all.saturating_sub(free << 12));
    let mini = image_bytes.saturating_add(cpus * STACK_BLOCK_BYTES).saturating_add(MINI_REST);
    Need { mini: mini.min(used), used, all, cpus }
}

/// Returns `text`, cut off where it does not fit.
fn words(text: fmt::Arguments<'_>) -> Message {
    let mut words = Message::new();
    let _ = words.write_fmt(text);
    words
}
