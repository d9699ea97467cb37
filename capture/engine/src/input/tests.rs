use std::cell::{Cell, RefCell};

use handoff::crash::{HANDOFF_VERSION, RegistersFrom, StoppedBy};
use handoff::{CpuRecord, X86Registers, crc32_with_hole};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

const IMAGE: Range = Range { start: 0x400_0000, bytes: 0x5_0000 };
const HANDOFF_AT: u64 = 0x120_0000;
const CPUS_AT: u64 = 0x121_0000;
const TABLE_AT: u64 = 0x122_0000;
const LOCKS_AT: u64 = 0x123_0000;
const FACTS_AT: u64 = 0x470_0000;

/// Memory made of a few records, the rest missing.
#[derive(Default)]
struct Fake(RefCell<Vec<(u64, Vec<u8>)>>, Cell<bool>);

impl Fake {
    fn put(&self, at: u64, bytes: &[u8]) {
        self.0.borrow_mut().push((at, bytes.to_vec()));
    }
}

impl OldMemory for Fake {
    fn snapshot(&self, range: Range) -> Option<&'static [u8]> {
        // What the image has room for before the facts are checked.
        let most = handoff::facts::MAX_FACTS_BYTES.into();
        assert!(self.1.get() || range.bytes <= most, "room only after the facts are checked");
        let records = self.0.borrow();
        let (start, bytes) = records.iter().find(|(start, _)| *start == range.start)?;
        let bytes = bytes.get(..range.bytes as usize)?;
        assert_eq!(*start, range.start);
        // As words, for the alignment the trait promises.
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Some(&Vec::leak(words).as_bytes()[..bytes.len()])
    }

    fn trust(&self, facts: &BootFacts) {
        let longer = facts.size as usize > size_of::<BootFacts>();
        assert!(longer || BootFacts::check(facts.as_bytes()).is_ok());
        self.1.set(true);
    }
}

/// A machine with two CPUs that has just crashed; each test spoils something.
struct Crash {
    handoff: Handoff,
    facts: BootFacts,
    cpus: Vec<CpuRecord>,
}

fn ram(start: u64, end: u64) -> MemoryRange {
    MemoryRange { range: Range::between(start, end), kind: MemoryKind::RAM, reserved: 0 }
}

fn crash() -> Crash {
    let mut facts = BootFacts::new();
    facts.region = Range { start: 0x400_0000, bytes: 0x80_0000 };
    facts.image = Range { start: IMAGE.start, bytes: 0x10_0000 };
    facts.park = Range { start: 0x471_0000, bytes: 0x1_0000 };
    facts.scratch = Range::between(0x410_0000, 0x470_0000);
    facts.memory[0] = ram(0x1000, 0x9_f000);
    facts.memory[1] = ram(0x10_0000, 0x2000_0000);
    facts.memory_count = 2;
    facts.cpu_count = 2;
    let mut handoff = Handoff::new();
    handoff.facts = FACTS_AT;
    handoff.cpus = CPUS_AT;
    let mut cpus = vec![CpuRecord::new(); 2];
    cpus[1].index = 1;
    cpus[1].stopped_by = StoppedBy::CRASH;
    Crash { handoff, facts, cpus }
}

impl Crash {
    fn received(mut self, spoil: impl FnOnce(&Fake)) -> (Result<Appliance, InputError>, Evidence) {
        self.facts.seal();
        self.handoff.seal(&self.cpus);
        let memory = Fake::default();
        // The first record at an address counts, so what `spoil` adds comes first.
        spoil(&memory);
        memory.put(HANDOFF_AT, self.handoff.as_bytes());
        memory.put(self.handoff.facts, self.facts.as_bytes());
        memory.put(CPUS_AT, self.cpus.as_bytes());
        memory.put(TABLE_AT, &[7; 48]);
        memory.put(LOCKS_AT, &[9; 256]);
        let mut evidence = Evidence::default();
        let input = Input::from_entry(HANDOFF_AT, 1).unwrap();
        let received = receive(input, IMAGE, &memory, &mut evidence);
        let appliance = received.map(|CrashedMemory::Appliance(appliance)| appliance);
        (appliance, evidence)
    }

    fn refusal(self) -> InputError {
        self.received(|_| {}).0.err().expect("refused")
    }
}

#[test]
fn a_sound_hand_off_is_received_whole() {
    let mut crash = crash();
    crash.handoff.workload_table = table(TABLE_AT, 2, 0);
    let (appliance, evidence) = crash.received(|_| {});
    let appliance = appliance.unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_eq!(appliance.cpus.unwrap().len(), 2);
    assert_eq!(appliance.workload_table, Some(&[7; 48][..]));
    assert_eq!(evidence.cpus.unwrap().get(1).unwrap().stopped_by, StoppedBy::CRASH);
}

