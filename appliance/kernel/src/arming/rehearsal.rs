//! The capture image is rehearsed when the appliance arms.
//!
//! It is entered as in a crash, with the records of a crash that has not been, by the boot
//! processor while no other CPU runs. It does everything that it would do up to the first seal,
//! but changes nothing outside its own memory: the disk is opened and read, not written; nobody is
//! told; nothing is wiped. Then it comes back, and what it has changed of itself is loaded again.
//!
//! A stop is rehearsed as well, once there are CPUs to be stopped.
//!
//! So whether it runs here at all is known at boot and not at the crash. And where code is slow
//! the first time, because caches are cold or an emulator has to translate it, that time is not
//! part of the first seal.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use handoff::Range;
use machine::apic::{self, Ipi};
use machine::jump::{self, Outcome, Report};
use machine::registers;

use crate::arming::arm::{self, Arming, Interference};
use crate::arming::last_run;
use crate::base::cpus;
use crate::base::memory::Memory;
use crate::base::physical::Physical;
use crate::crash::{self, drill, record};
use crate::firmware::cmdline::Switch;
use crate::{log, options};

/// Bytes of the image's text that are shown.
const TEXT_BYTES: usize = 256;

/// Set while the capture image is being rehearsed.
static UNDER_WAY: AtomicBool = AtomicBool::new(false);
/// NMIs that reached this program's handler meanwhile: the image has not installed its own
/// descriptor tables yet, or has left them already.
static NMIS: AtomicU32 = AtomicU32::new(0);

/// Notes an NMI that arrives during a rehearsal, to be sent again when it is over: false when
/// there is none.
pub fn note_nmi() -> bool {
    let under_way = UNDER_WAY.load(Ordering::Relaxed);
    if under_way {
        NMIS.fetch_add(1, Ordering::Relaxed);
    }
    under_way
}

/// Rehearses, unless it is not to be, and says how it went.
pub fn at_boot(arming: &mut Arming) {
    if options().is_none_or(|options| options.rehearsal == Switch::Off) {
        return;
    }
    if last_run::ended_in_rehearsal() {
        log!("warning: rehearsal: left out, the last run did not come back from it");
        return;
    }
    let Ok(way_out) = arm::way_out(Interference::Unknown) else { return };
    let mut text = heapless::Vec::<u8, TEXT_BYTES>::new();
    let cause = crash::rehearsed_cause();
    UNDER_WAY.store(true, Ordering::Relaxed);
    let rehearsed = record::rehearse(&cause, &registers::current(), |handoff| {
        let way = (way_out.root, way_out.entry, handoff);
        jump::rehearse(way, cpus::current_index(), |report| {
            // Before the memory it lies in is what it was.
            text.extend(line(report).iter().copied().take(TEXT_BYTES));
            (*report, arming.reload())
        })
    });
    UNDER_WAY.store(false, Ordering::Relaxed);
    let text = core::str::from_utf8(&text).unwrap_or("no reason that can be read");
    let Some((report, reloaded)) = rehearsed else { return };
    match report.outcome {
        Outcome::DONE => log!("rehearsal: {text}"),
        _ => log!("warning: rehearsal: the capture image came to no dump: {text}"),
    }
    if let Err(reason) = reloaded {
        log!("warning: rehearsal: {reason}: a crash leaves last words only");
    }
    if report.nmis > 0 || NMIS.load(Ordering::Relaxed) > 0 {
        // It was meant for this program.
        apic::send(apic::id(), Ipi::Nmi);
    }
}

/// Rehearses the first rung of a stop, now that the other CPUs run, and says how it went.
pub fn of_the_stop() {
    if options().is_none_or(|options| options.rehearsal == Switch::Off) {
        return;
    }
    let Some(drill) = drill::rehearse() else { return };
    // Where they waited for work says nothing about a later crash.
    cpus::all().iter().for_each(|cpu| cpu.registers.forget());
    log!("rehearsal: {} CPUs stopped in {} us", drill.stopped.count(), drill.stop_ns / 1000);
    if !drill.missing.is_empty() {
        log!("warning: rehearsal: no interrupt stops CPU {}", drill.missing);
    }
}

/// The image's line of text, in memory of the region.
fn line(report: &Report) -> &[u8] {
    let text = Range { start: report.text, bytes: report.text_bytes };
    let ours = arm::sealed().is_ok_and(|facts| facts.region.holds(text.start, text.bytes));
    let bytes = ours.then(|| Memory.bytes(text.start, text.bytes as usize)).flatten();
    bytes.unwrap_or_default()
}
