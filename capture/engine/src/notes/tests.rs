use handoff::crash::{CauseKind, RegistersFrom, StoppedBy, set_text};
use handoff::{BootFacts, CpuRecord, CpuRecords, Handoff, RecordError, Segment, X86Registers};
use vmcore_format::reader::{CoreReader, Note};

use super::*;
use crate::fake;
use crate::input::{Appliance, InputError};

/// Four CPUs: 2 crashed, 1 was stopped by INIT and has no registers, 3 never ran.
fn appliance(cpus: Result<&'static [CpuRecord], InputError>) -> Appliance {
    appliance_with(cpus, |_| ())
}

fn appliance_with(
    cpus: Result<&'static [CpuRecord], InputError>,
    change: impl FnOnce(&mut BootFacts),
) -> Appliance {
    let mut facts = BootFacts::new();
    facts.machine = 62;
    facts.cpu_count = 4;
    facts.elf_header = 0x100_0000;
    facts.elf_entry = 0x100_2000;
    facts.elf_program_headers = 3;
    facts.build_id[..4].copy_from_slice(&[1, 2, 3, 4]);
    facts.build_id_bytes = 4;
    facts.segments[0] = Segment {
        range: Range { start: 0x100_0000, bytes: 0x3000 },
        file_bytes: 0x3000,
        ..Segment::default()
    };
    facts.segment_count = 1;
    set_text(&mut facts.image_name, "appliance");
    change(&mut facts);
    let mut handoff = Handoff::new();
    handoff.cause.kind = CauseKind::EXCEPTION;
    handoff.cause.cpu = 2;
    handoff.cause.address = 0xdead;
    set_text(&mut handoff.cause.message, "page fault");
    if let Ok(cpus) = cpus {
        handoff.seal(cpus);
    }
    let crash = fake::appliance(handoff, facts, cpus.map(CpuRecords::of));
    Appliance {
        workload_table: Some(&[3; 24]),
        locks: Some(&[4; 128]),
        words: Some(&[5; 256]),
        ..crash
    }
}

fn cpus() -> &'static [CpuRecord] {
    let mut cpus = vec![CpuRecord::new(); 4];
    let states = [
        (StoppedBy::IRQ, RegistersFrom::INTERRUPTED),
        (StoppedBy::INIT, RegistersFrom::NONE),
        (StoppedBy::CRASH, RegistersFrom::SELF),
        (StoppedBy::NEVER_STARTED, RegistersFrom::NONE),
    ];
    for (index, (record, (stopped, from))) in cpus.iter_mut().zip(states).enumerate() {
        record.index = index as u32;
        record.stopped_by = stopped;
        record.registers_from = from;
        record.set_x86(&X86Registers {
            r15: 15,
            rip: 0x1000 + index as u64,
            gs: 0x77,
            ..X86Registers::default()
        });
    }
    cpus.leak()
}

fn built(crash: &Appliance) -> (Vec<u8>, Layout) {
    built_of(&fake::described(crash))
}

fn built_of(crash: &Crash<'_>) -> (Vec<u8>, Layout) {
    let pieces = [
        Piece { start: 0x10_0000, file_bytes: 0xf0_0000, zero_bytes: 0 },
        Piece { start: 0x100_0000, file_bytes: 0x10_0000, zero_bytes: 0x20_0000 },
        Piece { start: 0x130_0000, file_bytes: 0x4000, zero_bytes: 0x1000 },
    ];
    let excluded = [ExcludedRange { start: 0x400_0000, bytes: 0x80_0000, reason: 1 }];
    let mut buffer = vec![0xaa; bytes_needed(crash, pieces.len(), excluded.len()) as usize];
    let contents = Contents { pieces: &pieces, excluded: &excluded, fault: "exception 14" };
    let layout = build(&mut buffer, crash, contents, &CaptureMetrics::new()).unwrap();
    buffer.truncate(layout.header_bytes as usize);
    (buffer, layout)
}

fn pids(notes: &[Note<'_>]) -> Vec<i32> {
    let statuses = notes.iter().filter(|note| note.kind == format::NT_PRSTATUS);
    let pid = |note: &Note<'_>| {
        i32::from_le_bytes(note.desc[format::PRSTATUS_PID..][..4].try_into().unwrap())
    };
    statuses.map(pid).collect()
}

fn word(desc: &[u8], index: usize) -> u64 {
    let at = format::PRSTATUS_REGISTERS + index * 8;
    u64::from_le_bytes(desc[at..at + 8].try_into().unwrap())
}

