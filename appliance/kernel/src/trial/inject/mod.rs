//! Faults on request: `crash=` and `wedge=` of the command line.
//!
//! Both strike where a workload gives a sign of life, so that a backtrace leads through
//! real work. The crash waits until every workload has done a full round, every wedge is in
//! place, and every other CPU has shown a sign of life.
//!
//! [`crashes`] and [`wedges`] hold what there is, a line each in a table; this module is
//! the plan and its timing.

mod crashes;
mod deadlock;
mod wedges;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use handoff::MAX_CPUS;
use heapless::Vec;
use machine::cell::SetOnce;

use crate::base::{clock, console, cpus};
use crate::firmware::cmdline::Options;
use crate::trial::STAGES;
use crate::watch::lockup;
use crate::work::workload;
use crate::{log, options};
use crashes::Crash;
pub use crashes::{in_crash_path, in_last_words, on_interrupt};
use wedges::Wedge;
pub use wedges::{in_funnel, mid_submit};

/// How long a CPU that is to be struck may stay without work, in nanoseconds.
const IDLE_STRIKE_NS: u64 = 3_000_000_000;
/// Wedges at once.
const MAX_WEDGES: usize = 16;

#[derive(Debug)]
struct Plan {
    crash: Option<(&'static Crash, usize)>,
    /// The CPU that helps the crash, where it needs one.
    accomplice: Option<(fn(usize), usize)>,
    wedges: Vec<(&'static Wedge, usize), MAX_WEDGES>,
}

static PLAN: SetOnce<Plan> = SetOnce::new();
static WARM: AtomicBool = AtomicBool::new(false);
/// Since when each CPU has had nothing to do; [`AT_WORK`] while it has.
static IDLE_SINCE_NS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(AT_WORK) }; MAX_CPUS];
const AT_WORK: u64 = u64::MAX;
static IN_PLACE: AtomicU32 = AtomicU32::new(0);

/// Whether the capture image is to be damaged after its checksum was taken.
pub fn damages_image(options: &Options) -> bool {
    options.crash.as_ref().is_some_and(|crash| crashes::damages_image(&crash.name))
}

/// Strikes if a fault was asked for at `stage`, which the boot has come to.
pub fn at_stage(stage: &'static str) {
    let Some(asked) = options().and_then(|options| options.crash.as_ref()) else { return };
    if asked.at.as_ref().is_some_and(|at| at == stage)
        && let Some(crash) = crashes::named(&asked.name)
    {
        if crash.inside_work || !(crash.noticed)() {
            log!("warning: crash={}: nobody would notice it at={stage}: ignored", crash.name);
            return;
        }
        log!("stage: {stage}");
        strike(crash, cpus::current_index());
    }
}

/// Reads the plan from the command line, now that the number of CPUs is known. What cannot
/// be done is said and left out.
pub fn plan(options: &Options) {
    let count = cpus::count();
    let crash = options.crash.as_ref().and_then(|asked| {
        let cpu = asked.cpu.map_or(usize::from(count > 1), |cpu| cpu as usize);
        let crash = crashes::named(&asked.name);
        if crash.is_none() {
            log!("warning: crash={}: not yet; there are {}", asked.name, crashes::Names);
        }
        if let Some(stage) = &asked.at {
            if !STAGES.contains(&stage.as_str()) {
                log!("warning: at={stage} is no stage of the boot; those are {}", List(&STAGES));
            }
            return None;
        }
        if crash.is_some_and(|crash| !(crash.noticed)()) {
            log!(
                "warning: crash={}: nobody would notice it: it takes another CPU, a tick, and a \
                 threshold above 0; ignored",
                asked.name
            );
            return None;
        }
        crash.filter(|_| exists(cpu, "crash=")).map(|crash| (crash, cpu))
    });
    let mut taken: Vec<usize, { MAX_WEDGES + 2 }> = Vec::new();
    // Room for every wedge, the crash and its accomplice.
    let _ = crash.map(|(_, cpu)| taken.push(cpu));
    let highest_free = |taken: &[usize]| (0..count).rev().find(|cpu| !taken.contains(cpu));
    let mut wedges = Vec::new();
    for asked in &options.wedges {
        let own = wedges::named(&asked.kind).and_then(|wedge| wedge.cpu);
        let asked_cpu = asked.cpu.map(|cpu| cpu as usize).or(own);
        let Some(cpu) = asked_cpu.or_else(|| highest_free(&taken)) else {
            log!("warning: wedge={}: no CPU left for it", asked.kind);
            continue;
        };
        match wedges::named(&asked.kind) {
            None => log!("warning: wedge={}: not yet; there are {}", asked.kind, wedges::Names),
            Some(_) if taken.contains(&cpu) => {
                log!("warning: wedge={}: CPU {cpu} is taken already", asked.kind);
            }
            Some(wedge) if exists(cpu, "wedge=") => {
                if wedges.push((wedge, cpu)).is_err() || taken.push(cpu).is_err() {
                    log!("warning: wedge={}: at most {MAX_WEDGES}", asked.kind);
                }
            }
            Some(_) => {}
        }
    }
    let accomplice = crash.and_then(|(crash, _)| crash.accomplice).and_then(|help| {
        let cpu = highest_free(&taken);
        if cpu.is_none() {
            log!("warning: this crash needs one more CPU: it will be a plain one");
        }
        cpu.map(|cpu| (help, cpu))
    });
    PLAN.set(Plan { crash, accomplice, wedges });
}

