//! The search for the disk that takes the dump, or for two that share the work.

use core::fmt;

use block::pci::{self, Silence};
use block::{BlockDevice, Error, Identity};
use capture_engine::timeout_budget;
use handoff::crash::MAX_IN_FLIGHT;
use machine::breadcrumb::RunProgress as Reached;
use machine::cpu;
use storage::amount::{Mib, Ms};
use storage::area::{self, SlotLocation, StorageError};
use storage::disks::{self, Attempt, Avoided, Controllers, Tried};
use storage::partition::with_area;
use storage::slot::Choice;
use storage::target::{self, Step, Target};
use vmcore_format::area::AreaHeader;
use vmcore_format::gpt::Guid;

use crate::console::say;
use crate::physical::{CapturePlatform, TIMEOUT_BUDGET, use_config_spaces};
use crate::rehearsal::ReadOnly;
use crate::write::{NoDumpError, Prepared, write_to};
use crate::{clock, finish, hw_watchdog, pvpanic, rehearsal, screen};

/// Writes the dump to the first disk that takes it, in the order the command line wants.
pub fn write(mut dump: Prepared) -> Result<(), NoDumpError> {
    let command_line = dump.appliance.facts.command_line();
    let steps = target::wanted(command_line, |why| say!("capture: {why}"));
    let failed = use_config_spaces(dump.appliance.facts);
    if failed > 0 {
        say!("capture: {failed} parts of the configuration space of PCI cannot be mapped");
    }
    let in_flight = dump.in_flight;
    // Ends what the crashed system's devices do to memory by themselves, but for those with
    // requests in flight. Each disk gets the right back when it is opened, after its reset.
    let untouched = rehearsal::under_way() || in_flight.is_incomplete();
    let wanted = if untouched { Silence::Counted } else { Silence::Taken };
    let mut numbers = heapless::Vec::<u32, MAX_IN_FLIGHT>::new();
    numbers.extend(in_flight.numbers().take(MAX_IN_FLIGHT));
    let (mut controllers, mut host) = (Controllers::default(), None);
    let silenced = pci::silence::<CapturePlatform>(&numbers, wanted, |function| {
        controllers.meet(function);
        if pvpanic::is_on_pci(function) {
            host = Some(function.address);
        }
    });
    pvpanic::taken_over_by_pci(host);
    say!("capture: bus mastering off, functions that had it: {silenced}");
    if !numbers.is_empty() || in_flight.is_incomplete() {
        say!("capture: requests in flight at {in_flight}: left alone");
    }
    let avoided = Avoided::new(in_flight.given_up());
    // Those that failed have no part in what another takes.
    let failed = Avoided::new([]);
    let controllers = &controllers;
    let mut search = DiskSearch {
        dump: &mut dump,
        controllers,
        avoided: &avoided,
        failed: &failed,
        number: 0,
        busy: Busy::Later,
        passed_over: 0,
    };
    TIMEOUT_BUDGET.begin(clock::running_ns());
    let found = search.run(&steps);
    // No other disk took all of it: what one had kept when it failed is the dump.
    if found.is_err() && finish::is_closed() {
        return Ok(());
    }
    if let (Err(NoDumpError::NoDisk), 0) = (&found, search.passed_over) {
        for controller in controllers.without_driver() {
            say!("capture: no driver for {controller}");
        }
    }
    // A disk with requests in flight may keep whatever touches it for ever, so what is to be
    // known of the crash is said first. In a rehearsal the appliance still needs it.
    if found.is_ok() || search.passed_over == 0 || rehearsal::under_way() {
        return found;
    }
    finish::last_words_first(format_args!(
        "no other disk takes a dump; next are {} with requests in flight, which may keep this \
         image for ever",
        search.passed_over
    ));
    search.busy = Busy::Now;
    let found = search.run(&steps);
    if found.is_err() && finish::is_closed() { Ok(()) } else { found }
}

/// Puts a function that was `tried` in a rehearsal to rest. What does not answer is not spoken
/// to, in a rehearsal neither.
fn put_to_rest(kind: Target, function: &pci::Function, tried: Tried) -> Tried {
    if rehearsal::under_way() && tried != Tried::GivenUp {
        // One that does not come to rest has at least no way to memory any more.
        let _ = disks::quiet::<CapturePlatform>(kind, function);
    }
    tried
}

