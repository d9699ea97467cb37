use core::mem::ManuallyDrop;

use super::*;
use crate::polled::MOST_IN_FLIGHT;
use crate::virtio::disk::DEPTH;
use crate::virtio::fake::{Device, Fake, FakeTransport, pause_ms};
use crate::{Accepted, BlockDevice, Source, drain};

const SECTORS: u32 = 2048;
const FLUSH: u64 = 1 << 9;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const VERSION_1: u64 = 1 << 32;

const LOCATION: pci::Address = pci::Address { segment: 0, bus: 0, device: 3, function: 0 };

fn device() -> Device {
    let mut device = Device::default();
    device.features = VERSION_1 | FLUSH;
    device.disk = vec![0; SECTORS as usize * 512];
    device.config[0] = SECTORS;
    device.serial[..9].copy_from_slice(b"dump-01 \x07");
    device
}

fn start(device: Device) -> Result<(Disk<Fake, FakeTransport>, FakeTransport), Error> {
    let transport = FakeTransport::default();
    *transport.0.borrow_mut() = device;
    let mut used = ManuallyDrop::new(transport.clone());
    reset::<Fake>(&mut *used)?;
    Ok((disk::start(used, LOCATION)?, transport))
}

fn start_with_queue(entries: u32) -> Result<(Disk<Fake, FakeTransport>, FakeTransport), Error> {
    let mut device = device();
    device.longest_queue = Some(entries);
    start(device)
}

fn source(memory: &'static [u8]) -> Source {
    Source { address: memory.as_ptr() as u64, bytes: memory.len() as u64 }
}

fn pattern(bytes: usize) -> &'static [u8] {
    (0..bytes).map(|at| (at * 7 + at / 256) as u8).collect::<Vec<u8>>().leak()
}

#[test]
fn a_device_says_what_it_is() {
    let (disk, _) = start(device()).unwrap();
    let identity = disk.identity();
    assert_eq!((identity.driver, identity.serial.as_str()), ("virtio", "dump-01 ?"));
    assert_eq!((identity.capacity, identity.block_bytes), (1 << 20, 512));
    assert!(identity.can_flush && !identity.read_only);
}

#[test]
fn what_is_written_is_read_back() {
    let (mut disk, transport) = start(device()).unwrap();
    let memory = pattern(300 << 10);
    disk.write(512, memory).unwrap();
    let mut back = vec![0; memory.len()];
    disk.read(512, &mut back).unwrap();
    assert_eq!(back, memory);
    assert_eq!(disk.poll(), Ok(0), "only submitted writes are counted");

    assert_eq!(disk.submit_write(512 << 10, source(memory)), Ok(Accepted::Yes));
    assert_eq!(drain(&mut disk), Ok(memory.len() as u64));
    assert_eq!(transport.0.borrow().disk[512 << 10..][..memory.len()], *memory);
    disk.flush().unwrap();
    assert_eq!(transport.0.borrow().flushed, 1);
}

#[test]
fn a_full_queue_says_so_and_goes_on() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().silent = true;
    let memory = pattern(512);
    let mut taken = 0;
    while disk.submit_write(taken * 512, source(memory)) == Ok(Accepted::Yes) {
        taken += 1;
    }
    assert_eq!((taken, disk.in_flight()), (DEPTH as u64, DEPTH));
    assert_eq!(disk.poll(), Ok(0));
    transport.0.borrow_mut().work();
    assert_eq!(disk.poll(), Ok(taken * 512));
    assert_eq!(disk.submit_write(0, source(memory)), Ok(Accepted::Yes));
}

#[test]
fn a_device_with_a_short_queue_is_used_as_far_as_it_goes() {
    for (entries, depth) in [(8, 2), (16, 2), (31, 2), (32, 10), (64, 10), (1024, 10)] {
        let (mut disk, transport) = start_with_queue(entries).unwrap();
        let memory = pattern(300 << 10);
        disk.write(512, memory).unwrap();
        assert_eq!(transport.0.borrow().disk[512..][..memory.len()], *memory, "{entries}");
        transport.0.borrow_mut().silent = true;
        let accepted = |disk: &mut Disk<Fake, FakeTransport>, at: usize| {
            disk.submit_write(at as u64 * 512, source(pattern(512))) == Ok(Accepted::Yes)
        };
        let taken = (0..).take_while(|at| accepted(&mut disk, *at)).count();
        assert_eq!((taken, disk.in_flight()), (depth, depth), "{entries}");
        transport.0.borrow_mut().silent = false;
        transport.0.borrow_mut().work();
        assert_eq!(drain(&mut disk), Ok(depth as u64 * 512), "{entries}");
        // The ring goes round many times.
        (0..100).for_each(|sector| disk.write(sector * 512, &[9; 512]).unwrap());
    }
    for entries in [0, 1, 4, 7] {
        let refused = start_with_queue(entries).map(|_| ());
        let why = Error::Setup("a request queue of fewer than 8 entries");
        assert_eq!(refused, Err(why), "{entries}");
    }
}

