use super::fake::{Controller as Model, FakeRegisters};
use super::*;
use crate::polled::MOST_IN_FLIGHT;
use crate::virtio::fake::{Fake, PAGES_LEFT, pause_ms};
use crate::{Accepted, Source, drain};

const LOCATION: pci::Address = pci::Address { segment: 0, bus: 0, device: 4, function: 0 };

fn start_controller(model: Model) -> Result<(Started<FakeRegisters>, FakeRegisters), Error> {
    let registers = FakeRegisters::default();
    *registers.0.borrow_mut() = model;
    let controller = Reset::reset::<Fake>(registers.clone())?;
    Ok((controller.start::<Fake>()?, registers))
}

/// The first namespace that is a disk.
fn start(model: Model) -> Result<(impl BlockDevice, FakeRegisters), Error> {
    let (controller, registers) = start_controller(model)?;
    let controller = Box::leak(Box::new(controller));
    for id in controller.namespaces.clone() {
        if controller.namespace::<Fake>(id, LOCATION)?.is_some() {
            let disk = controller.namespace::<Fake>(id, LOCATION)?.ok_or(Error::NotADisk)?;
            return Ok((disk, registers));
        }
    }
    Err(Error::Setup("no namespace with blocks"))
}

fn source(memory: &'static [u8]) -> Source {
    Source { address: memory.as_ptr() as u64, bytes: memory.len() as u64 }
}

/// Memory that starts `skip` bytes into a page.
fn pattern(skip: usize, bytes: usize) -> &'static [u8] {
    let memory = (0..bytes + 8192).map(|at| (at * 7 + at / 256) as u8).collect::<Vec<u8>>().leak();
    let first = memory.as_ptr().align_offset(4096) + skip;
    &memory[first..first + bytes]
}

#[test]
fn a_controller_says_what_it_is() {
    let (disk, _) = start(Model { max_transfer: 5, ..Model::default() }).unwrap();
    let identity = disk.identity();
    assert_eq!((identity.driver, identity.serial.as_str()), ("nvme", "dump-02 ?"));
    assert_eq!((identity.capacity, identity.block_bytes), (4 << 20, 512));
    assert_eq!(identity.max_write_bytes, 128 << 10);
    assert!(identity.can_flush && !identity.read_only);
}

#[test]
fn what_is_written_is_read_back() {
    for shift in [9, 12] {
        let (mut disk, registers) = start(Model { shift, ..Model::default() }).unwrap();
        let memory = pattern(0, 300 << 10);
        disk.write(4096, memory).unwrap();
        let mut back = vec![0; memory.len()];
        disk.read(4096, &mut back).unwrap();
        assert_eq!(back, memory);
        assert_eq!(disk.poll(), Ok(0), "only submitted writes are counted");
        disk.flush().unwrap();
        assert_eq!(registers.0.borrow().flushed, 1);
        assert_eq!(disk.start_flush(), Ok(Accepted::Yes));
        assert_eq!((disk.start_flush(), disk.in_flight()), (Ok(Accepted::Full), 1));
        assert_eq!(drain(&mut disk), Ok(0));
        assert_eq!(registers.0.borrow().flushed, 2);
    }
}

#[test]
fn data_is_named_by_its_pages_wherever_it_starts_and_ends() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    let cases =
        [(0, 512), (0, 4096), (3584, 1024), (0, 8192), (0, 8704), (4, 8192), (2048, 1 << 20)];
    for (skip, bytes) in cases {
        let memory = pattern(skip, bytes);
        assert_eq!(disk.submit_write(1 << 20, source(memory)), Ok(Accepted::Yes));
        assert_eq!(drain(&mut disk), Ok(bytes as u64));
        assert!(registers.0.borrow().disk[1 << 20..][..bytes] == *memory, "{skip} {bytes}");
    }
}

#[test]
fn the_controllers_limit_is_kept() {
    let (mut disk, registers) = start(Model { max_transfer: 1, ..Model::default() }).unwrap();
    disk.write(0, pattern(0, 20 << 10)).unwrap();
    assert_eq!(registers.0.borrow().writes, [8192, 8192, 4096]);
    let refused = disk.submit_write(0, source(pattern(0, 12 << 10)));
    assert_eq!(refused, Err(Error::OutOfRange));
    // A read of more than the limit is cut as well.
    disk.read(0, &mut [0; 20 << 10]).unwrap();
}

