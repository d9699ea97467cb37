use super::fake::{Controller as Model, FakeRegisters, PORT, with_queue};
use super::*;
use crate::virtio::fake::{Fake, pause_ms};
use crate::{Accepted, Source, drain};

const LOCATION: pci::Address = pci::Address { segment: 0, bus: 0, device: 31, function: 2 };

fn start(model: Model) -> Result<(impl BlockDevice, FakeRegisters), Error> {
    let registers = FakeRegisters::default();
    *registers.0.borrow_mut() = model;
    let controller = Hba::new::<Fake>(registers.clone())?;
    assert_eq!(controller.present, 1 << PORT);
    Ok((controller.disk::<Fake>(PORT, LOCATION)?, registers))
}

fn pattern(bytes: usize) -> &'static [u8] {
    let memory = (0..bytes + 4096).map(|at| (at * 7 + at / 256) as u8).collect::<Vec<u8>>().leak();
    let first = memory.as_ptr().align_offset(4096);
    &memory[first..first + bytes]
}

fn source(memory: &'static [u8]) -> Source {
    Source { address: memory.as_ptr() as u64, bytes: memory.len() as u64 }
}

#[test]
fn a_disk_says_what_it_is() {
    let (disk, _) = start(Model::default()).unwrap();
    let identity = disk.identity();
    assert_eq!((identity.driver, identity.serial.as_str()), ("ahci", "dump-03 ?"));
    assert_eq!((identity.capacity, identity.block_bytes), (4 << 20, 512));
    assert_eq!((identity.max_write_bytes, identity.can_flush), (1 << 20, true));
    let (disk, _) = start(Model { block_bytes: 4096, ..Model::default() }).unwrap();
    assert_eq!((disk.identity().capacity, disk.identity().block_bytes), (4 << 20, 4096));
}

#[test]
fn what_is_written_is_read_back() {
    for block_bytes in [512, 4096] {
        let (mut disk, registers) = start(Model { block_bytes, ..Model::default() }).unwrap();
        let memory = pattern(300 << 10);
        disk.write(4096, memory).unwrap();
        let mut back = vec![0; memory.len()];
        disk.read(4096, &mut back).unwrap();
        assert_eq!(back, memory);
        disk.flush().unwrap();
        assert_eq!(disk.start_flush(), Ok(Accepted::Full), "would hold up the next write");
        assert_eq!(registers.0.borrow().commands.last(), Some(&(0xea, 0)));

        let memory = pattern(1 << 20);
        assert_eq!(disk.submit_write(1 << 20, source(memory)), Ok(Accepted::Yes));
        assert_eq!(drain(&mut disk), Ok(1 << 20));
        assert!(registers.0.borrow().disk[1 << 20..][..1 << 20] == *memory);
    }
}

#[test]
fn one_is_in_flight_and_the_second_waits() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().silent = true;
    let memory = source(pattern(512));
    assert_eq!(disk.submit_write(0, memory), Ok(Accepted::Yes));
    assert_eq!(disk.submit_write(512, memory), Ok(Accepted::Full));
    assert_eq!(disk.poll(), Ok(0));
    registers.0.borrow_mut().work();
    assert_eq!(disk.poll(), Ok(512));
    assert_eq!(disk.submit_write(512, memory), Ok(Accepted::Yes));
}

#[test]
fn a_disk_that_does_not_answer_is_given_up_and_left_alone() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().silent = true;
    disk.submit_write(0, source(pattern(512))).unwrap();
    let written = registers.0.borrow().register_writes;
    pause_ms(200_000);
    assert_eq!(disk.poll(), Ok(0), "a pause of the machine is not the disk's");
    assert_eq!(drain(&mut disk), Err(Error::Deadline("write")));
    assert_eq!(disk.flush(), Err(Error::GivenUp));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::GivenUp));
    assert_eq!(disk.write(0, &[0; 512]), Err(Error::GivenUp));
    drop(disk);
    assert_eq!(registers.0.borrow().register_writes, written, "touched after all");
}

