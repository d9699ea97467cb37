//! The checked hand-off of an appliance, described as a [`Crash`].

use handoff::crash::{CauseKind, MAX_IN_FLIGHT, RegistersFrom, StoppedBy};
use handoff::facts::{
    DumpPages, DumpStoring, MAX_NEVER_DUMP, MAX_RANGES, MAX_SEGMENTS, MAX_VIRTUAL_SEGMENTS,
    MemoryKind,
};
use handoff::registers::PRSTATUS_WORDS;
use handoff::{BootFacts, CpuRecord, CpuRecords, Handoff, Range, X86Registers};
use vmcore_format::area::{stage_kind, storing};
use vmcore_format::notes::{self as format, excluded_reason};
use zerocopy::{FromBytes, IntoBytes};

use super::Appliance;
use crate::crash::{
    self, Cause, Cpu, Cpus, Crash, Image, ImageSegment, MemoryClass, MemoryRange, Note, Origin,
    Registers, Stop, Time, UsedBitmap, VirtualSegment, Withheld, X86Control,
};
use crate::dump_options::DumpOptions;
use crate::last_words::cause_line;
use crate::stream::Moving;

/// Ranges for the first stage beside the image's segments: the CPU records, the log,
/// the workload's table and the flight recorder.
const MINI_RECORDS: usize = 4;
/// Notes that are copied: hand-off, facts, CPU records, the workload's table, locks and
/// workloads' words.
const NOTES: usize = 6;

// Every list of an appliance has room in a `Crash`.
const _: () = assert!(MAX_RANGES <= crash::MAX_RANGES && MAX_NEVER_DUMP < crash::MAX_WITHHELD);
const _: () = assert!(MAX_VIRTUAL_SEGMENTS <= crash::MAX_VIRTUAL_SEGMENTS);

/// Room for the lists of a [`Crash`] that describes an appliance. Some 7 KiB, so it is filled
/// where it lies.
pub struct ApplianceLists {
    memory: heapless::Vec<MemoryRange, MAX_RANGES>,
    withheld: heapless::Vec<Withheld, { MAX_NEVER_DUMP + 1 }>,
    segments: heapless::Vec<ImageSegment, MAX_SEGMENTS>,
    virtual_segments: heapless::Vec<VirtualSegment, MAX_VIRTUAL_SEGMENTS>,
    mini: heapless::Vec<Range, { MAX_SEGMENTS + MINI_RECORDS }>,
    notes: heapless::Vec<Note<'static>, NOTES>,
    moving: heapless::Vec<Range, MAX_IN_FLIGHT>,
    cpus: ApplianceCpus,
    cause_line: heapless::String<160>,
}

impl ApplianceLists {
    /// Returns empty lists.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            memory: heapless::Vec::new(),
            withheld: heapless::Vec::new(),
            segments: heapless::Vec::new(),
            virtual_segments: heapless::Vec::new(),
            mini: heapless::Vec::new(),
            notes: heapless::Vec::new(),
            moving: heapless::Vec::new(),
            cpus: ApplianceCpus { records: None, count: 0 },
            cause_line: heapless::String::new(),
        }
    }
}

impl Default for ApplianceLists {
    fn default() -> Self {
        Self::new()
    }
}

/// CPUs of an appliance.
struct ApplianceCpus {
    /// Checked records; `None` when they could not be believed.
    records: Option<CpuRecords<'static>>,
    /// CPUs of the machine.
    count: usize,
}

impl Cpus for ApplianceCpus {
    fn count(&self) -> usize {
        self.count
    }

    fn get(&self, number: usize) -> Option<Cpu> {
        self.records?.get(number).map(|record| cpu(&record))
    }
}

