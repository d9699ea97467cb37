use std::cell::{Cell, RefCell};

use block::{Error, Identity, pci::Address};

use super::*;

const DISK_BYTES: u64 = 64 << 20;
const PAGE: u64 = 4096;

/// What reached the disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Wrote(u64, u64),
    Sent(u64, Source),
    Flushed,
}

/// A disk of which the records are kept and the memory is only noted: its addresses mean
/// nothing here.
struct FakeDisk {
    identity: Identity,
    bytes: Vec<u8>,
    events: Vec<Event>,
    queue: Vec<Source>,
    /// Fail the event with this number.
    fail_at: Option<usize>,
}

impl FakeDisk {
    fn blank() -> Self {
        let identity = Identity {
            driver: "fake",
            location: Address { bus: 0, device: 0, function: 0 },
            serial: heapless::String::new(),
            capacity: DISK_BYTES,
            block_bytes: 512,
            max_write_bytes: 1 << 20,
            read_only: false,
            can_flush: true,
        };
        let bytes = vec![0; DISK_BYTES as usize];
        Self { identity, bytes, events: vec![], queue: vec![], fail_at: None }
    }

    fn prepared(slots: u32) -> Self {
        let mut disk = Self::blank();
        let mut area = AreaHeader::plan(DISK_BYTES, slots).unwrap();
        area.seal();
        disk.bytes[..size_of::<AreaHeader>()].copy_from_slice(area.as_bytes());
        disk
    }

    fn log(&mut self, event: Event) -> Result<(), Error> {
        self.events.push(event);
        match self.fail_at == Some(self.events.len()) {
            true => Err(Error::Io(0)),
            false => Ok(()),
        }
    }
}

impl BlockDevice for FakeDisk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn submit_write(&mut self, offset: u64, source: Source) -> Result<Accepted, Error> {
        assert!(source.address != 0 && source.bytes <= self.identity.max_write_bytes);
        assert!(offset + source.bytes <= DISK_BYTES);
        if self.queue.len() == 2 {
            return Ok(Accepted::Full);
        }
        self.log(Event::Sent(offset, source))?;
        self.queue.push(source);
        Ok(Accepted::Yes)
    }

    fn poll(&mut self) -> Result<u64, Error> {
        Ok(if self.queue.is_empty() { 0 } else { self.queue.remove(0).bytes })
    }

    fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.log(Event::Wrote(offset, from.len() as u64))?;
        self.bytes[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        into.copy_from_slice(&self.bytes[offset as usize..][..into.len()]);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        assert!(self.queue.is_empty(), "flushed with writes in flight");
        self.log(Event::Flushed)
    }
}

/// A clock that goes on by 10 ms each time it is looked at.
#[derive(Default)]
struct FakeHost(Cell<u64>, RefCell<Vec<String>>);

impl Host for FakeHost {
    fn tsc(&self) -> u64 {
        self.0.set(self.0.get() + 10_000_000);
        self.0.get()
    }

    fn ns(&self, ticks: u64) -> u64 {
        ticks
    }

    fn say(&self, line: fmt::Arguments<'_>) {
        self.1.borrow_mut().push(line.to_string());
    }

    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }
}

fn segment(start: u64, bytes: u64) -> LoadSegment {
    LoadSegment {
        virtual_address: start,
        physical_address: start,
        file_bytes: bytes,
        memory_bytes: bytes,
        flags: 7,
    }
}

fn dump_to(disk: &mut FakeDisk, core: &Core<'_>) -> Result<Place, Problem> {
    let place = find_place(disk, core.bytes())?;
    let mut open = SlotOpen::new();
    open.stages = 1;
    let open = place.open(disk, open)?;
    place.write(disk, core, &FakeHost::default())?;
    let mut seal = StageSeal::new(&open);
    seal.elf_bytes = core.bytes();
    seal.header_bytes = core.header.len() as u64;
    place.seal(disk, seal)?;
    Ok(place)
}

const SEGMENTS: [LoadSegment; 2] = [
    LoadSegment {
        virtual_address: 0,
        physical_address: 0,
        file_bytes: 3 * PAGE,
        memory_bytes: 3 * PAGE,
        flags: 7,
    },
    LoadSegment {
        virtual_address: 0x10_0000,
        physical_address: 0x10_0000,
        file_bytes: (2 << 20) + PAGE,
        memory_bytes: (2 << 20) + PAGE,
        flags: 7,
    },
];