#[test]
fn after_a_failed_write_the_port_goes_on() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().bad_block = Some(8);
    disk.submit_write(4096, source(pattern(512))).unwrap();
    assert_eq!(drain(&mut disk), Err(Error::Io(4096)));
    assert_eq!(disk.read(4096, &mut [0; 512]), Err(Error::Io(4096)));
    disk.write(0, &[7; 512]).unwrap();
    assert_eq!(registers.0.borrow().disk[511], 7);
}

#[test]
fn a_port_that_does_not_stop_after_an_error_is_given_up() {
    let (mut disk, registers) = start(Model::default()).unwrap();
    registers.0.borrow_mut().bad_block = Some(0);
    registers.0.borrow_mut().runs_on = true;
    assert_eq!(disk.write(0, &[7; 512]), Err(Error::Deadline("stop after an error")));
    assert_eq!(disk.write(512, &[7; 512]), Err(Error::GivenUp));
}

#[test]
fn memory_out_of_reach_is_refused_before_anything_starts() {
    // The pages of a test lie above 4 GiB as well, so the port refuses its own already.
    let failed = start(Model { capabilities: 0, ..Model::default() }).map(|_| ()).unwrap_err();
    assert!(matches!(failed, Error::Unreachable(address) if address >> 32 != 0), "{failed}");
}

#[test]
fn a_disk_that_cannot_be_brought_up_says_where_it_stops() {
    let failed = |spoil: fn(&mut Model)| {
        let mut model = Model::default();
        spoil(&mut model);
        start(model).map(|_| ()).unwrap_err()
    };
    assert_eq!(failed(|model| model.never_resets = true), Error::Deadline("reset"));
    assert_eq!(failed(|model| model.control = u32::MAX), {
        Error::Setup("the registers read as ones")
    });
    assert_eq!(failed(|model| model.link = 1), Error::Deadline("link"));
    assert_eq!(failed(|model| model.stays_busy = true), Error::Deadline("ready after the reset"));
    // A CD drive.
    let cd = |model: &mut Model| model.signature = 0xeb14_0101;
    assert_eq!(failed(cd), Error::NotADisk);
    assert_eq!(failed(|model| model.silent = true), Error::Deadline("identify"));
    assert_eq!(failed(|model| model.words = vec![(83, 1 << 14)]), {
        Error::Setup("no 48-bit commands")
    });
    assert!(matches!(failed(|model| model.block_bytes = 8192), Error::Setup(_)));
}

#[test]
fn ports_that_wait_to_be_asked_are_spun_up() {
    let staggered = Model { capabilities: 1 << 31 | 1 << 27, ..Model::default() };
    assert!(start(staggered).is_ok());
}

/// Writes of one block each, in order, that a disk takes before it says that it is full.
fn fill(disk: &mut dyn BlockDevice, memory: &'static [u8]) -> usize {
    let parts = memory.chunks(512).enumerate();
    let taken = |(block, part): &(usize, &'static [u8])| {
        disk.submit_write(*block as u64 * 512, source(part)) == Ok(Accepted::Yes)
    };
    parts.take_while(taken).count()
}

/// Commands that were issued since the disk was identified, and how often each.
fn issued(registers: &FakeRegisters) -> Vec<(u8, usize)> {
    let codes = [0x25, 0x35, 0x60, 0x61, 0xea].into_iter();
    let count = |code| registers.0.borrow().commands.iter().filter(|it| it.0 == code).count();
    codes.map(|code| (code, count(code))).filter(|(_, count)| *count > 0).collect()
}

#[test]
fn the_queue_is_as_long_as_disk_and_controller_have_it() {
    let cases = [(32, 32, 32), (32, 31, 31), (8, 32, 8), (32, 1, 1), (1, 32, 1)];
    for (slots, depth, most) in cases {
        let (mut disk, registers) = start(with_queue(slots, depth)).unwrap();
        let memory = pattern(33 * 512);
        for backwards in [false, true, false] {
            registers.0.borrow_mut().disk.fill(0);
            registers.0.borrow_mut().backwards = backwards;
            registers.0.borrow_mut().silent = true;
            assert_eq!(
                (fill(&mut disk, memory), disk.in_flight()),
                (most, most),
                "{slots} {depth}"
            );
            assert_eq!(disk.poll(), Ok(0));
            registers.0.borrow_mut().silent = false;
            registers.0.borrow_mut().work();
            assert_eq!(drain(&mut disk), Ok(most as u64 * 512));
            assert!(registers.0.borrow().disk[..most * 512] == memory[..most * 512]);
        }
        let write = if most > 1 { 0x61 } else { 0x35 };
        assert_eq!(issued(&registers), [(write, 3 * most)]);
    }
}

