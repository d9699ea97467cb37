//! One boot: memory filled, a crash, a capture, and QEMU's own dumps of the same guest.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::harness::{self, Accelerator, Boot, Disk, Options, Policy, Running};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vmcore::OpenOptions;
use vmcore::source::{Slot, Source};
use vmcore_format::area::{DATA_OFFSET, SLOT_ALIGN, StageSeal, stage_kind};

use super::case::{Case, Medium};
use super::outside::{self, Way};
use crate::bench::host::load;

/// Of a disk that swallows the rest: the area's records and those of its slot.
const RECORDS: u64 = SLOT_ALIGN + DATA_OFFSET;
/// More than any boot takes.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A stage of a dump.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stage {
    /// `mini`, `used` or `all`.
    pub kind: String,
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// In the order they were sealed.
    pub stages: Vec<Stage>,
    /// Bytes written once more, without any of the work of a dump.
    pub raw_bytes: u64,
    /// How long that took with the best size of request.
    pub raw_ns: u64,
    /// To take the checksums of all that is stored once more, MiB a second.
    pub checksums: f64,
    /// High-water mark of the reserved region.
    pub region_bytes: u64,
    /// QEMU's `dump-guest-memory`; none where the disk is not the host's as it is.
    pub core_ns: Option<u64>,
    /// QEMU's `migrate file:` with mapped-ram.
    pub mapped_ns: Option<u64>,
    /// The host's load when it began.
    pub load: f64,
}

impl Sample {
    /// From the crash until the last stage was sealed.
    pub fn sealed_ns(&self) -> u64 {
        self.stages.last().map_or(0, |stage| stage.sealed_ns)
    }

    /// From the crash until stage `kind` was sealed; 0 when it was not.
    pub fn stage_ns(&self, kind: &str) -> u64 {
        self.stages.iter().find(|stage| stage.kind == kind).map_or(0, |stage| stage.sealed_ns)
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
    let load = load();
    let options = options(case)?;
    let mut running = harness::start(&options)?;
    running.machine.wait_for_line("finish: idle")?;
    let beside = case.medium == Medium::Host;
    let mut host = if host_first && beside { Some(by_host(&mut running, file)?) } else { None };
    running.say("crash")?;
    if let Medium::Changed(_, then) = case.medium {
        // As in "capture: 12 % (123.4 MiB), 95 MiB/s", once a second.
        running.machine.wait_for_line(" MiB), ")?;
        throttle(&mut running, then)?;
    }
    // As in "capture: checksums of 953155584 bytes in 231.0 ms, 3935 MiB/s, 0 changed".
    let line = running.machine.wait_for_line("capture: checksums of ")?;
    let checksums = line.split(", ").find_map(|word| word.strip_suffix(" MiB/s")?.parse().ok());
    let checksums = checksums.with_context(|| format!("no rate: {line}"))?;
    running.machine.wait_for_line("capture: policy: halt")?;
    if host.is_none() && beside {
        host = Some(by_host(&mut running, file)?);
    }
    running.machine.kill();
    let disk = options.out.join("disk.img");
    if case.medium != Medium::Swallow {
        verify(&disk)?;
    }
    let sample = read(&disk, host, checksums, load)?;
    // As large as the memory it holds.
    std::fs::remove_file(disk).context("remove the disk")?;
    Ok(sample)
}

fn options(case: &Case) -> Result<Options> {
    let bytes_per_second = match case.medium {
        Medium::Host | Medium::Swallow | Medium::Counted => None,
        Medium::Fixed(bytes) | Medium::Changed(bytes, _) => Some(bytes),
    };
    let kept_bytes = (case.medium == Medium::Swallow).then_some(RECORDS);
    let disk = Disk::new(harness::Bus::Virtio);
    let disk = Disk { flushed: true, bytes_per_second, kept_bytes, ..disk };
    let counted = case.medium == Medium::Counted;
    Ok(Options {
        accelerator: if counted { Accelerator::Icount } else { Accelerator::Tcg },
        cpus: case.cpus,
        memory: case.memory,
        disks: vec![disk],
        command_line: format!(
            "workload={} pages=all dump={} capture_bench=raw on_finish=idle",
            case.fill.workload(),
            case.storing
        ),
        policy: Policy::Halt,
        talk: true,
        dense_disks: true,
        timeout: TIMEOUT,
        ..Options::new(Boot::Pvh, harness::fresh_folder("bench-dump")?)
    })
}

/// QEMU's two ways, one after the other, with the machine stopped meanwhile.
fn by_host(running: &mut Running, file: &Path) -> Result<[Duration; 2]> {
    let machine = &mut running.machine;
    machine.qmp().execute("stop", json!({}))?;
    let core = outside::write(machine, Way::Core, file)?;
    let mapped = outside::write(machine, Way::Mapped, file)?;
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

/// Computes every checksum of the dump.
fn verify(disk: &Path) -> Result<()> {
    let dump = Source::open(disk)?.dump(OpenOptions::default())?;
    let verified = vmcore::verify(&dump, &mut |_, _| ());
    if !verified.complete || verified.bad_count > 0 {
        bail!("the dump on {} does not verify: {:?}", disk.display(), verified.bad);
    }
    Ok(())
}

/// The figures that the seals hold.
fn read(disk: &Path, host: Option<[Duration; 2]>, checksums: f64, load: f64) -> Result<Sample> {
    let source = Source::open(disk)?;
    let slots = source.disk().map(|disk| disk.slots.as_slice()).unwrap_or_default();
    let Some(Slot::Begun { open, seals, .. }) = slots.first() else { bail!("no dump was begun") };
    if seals.len() != open.stages as usize || seals.iter().any(|(_, seal)| seal.complete == 0) {
        bail!("{} of {} stages sealed, or not all of them whole", seals.len(), open.stages);
    }
    let stage = |(_, seal): &(usize, StageSeal)| Stage {
        kind: stage_kind::name(seal.kind).to_owned(),
        sealed_ns: seal.crash_ns,
        write_ns: seal.write_ns,
        memory_bytes: seal.memory_bytes,
        stored_bytes: seal.stored_bytes,
    };
    let (_, last) = seals.last().context("no seal")?;
    let ns = |took: Duration| took.as_nanos() as u64;
    Ok(Sample {
        stages: seals.iter().map(stage).collect(),
        raw_bytes: last.raw_bytes,
        raw_ns: last.raw_ns,
        checksums,
        region_bytes: last.region_bytes_used,
        core_ns: host.map(|[core, _]| ns(core)),
        mapped_ns: host.map(|[_, mapped]| ns(mapped)),
        load,
    })
}