#[test]
fn the_crashing_cpu_comes_first_and_one_that_never_ran_not_at_all() {
    let (header, layout) = built(&appliance(Ok(cpus())));
    let core = CoreReader::new(&header, layout.file_bytes).unwrap();
    let notes: Vec<_> = core.notes().map(Result::unwrap).collect();
    assert_eq!(pids(&notes), [3, 1, 2]);
    let kinds: Vec<u32> = notes[..8].iter().map(|note| note.kind).collect();
    assert_eq!(
        kinds,
        [
            format::NT_PRSTATUS,
            format::NT_PRPSINFO,
            format::NT_SIGINFO,
            format::NT_AUXV,
            format::NT_FILE,
            format::NT_LINUX,
            format::NT_PRSTATUS,
            format::NT_PRSTATUS
        ]
    );
    // lldb takes no core for Linux's without a note of this owner.
    assert_eq!((notes[5].owner, notes[5].desc.len()), (format::LINUX_OWNER, 0));
    let (crashed, initialised) = (notes[0].desc, notes[7].desc);
    assert_eq!((word(crashed, 0), word(crashed, 16), word(crashed, 26)), (15, 0x1002, 0x77));
    assert!((0..27).all(|index| word(initialised, index) == 0));
    for status in notes.iter().filter(|note| note.kind == format::NT_PRSTATUS) {
        assert_eq!(status.desc[format::PRSTATUS_SIGNAL], format::SIGNAL_FAULT as u8);
    }
}

#[test]
fn no_registers_are_noted_that_were_never_saved() {
    let (header, layout) = built(&appliance(Ok(cpus())));
    let core = CoreReader::new(&header, layout.file_bytes).unwrap();
    let floating = [format::NT_FPREGSET, format::NT_X86_XSTATE];
    assert!(!core.notes().any(|note| floating.contains(&note.unwrap().kind)));
}

#[test]
fn the_project_s_own_notes_hold_the_records_as_they_were() {
    let crash = appliance(Ok(cpus()));
    let (header, layout) = built(&crash);
    let core = CoreReader::new(&header, layout.file_bytes).unwrap();
    let note = |kind| core.note(format::EPITAPH_OWNER, kind).unwrap().unwrap();
    assert_eq!(note(format::NT_EPITAPH_HANDOFF), crash.handoff.as_bytes());
    assert_eq!(note(format::NT_EPITAPH_FACTS), crash.facts.as_bytes());
    assert_eq!(note(format::NT_EPITAPH_CPUS), cpus().as_bytes());
    assert_eq!(note(format::NT_EPITAPH_STAMPS), [3; 24]);
    assert_eq!(note(format::NT_EPITAPH_LOCKS), [4; 128]);
    assert_eq!(note(format::NT_EPITAPH_WORDS), [5; 256]);
    assert_eq!(note(format::NT_EPITAPH_BUILD_ID), [1, 2, 3, 4]);
    assert_eq!(note(format::NT_EPITAPH_EXCLUDED).len(), 24);
    let zero = note(format::NT_EPITAPH_ZERO);
    let ranges = [(0x110_0000u64, 0x20_0000u64), (0x130_4000, 0x1000)];
    let zeros = ranges.map(|(start, bytes)| ZeroRange { start, bytes });
    assert_eq!(zero, zeros.as_bytes());
    assert_eq!(core.segments().count(), 3);
    assert!(core.segments().any(|segment| segment.load.physical_address == 0x100_0000));
}

#[test]
fn without_cpu_records_every_cpu_is_a_thread_of_zeros() {
    let (header, layout) =
        built(&appliance(Err(InputError::Record("CPU records", RecordError::Magic))));
    let core = CoreReader::new(&header, layout.file_bytes).unwrap();
    let notes: Vec<_> = core.notes().map(Result::unwrap).collect();
    assert_eq!(pids(&notes), [3, 1, 2, 4]);
    assert!(core.note(format::EPITAPH_OWNER, format::NT_EPITAPH_CPUS).unwrap().is_none());
}

#[test]
fn the_most_cpus_there_can_be_fit() {
    let mut cpus = vec![CpuRecord::new(); handoff::MAX_CPUS];
    for (index, record) in cpus.iter_mut().enumerate() {
        record.index = index as u32;
        record.stopped_by = StoppedBy::NMI;
    }
    let (header, _) = built(&appliance(Ok(cpus.leak())));
    assert!(header.len() < 2 << 20, "{} bytes", header.len());
}

