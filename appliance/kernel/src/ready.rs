//! Would a crash now be captured? Looks at the whole way out, and walks as much of it as can
//! be walked without dying.

use core::fmt;

use crate::crash::drill;
use crate::memory;
use crate::{arm, options};

/// A pace to reckon with while none has been measured, in MiB/s.
const PACE: u64 = 100;

/// Says what was found, a line at a time, and whether it is enough.
pub fn check(say: &mut dyn FnMut(fmt::Arguments<'_>)) {
    let armed = arm::way_out();
    match &armed {
        Ok(way_out) => say(format_args!(
            "ready: capture image at {:#x} and boot facts are as sealed",
            way_out.entry
        )),
        Err(reason) => say(format_args!("ready: {reason}")),
    }
    say(format_args!("ready: target: {}, looked for by the capture image when it runs", Targets));
    let mib = memory::bytes_of_ram() >> 20;
    say(format_args!(
        "ready: {mib} MiB of memory to write: {}.{} s at {PACE} MiB/s",
        mib / PACE,
        mib % PACE * 10 / PACE
    ));
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
    match armed {
        Ok(_) => say(format_args!("ready: yes, given a disk with a dump area")),
        Err(reason) => say(format_args!("ready: no: {reason}; there would be last words only")),
    }
}

/// Where a dump would go, in order.
struct Targets;

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets = options().map(|options| options.dump_to.as_slice()).unwrap_or_default();
        if targets.is_empty() {
            return f.write_str("any disk with a dump area");
        }
        targets.iter().enumerate().try_for_each(|(index, target)| {
            let before = if index == 0 { "" } else { ", then " };
            write!(f, "{before}{target}")
        })
    }
}