/// As [`with_area`], and in a rehearsal without writing to it.
fn on_area<R>(
    disk: &mut dyn BlockDevice,
    partition: Option<Guid>,
    then: impl FnOnce(&mut dyn BlockDevice) -> Result<R, StorageError>,
) -> Result<R, StorageError> {
    match rehearsal::under_way() {
        true => with_area(&mut ReadOnly::new(disk), partition, then),
        false => with_area(disk, partition, then),
    }
}

/// How long the next disk may take, after one that was `tried`.
fn be_patient(tried: Tried) {
    if tried == Tried::GivenUp && TIMEOUT_BUDGET.missed(clock::running_ns()) {
        say!(
            "capture: disks that do not answer have taken all there is for them, {}; {} for \
             each of the others",
            Ms(timeout_budget::TOTAL_NS),
            Ms(timeout_budget::LEAST_NS),
        );
    }
    TIMEOUT_BUDGET.begin(clock::running_ns());
}

/// Whether a disk with a problem may be touched again.
const fn gave_up(problem: &StorageError) -> Tried {
    match problem {
        StorageError::Disk(Error::Deadline(_) | Error::GivenUp) => Tried::GivenUp,
        _ => Tried::Next,
    }
}

/// A disk with a slot for the dump.
pub struct OpenTarget<'a> {
    /// Its number in the order of the search.
    pub number: usize,
    /// The disk.
    pub disk: &'a mut dyn BlockDevice,
    /// The slot.
    pub place: SlotLocation,
}

/// The search for disks, under way.
struct DiskSearch<'a> {
    dump: &'a mut Prepared,
    controllers: &'a Controllers,
    avoided: &'a Avoided,
    failed: &'a Avoided,
    /// Of the next disk.
    number: usize,
    /// What becomes of disks with requests in flight.
    busy: Busy,
    /// How many of them were passed over.
    passed_over: usize,
}

/// What becomes of disks with requests in flight: they are passed over first, and when no other
/// disk takes the dump they alone are tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Busy {
    Later,
    Now,
}