#[test]
fn memory_has_the_virtual_addresses_of_its_segments() {
    const KERNEL: u64 = 0xffff_ffff_8000_0000;
    let segment = |virtual_start, physical_start, bytes| handoff::VirtualSegment {
        virtual_start,
        physical_start,
        bytes,
        flags: 5,
        reserved: 0,
    };
    let crash = appliance_with(Ok(cpus()), |facts| {
        set_text(&mut facts.image_name, "kernel");
        facts.virtual_segments[..4].copy_from_slice(&[
            // In the middle of the first piece, over the end of the second one's bytes, where
            // it is anyway, and not whole pages.
            segment(KERNEL, 0x40_0000, 0x10_0000),
            segment(KERNEL + 0x1000_0000, 0x100_0000, 0x18_0000),
            segment(0x130_0000, 0x130_0000, 0x1000),
            segment(0x7000_0000, 0x130_2000, 0x10),
        ]);
        facts.virtual_segment_count = 4;
    });
    let (header, layout) = built(&crash);
    let core = CoreReader::new(&header, layout.file_bytes).unwrap();
    let loads: Vec<_> = core
        .segments()
        .map(|segment| {
            let load = segment.load;
            let [address, physical] = [load.virtual_address, load.physical_address];
            let offset = segment.offset - layout.header_bytes;
            (address, physical, offset, load.file_bytes, load.memory_bytes)
        })
        .collect();
    assert_eq!(
        loads,
        [
            (0x10_0000, 0x10_0000, 0, 0x30_0000, 0x30_0000),
            (KERNEL, 0x40_0000, 0x30_0000, 0x10_0000, 0x10_0000),
            (0x50_0000, 0x50_0000, 0x40_0000, 0xb0_0000, 0xb0_0000),
            (KERNEL + 0x1000_0000, 0x100_0000, 0xf0_0000, 0x10_0000, 0x18_0000),
            (0x118_0000, 0x118_0000, 0x100_0000, 0, 0x18_0000),
            (0x130_0000, 0x130_0000, 0x100_0000, 0x4000, 0x5000),
        ]
    );
    let file = core.note(format::CORE_OWNER, format::NT_FILE).unwrap().unwrap();
    // Count and page size, then where the first file lies; its name stands at the end.
    let word = |at: usize| u64::from_le_bytes(file[at * 8..][..8].try_into().unwrap());
    assert_eq!((word(2), word(3)), (KERNEL + 0x1000_0000, KERNEL + 0x1000_3000));
    assert!(file.ends_with(b"kernel\0"));
    // The image's program headers, behind its ELF header.
    let auxv = core.note(format::CORE_OWNER, format::NT_AUXV).unwrap().unwrap();
    assert_eq!(auxv[..8], format::AT_PHDR.to_le_bytes());
    assert_eq!(auxv[8..16], (KERNEL + 0x1000_0000 + 64).to_le_bytes());
    let process = core.note(format::CORE_OWNER, format::NT_PRPSINFO).unwrap().unwrap();
    assert!(process.windows(7).any(|bytes| bytes == b"kernel\0"));
}

#[test]
fn registers_of_another_architecture_are_in_no_standard_note() {
    let mut records = cpus().to_vec();
    records[0].architecture = 183;
    records[0].register_bytes = 512;
    let (header, layout) = built(&appliance(Ok(records.leak())));
    let core = CoreReader::new(&header, layout.file_bytes).unwrap();
    let notes: Vec<_> = core.notes().map(Result::unwrap).collect();
    assert_eq!(pids(&notes), [3, 1, 2]);
    assert!((0..27).all(|index| word(notes[7].desc, index) == 0));
}

#[test]
fn memory_without_a_virtual_address_has_none() {
    const LINEAR: u64 = 0xffff_8880_0000_0000;
    let segments = [VirtualSegment {
        virtual_start: LINEAR + 0x100_0000,
        range: Range { start: 0x100_0000, bytes: 0x20_0000 },
    }];
    let crash = Crash { virtual_segments: &segments, identity: false, ..fake::crash() };
    let (header, layout) = built_of(&crash);
    let core = CoreReader::new(&header, layout.file_bytes).unwrap();
    let addresses: Vec<_> = core
        .segments()
        .map(|segment| (segment.load.virtual_address, segment.load.physical_address))
        .collect();
    assert_eq!(
        addresses,
        [
            (NO_ADDRESS, 0x10_0000),
            (LINEAR + 0x100_0000, 0x100_0000),
            (NO_ADDRESS, 0x120_0000),
            (NO_ADDRESS, 0x130_0000),
        ]
    );
    // Nothing is known of an image.
    for kind in [format::NT_AUXV, format::NT_FILE] {
        assert!(core.note(format::CORE_OWNER, kind).unwrap().is_none());
    }
}
