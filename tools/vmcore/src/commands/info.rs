//! `vmcore info`: what happened, in one sentence and then in full.

use handoff::cpus::UNKNOWN_ID;
use handoff::crash::{StoppedBy, cpu_flags};
use handoff::facts::MemoryKind;
use handoff::{Cause, CpuRecord};
use serde::{Deserialize, Serialize};
use vmcore_format::area::{incomplete, stage_kind};
use vmcore_format::notes::excluded_reason;

mod page;
mod place;
mod time;

pub use place::{OtherInfo, SlotInfo};

use crate::Dump;
use crate::json::{Hex, word};
use crate::text;

/// Everything the dump says about itself; the JSON of `vmcore info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Why it stopped; `null` when the record of it was lost.
    pub cause: Option<CauseInfo>,
    /// GNU build-id of the crashed image, hexadecimal digits.
    pub build_id: String,
    /// Whether everything that was meant to be in the dump is there.
    pub complete: bool,
    /// The stages that are there.
    pub stages: Vec<StageInfo>,
    /// How many stages were planned; 0 when that was lost.
    pub stages_planned: u32,
    /// Every CPU, in index order.
    pub cpus: Vec<CpuInfo>,
    /// The memory in the dump.
    pub memory: MemoryInfo,
    /// The memory that is not, and why.
    pub excluded: Vec<ExcludedInfo>,
    /// The kernel command line.
    pub command_line: String,
    /// When it happened.
    pub time: TimeInfo,
    /// The rungs of the stop ladder that were used, in order.
    pub timeline: Vec<RungInfo>,
    /// What workloads said when they were asked.
    pub words: Vec<WordsInfo>,
    /// How the capture went; `null` when its account was lost.
    pub capture: Option<CaptureInfo>,
    /// Where on the disk the dump is; `null` for a file.
    pub slot: Option<SlotInfo>,
    /// What is not as it should be.
    pub warnings: Vec<String>,
}

/// Why the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseInfo {
    /// `panic`, `exception`, `mce`, `nmi`, `hard-lockup`, `soft-lockup` or `oom`.
    pub kind: String,
    /// Exception vector; `null` when it was none.
    pub vector: Option<u32>,
    /// One line of text.
    pub message: String,
    /// Index of the crashing CPU.
    pub cpu: u32,
    /// Source file of a panic; empty when there is none.
    pub file: String,
    /// Line in it, 0 when there is none.
    pub line: u32,
    /// Error code of an exception.
    pub error_code: Hex,
    /// Fault address of a page fault.
    pub address: Hex,
    /// How often the crash path was entered again while it ran.
    pub nested: u32,
}

/// A stage of the dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInfo {
    /// Which one, from 1.
    pub stage: u32,
    /// `mini`, `used` or `all`.
    pub kind: String,
    /// Whether this is the one that is read.
    pub read: bool,
    /// Bytes of its ELF file.
    pub bytes: u64,
    /// Whether nothing it was meant to hold is missing; `null` where only its seal, on
    /// the disk, would say so.
    pub complete: Option<bool>,
    /// From the jump to its seal; `null` where it is not known.
    pub sealed_after_ns: Option<u64>,
    /// Time to write it; `null` where it is not known.
    pub write_ns: Option<u64>,
    /// Bytes of the comparison with the raw medium; `null` where it was not made.
    pub raw_bytes: Option<u64>,
    /// The time that took.
    pub raw_ns: Option<u64>,
    /// From the crash to its seal; `null` where it is not known.
    pub sealed_after_crash_ns: Option<u64>,
    /// What it adds to the stage before; `null` where only its seal would say so.
    pub added: Option<AddedInfo>,
    /// Why memory it was meant to hold is missing: `deadline`, `slot-full`, `fault`,
    /// `unreadable`, `too-many`, `disk`; `null` when nothing is, or where it is not known.
    pub incomplete: Option<String>,
}

/// What a stage adds to the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedInfo {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Of these, all zero and not stored.
    pub zero_bytes: u64,
    /// Of these, stored compressed.
    pub compressed_bytes: u64,
    /// Bytes it took to store them.
    pub stored_bytes: u64,
    /// Nanoseconds for each page of memory; `null` where the time is not known.
    pub ns_per_page: Option<u64>,
}