/// `record` as a later version has it: with `more` words behind what is known.
fn later(record: &[u8], more: usize) -> Vec<u8> {
    let mut bytes = record.to_vec();
    bytes.resize(record.len() + 8 * more, 0xa5);
    let size = bytes.len() as u32;
    bytes[8..12].copy_from_slice(&(HANDOFF_VERSION + 1).to_le_bytes());
    bytes[12..16].copy_from_slice(&size.to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// Writes the checksum of a hand-off, or of facts.
fn seal(bytes: &mut [u8]) {
    let crc32 = crc32_with_hole(bytes, 16);
    bytes[16..20].copy_from_slice(&crc32.to_le_bytes());
}

/// CPU records of a later version: a longer head, and more registers behind the known ones.
fn later_cpus(cpus: &[CpuRecord]) -> Vec<u8> {
    let mut all = Vec::new();
    for cpu in cpus {
        let (head, registers) = cpu.as_bytes().split_at(192);
        let start = all.len();
        all.extend(head);
        all.extend([0xa5; 40]);
        all.extend(registers);
        all.extend([0xa5; 24]);
        all[start + 16..][..4].copy_from_slice(&232_u32.to_le_bytes());
        all[start + 20..][..4].copy_from_slice(&(512_u32 + 24).to_le_bytes());
    }
    all
}

#[test]
fn a_hand_off_of_a_later_version_is_received_as_far_as_it_is_known() {
    let mut crash = crash();
    let registers = X86Registers { rip: 0x1234, apic_base: 7, ..X86Registers::default() };
    crash.cpus[1].set_x86(&registers);
    crash.cpus[1].registers_from = RegistersFrom::SELF;
    crash.cpus[1].hardware_id = 1 << 33;
    crash.facts.seal();
    let facts = later(crash.facts.as_bytes(), 100);
    let cpus = later_cpus(&crash.cpus);
    crash.handoff.cpu_count = 2;
    crash.handoff.cpus_crc32 = crc32fast::hash(&cpus);
    crash.handoff.cpu_record_bytes = (cpus.len() / 2) as u32;
    let handoff = later(crash.handoff.as_bytes(), 3);
    let (appliance, _) = crash.received(|memory| {
        memory.put(HANDOFF_AT, &handoff);
        memory.put(FACTS_AT, &facts);
        memory.put(CPUS_AT, &cpus);
    });
    let appliance = appliance.unwrap_or_else(|refusal| panic!("{refusal}"));
    // All of it goes into the dump.
    assert_eq!(appliance.handoff_bytes, handoff);
    assert_eq!(appliance.facts_bytes, facts);
    assert_eq!(appliance.cpus.unwrap().as_bytes(), cpus);
    assert_eq!((appliance.handoff.version, appliance.facts.version), (6, 6));
    assert_eq!(appliance.facts.memory().len(), 2);
    let cpu = appliance.cpus.unwrap().get(1).unwrap();
    assert_eq!((cpu.hardware_id, cpu.stopped_by), (1 << 33, StoppedBy::CRASH));
    assert_eq!(cpu.x86().map(|x86| (x86.rip, x86.apic_base)), Some((0x1234, 7)));
    assert_eq!((cpu.registers_at, cpu.register_bytes), (192, 512));
}

#[test]
fn a_version_that_cannot_be_is_refused() {
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut sound = crash();
        sound.facts.seal();
        sound.handoff.seal(&sound.cpus);
        let mut bytes = later(sound.handoff.as_bytes(), 3);
        change(&mut bytes);
        seal(&mut bytes);
        crash().received(|memory| memory.put(HANDOFF_AT, &bytes)).0.err()
    };
    let distrust = |why| Some(InputError::Record("hand-off", why));
    // Older, as long as version 5 must not be, longer than it may be, and not whole words.
    assert_eq!(refused(|bytes| bytes[8] = 4), distrust(RecordError::Version(4)));
    assert_eq!(refused(|bytes| bytes[8] = 5), distrust(RecordError::Size));
    assert_eq!(refused(|bytes| bytes[14] = 1), distrust(RecordError::Size));
    assert_eq!(refused(|bytes| bytes[12] += 4), distrust(RecordError::Size));
    // A CPU record shorter than is known, or longer than can be.
    assert_eq!(refused(|bytes| bytes[44] = 0), distrust(RecordError::Size));
    assert_eq!(refused(|bytes| bytes[45] = 0x80), distrust(RecordError::Size));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever stands in the records, with checksums that are right, is taken or refused.
    #[test]
    fn no_hand_off_makes_the_receiver_fail(
        writes in prop::collection::vec((0..3_usize, 0..6000_usize, any::<[u8; 8]>()), 0..24),
        more in (0..200_usize, 0..200_usize),
        versions in (0..8_u8, 0..8_u8),
    ) {
        let mut sound = crash();
        sound.cpus[0].set_x86(&X86Registers::default());
        sound.facts.seal();
        sound.handoff.seal(&sound.cpus);
        let mut records = [
            later(sound.handoff.as_bytes(), more.0),
            later(sound.facts.as_bytes(), more.1),
            sound.cpus.as_bytes().to_vec(),
        ];
        (records[0][8], records[1][8]) = versions;
        for (record, at, word) in writes {
            let bytes = &mut records[record];
            let at = at % (bytes.len() - 8);
            // Half of them small numbers.
            let word = if word[0] % 2 == 0 { [word[1] % 8, 0, 0, 0, 0, 0, 0, 0] } else { word };
            bytes[at..at + 8].copy_from_slice(&word);
        }
        let crc32 = crc32fast::hash(&records[2]);
        records[0][20..24].copy_from_slice(&crc32.to_le_bytes());
        records[..2].iter_mut().for_each(|bytes| seal(bytes));
        let (appliance, _) = crash().received(|memory| {
            memory.put(HANDOFF_AT, &records[0]);
            memory.put(FACTS_AT, &records[1]);
            memory.put(CPUS_AT, &records[2]);
        });
        if let Ok(appliance) = appliance {
            let cpus = appliance.cpus.iter().flat_map(|cpus| cpus.iter());
            prop_assert!(cpus.count() <= handoff::MAX_CPUS);
            prop_assert!(appliance.handoff.in_flight().len() <= handoff::crash::MAX_IN_FLIGHT);
            let contents = crate::notes::Contents { pieces: &[], excluded: &[], fault: "" };
            let crash = crate::fake::described(&appliance);
            let mut header = vec![0; crate::notes::bytes_needed(&crash, 0, 0) as usize];
            let metrics = vmcore_format::notes::CaptureMetrics::new();
            prop_assert!(crate::notes::build(&mut header, &crash, contents, &metrics).is_ok());
        }
    }

    /// Bytes of no meaning are refused.
    #[test]
    fn bytes_of_no_meaning_are_refused(
        head in any::<[u8; 64]>(),
        magic in any::<bool>(),
        bytes in 0..9000_usize,
    ) {
        let mut record = vec![0; bytes];
        record.iter_mut().zip(head).for_each(|(to, from)| *to = from);
        if magic {
            let known = Handoff::new();
            record.iter_mut().zip(&known.as_bytes()[..12]).for_each(|(to, from)| *to = *from);
        }
        let (received, _) = crash().received(|memory| memory.put(HANDOFF_AT, &record));
        prop_assert!(received.is_err());
    }
}

#[test]
fn an_unknown_kind_of_input_is_refused() {
    assert_eq!(Input::from_entry(HANDOFF_AT, 3), Err(InputError::Kind(3)));
}

#[test]
fn any_flipped_bit_of_the_hand_off_or_the_facts_is_refused() {
    let sound = || {
        let mut crash = crash();
        crash.facts.seal();
        crash.handoff.seal(&crash.cpus);
        crash
    };
    for bit in (0..size_of::<Handoff>() * 8).step_by(37) {
        let mut bytes = sound().handoff.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (received, evidence) = crash().received(|memory| memory.put(HANDOFF_AT, &bytes));
        assert!(matches!(received, Err(InputError::Record("hand-off", _))), "bit {bit}");
        assert!(evidence.handoff.is_none() && evidence.facts.is_none());
    }
    for bit in (0..size_of::<BootFacts>() * 8).step_by(97) {
        let mut bytes = sound().facts.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (received, evidence) = crash().received(|memory| memory.put(FACTS_AT, &bytes));
        assert!(matches!(received, Err(InputError::Record("boot facts", _))), "bit {bit}");
        assert!(evidence.handoff.is_some() && evidence.facts.is_none());
    }
}

#[test]
fn damaged_cpu_records_cost_the_registers_only() {
    let (appliance, evidence) = crash().received(|memory| memory.put(CPUS_AT, &[1; 2048]));
    let appliance = appliance.unwrap_or_else(|refusal| panic!("{refusal}"));
    assert!(matches!(appliance.cpus, Err(InputError::Record("CPU records", _))));
    assert!(evidence.cpus.is_none());

    let mut elsewhere = crash();
    elsewhere.handoff.cpus = 0x472_0000;
    let (appliance, _) = elsewhere.received(|_| {});
    assert_eq!(
        appliance.ok().unwrap().cpus.err(),
        Some(InputError::Address("CPU records", 0x472_0000))
    );
}

#[test]
fn addresses_that_are_no_memory_are_refused() {
    let empty = Fake::default();
    for address in [0, 0x1001, HANDOFF_AT, u64::MAX - 7] {
        let refused = receive(Input::Handoff(address), IMAGE, &empty, &mut Evidence::default());
        assert_eq!(refused.err(), Some(InputError::Address("hand-off", address)));
    }
    let mut crash = crash();
    crash.handoff.facts = 0x4567;
    assert_eq!(crash.refusal(), InputError::Address("boot facts", 0x4567));
}

#[test]
fn a_memory_map_out_of_order_is_refused() {
    let refused = |spoil: fn(&mut BootFacts)| {
        let mut crash = crash();
        spoil(&mut crash.facts);
        crash.refusal()
    };
    assert_eq!(refused(|facts| facts.memory_count = 0), InputError::MemoryMap(0));
    assert_eq!(refused(|facts| facts.memory[0].range.bytes = 0), InputError::MemoryMap(0));
    assert_eq!(refused(|facts| facts.memory.swap(0, 1)), InputError::MemoryMap(1));
    assert_eq!(refused(|facts| facts.memory[1].range.start = 0x9_e000), InputError::MemoryMap(1));
    assert_eq!(refused(|facts| facts.memory[1].range.bytes = u64::MAX), InputError::MemoryMap(1));
}

#[test]
fn a_region_that_cannot_be_is_refused() {
    let refused = |spoil: fn(&mut Crash)| {
        let mut crash = crash();
        spoil(&mut crash);
        crash.refusal()
    };
    assert!(matches!(
        refused(|crash| crash.facts.memory[1].kind = MemoryKind::RESERVED),
        InputError::Region(_)
    ));
    assert_eq!(
        refused(|crash| crash.facts.image.start += 0x1000),
        InputError::OtherImage(0x400_1000)
    );
    assert_eq!(
        refused(|crash| crash.facts.image.bytes = 0x1000),
        InputError::OtherImage(0x400_0000)
    );
    assert!(matches!(
        refused(|crash| crash.facts.scratch = Range::between(0x40f_0000, 0x46f_0000)),
        InputError::Region("its parts overlap")
    ));
    assert!(matches!(
        refused(|crash| crash.facts.scratch.bytes = 0),
        InputError::Region("there is no scratch memory")
    ));
    assert!(matches!(
        refused(|crash| crash.handoff.facts = 0x130_0000),
        InputError::Region("the boot facts lie outside")
    ));
}

#[test]
fn a_table_is_taken_when_its_checksum_is_right() {
    let locks = handoff::Table { address: LOCKS_AT, count: 2, crc32: crc32fast::hash(&[9; 256]) };
    for (table, taken) in [
        (locks, true),
        (handoff::Table { crc32: locks.crc32 ^ 1, ..locks }, false),
        (handoff::Table { count: 1, ..locks }, false),
        (handoff::Table { address: 0x471_0000, ..locks }, false),
        (handoff::Table { address: 0, ..locks }, false),
    ] {
        let mut crash = crash();
        crash.handoff.locks = table;
        let (appliance, _) = crash.received(|_| {});
        let found = appliance.unwrap_or_else(|refusal| panic!("{refusal}")).locks;
        assert_eq!(found, taken.then_some(&[9; 256][..]));
    }
    let mut crash = crash();
    crash.handoff.locks = handoff::Table { count: 65, ..locks };
    assert_eq!(crash.refusal(), InputError::Record("hand-off", RecordError::Bounds));
}

/// A hand-off's entry for a workload's table.
fn table(address: u64, count: u32, entry_bytes: u32) -> WorkloadTable {
    WorkloadTable { address, count, entry_bytes }
}

#[test]
fn the_entries_of_a_workloads_table_have_any_size() {
    for (count, entry_bytes) in [(2, 24), (1, 48), (6, 8)] {
        let mut crash = crash();
        crash.handoff.workload_table = table(TABLE_AT, count, entry_bytes);
        let (appliance, _) = crash.received(|_| {});
        assert_eq!(appliance.ok().unwrap().workload_table, Some(&[7; 48][..]), "{entry_bytes}");
    }
}

#[test]
fn a_workloads_table_that_cannot_be_is_left_out() {
    for wrong in [
        table(TABLE_AT, 0, 0),
        table(TABLE_AT, 0, 24),
        table(TABLE_AT, 1, 12),
        table(TABLE_AT, (1 << 16) + 1, 0),
        table(TABLE_AT, u32::MAX, u32::MAX),
        table(0x471_0000, 2, 0),
        table(0x3000_0000, 2, 0),
    ] {
        let mut crash = crash();
        crash.handoff.workload_table = wrong;
        let (appliance, _) = crash.received(|_| {});
        assert!(appliance.ok().unwrap().workload_table.is_none(), "{wrong:?}");
    }
}