#[test]
fn no_queue_is_used_that_either_side_does_not_have() {
    let spoilt: [fn(&mut Model); 4] = [
        |model| model.capabilities &= !(1 << 30),
        |model| model.words = vec![(75, 31)],
        |model| model.words = vec![(75, 31), (76, u16::MAX)],
        |model| model.words = vec![(75, 31), (76, 1 << 3)],
    ];
    for spoil in spoilt {
        let mut model = with_queue(32, 32);
        spoil(&mut model);
        let (mut disk, registers) = start(model).unwrap();
        registers.0.borrow_mut().silent = true;
        assert_eq!(fill(&mut disk, pattern(1024)), 1);
        registers.0.borrow_mut().work();
        assert_eq!((drain(&mut disk), issued(&registers)), (Ok(512), vec![(0x35, 1)]));
    }
}

#[test]
fn queued_reads_bring_what_queued_writes_took() {
    for block_bytes in [512, 4096] {
        let (mut disk, registers) = start(Model { block_bytes, ..with_queue(32, 32) }).unwrap();
        let memory = pattern(300 << 10);
        disk.write(4096, memory).unwrap();
        let mut back = vec![0; memory.len()];
        disk.read(4096, &mut back).unwrap();
        assert_eq!(back, memory);
        assert_eq!(issued(&registers), [(0x60, 5), (0x61, 5)]);
    }
}

/// A flush is no queued command: the disk would abort its queue.
#[test]
fn a_flush_waits_for_the_queue_and_the_queue_for_the_flush() {
    let (mut disk, registers) = start(with_queue(32, 32)).unwrap();
    assert_eq!(disk.start_flush(), Ok(Accepted::Full), "would hold up the next write");
    registers.0.borrow_mut().silent = true;
    assert_eq!(fill(&mut disk, pattern(5 * 512)), 5);
    assert_eq!(disk.flush(), Err(Error::Deadline("write")));
    assert_eq!(registers.0.borrow().active.count_ones(), 5);
    assert_eq!(issued(&registers), [], "the flush did not get past the writes");

    let (mut disk, registers) = start(with_queue(32, 32)).unwrap();
    registers.0.borrow_mut().answers_at_look = Some(3);
    for _ in 0..3 {
        registers.0.borrow_mut().silent = true;
        assert_eq!(fill(&mut disk, pattern(5 * 512)), 5);
        // The model asserts that nothing overlaps.
        disk.flush().unwrap();
        assert_eq!(disk.poll(), Ok(5 * 512));
    }
    assert_eq!(issued(&registers), [(0x61, 15), (0xea, 3)]);
}

/// An error of one queued command ends all of them.
#[test]
fn one_bad_block_costs_one_request_of_the_queue() {
    for backwards in [false, true] {
        let (mut disk, registers) = start(with_queue(32, 32)).unwrap();
        registers.0.borrow_mut().silent = true;
        registers.0.borrow_mut().backwards = backwards;
        registers.0.borrow_mut().bad_block = Some(20);
        let memory = pattern(32 * 512);
        assert_eq!(fill(&mut disk, memory), 32);
        registers.0.borrow_mut().silent = false;
        registers.0.borrow_mut().work();
        let (mut stored, mut failed) = (0, vec![]);
        while disk.in_flight() > 0 || failed.is_empty() {
            match disk.poll() {
                Ok(bytes) => stored += bytes,
                Err(error) => failed.push(error),
            }
        }
        assert_eq!((stored + disk.poll().unwrap(), failed), {
            (31 * 512, vec![Error::Io(20 * 512)])
        });
        let disk_bytes = registers.0.borrow().disk[..32 * 512].to_vec();
        for block in 0..32 {
            let wanted = if block == 20 { &[0; 512] } else { &memory[block * 512..][..512] };
            assert_eq!(disk_bytes[block * 512..][..512], *wanted, "{block}");
        }
        assert_eq!(registers.0.borrow().resets, 1);
        // Those behind it in the disk's order were sent again, and it itself.
        let again = if backwards { 21 } else { 12 };
        assert_eq!(issued(&registers), [(0x35, again), (0x61, 32)]);
        // The queue is used again.
        assert_eq!(disk.write(0, &[7; 512]), Ok(()));
        assert_eq!(issued(&registers), [(0x35, again), (0x61, 33)]);
    }
}