/// Writes of one block each that a disk takes before it says that it is full.
fn fill(disk: &mut dyn BlockDevice) -> u64 {
    let memory = pattern(0, 512);
    let taken = |block: &u64| disk.submit_write(block * 512, source(memory)) == Ok(Accepted::Yes);
    (0..).take_while(taken).count() as u64
}

#[test]
fn as_many_are_in_flight_as_the_controller_has_entries_for() {
    for (mqes, depth) in [(1, 1), (2, 2), (7, 7), (31, 31), (32, 32), (63, 32), (0xffff, 32)] {
        let capabilities = 1 << 37 | 1 << 24 | mqes;
        let (mut disk, registers) = start(Model { capabilities, ..Model::default() }).unwrap();
        for _ in 0..5 {
            registers.0.borrow_mut().silent = true;
            assert_eq!((fill(&mut disk), disk.in_flight() as u64), (depth, depth), "{mqes}");
            assert_eq!(disk.poll(), Ok(0));
            registers.0.borrow_mut().silent = false;
            registers.0.borrow_mut().work(1);
            assert_eq!(disk.poll(), Ok(depth * 512));
        }
    }
}

#[test]
fn large_writes_are_bounded_by_their_bytes() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().silent = true;
    let memory = source(pattern(0, 1 << 20));
    let most = (0..).take_while(|_| disk.submit_write(0, memory) == Ok(Accepted::Yes)).count();
    assert_eq!(most as u64, MOST_IN_FLIGHT / memory.bytes);
    assert_eq!(disk.submit_write(0, source(pattern(0, 512))), Ok(Accepted::Full));
}

/// Each request has a list of pages of its own, whatever the controller's largest transfer.
#[test]
fn many_requests_with_lists_of_pages_do_not_mix() {
    for max_transfer in 0..6 {
        let (mut disk, registers) = start(Model { max_transfer, ..Model::default() }).unwrap();
        let most = disk.identity().max_write_bytes.min(128 << 10) as usize;
        registers.0.borrow_mut().silent = true;
        registers.0.borrow_mut().backwards = true;
        // From inside a page, so that one page more is touched.
        let memory = pattern(4, 32 * most);
        for (index, part) in memory.chunks(most).enumerate() {
            let taken = disk.submit_write((index * most) as u64, source(part));
            assert_eq!(taken, Ok(Accepted::Yes), "{index}");
        }
        assert_eq!(disk.poll(), Ok(0));
        registers.0.borrow_mut().work(1);
        assert_eq!(drain(&mut disk), Ok(memory.len() as u64));
        assert!(registers.0.borrow().disk[..memory.len()] == *memory, "{max_transfer}");
    }
}

#[test]
fn with_little_memory_there_are_fewer_requests_in_flight() {
    // The queues, what small requests go through, and so many pages of lists.
    for (pages, depth) in [(16, 32), (15, 16), (7, 8), (3, 4), (1, 2)] {
        PAGES_LEFT.set(5 + 16 + pages);
        let (mut disk, registers) = start(Model::default()).unwrap();
        registers.0.borrow_mut().silent = true;
        assert_eq!(fill(&mut disk), depth, "{pages}");
    }
    PAGES_LEFT.set(5 + 16);
    assert_eq!(start(Model::default()).map(|_| ()).unwrap_err(), Error::NoMemory);
    PAGES_LEFT.set(usize::MAX);
}

#[test]
fn answers_may_come_in_any_order_and_an_error_among_them_is_of_one_request() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().silent = true;
    registers.0.borrow_mut().backwards = true;
    registers.0.borrow_mut().bad_block = Some(5);
    let memory = pattern(0, 32 * 512);
    for (block, part) in memory.chunks(512).enumerate() {
        disk.submit_write(block as u64 * 512, source(part)).unwrap();
    }
    assert_eq!(disk.poll(), Ok(0));
    registers.0.borrow_mut().work(1);
    assert_eq!(disk.poll(), Err(Error::Io(5 * 512)));
    assert_eq!((disk.poll(), disk.in_flight()), (Ok(31 * 512), 0));
    let written = |block: usize| registers.0.borrow().disk[block * 512..][..512].to_vec();
    (0..32).filter(|block| *block != 5).for_each(|block| {
        assert_eq!(written(block), memory[block * 512..][..512], "{block}");
    });
    assert_eq!(written(5), [0; 512]);
}