#[test]
fn large_requests_fill_it_by_their_bytes() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().silent = true;
    let memory = source(pattern(1 << 20));
    let most = (0..).take_while(|_| disk.submit_write(0, memory) == Ok(Accepted::Yes)).count();
    assert_eq!(most as u64, MOST_IN_FLIGHT / memory.bytes);
    assert_eq!(disk.submit_write(0, source(pattern(512))), Ok(Accepted::Full));
    transport.0.borrow_mut().work();
    assert_eq!(drain(&mut disk), Ok(MOST_IN_FLIGHT));
}

/// Small writes wait for the next poll, but a request that somebody waits for must not wait for
/// them in vain.
#[test]
fn a_queue_full_of_small_writes_is_sent_when_a_record_needs_room() {
    let (mut disk, transport) = start(device()).unwrap();
    let memory = source(pattern(512));
    let taken = (0..).take_while(|_| disk.submit_write(0, memory) == Ok(Accepted::Yes)).count();
    assert_eq!(taken, DEPTH);
    assert_eq!(disk.write(4096, &[7; 512]), Ok(()));
    assert_eq!(transport.0.borrow().disk[4096..4608], [7; 512]);
    assert_eq!(disk.poll(), Ok(DEPTH as u64 * 512));
}

#[test]
fn reads_keep_to_the_devices_limit_as_writes_do() {
    let mut small = device();
    small.features |= 1 << 1;
    small.config[2] = 1024;
    small.disk[..2048].copy_from_slice(pattern(2048));
    let (mut disk, transport) = start(small).unwrap();
    assert_eq!(disk.identity().max_write_bytes, 1024);
    let mut back = [0; 2048];
    disk.read(0, &mut back).unwrap();
    assert_eq!(back, *pattern(2048));
    assert_eq!(transport.0.borrow().longest_data, 1024);
}

#[test]
fn an_answer_that_nobody_asked_for_gives_the_disk_up() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().silent = true;
    disk.submit_write(0, source(pattern(512))).unwrap();
    assert_eq!(disk.poll(), Ok(0));
    transport.0.borrow_mut().answer(29);
    assert_eq!(disk.poll(), Err(Error::Setup("the device answered what nobody asked")));
    assert_eq!(disk.poll(), Err(Error::GivenUp));

    // One that it has answered already.
    let (mut disk, transport) = start(device()).unwrap();
    disk.write(0, &[7; 512]).unwrap();
    transport.0.borrow_mut().answer(0);
    assert_eq!(disk.poll(), Err(Error::Setup("the device answered what nobody asked")));
}

#[test]
fn small_requests_go_out_together_and_a_large_one_at_once() {
    let (mut disk, transport) = start(device()).unwrap();
    let before = transport.0.borrow().notified;
    let bells = || transport.0.borrow().notified - before;
    for sector in 0..3 {
        disk.submit_write(sector * 512, source(pattern(512))).unwrap();
    }
    assert_eq!((bells(), disk.in_flight()), (0, 3));
    assert_eq!((disk.poll(), bells()), (Ok(3 * 512), 1));
    assert_eq!((disk.poll(), bells()), (Ok(0), 1), "nothing new");

    disk.submit_write(0, source(pattern(512))).unwrap();
    disk.submit_write(512, source(pattern(512 << 10))).unwrap();
    assert_eq!(bells(), 2);
    // Whatever somebody waits for takes along what was kept.
    disk.submit_write(0, source(pattern(512))).unwrap();
    disk.flush().unwrap();
    assert_eq!((disk.poll(), bells()), (Ok((512 << 10) + 1024), 3));
}

#[test]
fn a_device_that_does_not_answer_is_given_up_and_left_alone() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().silent = true;
    let status = transport.0.borrow().status;
    disk.submit_write(0, source(pattern(512))).unwrap();
    assert_eq!(drain(&mut disk), Err(Error::Deadline("write")));
    let notified = transport.0.borrow().notified;
    assert_eq!(disk.poll(), Err(Error::GivenUp));
    assert_eq!(disk.flush(), Err(Error::GivenUp));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::GivenUp));
    assert_eq!(disk.write(0, &[0; 512]), Err(Error::GivenUp));
    assert_eq!(disk.submit_write(0, source(pattern(512))), Err(Error::GivenUp));
    drop(disk);
    let device = transport.0.borrow();
    assert_eq!((device.notified, device.status), (notified, status), "touched after all");
}