#[test]
fn a_dump_is_opened_written_flushed_and_sealed_in_this_order() {
    let mut disk = FakeDisk::prepared(2);
    let (header, zero_page) = ([5; 2 * PAGE as usize], [9; PAGE as usize]);
    let core = Core { header: &header, segments: &SEGMENTS, zero_page: &zero_page };
    let place = dump_to(&mut disk, &core).unwrap();
    let slot = place.offset;
    let at = slot + DATA_OFFSET;
    let memory = at + 2 * PAGE;
    let sent = |offset, address, bytes| Event::Sent(offset, Source { address, bytes });
    assert_eq!(
        disk.events,
        [
            Event::Wrote(slot, PAGE),
            Event::Flushed,
            Event::Wrote(at, 2 * PAGE),
            Event::Wrote(memory, PAGE),
            sent(memory + PAGE, PAGE, 2 * PAGE),
            sent(memory + 3 * PAGE, 0x10_0000, 1 << 20),
            sent(memory + 3 * PAGE + (1 << 20), 0x20_0000, 1 << 20),
            sent(memory + 3 * PAGE + (2 << 20), 0x30_0000, PAGE),
            Event::Flushed,
            Event::Wrote(slot + PAGE, PAGE),
            Event::Flushed,
        ]
    );
    assert_eq!(disk.bytes[memory as usize], 9);
    let again = find_place(&mut disk, core.bytes()).unwrap();
    assert_eq!((again.choice().slot, again.choice().sequence), (1, 2));
}

#[test]
fn wherever_the_disk_fails_nothing_looks_sealed() {
    let header = [5; PAGE as usize];
    let zero_page = [9; PAGE as usize];
    let core = Core { header: &header, segments: &SEGMENTS, zero_page: &zero_page };
    let mut whole = FakeDisk::prepared(1);
    dump_to(&mut whole, &core).unwrap();
    // The last event is the flush of the seal: from then on it may count.
    for fail_at in 1..whole.events.len() - 1 {
        let mut disk = FakeDisk::prepared(1);
        disk.fail_at = Some(fail_at);
        assert_eq!(dump_to(&mut disk, &core).unwrap_err(), Problem::Disk(Error::Io(0)));
        disk.fail_at = None;
        let place = find_place(&mut disk, core.bytes()).unwrap();
        assert!(!matches!(place.choice().replaces, Content::Sealed(_)), "event {fail_at}");
    }
}

#[test]
fn only_a_dump_area_is_written() {
    let mut disk = FakeDisk::blank();
    let problem = find_place(&mut disk, PAGE).unwrap_err();
    assert_eq!(problem.to_string(), "no dump area (run: vmcore prepare)");
    disk.bytes[..8].copy_from_slice(b"\xeb\x63\x90GRUB\0");
    let problem = find_place(&mut disk, PAGE).unwrap_err();
    assert_eq!(problem.to_string(), "no dump area (run: vmcore prepare)");

    let mut disk = FakeDisk::prepared(1);
    disk.bytes[40] ^= 1;
    let problem = find_place(&mut disk, PAGE).unwrap_err();
    assert!(matches!(problem, Problem::NoArea(AreaError::Checksum(..))), "{problem}");
    assert!(disk.events.is_empty());
}

#[test]
fn an_area_that_does_not_fit_is_refused() {
    let mut disk = FakeDisk::prepared(4);
    assert!(find_place(&mut disk, 14 << 20).is_ok());
    assert!(matches!(find_place(&mut disk, 16 << 20), Err(Problem::SlotTooSmall(..))));
    disk.identity.capacity = DISK_BYTES / 2;
    assert!(matches!(find_place(&mut disk, PAGE), Err(Problem::AreaTooLarge(..))));
}

#[test]
fn when_every_slot_is_sealed_the_oldest_goes() {
    let mut disk = FakeDisk::prepared(2);
    let segments = [segment(0x10_0000, PAGE)];
    let core = Core { header: &[1; PAGE as usize], segments: &segments, zero_page: &[] };
    for _ in 0..2 {
        dump_to(&mut disk, &core).unwrap();
    }
    let place = dump_to(&mut disk, &core).unwrap();
    assert_eq!(place.choice().replaces, Content::Sealed(1));
    assert_eq!((place.choice().slot, place.choice().sequence), (0, 3));
}

#[test]
fn progress_is_shown_while_writing() {
    let mut disk = FakeDisk::prepared(1);
    let segments = [segment(0x10_0000, 60 << 20)];
    let core = Core { header: &[1; PAGE as usize], segments: &segments, zero_page: &[] };
    let place = find_place(&mut disk, core.bytes()).unwrap();
    disk.identity.max_write_bytes = 64 << 10;
    let host = FakeHost::default();
    place.write(&mut disk, &core, &host).unwrap();
    let lines = host.1.borrow();
    assert!((2..=20).contains(&lines.len()), "{lines:?}");
    assert!(lines[0].starts_with("capture: ") && lines[0].contains(" % ("), "{lines:?}");
}
