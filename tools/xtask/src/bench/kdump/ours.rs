//! The appliance, crashed and captured, by the host's clock.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Boot, Bus, Disk, Options, Policy};
use vmcore::Dump;

use super::{Machines, Sample};
use crate::bench::host::load;

/// What it is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The words of the command line.
    pub words: &'static str,
    /// The last stage of its dump.
    pub last: &'static str,
}

/// Boots it, crashes it, and waits until the last stage of the dump is sealed.
///
/// # Errors
/// It did not get that far, or the dump does not verify.
pub fn measure(machines: &Machines, way: Way) -> Result<Sample> {
    let load = load();
    let options = Options {
        cpus: machines.cpus,
        memory: machines.memory,
        disks: vec![Disk { flushed: true, ..Disk::new(Bus::Virtio) }],
        command_line: format!("{} on_finish=idle", way.words),
        policy: Policy::Halt,
        talk: true,
        dense_disks: true,
        ..Options::new(Boot::Pvh, harness::fresh_folder("bench-kdump-ours")?)
    };
    let mut running = harness::start(&options)?;
    running.machine.wait_for_line("finish: idle")?;
    running.say("crash")?;
    running.machine.wait_for_line("panic: ")?;
    let crash = Instant::now();
    running.machine.wait_for_line(": slot 0, dump ")?;
    let begins = crash.elapsed();
    running.machine.wait_for_line(&format!("sealed stage `{}`", way.last))?;
    let sealed = crash.elapsed();
    running.machine.wait_for_line("capture: policy: halt")?;
    running.machine.kill();
    let disk = options.out.join("disk.img");
    let dump = Dump::open(&disk)?;
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    if !verified.complete || verified.bad_count > 0 {
        bail!("the dump on {} does not verify: {:?}", disk.display(), verified.bad);
    }
    let seals = &dump.stored.as_ref().context("not a disk")?.seals;
    let bytes = seals.iter().map(|(_, seal)| seal.memory_bytes).sum();
    let stored_bytes = seals.iter().map(|(_, seal)| seal.stored_bytes).sum();
    let guest_ns = seals.last().map(|(_, seal)| seal.crash_ns);
    std::fs::remove_file(disk).context("remove the disk")?;
    let ns = |time: Duration| time.as_nanos() as u64;
    Ok(Sample {
        begins_ns: ns(begins),
        flushed_ns: ns(sealed),
        bytes,
        stored_bytes,
        guest_ns,
        load,
    })
}
