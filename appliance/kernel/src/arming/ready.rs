//! Would a crash now be captured? Looks at the whole way out, and walks as much of it as can
//! be walked without dying, the disk at its end included.

use core::fmt;

use storage::amount::Mib;

use crate::arming::arm::Interference;
use crate::arming::target::Outlook;
use crate::arming::{arm, target};
use crate::base::windows::worst_case_ns;
use crate::crash::{drill, stop};

/// What a crash leaves without a dump.
const LAST_WORDS: &str = "there would be last words only";

/// Says what was found, a line at a time, and whether it is enough.
pub fn check(say: &mut dyn FnMut(fmt::Arguments<'_>)) {
    let armed = arm::way_out(Interference::Unknown);
    match &armed {
        Ok(way_out) => say(format_args!(
            "ready: capture image at {:#x} and boot facts are as sealed",
            way_out.entry
        )),
        Err(reason) => say(format_args!("ready: {reason}")),
    }
    let outlook = target::look(&mut |line| say(format_args!("ready: {line}")));
    if let Outlook::Found(found) = &outlook {
        say(format_args!("ready: target: {found}"));
        let (pace, ms) = (found.pace(), found.ms());
        let memory = Mib(found.memory());
        say(format_args!(
            "ready: {memory} to write take {}.{} s, {pace}",
            ms / 1000,
            ms % 1000 / 100
        ));
    }
    let rehearsal = drill::rehearse();
    match &rehearsal {
        Some(rehearsal) => {
            say(format_args!(
                "ready: {} CPUs stopped in {} us and were under way again {} us later",
                rehearsal.stopped.count(),
                rehearsal.stop_ns / 1000,
                rehearsal.release_ns / 1000
            ));
            if !rehearsal.missing.is_empty() {
                say(format_args!(
                    "ready: CPU {} did not stop: a crash would send an NMI",
                    rehearsal.missing
                ));
            }
        }
        None => say(format_args!("ready: a rehearsal or a crash is under way already")),
    }
    match worst_case_ns(stop::windows_ns()) {
        Some(ns) => say(format_args!(
            "ready: a CPU that is stuck would cost a crash {} ms at most",
            ns / 1_000_000
        )),
        None => say(format_args!("ready: a CPU that is stuck would keep a crash waiting")),
    }
    match (armed, &outlook) {
        (Err(reason), _) => say(format_args!("ready: no: {reason}; {LAST_WORDS}")),
        (Ok(_), Outlook::None(why)) => say(format_args!("ready: no: {why}; {LAST_WORDS}")),
        (Ok(_), Outlook::Found(found)) if found.is_loop() => {
            say(format_args!("ready: no: one more crash would be a crash loop; {LAST_WORDS}"));
        }
        (Ok(_), Outlook::Found(found)) => {
            say(format_args!("ready: yes: up to `{}` would be written", found.stage()));
        }
        (Ok(_), Outlook::Busy) => {
            say(format_args!("ready: maybe: a disk is being opened just now; ask again"));
        }
    }
}