#[test]
fn an_answer_that_nobody_asked_for_gives_the_disk_up() {
    let answered = |id: fn(u32) -> u32| {
        let (mut disk, registers) = start(Model::default()).unwrap();
        disk.write(0, &[7; 512]).unwrap();
        registers.0.borrow_mut().silent = true;
        disk.submit_write(0, source(pattern(0, 512))).unwrap();
        disk.submit_write(512, source(pattern(0, 512))).unwrap();
        assert_eq!(disk.poll(), Ok(0));
        registers.0.borrow_mut().work(1);
        assert_eq!(disk.poll(), Ok(1024));
        let last = registers.0.borrow().ids.last().copied().unwrap();
        registers.0.borrow_mut().answer(1, id(last), 0);
        assert_eq!(disk.poll(), Err(Error::Setup("the device answered what nobody asked")));
        assert_eq!((disk.poll(), disk.write(0, &[7; 512])), {
            (Err(Error::GivenUp), Err(Error::GivenUp))
        });
    };
    // One that was answered, one that never was, one beyond all slots, one of another namespace.
    answered(|last| last);
    answered(|last| last + 3);
    answered(|last| last | 0xff);
    answered(|last| last ^ 0x100);
}

#[test]
fn the_queues_may_wrap_round() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    for block in 0..1000 {
        disk.write(block % 100 * 512, &[block as u8; 512]).unwrap();
    }
    assert_eq!(registers.0.borrow().writes.len(), 1000);
}

#[test]
fn a_paused_machine_gives_no_disk_up() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().silent = true;
    disk.submit_write(0, source(pattern(0, 512))).unwrap();
    pause_ms(200_000);
    assert_eq!(disk.poll(), Ok(0));
    assert_eq!(drain(&mut disk), Err(Error::Deadline("write")));
}

#[test]
fn a_controller_that_does_not_answer_is_given_up_and_left_alone() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().silent = true;
    disk.submit_write(0, source(pattern(0, 512))).unwrap();
    assert_eq!(disk.poll(), Ok(0));
    let written = registers.0.borrow().register_writes;
    assert_eq!(drain(&mut disk), Err(Error::Deadline("write")));
    assert_eq!(disk.poll(), Err(Error::GivenUp));
    assert_eq!(disk.flush(), Err(Error::GivenUp));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::GivenUp));
    assert_eq!(disk.write(0, &[0; 512]), Err(Error::GivenUp));
    assert_eq!(disk.submit_write(0, source(pattern(0, 512))), Err(Error::GivenUp));
    drop(disk);
    assert_eq!(registers.0.borrow().register_writes, written, "touched after all");
}

#[test]
fn a_failed_write_is_named_by_its_offset() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().bad_block = Some(8);
    for block in [0, 8, 16] {
        disk.submit_write(block * 512, source(pattern(0, 512))).unwrap();
    }
    assert_eq!(disk.poll(), Err(Error::Io(4096)));
    assert_eq!(disk.poll(), Ok(1024));
    assert_eq!(disk.read(4096, &mut [0; 512]), Err(Error::Io(4096)));
    // A failure of its own does not end the device.
    assert_eq!(disk.read(0, &mut [0; 512]), Ok(()));
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let (mut disk, _) = start(Model { shift: 12, ..Model::default() }).unwrap();
    let page = source(pattern(0, 4096));
    for offset in [512, 4 << 20, u64::MAX - 4095] {
        assert_eq!(disk.submit_write(offset, page), Err(Error::OutOfRange), "{offset}");
    }
    for source in [
        Source { address: 0, ..page },
        Source { address: page.address + 2, ..page },
        Source { bytes: 0, ..page },
        Source { bytes: 512, ..page },
        Source { bytes: 2 << 20, ..page },
    ] {
        assert_eq!(disk.submit_write(0, source), Err(Error::OutOfRange), "{source:?}");
    }
    let (mut disk, _) = start(Model { write_protected: true, ..Model::default() }).unwrap();
    assert_eq!(disk.submit_write(0, page), Err(Error::ReadOnly));
}

#[test]
fn a_running_controller_is_disabled_first() {
    let running = Model { configuration: 0x0046_0001, status: 1, ..Model::default() };
    assert!(start(running).is_ok());
    // The first namespaces may be empty, and a controller need not know about features.
    assert!(start(Model { namespace: 3, refused: Some(9), ..Model::default() }).is_ok());
}