#[test]
fn a_queue_that_fails_again_and_again_is_used_no_more() {
    let (mut disk, registers) = start(with_queue(32, 32)).unwrap();
    // By itself the command succeeds.
    registers.0.borrow_mut().bad_in_queue = Some(1);
    let memory = pattern(4 * 512);
    for round in 1..=5 {
        registers.0.borrow_mut().silent = true;
        let taken = fill(&mut disk, memory);
        assert_eq!(taken, if round <= 3 { 4 } else { 1 });
        registers.0.borrow_mut().silent = false;
        registers.0.borrow_mut().work();
        assert_eq!(drain(&mut disk), Ok(taken as u64 * 512));
        assert_eq!(registers.0.borrow().resets, round.min(3));
    }
    assert_eq!(registers.0.borrow().disk[..4 * 512], *memory);
    disk.flush().unwrap();
}

#[test]
fn a_disk_that_does_not_come_back_after_an_error_of_its_queue_is_given_up() {
    let failed = |spoil: fn(&mut Model)| {
        let (mut disk, registers) = start(with_queue(32, 32)).unwrap();
        spoil(&mut registers.0.borrow_mut());
        registers.0.borrow_mut().bad_block = Some(0);
        let error = disk.write(0, &[7; 512]).unwrap_err();
        assert_eq!(disk.write(512, &[7; 512]), Err(Error::GivenUp));
        error
    };
    assert_eq!(failed(|model| model.runs_on = true), Error::Deadline("stop after an error"));
    assert_eq!(failed(|model| model.stays_down = true), Error::Deadline("link after an error"));
    assert_eq!(failed(|model| model.stays_busy = true), Error::Deadline("ready after the reset"));
}

#[test]
fn commands_that_the_disk_was_not_given_end_it() {
    for (active, issued) in [(1 << 9, 0), (0, 1 << 9), (u32::MAX, 0)] {
        let (mut disk, registers) = start(with_queue(32, 32)).unwrap();
        registers.0.borrow_mut().silent = true;
        assert_eq!(fill(&mut disk, pattern(3 * 512)), 3);
        registers.0.borrow_mut().active |= active;
        registers.0.borrow_mut().issued |= issued;
        let unasked = Error::Setup("the device answered what nobody asked");
        assert_eq!(disk.poll(), Err(unasked));
        assert_eq!(disk.poll(), Err(Error::GivenUp));
    }
}

#[test]
fn a_queue_that_does_not_answer_is_given_up_and_left_alone() {
    let (mut disk, registers) = start(with_queue(32, 32)).unwrap();
    registers.0.borrow_mut().silent = true;
    assert_eq!(fill(&mut disk, pattern(8 * 512)), 8);
    // It answers some of them.
    registers.0.borrow_mut().issued = 0b1110;
    registers.0.borrow_mut().active = 0b1111_1110;
    assert_eq!(disk.poll(), Ok(512));
    let written = registers.0.borrow().register_writes;
    pause_ms(200_000);
    assert_eq!(disk.poll(), Ok(0), "a pause of the machine is not the disk's");
    assert_eq!(drain(&mut disk), Err(Error::Deadline("write")));
    assert_eq!(disk.flush(), Err(Error::GivenUp));
    drop(disk);
    assert_eq!(registers.0.borrow().register_writes, written, "touched after all");
}