fn exists(cpu: usize, what: &str) -> bool {
    let count = cpus::count();
    if cpu >= count {
        log!("warning: {what} names CPU {cpu}, but there are {count}: ignored");
    }
    cpu < count
}

/// Words, separated by spaces.
struct List<'a>(&'a [&'a str]);

impl core::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, "{word} "))
    }
}

/// A fault asked for while the machine runs: its number plus one, and the CPU above it; 0
/// when there is none.
static REQUEST: AtomicU64 = AtomicU64::new(0);

/// Why a fault cannot be brought about while the machine runs.
#[derive(Debug)]
pub enum RequestError {
    /// No fault has this name.
    NoSuchFault,
    /// Something other than `cpu=K` follows the name.
    NotACpu,
    /// This CPU does not exist, or does not run.
    NoSuchCpu,
    /// No watchdog is there to notice it, and the machine would hang.
    NotNoticed,
}

impl core::fmt::Display for RequestError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoSuchFault => write!(f, "no such fault; there are {}", crashes::Names),
            Self::NotACpu => f.write_str("expected cpu=K"),
            Self::NoSuchCpu => f.write_str("no such CPU"),
            Self::NotNoticed => f.write_str("nobody would notice it"),
        }
    }
}

/// Plans the fault `NAME[,cpu=K]` for the next sign of life of its CPU, by default CPU 1 if
/// there is one. Returns its name and the CPU.
///
/// # Errors
/// [`RequestError`]; nothing is planned then.
pub fn request(what: &str) -> Result<(&'static str, usize), RequestError> {
    let (name, rest) = what.split_once(',').unwrap_or((what, ""));
    let number = crashes::number_of(name).ok_or(RequestError::NoSuchFault)?;
    let crash = crashes::numbered(number).ok_or(RequestError::NoSuchFault)?;
    let cpu = match rest.strip_prefix("cpu=") {
        Some(cpu) => cpu.parse().map_err(|_| RequestError::NotACpu)?,
        None if rest.is_empty() => usize::from(cpus::count() > 1),
        None => return Err(RequestError::NotACpu),
    };
    if cpu >= cpus::count() || !cpus::running(cpu) {
        return Err(RequestError::NoSuchCpu);
    }
    if !(crash.noticed)() {
        return Err(RequestError::NotNoticed);
    }
    REQUEST.store((cpu as u64) << 32 | (number as u64 + 1), Ordering::Release);
    Ok((crash.name, cpu))
}

/// The fault asked for that is CPU `index`'s.
fn requested(index: usize) -> Option<&'static Crash> {
    let request = REQUEST.load(Ordering::Acquire);
    let number = (request as u32 as usize).checked_sub(1)?;
    let crash = crashes::numbered(number)?;
    (crash.on_all || request >> 32 == index as u64).then_some(crash)
}

/// Whether a crash or a wedge is planned: workloads then go on until it strikes.
pub fn planned() -> bool {
    PLAN.get().is_some_and(|plan| plan.crash.is_some() || !plan.wedges.is_empty())
}

/// Says that every workload has done a full round. Only the first time counts.
pub fn warm() {
    if WARM.load(Ordering::Relaxed) {
        return;
    }
    for cpu in cpus::all() {
        cpu.beats.store(0, Ordering::Relaxed);
    }
    WARM.store(true, Ordering::Release);
}

