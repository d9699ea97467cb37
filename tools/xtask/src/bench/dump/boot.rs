//! One boot: memory filled, a crash, a capture, and QEMU's own dumps of the same guest.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Boot, Disk, Options, Policy, Running};
use serde::Serialize;
use serde_json::json;
use vmcore::Dump;
use vmcore_format::area::stage_kind;

use super::host::{self, Way};

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Case {
    /// Bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The word for `dump=`.
    pub storing: &'static str,
    /// What the disk takes.
    pub limit: Limit,
}

/// How many bytes pass to the disk in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Limit {
    /// As many as the host manages.
    None,
    /// So many.
    Fixed(u64),
    /// So many, and so many others from the first sign of progress on.
    Changed(u64, u64),
}

/// A stage of a dump.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// `mini`, `used` or `all`.
    pub kind: &'static str,
    /// From the crash until it was sealed.
    pub sealed_ns: u64,
    /// To write what it adds.
    pub write_ns: u64,
    /// What it adds.
    pub memory_bytes: u64,
    /// What that took on the disk.
    pub stored_bytes: u64,
}

/// What one boot came to.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// In the order they were sealed.
    pub stages: Vec<Stage>,
    /// Bytes written once more, without any of the work of a dump.
    pub raw_bytes: u64,
    /// How long that took.
    pub raw_ns: u64,
    /// High-water mark of the reserved region.
    pub region_bytes: u64,
    /// QEMU's `dump-guest-memory`; none where the disk was limited.
    pub core_ns: Option<u64>,
    /// QEMU's `migrate file:` with mapped-ram.
    pub mapped_ns: Option<u64>,
}

impl Sample {
    /// From the crash until the last stage was sealed.
    pub fn sealed_ns(&self) -> u64 {
        self.stages.last().map_or(0, |stage| stage.sealed_ns)
    }

    /// Bytes of memory in all stages.
    pub fn memory_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.memory_bytes).sum()
    }

    /// Bytes on the disk for all stages.
    pub fn stored_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.stored_bytes).sum()
    }

    /// Nanoseconds to write all stages.
    pub fn write_ns(&self) -> u64 {
        self.stages.iter().map(|stage| stage.write_ns).sum()
    }
}

/// Boots `case` and measures; QEMU's own dumps go to `file`, before the crash when
/// `host_first` says so, otherwise behind the capture.
///
/// # Errors
/// The run could not be made, or did not end in a whole dump.
pub fn measure(case: &Case, host_first: bool, file: &Path) -> Result<Sample> {
    let first_limit = match case.limit {
        Limit::None => None,
        Limit::Fixed(bytes) | Limit::Changed(bytes, _) => Some(bytes),
    };
    let disk =
        Disk { flushed: true, bytes_per_second: first_limit, ..Disk::new(harness::Bus::Virtio) };
    let options = Options {
        cpus: case.cpus,
        memory: case.memory,
        disks: vec![disk],
        command_line: format!(
            "workload=memstamp pages=all dump={} capture_bench=raw on_finish=idle",
            case.storing
        ),
        policy: Policy::Halt,
        talk: true,
        dense_disks: true,
        timeout: Duration::from_secs(300),
        ..Options::new(Boot::Pvh, harness::fresh_folder("bench-dump")?)
    };
    let mut running = harness::start(&options)?;
    running.machine.wait_for_line("finish: idle")?;
    let limited = case.limit != Limit::None;
    let mut host = if host_first && !limited { Some(by_host(&mut running, file)?) } else { None };
    running.say("crash panic")?;
    if let Limit::Changed(_, then) = case.limit {
        running.machine.wait_for_line(" % (")?;
        throttle(&mut running, then)?;
    }
    running.machine.wait_for_line("capture: policy: halt")?;
    if host.is_none() && !limited {
        host = Some(by_host(&mut running, file)?);
    }
    running.machine.kill();
    let sample = read(&options.out.join("disk.img"), host)?;
    // As large as the memory it holds.
    std::fs::remove_file(options.out.join("disk.img")).context("remove the disk")?;
    Ok(sample)
}

/// QEMU's two ways, one after the other, with the machine stopped meanwhile.
fn by_host(running: &mut Running, file: &Path) -> Result<[Duration; 2]> {
    let machine = &mut running.machine;
    machine.qmp().execute("stop", json!({}))?;
    let core = host::write(machine, Way::Core, file)?;
    let mapped = host::write(machine, Way::Mapped, file)?;
    machine.qmp().execute("cont", json!({}))?;
    Ok([core, mapped])
}

fn throttle(running: &mut Running, bytes_per_second: u64) -> Result<()> {
    let none = 0;
    let arguments = json!({
        "device": "disk0", "bps": bytes_per_second, "bps_rd": none, "bps_wr": none,
        "iops": none, "iops_rd": none, "iops_wr": none,
    });
    running.machine.qmp().execute("block_set_io_throttle", arguments).map(|_| ())
}

/// The figures that the dump itself holds, once every checksum of it was computed.
fn read(disk: &Path, host: Option<[Duration; 2]>) -> Result<Sample> {
    let dump = Dump::open(disk)?;
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    if !verified.complete || verified.bad_count > 0 {
        bail!("the dump on {} does not verify: {:?}", disk.display(), verified.bad);
    }
    let stored = dump.stored.as_ref().context("not a disk")?;
    let stage = |(_, seal): &(usize, vmcore_format::area::StageSeal)| Stage {
        kind: stage_kind::name(seal.kind),
        sealed_ns: seal.crash_ns,
        write_ns: seal.write_ns,
        memory_bytes: seal.memory_bytes,
        stored_bytes: seal.stored_bytes,
    };
    let last = stored.seal().context("no seal")?;
    let ns = |took: Duration| took.as_nanos() as u64;
    Ok(Sample {
        stages: stored.seals.iter().map(stage).collect(),
        raw_bytes: last.raw_bytes,
        raw_ns: last.raw_ns,
        region_bytes: last.region_bytes_used,
        core_ns: host.map(|[core, _]| ns(core)),
        mapped_ns: host.map(|[_, mapped]| ns(mapped)),
    })
}