#[test]
fn a_controller_that_cannot_be_brought_up_says_where_it_stops() {
    let failed = |spoil: fn(&mut Model)| {
        let mut model = Model::default();
        spoil(&mut model);
        start(model).map(|_| ()).unwrap_err()
    };
    let running = |model: &mut Model| {
        (model.configuration, model.status, model.stuck) = (1, 1, true);
    };
    assert_eq!(failed(running), Error::Deadline("reset"));
    let rising = |model: &mut Model| (model.configuration, model.stuck) = (1, true);
    assert_eq!(failed(rising), Error::Deadline("ready before the reset"));
    assert_eq!(failed(|model| model.stuck = true), Error::Deadline("ready after the reset"));
    assert_eq!(failed(|model| model.dies = true), Error::Setup("a fatal controller status"));
    assert_eq!(failed(|model| model.silent = true), Error::Deadline("identify controller"));
    assert_eq!(failed(|model| model.refused = Some(6)), Error::Setup("identify controller"));
    assert_eq!(failed(|model| model.refused = Some(1)), Error::Setup("submission queue"));
    assert_eq!(failed(|model| model.namespace = 9), Error::Setup("no namespace with blocks"));
    assert_eq!(failed(|model| model.metadata = 8), Error::Setup("blocks with metadata"));
    assert!(matches!(failed(|model| model.shift = 16), Error::Setup(_)));
    assert!(matches!(failed(|model| model.capabilities = u64::MAX), Error::Setup(_)));
    let none = |model: &mut Model| model.capabilities = 1 << 37;
    assert_eq!(failed(none), Error::Setup("queues too short"));
}

#[test]
fn every_active_namespace_is_a_disk() {
    let model = Model { active: vec![2, 7, 9], namespace: 7, ..Model::default() };
    let (mut controller, registers) = start_controller(model).unwrap();
    assert_eq!(controller.namespaces, [2, 7, 9]);
    // Those without blocks are no disks, and the search goes on.
    assert!(matches!(controller.namespace::<Fake>(2, LOCATION), Ok(None)));
    let mut disk = controller.namespace::<Fake>(7, LOCATION).unwrap().unwrap();
    assert_eq!(disk.identity().namespace, 7);
    assert_eq!(disk.identity().name().to_string(), "nvme at 00:04.0, namespace 7");
    disk.write(512, &[7; 512]).unwrap();
    assert_eq!(registers.0.borrow().disk[512..1024], [7; 512]);
    drop(disk);
    assert!(matches!(controller.namespace::<Fake>(9, LOCATION), Ok(None)));
    // One with a format that is not written is refused by itself.
    registers.0.borrow_mut().metadata = 8;
    let refused = controller.namespace::<Fake>(7, LOCATION).map(|_| ());
    assert_eq!(refused, Err(Error::Setup("blocks with metadata")));
}

#[test]
fn a_list_of_namespaces_that_breaks_the_rules_ends_there() {
    let namespaces = |active: Vec<u32>| {
        let (controller, _) = start_controller(Model { active, ..Model::default() }).unwrap();
        (controller.namespaces.to_vec(), controller.more)
    };
    assert_eq!(namespaces(vec![3, 3, 4]), (vec![3], false));
    assert_eq!(namespaces(vec![5, 4]), (vec![5], false));
    assert_eq!(namespaces(vec![1, 0, 2]), (vec![1], false));
    assert_eq!(namespaces(vec![u32::MAX]), (vec![u32::MAX], false));
    let (listed, more) = namespaces((1..=1024).collect());
    assert_eq!((listed.len(), more), (MAX_NAMESPACES, true));
    // Without the list the identifiers are tried one by one, up to the controller's number.
    assert_eq!(namespaces(vec![]), (vec![1, 2, 3], false));
}

#[test]
fn the_next_namespace_waits_for_the_requests_of_the_one_before() {
    let (mut controller, registers) = start_controller(Model::default()).unwrap();
    let mut disk = controller.namespace::<Fake>(1, LOCATION).unwrap().unwrap();
    registers.0.borrow_mut().silent = true;
    disk.submit_write(0, source(pattern(0, 512))).unwrap();
    drop(disk);
    let late = controller.namespace::<Fake>(1, LOCATION).map(|_| ());
    assert_eq!(late, Err(Error::Deadline("the namespace before")));
    registers.0.borrow_mut().work(1);
    registers.0.borrow_mut().silent = false;
    let mut disk = controller.namespace::<Fake>(1, LOCATION).unwrap().unwrap();
    assert_eq!(disk.in_flight(), 0);
    assert_eq!(disk.read(0, &mut [0; 512]), Ok(()));
}
