//! The slots that a dump goes to: opening them, and what is done when a disk fails in one.

use block::{BlockDevice, Error};
use capture_engine::close::{Case, CloseError};
use capture_engine::lanes::Lane;
use capture_engine::stage::{Salvage, Writer};
use machine::cpu;
use storage::amount::Mib;
use storage::area::{SlotLocation, StorageError, is_local};
use vmcore_format::area::{SlotOpen, stage_kind};

use super::{Prepared, slot_open, write_logs};
use crate::console::{self, say};
use crate::search::OpenTarget;
use crate::{finish, rehearsal, rescue};

/// Opens the slots, and writes to them; where the disk fails in a slot before anything is sealed,
/// tries another one. Returns also what was wrong with the other disk, where there was one.
pub fn write_to(
    dump: &mut Prepared,
    main: OpenTarget<'_>,
    mut other: Option<OpenTarget<'_>>,
) -> (Result<(), StorageError>, Option<Error>) {
    let OpenTarget { number, disk, mut place } = main;
    loop {
        let beside = other.as_mut();
        let target = OpenTarget { number, disk: &mut *disk, place };
        let beside = beside.map(|other| OpenTarget {
            number: other.number,
            disk: &mut *other.disk,
            place: other.place,
        });
        let (written, lost) = write_slot(dump, target, beside);
        let error = match written {
            Err(StorageError::Disk(error)) if is_local(&error) => error,
            _ => return (written, lost),
        };
        if finish::is_kept(number) || rehearsal::under_way() {
            return (written, lost);
        }
        match place.another(disk) {
            Ok(next) => {
                let (old, new) = (place.choice().slot, next.choice().slot);
                say!("capture: disk {number}: slot {old}: {error}: slot {new} is tried");
                place = next;
            }
            Err(_) => return (written, lost),
        }
        // What it shared is of no use any more.
        other = None;
    }
}

/// Opens the slots, and writes to them.
fn write_slot(
    dump: &mut Prepared,
    main: OpenTarget<'_>,
    other: Option<OpenTarget<'_>>,
) -> (Result<(), StorageError>, Option<Error>) {
    let (number, place) = (main.number, main.place);
    let begin = slot_open(dump);
    let (open, second) = match open(begin, &mut *main.disk, &place, other) {
        Ok(open) => open,
        Err(problem) => return (Err(problem), None),
    };
    dump.metrics.write_begin_tsc = cpu::rdtsc();
    let case = Case { crash: dump.crash, plan: dump.plan, place, open, metrics: dump.metrics };
    rescue::lend(main.disk, case, |disk| write_logs(dump, number, disk, second, &case))
}

/// Opens a slot on one disk, or on each of two; the other one is left out when it fails.
fn open<'a>(
    begin: SlotOpen,
    disk: &mut dyn BlockDevice,
    place: &SlotLocation,
    other: Option<OpenTarget<'a>>,
) -> Result<(SlotOpen, Option<Lane<'a>>), StorageError> {
    let Some(other) = other else { return Ok((place.open(disk, begin)?, None)) };
    let number = other.number;
    match place.open_with(disk, (&other.place, &mut *other.disk), begin)? {
        (open, Ok(memory)) => {
            say!("capture: disk {number} shares the work");
            Ok((open, Some(Lane::new(other.disk, other.place, memory))))
        }
        (open, Err(problem)) => {
            say!("capture: disk {number}: {problem}: goes on with one");
            Ok((open, None))
        }
    }
}

/// Closes a stage, with its index and kind, that a disk has ended, with what was kept of it;
/// returns false when that cannot be done.
pub(super) fn close_after(
    writer: &mut Writer<'_>,
    (index, kind): (u32, u32),
    problem: &StorageError,
    (number, salvage): (usize, &Salvage<'_>),
) -> bool {
    let name = stage_kind::name(kind);
    match writer.close_after(index, kind, problem, salvage) {
        Ok(seal) => {
            finish::keep_closed(kind);
            console::release();
            say!(
                "capture: disk {number}: {problem}: closed stage `{name}`: {} of memory, {} stored",
                Mib(seal.memory_bytes),
                Mib(seal.stored_bytes),
            );
            true
        }
        // There is no dump on it beyond the stage before; nothing of that is touched.
        Err(CloseError::NotOpen) => false,
        Err(why) => {
            say!("capture: disk {number}: stage `{name}` is not closed: {why}");
            false
        }
    }
}