/// One CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuInfo {
    /// Its index: 0 for the boot processor, the others in MADT order.
    pub index: u32,
    /// Its hardware id: the APIC ID on x86-64, MPIDR_EL1 on AArch64; `null` when it is not known.
    pub hardware_id: Option<Hex>,
    /// `crash`, `irq`, `nmi`, `init`, `self`, `not-stopped`, `never-started`.
    pub stopped_by: String,
    /// From the first stop request to its acknowledgement; `null` for none.
    pub latency_ns: Option<u64>,
    /// `interrupted`, `self`, `last-known`, `none`.
    pub registers_from: String,
    /// The workload it ran; empty when it was idle.
    pub workload: String,
    /// The workload's unit in progress; `null` for none.
    pub unit: Option<u64>,
    /// NMIs it has seen since boot, but for those of live backtraces.
    pub nmi_count: u32,
    /// Of these, the ones that came once a stop was under way; `null` where it was not
    /// counted.
    pub stop_nmi_count: Option<u32>,
    /// NMIs of live backtraces; `null` likewise.
    pub live_nmi_count: Option<u32>,
    /// Machine checks; `null` likewise.
    pub mce_count: Option<u32>,
    /// Whether interrupts were on when the stop, or its own crash, reached it; `null` where
    /// it is not known.
    pub interrupts: Option<bool>,
    /// Locks it held then; `null` where it was not counted.
    pub locks_held: Option<u32>,
    /// Whether it waits where it can be called back to work; `null` where it is not known.
    pub reclaimable: Option<bool>,
}

/// What a workload said when it was asked after the crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WordsInfo {
    /// Its name.
    pub workload: String,
    /// One line of text.
    pub text: String,
}

/// Memory in the dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// RAM of the machine, by the firmware's map; 0 when that was lost.
    pub ram_bytes: u64,
    /// Of these, in the dump.
    pub dumped_bytes: u64,
    /// Of these, all zero and not stored.
    pub zero_bytes: u64,
    /// Bytes of the ELF file.
    pub file_bytes: u64,
    /// The ranges in the dump.
    pub ranges: Vec<RangeInfo>,
}

/// A range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeInfo {
    /// Physical address.
    pub start: Hex,
    /// Length.
    pub bytes: u64,
}

/// A range that is in no segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludedInfo {
    /// Physical address.
    pub start: Hex,
    /// Length.
    pub bytes: u64,
    /// Why: `capture-region`, `not-ram`, `firmware`, `bad`, `later-stage`, `no-room`,
    /// `deadline`, `never-dump`, `unreadable`, `fault`.
    pub reason: String,
}

/// When it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeInfo {
    /// Unix time of the crash in seconds; `null` when it is not known.
    pub unix_s: Option<u64>,
    /// Why `unix_s` is not known: `no-clock`, `not-in-last-words` (the dump was made of last
    /// words), `lost` (the record that says so is not in the dump); `null` when it is.
    pub unix_absent: Option<String>,
    /// The same as a date; `null` likewise.
    pub utc: Option<String>,
    /// Time since boot in nanoseconds; `null` when the counter was not calibrated.
    pub uptime_ns: Option<u64>,
    /// The time-stamp counter of the crash.
    pub tsc: Hex,
    /// The counter's rate in Hz, 0 when unknown.
    pub tsc_hz: u64,
}

/// A rung of the stop ladder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungInfo {
    /// `irq`, `nmi` or `init`.
    pub rung: String,
    /// Indices of the CPUs it was sent to.
    pub targets: Vec<u32>,
    /// From the crash to its sending; `null` when the counter was not calibrated.
    pub sent_after_ns: Option<u64>,
    /// How long it was waited for; `null` likewise.
    pub waited_ns: Option<u64>,
    /// Its window; `null` for one without end.
    pub window_ns: Option<u64>,
}

/// How the capture went. Times are `null` when the counter was not calibrated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureInfo {
    /// From the crash to the jump into the capture image.
    pub crash_to_jump_ns: Option<u64>,
    /// From the jump to the capture image's first instruction.
    pub jump_to_entered_ns: Option<u64>,
    /// From the jump until the capture image ran in page tables of its own; `null` in dumps
    /// that do not say so, as the next two.
    pub jump_to_settled_ns: Option<u64>,
    /// From the jump until it was known which memory is dumped.
    pub jump_to_planned_ns: Option<u64>,
    /// From the jump until the disk that took the dump had been brought up.
    pub jump_to_disk_ns: Option<u64>,
    /// From the jump to the first byte written.
    pub jump_to_write_ns: Option<u64>,
    /// Bytes the stage wrote.
    pub bytes_written: u64,
    /// Pages of memory in it.
    pub pages: u64,
    /// High-water mark of the reserved region.
    pub region_bytes_used: u64,
    /// Stopped CPUs that waited to be called back to work.
    pub cpus_waiting: u32,
    /// Those of them that had answered when the memory was written.
    pub cpus_answered: u32,
    /// CPUs that compressed memory or wrote it, the one that crashed included; `null`
    /// in dumps that do not say so.
    pub cpus_working: Option<u32>,
    /// The fault in the capture image that the dump ends with; `null` for none.
    pub fault: Option<String>,
}