impl Appliance {
    /// Describes the crash; the lists of the description lie in `lists`, which is empty before.
    pub fn describe<'a>(&self, lists: &'a mut ApplianceLists) -> Crash<'a> {
        let (handoff, facts) = (self.handoff, self.facts);
        fill_memory(lists, facts);
        fill_mini(lists, handoff, facts);
        self.fill_notes(lists);
        let known = handoff.in_flight().iter().filter(|entry| entry.memory.bytes > 0);
        fill(&mut lists.moving, known.map(|entry| entry.memory));
        lists.cpus = ApplianceCpus {
            records: self.cpus.ok(),
            count: match self.cpus {
                Ok(records) => records.len(),
                Err(_) => (facts.cpu_count as usize).clamp(1, handoff::MAX_CPUS),
            },
        };
        lists.cause_line = cause_line(&handoff.cause);
        let lists = &*lists;
        Crash {
            machine: facts.machine as u16,
            cause: Cause {
                kind: handoff.cause.kind.0,
                cpu: handoff.cause.cpu,
                signal: match handoff.cause.kind {
                    CauseKind::EXCEPTION => format::SIGNAL_FAULT,
                    _ => format::SIGNAL_PANIC,
                },
                address: handoff.cause.address,
                line: &lists.cause_line,
            },
            image: Some(Image {
                name: facts.image_name(),
                build_id: facts.build_id(),
                elf_header: facts.elf_header,
                program_headers: facts.elf_program_headers,
                entry: facts.elf_entry,
                segments: &lists.segments,
            }),
            cpus: &lists.cpus,
            memory: &lists.memory,
            withheld: &lists.withheld,
            virtual_segments: &lists.virtual_segments,
            identity: true,
            mini: &lists.mini,
            used: (facts.frames.address != 0).then_some(UsedBitmap {
                address: facts.frames.address,
                pages: facts.frames.frames,
            }),
            notes: &lists.notes,
            moving: Moving { all: self.moves_anywhere(), ranges: &lists.moving },
            options: options(facts),
            time: Time {
                crash_tsc: handoff.cause.tsc,
                jump_tsc: handoff.jump_tsc,
                unix_time: handoff.unix_time,
                tsc_hz: facts.tsc_hz,
            },
        }
    }

    /// Returns true if any memory may change while it is dumped: a device has requests in flight
    /// to addresses that are not known, or nothing is known of the CPUs.
    fn moves_anywhere(&self) -> bool {
        self.cpus.is_err()
            || self.handoff.in_flight_lost > 0
            || self.handoff.in_flight().iter().any(|entry| entry.memory.bytes == 0)
    }

    fn fill_notes(&self, lists: &mut ApplianceLists) {
        let notes = [
            (format::NT_EPITAPH_HANDOFF, Some(self.handoff_bytes)),
            (format::NT_EPITAPH_FACTS, Some(self.facts_bytes)),
            (format::NT_EPITAPH_CPUS, self.cpus.ok().map(|records| records.as_bytes())),
            (format::NT_EPITAPH_STAMPS, self.workload_table),
            (format::NT_EPITAPH_LOCKS, self.locks),
            (format::NT_EPITAPH_WORDS, self.words),
        ];
        let note = |(kind, bytes): (u32, Option<&'static [u8]>)| {
            bytes.map(|bytes| Note { owner: format::EPITAPH_OWNER, kind, bytes })
        };
        fill(&mut lists.notes, notes.into_iter().filter_map(note));
    }
}

/// Appends `items` to `list`, as many as there is room for.
fn fill<T, const N: usize>(list: &mut heapless::Vec<T, N>, items: impl Iterator<Item = T>) {
    for item in items {
        if list.push(item).is_err() {
            break;
        }
    }
}