/// A pause longer than any deadline is not charged to the disk; what the disk then takes is.
#[test]
fn a_paused_machine_gives_no_disk_up() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().silent = true;
    disk.submit_write(0, source(pattern(512))).unwrap();
    for _ in 0..20 {
        pause_ms(200_000);
        assert_eq!(disk.poll(), Ok(0));
    }
    transport.0.borrow_mut().silent = false;
    transport.0.borrow_mut().work();
    assert_eq!(disk.poll(), Ok(512));
    transport.0.borrow_mut().silent = true;
    disk.submit_write(0, source(pattern(512))).unwrap();
    pause_ms(200_000);
    assert_eq!(drain(&mut disk), Err(Error::Deadline("write")));
}

#[test]
fn a_flush_has_a_deadline_too() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().silent = true;
    assert_eq!(disk.flush(), Err(Error::Deadline("flush")));
}

#[test]
fn a_flush_may_run_beside_the_writes_one_at_a_time() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().silent = true;
    let memory = source(pattern(512));
    assert_eq!(disk.start_flush(), Ok(Accepted::Yes));
    assert_eq!(disk.start_flush(), Ok(Accepted::Full));
    assert_eq!(disk.submit_write(0, memory), Ok(Accepted::Yes));
    assert_eq!((disk.in_flight(), disk.is_reading(memory)), (2, true));
    transport.0.borrow_mut().work();
    assert_eq!(drain(&mut disk), Ok(512));
    assert_eq!(transport.0.borrow().flushed, 1);

    // Some systems tell of what they could not put away only once: to this flush, and then
    // all is well for the next.
    transport.0.borrow_mut().bad_flush = true;
    assert_eq!(disk.start_flush(), Ok(Accepted::Yes));
    transport.0.borrow_mut().work();
    assert_eq!(drain(&mut disk), Err(Error::Io(0)));
}

#[test]
fn a_failed_write_is_named_by_its_offset() {
    let (mut disk, transport) = start(device()).unwrap();
    transport.0.borrow_mut().bad_sector = Some(8);
    for sector in [0, 8, 16] {
        disk.submit_write(sector * 512, source(pattern(512))).unwrap();
    }
    assert_eq!(disk.poll(), Err(Error::Io(4096)));
    assert_eq!(disk.poll(), Ok(1024));
    assert_eq!(disk.read(4096, &mut [0; 512]), Err(Error::Io(4096)));
    // A failure of its own does not end the device.
    assert_eq!(disk.read(0, &mut [0; 512]), Ok(()));
}

#[test]
fn the_ring_index_may_wrap_round() {
    let (mut disk, transport) = start(device()).unwrap();
    for _ in 0..70_000 {
        disk.flush().unwrap();
    }
    assert_eq!(transport.0.borrow().flushed, 70_000);
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let mut coarse = device();
    coarse.features |= BLOCK_SIZE;
    coarse.config[5] = 4096;
    let (mut disk, _) = start(coarse).unwrap();
    let page = source(pattern(4096));
    for offset in [512, 1 << 20, u64::MAX - 4095] {
        assert_eq!(disk.submit_write(offset, page), Err(Error::OutOfRange), "{offset}");
    }
    for source in [
        Source { address: 0, ..page },
        Source { bytes: 0, ..page },
        Source { bytes: 512, ..page },
        Source { bytes: 2 << 20, ..page },
    ] {
        assert_eq!(disk.submit_write(0, source), Err(Error::OutOfRange), "{source:?}");
    }

    let mut sealed = device();
    sealed.features |= READ_ONLY;
    let (mut disk, _) = start(sealed).unwrap();
    assert_eq!(disk.submit_write(0, page), Err(Error::ReadOnly));
    assert_eq!(disk.write(0, &[0; 512]), Err(Error::ReadOnly));
}

#[test]
fn a_device_that_cannot_be_brought_up_says_where_it_stops() {
    let failed = |spoil: fn(&mut Device)| {
        let mut device = device();
        spoil(&mut device);
        start(device).map(|_| ()).unwrap_err()
    };
    let never = |device: &mut Device| {
        device.status = 15;
        device.never_resets = true;
    };
    assert_eq!(failed(never), Error::Deadline("reset"));
    assert_eq!(failed(|device| device.refuses = true), Error::Setup("features refused"));
    assert!(matches!(failed(|device| device.features = FLUSH), Error::Setup(_)));
    assert_eq!(failed(|device| device.silent = true), Error::Deadline("serial number"));
}

#[test]
fn without_a_flush_request_flushing_does_nothing() {
    let mut plain = device();
    plain.features = VERSION_1;
    let (mut disk, transport) = start(plain).unwrap();
    assert!(!disk.identity().can_flush);
    assert_eq!(disk.flush(), Ok(()));
    assert_eq!(transport.0.borrow().flushed, 0);
}