/// Gathers what a dump says about itself.
#[must_use]
pub fn info(dump: &Dump) -> Info {
    let planned = match (&dump.stored, &dump.metrics) {
        (Some(stored), _) => stored.open.stages,
        (None, Some(metrics)) => metrics.stages,
        (None, None) => 0,
    };
    let mut warnings = dump.warnings.clone();
    warnings.extend(dump.stored.iter().flat_map(|stored| stored.refused.clone()));
    warnings.extend(dump.stored.iter().flat_map(|stored| stored.absent.clone()));
    if let Some(handoff) = &dump.handoff
        && dump.cpu(handoff.cause.cpu).is_err()
    {
        warnings.push(format!("the crashing CPU {} has no record", handoff.cause.cpu));
    }
    Info {
        cause: dump.handoff.as_ref().map(|handoff| cause(&handoff.cause, handoff.nested)),
        build_id: text::hex(&dump.build_id),
        complete: dump.is_complete(),
        stages: stages(dump),
        stages_planned: planned,
        cpus: dump.cpus.iter().map(cpu_info).collect(),
        memory: memory(dump),
        excluded: dump
            .excluded
            .iter()
            .map(|range| ExcludedInfo {
                start: Hex(range.start),
                bytes: range.bytes,
                reason: word(excluded_reason::name(range.reason), range.reason),
            })
            .collect(),
        command_line: dump.facts.as_ref().map_or("", |facts| facts.command_line()).to_owned(),
        time: time::time(dump),
        timeline: timeline(dump),
        words: dump
            .words
            .iter()
            .map(|words| WordsInfo { workload: words.name().into(), text: words.text().into() })
            .collect(),
        capture: capture(dump),
        slot: dump.stored.as_ref().map(place::slot),
        warnings,
    }
}

fn cause(cause: &Cause, nested: u32) -> CauseInfo {
    CauseInfo {
        kind: cause.kind.to_string(),
        vector: (cause.vector != u32::MAX).then_some(cause.vector),
        message: cause.message().into(),
        cpu: cause.cpu,
        file: cause.file().into(),
        line: cause.line,
        error_code: Hex(cause.error_code),
        address: Hex(cause.address),
        nested,
    }
}

/// What `info` and `cpus` say about a CPU.
pub(crate) fn cpu_info(record: &CpuRecord) -> CpuInfo {
    let has = |flag| record.flags & flag != 0;
    let counted = has(cpu_flags::COUNTED);
    CpuInfo {
        index: record.index,
        hardware_id: (record.hardware_id != UNKNOWN_ID).then_some(Hex(record.hardware_id)),
        stopped_by: record.stopped_by.to_string(),
        latency_ns: latency(record),
        registers_from: record.registers_from.to_string(),
        workload: record.workload().into(),
        unit: (record.unit != u64::MAX).then_some(record.unit),
        nmi_count: record.nmi_count,
        stop_nmi_count: counted.then_some(record.stop_nmi_count),
        live_nmi_count: counted.then_some(record.live_nmi_count),
        mce_count: counted.then_some(record.mce_count),
        interrupts: has(cpu_flags::INTERRUPTS_KNOWN).then(|| has(cpu_flags::INTERRUPTS_ON)),
        locks_held: counted.then_some(record.locks_held),
        reclaimable: counted.then(|| has(cpu_flags::RECLAIMABLE)),
    }
}

/// Nobody asked the crashing CPU, one that stopped itself or one that never ran to stop.
fn latency(record: &CpuRecord) -> Option<u64> {
    let asked =
        !matches!(record.stopped_by, StoppedBy::CRASH | StoppedBy::SELF | StoppedBy::NEVER_STARTED);
    (asked && record.latency_ns != u64::MAX).then_some(record.latency_ns)
}