/// Strikes at a sign of life of CPU `index`, the running one, which has nothing to do: only when
/// it has had no work for a while.
pub fn at_idle_beat(index: usize) {
    if let Some(crash) = requested(index).filter(|crash| !crash.inside_work) {
        strike(crash, index);
    }
    // The CPU's own idleness counts, and only from the first full round on.
    if !WARM.load(Ordering::Acquire) {
        return;
    }
    let now = clock::now_ns();
    let since = match IDLE_SINCE_NS[index].load(Ordering::Relaxed) {
        AT_WORK => {
            IDLE_SINCE_NS[index].store(now, Ordering::Relaxed);
            now
        }
        since => since,
    };
    if now.saturating_sub(since) > IDLE_STRIKE_NS {
        strike_if_due(index);
    }
}

/// Strikes at a sign of life of CPU `index`, the running one, from inside a workload, when its
/// turn has come.
pub fn at_beat(index: usize) {
    if let Some(crash) = requested(index) {
        strike(crash, index);
    }
    IDLE_SINCE_NS[index].store(AT_WORK, Ordering::Relaxed);
    strike_if_due(index);
}

fn strike_if_due(index: usize) {
    if !WARM.load(Ordering::Acquire) {
        return;
    }
    let Some(plan) = PLAN.get() else { return };
    // The sign of life that led here may have been given before the count began anew, and in a
    // wedge there is no other.
    cpus::all()[index].beats.fetch_add(1, Ordering::Relaxed);
    if let Some((wedge, _)) = plan.wedges.iter().find(|(_, cpu)| *cpu == index) {
        // It may stop ticking, and the crash that is to find it so may be long in coming.
        lockup::leave_alone(index);
        (wedge.enter)(index);
    }
    let in_place = IN_PLACE.load(Ordering::Acquire) as usize;
    // The accomplice comes after the wedges: it keeps its unit of work for ever, and no other
    // round begins, while a wedge may need one in which a unit falls to its CPU.
    if let Some((help, cpu)) = plan.accomplice
        && cpu == index
        && in_place >= plan.wedges.len()
    {
        lockup::leave_alone(index);
        help(index);
    }
    let Some((crash, crashing)) = plan.crash else { return };
    let expected = plan.wedges.len() + usize::from(plan.accomplice.is_some());
    let ready = in_place == expected && all_have_beaten(index);
    if ready && (crashing == index || crash.on_all) {
        strike(crash, index);
    }
}

fn all_have_beaten(but: usize) -> bool {
    cpus::all().iter().enumerate().all(|(index, cpu)| {
        index == but
            || !cpu.started.load(Ordering::Relaxed)
            || cpu.beats.load(Ordering::Relaxed) > 0
    })
}

fn strike(crash: &Crash, index: usize) {
    // A CPU that is wedged may hold the console's lock.
    console::emergency(format_args!("crash: {} on cpu {index}", crash.name));
    if crash.inside_work {
        workload::be_at_work();
    }
    (crash.strike)(index);
    panic!("crash={} did no harm", crash.name);
}

/// Says that a wedge, or the accomplice of a crash, is where it should be.
fn in_place(name: &str, index: usize) {
    console::emergency(format_args!("wedge: {name} on cpu {index} in place"));
    IN_PLACE.fetch_add(1, Ordering::Release);
}

/// Whether CPU `index` has been told to be in one of `wedges`, and the time for it has come.
fn wedged(wedges: &[&str], index: usize) -> bool {
    WARM.load(Ordering::Acquire)
        && PLAN.get().is_some_and(|plan| {
            plan.wedges.iter().any(|(planned, cpu)| *cpu == index && wedges.contains(&planned.name))
        })
}

/// The fault that is planned, when it is to strike soon.
fn planned_crash() -> Option<(&'static Crash, usize)> {
    PLAN.get().filter(|_| WARM.load(Ordering::Acquire)).and_then(|plan| plan.crash)
}

/// Called inside the NMI handler, before anything else is decided there.
#[inline(never)] // A boundary of the crash code, which the proof about it finds by name.
pub fn on_nmi() {
    let index = cpus::current_index();
    wedges::on_nmi(index);
    crashes::on_nmi(index);
}