impl DiskSearch<'_> {
    /// Hands the dump to the first disk that takes it, of those whose turn it is.
    fn run(&mut self, steps: &[Step]) -> Result<(), NoDumpError> {
        let mut end = Err(NoDumpError::NoDisk);
        let tell = &mut |text: fmt::Arguments<'_>| say!("capture: {text}");
        let (controllers, avoided, failed) = (self.controllers, self.avoided, self.failed);
        disks::each_function(controllers, steps, avoided, tell, &mut |kind, wanted, function| {
            if !self.is_due(function.address) {
                return Tried::Next;
            }
            let attempt: &mut Attempt<'_> = &mut |address, wanted, opened| {
                let number = self.next();
                let written = opened.map_err(StorageError::Disk).and_then(|disk| {
                    on_area(disk, wanted.partition, |area| {
                        let found = self.find(number, area)?;
                        self.write(address, wanted.with, found)
                    })
                });
                let tried = match &written {
                    Ok(()) => Tried::Took,
                    // Last words only, and on no other disk a dump either.
                    Err(StorageError::CrashLoop(..)) => {
                        finish::stay_down();
                        Tried::Took
                    }
                    Err(problem) => gave_up(problem),
                };
                end = written.map_err(|problem| {
                    failed.add(address.number());
                    say!("capture: disk {number} at {address}: {problem}");
                    NoDumpError::Disks(number, problem)
                });
                be_patient(tried);
                tried
            };
            let tried = disks::try_function::<CapturePlatform>(kind, wanted, function, attempt);
            put_to_rest(kind, function, tried)
        });
        end
    }

    /// Returns true if it is the turn of the disks at a function; notes the ones that come later.
    /// It never is for a disk for data with requests in flight.
    fn is_due(&mut self, function: pci::Address) -> bool {
        if self.dump.in_flight.keeps_data(function) {
            return false;
        }
        match (self.dump.in_flight.may_have(function), self.busy) {
            (false, Busy::Later) | (true, Busy::Now) => true,
            (false, Busy::Now) => false,
            (true, Busy::Later) => {
                say!(
                    "capture: {function} has requests in flight: tried when no other disk is left"
                );
                self.passed_over += 1;
                false
            }
        }
    }

    fn next(&mut self) -> usize {
        self.number += 1;
        self.number - 1
    }

    /// Finds the slot for the dump on a disk, which notes that there was a crash.
    fn find<'a>(
        &mut self,
        number: usize,
        disk: &'a mut dyn BlockDevice,
    ) -> Result<OpenTarget<'a>, StorageError> {
        self.dump.metrics.disk_tsc = cpu::rdtsc();
        introduce(number, disk.identity());
        hw_watchdog::feed();
        hw_watchdog::mark(Reached::Capturing);
        let facts = self.dump.appliance.facts;
        let area = area::find_area(disk)?;
        if let Some(damage) = area.damage {
            say!("capture: disk {number}: warning: dump area: {damage}");
        }
        let area = area.header;
        TIMEOUT_BUDGET.answered();
        let now = self.dump.crash.time.unix_time;
        match area::note_crash(disk, now, facts.crash_loop, facts.crash_loop_minutes) {
            // There was none this time.
            Err(StorageError::CrashLoop(..)) if rehearsal::under_way() => {}
            noted => {
                if let Some(error) = noted? {
                    say!("capture: disk {number}: this crash is not counted: {error}");
                }
            }
        }
        match choose(number, disk, &area, self.dump.crash.options.overwrite) {
            Ok(place) => Ok(OpenTarget { number, disk, place }),
            Err(problem) => {
                // The crash counts all the same.
                disk.flush()?;
                Err(problem)
            }
        }
    }

    /// Writes the dump to the disk at `address`, where a slot was found, and to another one of
    /// the kind `with`, when there is one.
    fn write(
        &mut self,
        address: pci::Address,
        with: Option<Target>,
        main: OpenTarget<'_>,
    ) -> Result<(), StorageError> {
        let Some(with) = with else { return write_to(self.dump, main, None).0 };
        let (mut main, mut written) = (Some(main), None);
        let tell = &mut |text: fmt::Arguments<'_>| say!("capture: {text}");
        let step = [Step { target: with, with: None }];
        disks::each_function(
            self.controllers,
            &step,
            self.avoided,
            tell,
            &mut |kind, wanted, function| {
                let at = function.address;
                // One that failed has no part in it, and opening the one at hand would reset it.
                // Nor has one with requests in flight.
                if at == address || self.failed.has(at.number()) || self.dump.in_flight.may_have(at)
                {
                    return Tried::Next;
                }
                let attempt: &mut Attempt<'_> = &mut |_, wanted, opened| {
                    let number = self.next();
                    let mut lost = None;
                    let shared = opened.map_err(StorageError::Disk).and_then(|disk| {
                        on_area(disk, wanted.partition, |area| {
                            introduce(number, area.identity());
                            let header = area::find_area(area)?.header;
                            TIMEOUT_BUDGET.answered();
                            let place =
                                choose(number, area, &header, self.dump.crash.options.overwrite)?;
                            let other = OpenTarget { number, disk: area, place };
                            if let Some(main) = main.take() {
                                let (outcome, why) = write_to(self.dump, main, Some(other));
                                (written, lost) = (Some(outcome), why.map(StorageError::Disk));
                            }
                            Ok(())
                        })
                    });
                    if let Some(problem) = shared.err() {
                        say!("capture: disk {number} at {at}: {problem}");
                        return gave_up(&problem);
                    }
                    if lost.is_some_and(|problem| gave_up(&problem) == Tried::GivenUp) {
                        self.avoided.add(at.number());
                    }
                    Tried::Took
                };
                let tried = disks::try_function::<CapturePlatform>(kind, wanted, function, attempt);
                put_to_rest(kind, function, tried)
            },
        );
        match (written, main) {
            (Some(written), _) => written,
            (None, Some(main)) => {
                let (number, word) = (main.number, with.word());
                say!("capture: no disk ({word}) to share the work: disk {number} alone");
                write_to(self.dump, main, None).0
            }
            (None, None) => Err(StorageError::Disk(Error::GivenUp)),
        }
    }
}

/// Says what a disk is.
fn introduce(number: usize, identity: &Identity) {
    say!(
        "capture: disk {number}: {}, serial \"{}\", {}{}",
        identity.name(),
        identity.serial,
        Mib(identity.capacity),
        if identity.can_flush { "" } else { ", cannot flush: durable only if it says so" },
    );
    screen::busy(
        format_args!("capturing to disk {number}"),
        format_args!("{}, {}", identity.name(), Mib(identity.capacity)),
    );
}

/// Chooses the slot on a disk.
fn choose(
    number: usize,
    disk: &mut dyn BlockDevice,
    area: &AreaHeader,
    overwrite: bool,
) -> Result<SlotLocation, StorageError> {
    let place = area::choose_place(disk, area, overwrite, &mut |_| ())?;
    let Choice { slot, sequence, replaces } = place.choice();
    say!("capture: disk {number}: slot {slot}, dump {sequence}, {replaces}");
    Ok(place)
}