fn stages(dump: &Dump) -> Vec<StageInfo> {
    let known = |value: u64| (value > 0).then_some(value);
    let Some(stored) = &dump.stored else {
        return Vec::from_iter(dump.metrics.map(|metrics| StageInfo {
            stage: metrics.stage,
            kind: word(stage_kind::name(metrics.stage_kind), metrics.stage_kind),
            read: true,
            bytes: dump.file_bytes(),
            complete: None,
            sealed_after_ns: None,
            write_ns: None,
            raw_bytes: None,
            raw_ns: None,
            sealed_after_crash_ns: None,
            added: None,
            incomplete: None,
        }));
    };
    let info = |(index, seal): &(usize, vmcore_format::area::StageSeal)| StageInfo {
        stage: *index as u32 + 1,
        kind: word(stage_kind::name(seal.kind), seal.kind),
        read: *index == stored.stage,
        bytes: seal.elf_bytes,
        complete: Some(seal.complete == 1),
        sealed_after_ns: known(seal.duration_ns),
        write_ns: known(seal.write_ns),
        raw_bytes: known(seal.raw_bytes),
        raw_ns: known(seal.raw_ns),
        sealed_after_crash_ns: known(seal.crash_ns),
        added: (!seal.is_plain()).then(|| AddedInfo {
            memory_bytes: seal.memory_bytes,
            zero_bytes: seal.zero_bytes,
            compressed_bytes: seal.compressed_bytes,
            stored_bytes: seal.stored_bytes,
            ns_per_page: seal
                .write_ns
                .checked_div(seal.memory_bytes / vmcore_format::PAGE_BYTES)
                .and_then(known),
        }),
        incomplete: (seal.incomplete != incomplete::NOTHING)
            .then(|| word(incomplete::name(seal.incomplete), seal.incomplete)),
    };
    stored.seals.iter().map(info).collect()
}

fn memory(dump: &Dump) -> MemoryInfo {
    let sum = |size: fn(&vmcore_format::core::LoadSegment) -> u64| {
        dump.segments().iter().map(|segment| size(&segment.load)).fold(0, u64::saturating_add)
    };
    let dumped = sum(|load| load.memory_bytes);
    let ram = dump.facts.iter().flat_map(|facts| facts.memory());
    let ram = ram.filter(|entry| entry.kind == MemoryKind::RAM);
    let mut ranges: Vec<RangeInfo> = Vec::new();
    for segment in dump.segments() {
        let (start, bytes) = (segment.load.physical_address, segment.load.memory_bytes);
        match ranges.last_mut() {
            Some(last) if last.start.0 + last.bytes == start => last.bytes += bytes,
            _ => ranges.push(RangeInfo { start: Hex(start), bytes }),
        }
    }
    MemoryInfo {
        ram_bytes: ram.map(|entry| entry.range.bytes).fold(0, u64::saturating_add),
        dumped_bytes: dumped,
        zero_bytes: dumped - sum(|load| load.file_bytes).min(dumped),
        file_bytes: dump.file_bytes(),
        ranges,
    }
}

fn timeline(dump: &Dump) -> Vec<RungInfo> {
    let Some(handoff) = &dump.handoff else { return Vec::new() };
    let span = |from: u64, to: u64| dump.nanoseconds(to.checked_sub(from)?);
    handoff
        .timeline()
        .iter()
        .map(|record| RungInfo {
            rung: record.kind.to_string(),
            targets: (0..handoff::MAX_CPUS as u32)
                .filter(|&cpu| record.mask[cpu as usize / 64] >> (cpu % 64) & 1 == 1)
                .collect(),
            sent_after_ns: span(handoff.cause.tsc, record.sent_tsc),
            waited_ns: span(record.sent_tsc, record.closed_tsc),
            window_ns: (record.window_ns != u64::MAX).then_some(record.window_ns),
        })
        .collect()
}

fn capture(dump: &Dump) -> Option<CaptureInfo> {
    let metrics = dump.metrics?;
    let span = |from: u64, to: u64| dump.nanoseconds(to.checked_sub(from)?);
    let crash = dump.handoff.as_ref().map(|handoff| handoff.cause.tsc);
    let step = |tsc: u64| (tsc != 0).then(|| span(metrics.jump_tsc, tsc)).flatten();
    Some(CaptureInfo {
        crash_to_jump_ns: crash.and_then(|crash| span(crash, metrics.jump_tsc)),
        jump_to_entered_ns: step(metrics.entered_tsc),
        jump_to_settled_ns: step(metrics.settled_tsc),
        jump_to_planned_ns: step(metrics.planned_tsc),
        jump_to_disk_ns: step(metrics.disk_tsc),
        jump_to_write_ns: span(metrics.jump_tsc, metrics.write_begin_tsc),
        bytes_written: metrics.bytes_written,
        pages: metrics.pages,
        region_bytes_used: metrics.region_bytes_used,
        cpus_waiting: metrics.cpus_waiting,
        cpus_answered: metrics.cpus_answered,
        cpus_working: (metrics.cpus_working != 0).then_some(metrics.cpus_working),
        fault: dump.capture_fault.clone(),
    })
}
