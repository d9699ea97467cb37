use super::fake::{Controller as Model, FakeRegisters, PORT};
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