fn fill_memory(lists: &mut ApplianceLists, facts: &BootFacts) {
    let class = |kind| match kind {
        MemoryKind::RAM => MemoryClass::Ram,
        MemoryKind::ACPI | MemoryKind::ACPI_NVS => MemoryClass::Firmware,
        MemoryKind::BAD => MemoryClass::Bad,
        _ => MemoryClass::NotRam,
    };
    let memory = facts.memory().iter().map(|entry| MemoryRange {
        range: entry.range,
        source: entry.range.start,
        class: class(entry.kind),
    });
    fill(&mut lists.memory, memory);
    let never = facts.never_dump().iter();
    let never =
        never.map(|never| Withheld { range: never.range, reason: excluded_reason::NEVER_DUMP });
    let region = Withheld { range: facts.region, reason: excluded_reason::CAPTURE_REGION };
    fill(&mut lists.withheld, never.chain([region]));
    let segments = facts
        .segments()
        .iter()
        .map(|segment| ImageSegment { range: segment.range, file_offset: segment.file_offset });
    fill(&mut lists.segments, segments);
    let segments = facts.virtual_segments().iter().map(|segment| VirtualSegment {
        virtual_start: segment.virtual_start,
        range: Range { start: segment.physical_start, bytes: segment.bytes },
    });
    fill(&mut lists.virtual_segments, segments);
}

fn fill_mini(lists: &mut ApplianceLists, handoff: &Handoff, facts: &BootFacts) {
    let table = handoff.workload_table;
    let trace = facts.trace;
    let rings = u64::from(trace.ring_bytes).saturating_mul(u64::from(trace.rings));
    let records: [Range; MINI_RECORDS] = [
        Range { start: handoff.cpus, bytes: handoff.cpus_bytes() as u64 },
        Range { start: handoff.log.address, bytes: handoff.log.capacity },
        Range { start: table.address, bytes: table.bytes() },
        Range { start: trace.address, bytes: rings },
    ];
    let segments = facts.segments().iter().map(|segment| segment.range);
    fill(&mut lists.mini, segments.chain(records));
}

/// Returns what the facts ask of a dump. What they do not say is as the words of the command
/// line have it, or their defaults.
fn options(facts: &BootFacts) -> DumpOptions {
    DumpOptions {
        pages: match facts.pages {
            DumpPages::MINI => stage_kind::MINI,
            DumpPages::ALL => stage_kind::ALL,
            _ => stage_kind::USED,
        },
        storing: match facts.storing {
            DumpStoring::RAW => storing::RAW,
            DumpStoring::LZ4 => storing::LZ4,
            _ => storing::AUTO,
        },
        deadline_ms: (facts.dump_deadline_ms > 0).then_some(facts.dump_deadline_ms),
        ..DumpOptions::read(facts.command_line())
    }
}

const fn stop(stopped_by: StoppedBy) -> Stop {
    match stopped_by {
        StoppedBy::NEVER_STARTED => Stop::NeverRan,
        StoppedBy::CRASH => Stop::Crashed,
        StoppedBy::NOT_STOPPED => Stop::MayRun,
        _ => Stop::Stopped,
    }
}

fn cpu(record: &CpuRecord) -> Cpu {
    Cpu {
        index: record.index,
        hardware_id: record.hardware_id,
        stop: stop(record.stopped_by),
        origin: match record.registers_from {
            RegistersFrom::NONE => Origin::Nowhere,
            RegistersFrom::LAST_KNOWN => Origin::Earlier,
            _ => Origin::Stop,
        },
        registers: record.x86().map_or(Registers::Unknown(record.architecture), registers),
        stack: record.stack,
    }
}

fn registers(set: &X86Registers) -> Registers {
    let general = <[u64; PRSTATUS_WORDS]>::read_from_prefix(set.as_bytes());
    let X86Registers { cr0, cr3, cr4, efer, gdt_base, idt_base, .. } = *set;
    Registers::X86 {
        general: general.map_or([0; PRSTATUS_WORDS], |(words, _)| words),
        control: Some(X86Control { cr0, cr3, cr4, efer, gdt_base, idt_base }),
    }
}

#[cfg(test)]
mod tests {
    use handoff::InFlight;
    use handoff::crash::set_text;

    use super::*;
    use crate::fake::appliance;

