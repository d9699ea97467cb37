//! How it ends: last words when there is no dump, and the policy in every case.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use capture_engine::input::Evidence;
use capture_engine::last_words;
use handoff::facts::Policy;
use handoff::{PowerFacts, Range};
use machine::breadcrumb::RunProgress;
use machine::capture::{cell::TryCell, memory};
use machine::{cpu, power};
use vmcore_format::area::stage_kind;

use crate::console::{self, Console, say};
use crate::physical::Old;
use crate::{clock, hw_watchdog, rehearsal, screen};

/// What could be believed so far, for whoever has to say the last words.
static EVIDENCE: TryCell<Evidence> =
    TryCell::new(Evidence { handoff: None, facts: None, cpus: None });

/// The machine is not started again, whatever the policy says.
static DOWN: AtomicBool = AtomicBool::new(false);

/// The last sealed stage: its kind in the low half, the number of its disk in the high one;
/// 0 while there is none.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// The stage behind it, which a fault or a disk ended and which is sealed as far as it came: its kind.
static CLOSED: AtomicU32 = AtomicU32::new(0);

/// A stage of `kind` is sealed on disk `number`: whatever comes, that much is in safety.
pub fn keep(number: usize, kind: u32) {
    CLOSED.store(0, Ordering::Relaxed);
    KEPT.store((number as u64) << 32 | u64::from(kind), Ordering::Relaxed);
}

/// Returns true if a stage is sealed on disk `number`.
pub fn is_kept(number: usize) -> bool {
    let kept = KEPT.load(Ordering::Relaxed);
    kept != 0 && kept >> 32 == number as u64
}

/// Returns true if the stage behind the last sealed one is sealed as far as it came.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed) != 0
}

/// On the same disk there is as much of `kind` as was written before a fault.
pub fn keep_closed(kind: u32) {
    CLOSED.store(kind, Ordering::Relaxed);
}

/// The part of a dump that was sealed before something went wrong; nothing where there is none.
struct SealedPart;

impl fmt::Display for SealedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = KEPT.load(Ordering::Relaxed);
        if kept == 0 {
            return Ok(());
        }
        write!(f, "; stage `{}` is sealed on disk {}", stage_kind::name(kept as u32), kept >> 32)?;
        match CLOSED.load(Ordering::Relaxed) {
            0 => Ok(()),
            kind => write!(f, ", and `{}` as far as it came", stage_kind::name(kind)),
        }
    }
}

/// Where the last seal is.
struct Sealed;

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KEPT.load(Ordering::Relaxed) {
            0 => f.write_str("no seal"),
            kept => {
                let name = stage_kind::name(kept as u32);
                write!(f, "the seal of `{name}` on disk {}", kept >> 32)
            }
        }
    }
}

/// There is no point in starting again: the machine crashes every time.
pub fn stay_down() {
    DOWN.store(true, Ordering::Relaxed);
}

/// Remembers what could be believed.
pub fn remember(evidence: Evidence) {
    EVIDENCE.with(|kept| *kept = evidence);
}

fn evidence() -> Evidence {
    EVIDENCE.with(|kept| *kept).unwrap_or_default()
}

/// Leaves last words before a step that may never end; what comes after may still be a dump.
pub fn last_words_first(reason: fmt::Arguments<'_>) {
    console::release();
    last_words::last_words(Console, &evidence(), reason, &Old);
}

/// There is no dump, or no more of it than was sealed: says why, leaves last words, follows
/// the policy.
pub fn without_dump(reason: fmt::Arguments<'_>) -> ! {
    let reason = format_args!("{reason}{SealedPart}");
    rehearsal::failed(reason);
    console::release();
    say!("capture: FAILED: {reason}");
    screen::bad(reason);
    last_words::last_words(Console, &evidence(), reason, &Old);
    if let Some(facts) = evidence().facts
        && !DOWN.load(Ordering::Relaxed)
        && let Some(crashes) = hw_watchdog::is_loop(facts, clock::unix_time(facts, cpu::rdtsc()))
    {
        let minutes = facts.crash_loop_minutes;
        say!("capture: crash loop: {crashes} crashes within {minutes} minutes, staying down");
        stay_down();
    }
    hw_watchdog::mark(RunProgress::LastWords);
    follow_policy()
}

/// Does what the boot facts say is to be done after a crash.
///
/// Without believable facts the machine is reset: it is the one thing that needs none,
/// and a machine that comes back is worth more than one that waits for somebody.
pub fn follow_policy() -> ! {
    rehearsal::done(format_args!("the capture image came to {Sealed}; nothing was written"));
    console::release();
    let facts = evidence().facts;
    let power = facts.map_or_else(PowerFacts::default, |facts| facts.power);
    map_registers(&power);
    let policy = match facts.map_or(Policy::REBOOT, |facts| facts.policy) {
        Policy::REBOOT if DOWN.load(Ordering::Relaxed) => Policy::HALT,
        policy => policy,
    };
    match policy {
        Policy::POWEROFF => {
            hw_watchdog::disarm();
            say!("capture: policy: power off");
            power::power_off(&power)
        }
        Policy::HALT => {
            hw_watchdog::disarm();
            say!("capture: policy: halt");
            cpu::halt_forever()
        }
        _ => {
            say!("capture: policy: reboot");
            power::reset(&power)
        }
    }
}

/// The registers for reset and power-off may be memory, which the image's own page tables
/// do not map. What cannot be mapped is tried all the same: a fault moves on to the next
/// step, and that is how it would end anyway.
fn map_registers(power: &PowerFacts) {
    const MEMORY: u8 = 0;
    let registers =
        [(power.reset_space, power.reset_address), (power.sleep_space, power.sleep_control)];
    for (space, address) in registers {
        if space == MEMORY && address != 0 {
            let _ = memory::map_device(Range { start: address, bytes: 1 });
        }
    }
}
