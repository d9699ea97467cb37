use std::cell::{Cell, RefCell};

use handoff::crash::stopped_by;
use zerocopy::IntoBytes;

use super::*;

const IMAGE: Range = Range { start: 0x400_0000, bytes: 0x5_0000 };
const HANDOFF_AT: u64 = 0x120_0000;
const CPUS_AT: u64 = 0x121_0000;
const STAMPS_AT: u64 = 0x122_0000;
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
        let early = [size_of::<Handoff>() as u64, size_of::<BootFacts>() as u64];
        let trusted = self.1.get();
        assert!(trusted || early.contains(&range.bytes), "room only after the facts are checked");
        let records = self.0.borrow();
        let (start, bytes) = records.iter().find(|(start, _)| *start == range.start)?;
        let bytes = bytes.get(..range.bytes as usize)?;
        assert_eq!(*start, range.start);
        // As words, for the alignment the trait promises.
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Some(&Vec::leak(words).as_bytes()[..bytes.len()])
    }

    fn words(&self, _: u64, _: &mut dyn FnMut(u64)) {}

    fn trust(&self, facts: &BootFacts) {
        assert!(BootFacts::check(facts.as_bytes()).is_ok());
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
    MemoryRange { range: Range::between(start, end), kind: memory_kind::RAM, reserved: 0 }
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
    cpus[1].stopped_by = stopped_by::CRASH;
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
        memory.put(STAMPS_AT, &[7; 48]);
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
    crash.handoff.stamps = handoff::StampRange { address: STAMPS_AT, count: 2 };
    let (appliance, evidence) = crash.received(|_| {});
    let appliance = appliance.unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_eq!(appliance.cpus.unwrap().len(), 2);
    assert_eq!(appliance.stamps, Some(&[7; 48][..]));
    assert_eq!(evidence.cpus.unwrap()[1].stopped_by, stopped_by::CRASH);
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
        refused(|crash| crash.facts.memory[1].kind = memory_kind::RESERVED),
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

#[test]
fn stamps_that_cannot_be_are_left_out() {
    for (address, count) in
        [(STAMPS_AT, 0), (STAMPS_AT, u64::MAX), (0x471_0000, 2), (0x3000_0000, 2)]
    {
        let mut crash = crash();
        crash.handoff.stamps = handoff::StampRange { address, count };
        let (appliance, _) = crash.received(|_| {});
        assert!(appliance.ok().unwrap().stamps.is_none(), "{address:#x} {count}");
    }
}
