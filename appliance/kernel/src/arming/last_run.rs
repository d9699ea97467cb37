//! Word from run to run: how far each came, should it be cut off by a reset.
//!
//! A dump tells of a crash; of a triple fault, a hung machine, or a reset from outside there
//! is only the breadcrumb (see [`breadcrumb`](machine::breadcrumb)), which the next run reads
//! and says on its console.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use machine::breadcrumb::{self, Breadcrumb, Crashes, RunProgress};
use machine::rtc::{self, Cmos};

use crate::arming::arm;
use crate::base::clock;
use crate::firmware::{calendar, cmdline};
use crate::trial::STAGES;
use crate::{log, options};

/// Whether this run leaves word.
static LEAVES: AtomicBool = AtomicBool::new(false);
/// The last run came no further than what is behind [`BEFORE_REHEARSAL`].
static REHEARSAL_SUSPECT: AtomicBool = AtomicBool::new(false);
/// The stage before the rehearsal of the capture image.
const BEFORE_REHEARSAL: &str = "target";
/// The stage last left word of.
static STAGE: AtomicU8 = AtomicU8::new(0);

/// Says what the last run left, and begins this one's. `reset` is the name of the hardware
/// watchdog, if it was that which reset the machine.
pub fn begin(reset: Option<&str>) {
    if options().is_none_or(|options| options.breadcrumb == cmdline::Breadcrumb::Off) {
        return;
    }
    let last = Breadcrumb::read(&Cmos);
    let mut not_ended = 0;
    let mut crashes = Crashes::default();
    if let Some(last) = last {
        let [a, b, c, d] = last.build_id;
        let by = Reset(reset);
        crashes = last.crashes;
        if last.progress.is_a_crash() {
            // About when it was: the clock has not been read yet, nor has this run begun long.
            let now = calendar::unix_time(rtc::read).unwrap_or(0);
            crashes = crashes.and_one_at(now, crash_loop().1);
        }
        let suspect = RunProgress::Stage(number_of(BEFORE_REHEARSAL));
        REHEARSAL_SUSPECT.store(last.progress == suspect, Ordering::Relaxed);
        if !last.progress.is_an_end() {
            not_ended = last.not_ended.saturating_add(1);
            log!(
                "last run: build-id {a:02x}{b:02x}{c:02x}{d:02x} did not end: {}{by}; {not_ended} \
                 in a row",
                ProgressText(last.progress)
            );
        } else if last.progress != RunProgress::Ended {
            log!(
                "last run: build-id {a:02x}{b:02x}{c:02x}{d:02x} crashed: {}{by}",
                ProgressText(last.progress)
            );
        }
    }
    let mut build_id = [0; 4];
    build_id.iter_mut().zip(arm::build_id()).for_each(|(to, from)| *to = *from);
    Breadcrumb { build_id, not_ended, crashes, progress: RunProgress::Stage(0) }.write(&Cmos);
    LEAVES.store(true, Ordering::Relaxed);
}

/// Crashes that are one too many, and the minutes they must fall into.
fn crash_loop() -> (u64, u32) {
    let (most, minutes) = options().map_or((0, 0), |options| options.crash_loop);
    (most, u32::try_from(minutes).unwrap_or(u32::MAX))
}

/// How many crashes of late this one makes, with the minutes they fell into, when that is too
/// many: there is no point in starting again. For crash code: a few bytes are read.
#[must_use]
pub fn is_loop() -> Option<(u8, u32)> {
    if !LEAVES.load(Ordering::Relaxed) {
        return None;
    }
    let (most, minutes) = crash_loop();
    let crashes = Breadcrumb::read(&Cmos)?.crashes.and_one_at(clock::unix_time(), minutes);
    (most > 0 && u64::from(crashes.count) > most).then_some((crashes.count, minutes))
}

/// The run has come so far. One byte is written, from crash code as well.
pub fn mark(progress: RunProgress) {
    if LEAVES.load(Ordering::Relaxed) {
        breadcrumb::mark(&Cmos, progress);
    }
}

/// The boot or the work has come to `stage`, one of [`STAGES`]: each is noted once.
pub fn stage(stage: &str) {
    let number = number_of(stage);
    if STAGE.fetch_max(number, Ordering::Relaxed) < number {
        mark(RunProgress::Stage(number));
    }
}

/// Number of a stage, from 1; 0 for what is none.
fn number_of(stage: &str) -> u8 {
    STAGES.iter().position(|name| *name == stage).map_or(0, |index| index as u8 + 1)
}

/// Whether the last run ended in the rehearsal of the capture image, without a word.
#[must_use]
pub fn ended_in_rehearsal() -> bool {
    REHEARSAL_SUSPECT.load(Ordering::Relaxed)
}

struct Reset<'a>(Option<&'a str>);

impl fmt::Display for Reset<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "; the hardware watchdog ({name}) reset the machine"),
            None => Ok(()),
        }
    }
}

struct ProgressText(RunProgress);

impl fmt::Display for ProgressText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = |number: u8| STAGES.get(usize::from(number).checked_sub(1)?);
        f.write_str(match self.0 {
            RunProgress::Stage(number) => match stage(number) {
                Some(name) => return write!(f, "it had come to stage {name}"),
                None => "it had just begun",
            },
            RunProgress::Crashing => "it was crashing, and stopping its CPUs",
            RunProgress::Left => "it had crashed and left for its capture image",
            RunProgress::Capturing => "it had crashed, and its dump was being written",
            RunProgress::Sealed => "its dump was sealed",
            RunProgress::LastWords => "there is no dump, its last words were on the console",
            RunProgress::Ended => "it ended in good order",
            RunProgress::Other(number) => {
                return write!(f, "it had come to {number}, unknown here");
            }
        })
    }
}