    fn described(
        handoff: Handoff,
        facts: BootFacts,
        cpus: Vec<CpuRecord>,
    ) -> (Crash<'static>, Appliance) {
        let crash = appliance(handoff, facts, Ok(CpuRecords::of(Vec::leak(cpus))));
        (crash.describe(Box::leak(Box::new(ApplianceLists::new()))), crash)
    }

    #[test]
    fn facts_that_say_nothing_ask_for_memory_in_use() {
        let (crash, _) = described(Handoff::new(), BootFacts::new(), vec![]);
        assert_eq!(crash.options, DumpOptions::read(""));
        assert_eq!(crash.stages(), [stage_kind::MINI, stage_kind::USED]);
        assert!(crash.used.is_none() && !crash.moves().all);
    }

    #[test]
    fn facts_and_command_line_choose_what_is_dumped() {
        let mut facts = BootFacts::new();
        facts.pages = DumpPages::ALL;
        facts.storing = DumpStoring::RAW;
        facts.dump_deadline_ms = 70;
        set_text(&mut facts.command_line, "slots=overwrite-oldest");
        let (crash, _) = described(Handoff::new(), facts, vec![]);
        let options = crash.options;
        assert_eq!((options.pages, options.storing), (stage_kind::ALL, storing::RAW));
        assert_eq!((options.deadline_ms, options.overwrite), (Some(70), true));
        assert_eq!(crash.stages().len(), 3);
    }

    #[test]
    fn a_cpu_or_a_device_that_goes_on_makes_memory_move() {
        let moving = |change: fn(&mut Handoff, &mut CpuRecord)| {
            let (mut handoff, mut record) = (Handoff::new(), CpuRecord::new());
            record.stopped_by = StoppedBy::NMI;
            change(&mut handoff, &mut record);
            let (crash, _) = described(handoff, BootFacts::new(), vec![record]);
            (crash.moves().all, crash.moves().ranges.to_vec())
        };
        let memory = Range { start: 0x5000, bytes: 0x1000 };
        assert_eq!(moving(|_, _| ()), (false, vec![]));
        assert!(moving(|_, record| record.stopped_by = StoppedBy::NOT_STOPPED).0);
        assert!(moving(|handoff, _| handoff.in_flight_lost = 1).0);
        assert!(moving(|handoff, _| handoff.in_flight_count = 1).0);
        let known = moving(|handoff, _| {
            handoff.in_flight_count = 1;
            let memory = Range { start: 0x5000, bytes: 0x1000 };
            handoff.in_flight[0] = InFlight { memory, ..InFlight::default() };
        });
        assert_eq!(known, (false, vec![memory]));
        // Without records nothing is known of the CPUs.
        let unknown = crate::input::InputError::Kind(0);
        let crash = appliance(Handoff::new(), BootFacts::new(), Err(unknown));
        assert!(crash.describe(&mut ApplianceLists::new()).moves().all);
    }

    #[test]
    fn a_record_becomes_a_cpu_with_its_registers_tagged() {
        let mut record = CpuRecord::new();
        record.index = 4;
        record.hardware_id = 1 << 40;
        record.stopped_by = StoppedBy::NMI;
        record.registers_from = RegistersFrom::LAST_KNOWN;
        record.set_x86(&X86Registers {
            rsp: 0x1000,
            rbp: 0x2000,
            gs: 7,
            cr3: 0x3000,
            ..X86Registers::default()
        });
        let cpu = cpu(&record);
        assert_eq!((cpu.index, cpu.hardware_id, cpu.stop), (4, 1 << 40, Stop::Stopped));
        assert_eq!(cpu.origin, Origin::Earlier);
        assert_eq!(cpu.registers.stack_pointers(), Some([0x1000, 0x2000]));
        let Registers::X86 { general, control } = cpu.registers else { panic!() };
        assert_eq!((general[26], control.map(|control| control.cr3)), (7, Some(0x3000)));
        record.architecture = 183;
        assert!(matches!(super::cpu(&record).registers, Registers::Unknown(183)));
    }
}
