//! A disk whose other end stops answering, and devices that must keep quiet.
//!
//! The disk's image is served by this very process, so that it can fall silent in the
//! middle of the dump and still see whether anybody speaks to it afterwards.

use std::fs::File;
use std::io::{Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::harness::{self, Bus, DataDisk, Disk, Options, Policy, Running, Verdict};

use crate::story::{Crashed, Story, assert_verdict};

/// From the first write over this byte on, nothing is answered: inside the dump.
const SILENT_FROM: u64 = 40 << 20;

/// An NBD server (the protocol's "fixed newstyle", without options) for one client.
pub(crate) struct Server {
    /// The first request of this kind that reaches beyond this byte is the first that is not
    /// answered.
    until: (u16, u64),
    /// The requests not answered, once it is silent.
    held: Vec<u64>,
    /// The answers to them.
    owed: Vec<u8>,
    silent: bool,
    client: Option<TcpStream>,
}

impl Server {
    pub(crate) const fn new(until: (u16, u64)) -> Self {
        Self { until, held: Vec::new(), owed: Vec::new(), silent: false, client: None }
    }

    /// Returns true if a request was not answered.
    pub(crate) const fn is_silent(&self) -> bool {
        !self.held.is_empty()
    }

    /// Answers what was not answered, and from now on everything.
    pub(crate) fn answer_all(&mut self) {
        self.until = (DISCONNECT, 0);
        self.silent = false;
        self.held.clear();
        let owed = std::mem::take(&mut self.owed);
        self.client.as_mut().expect("a client").write_all(&owed).expect("to go on");
    }
}

const REPLY: u32 = 0x6744_6698;
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;

fn take<const N: usize>(client: &mut TcpStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take32(client: &mut TcpStream) -> Result<u32> {
    take(client).map(u32::from_be_bytes)
}

/// Agrees on the export: every option but "go" is refused.
fn shake_hands(client: &mut TcpStream, bytes: u64) -> Result<()> {
    // Fixed newstyle, no zeroes behind the export's size.
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    take32(client)?;
    loop {
        assert_eq!(&take::<8>(client)?, b"IHAVEOPT");
        let (option, length) = (take32(client)?, take32(client)?);
        let mut data = vec![0; length as usize];
        client.read_exact(&mut data)?;
        let mut answer = |kind: u32, data: &[u8]| {
            let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            for word in [option, kind, data.len() as u32] {
                reply.extend(word.to_be_bytes());
            }
            reply.extend(data);
            client.write_all(&reply)
        };
        const GO: u32 = 7;
        if option != GO {
            answer(1 << 31 | 1, &[])?;
            continue;
        }
        // The export: its size, and that flags are valid and a flush is known.
        let mut export = vec![0, 0];
        export.extend(bytes.to_be_bytes());
        export.extend(5_u16.to_be_bytes());
        answer(3, &export)?;
        return answer(1, &[]);
    }
}

/// Serves `image` until the client goes.
fn serve(server: &Mutex<Server>, mut client: TcpStream, image: &File) -> Result<()> {
    shake_hands(&mut client, image.metadata()?.len())?;
    server.lock().expect("no panic").client = Some(client.try_clone()?);
    loop {
        assert_eq!(take32(&mut client)?, 0x2560_9513);
        let [_, _, high, low] = take::<4>(&mut client)?;
        let kind = u16::from_be_bytes([high, low]);
        let handle = u64::from_be_bytes(take(&mut client)?);
        let offset = u64::from_be_bytes(take(&mut client)?);
        let mut data = vec![0; take32(&mut client)? as usize];
        match kind {
            DISCONNECT => return Ok(()),
            READ => image.read_exact_at(&mut data, offset)?,
            WRITE => {
                client.read_exact(&mut data)?;
                image.write_all_at(&data, offset)?;
            }
            _ => {}
        }
        let mut server = server.lock().expect("no panic");
        let (until, end) = server.until;
        server.silent |= kind == until && offset + data.len() as u64 > end;
        let mut reply = answer(handle);
        if kind == READ {
            reply.extend(data);
        }
        if server.silent {
            server.held.push(handle);
            server.owed.extend(reply);
            continue;
        }
        client.write_all(&reply)?;
    }
}

fn answer(handle: u64) -> Vec<u8> {
    let mut reply = REPLY.to_be_bytes().to_vec();
    reply.extend(0_u32.to_be_bytes());
    reply.extend(handle.to_be_bytes());
    reply
}

/// Serves `image` from the moment the machine asks for it; the port.
pub(crate) fn start(server: &Arc<Mutex<Server>>, image: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let server = Arc::clone(server);
    std::thread::spawn(move || {
        let (client, _) = listener.accept()?;
        let image = File::options().read(true).write(true).open(image)?;
        serve(&server, client, &image)
    });
    port
}

/// The first disk falls silent: it is given up after its deadline and not spoken to again,
/// neither to write nor to reset it, and the next disk takes the whole dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_silent_disk_is_given_up_and_left_alone() {
    let mut options = Story::PANIC.options();
    let server = Arc::new(Mutex::new(Server::new((WRITE, SILENT_FROM))));
    let served_at = Some(start(&server, options.out.join("disk.img")));
    let silent = Disk { served_at, ..Disk::new(Bus::Virtio) };
    options.disks = vec![silent, Disk::new(Bus::Nvme)];
    options.timeout = Duration::from_secs(55);
    let mut running = harness::start(&options).expect("a machine");
    let line = running.machine.wait_for_line("no answer in time").expect("given up");
    assert!(line.contains("no answer in time: write"), "{line}");
    let held = server.lock().expect("no panic").held.clone();
    // What was in flight when it fell silent: no more than the driver keeps.
    assert!((1..=4).contains(&held.len()), "{held:?}");
    running.machine.wait_for_line("capture: sealed ").expect("a dump on the other disk");
    running.machine.wait_for_line("capture: policy: ").expect("the end");
    {
        let mut server = server.lock().expect("no panic");
        assert_eq!(server.held, held, "spoken to again");
        // The host's QEMU waits for its own requests before it ends.
        server.silent = false;
        let replies: Vec<u8> = held.into_iter().flat_map(answer).collect();
        server.client.as_mut().expect("a client").write_all(&replies).expect("to go on");
    }
    let crashed = Crashed::read(running.finish(&mut |_| ()).expect("an end"));
    Story::PANIC.check(&crashed);
}

/// The disk is silent from the boot on: the appliance gives it up and arms with the next one,
/// and the capture image, which would wait for ever for its reset, leaves it alone as well.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_disk_that_was_silent_at_boot_is_left_alone_in_a_crash() {
    let mut options = Story::PANIC.options();
    // The first slot: no firmware reads there.
    let server = Arc::new(Mutex::new(Server::new((READ, 1 << 20))));
    // A workload that looks for a disk of its own passes it over as well.
    options.data_disk = Some(DataDisk::blank(8 << 20));
    options.command_line.push_str(" workload=blkverify,blocks=256");
    let served_at = Some(start(&server, options.out.join("disk.img")));
    options.disks = vec![Disk { served_at, ..Disk::new(Bus::Virtio) }, Disk::new(Bus::Nvme)];
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("capture: policy: ").expect("the end");
    let held = {
        let mut server = server.lock().expect("no panic");
        server.silent = false;
        let held = server.held.clone();
        let mut replies: Vec<u8> = held.iter().copied().flat_map(answer).collect();
        // What was to be read: a record.
        replies.extend([0; 4096]);
        server.client.as_mut().expect("a client").write_all(&replies).expect("to go on");
        held
    };
    let crashed = Crashed::read(running.finish(&mut |_| ()).expect("an end"));
    assert_eq!(held.len(), 1, "spoken to again");
    let console = &crashed.outcome.console;
    assert!(console.has("target: disk 0, virtio at 00:01.0: no answer in time: read"));
    assert!(console.has("] armed: disk 2, nvme at 00:02.0"));
    assert!(console.has("] disk: virtio at 00:03.0, "));
    assert!(console.has("capture: 00:01.0 missed a deadline before: not touched again"));
    Story::PANIC.check(&crashed);
}

/// Answers what was held back: the host's QEMU waits for its own requests before it ends.
/// Returns how many requests that were.
fn answer_all(server: &Mutex<Server>) -> usize {
    let mut server = server.lock().expect("no panic");
    // For good: more requests may have waited for these.
    (server.silent, server.until.1) = (false, u64::MAX);
    let owed = std::mem::take(&mut server.owed);
    server.client.as_mut().expect("a client").write_all(&owed).expect("to go on");
    server.held.len()
}

/// The data disk falls silent while a workload has requests in flight there, and the machine is
/// told to crash from outside: to take the disk's bus mastering away would stop the machine for
/// ever. It is left alone, and the dump goes to the other disk.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_data_disk_with_requests_in_flight_is_left_alone() {
    let mut options = Story::PANIC.options();
    options.crash = None;
    // Behind the label and the first blocks, so that the disk is silent while it is written to.
    let server = Arc::new(Mutex::new(Server::new((WRITE, 1 << 20))));
    let data = options.out.join("data-served.img");
    std::fs::create_dir_all(&options.out).expect("a folder");
    std::fs::write(&data, vec![0; 8 << 20]).expect("an image");
    let port = start(&server, data);
    options.qemu_args.extend([
        "-drive".into(),
        format!("if=none,id=served,format=raw,cache=unsafe,file=nbd:127.0.0.1:{port}"),
        "-device".into(),
        "virtio-blk-pci,drive=served".into(),
    ]);
    options.command_line = "workload=blkverify,blocks=1024".into();
    options.disks = vec![Disk::new(Bus::Nvme)];
    options.timeout = Duration::from_secs(90);
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("] disk: virtio at ").expect("a data disk");
    while !server.lock().expect("no panic").silent {
        std::thread::sleep(Duration::from_millis(20));
    }
    running.machine.qmp().execute("inject-nmi", serde_json::json!({})).expect("an NMI");
    running.machine.wait_for_line("capture: sealed ").expect("a dump");
    running.machine.wait_for_line("capture: policy: ").expect("the end");
    assert!(answer_all(&server) > 0, "nothing was in flight");
    let outcome = running.finish(&mut |_| ()).expect("an end");
    assert_verdict(&outcome, Verdict::Captured);
    assert!(outcome.console.has("capture: requests in flight at "));
}

/// The only disk falls silent while the appliance looks at it, and the crash comes before the
/// look gives it up. To open the disk for the dump may stop the machine for ever, so the last
/// words are on the console before; when the disk answers after all, it gets the dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_disk_that_was_being_looked_at_is_opened_behind_the_last_words() {
    let mut options = Options { talk: true, crash: None, ..Story::PANIC.options() };
    let server = Arc::new(Mutex::new(Server::new((READ, u64::MAX))));
    let served_at = Some(start(&server, options.out.join("disk.img")));
    options.disks = vec![Disk { served_at, ..Disk::new(Bus::Virtio) }];
    options.timeout = Duration::from_secs(55);
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("sieve: round 0").expect("work");
    server.lock().expect("no panic").silent = true;
    running.say("ready").expect("a question");
    while server.lock().expect("no panic").held.is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    running.machine.qmp().execute("inject-nmi", serde_json::json!({})).expect("an NMI");
    let line = running.machine.wait_for_line("reason=no other disk takes a dump").expect("words");
    assert!(line.contains("1 with requests in flight"), "{line}");
    running.machine.wait_for_line("end lines=").expect("the end of the last words");
    assert_eq!(answer_all(&server), 1);
    running.machine.wait_for_line("capture: sealed ").expect("a dump");
    assert_verdict(&running.finish(&mut |_| ()).expect("an end"), Verdict::Captured);
}

/// Three disks fall silent at the crash, before anything is read of them: each would be waited
/// for as long as a read may take, which is longer than this test has. Together they get a
/// part of that, and the next one takes the dump.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn several_silent_disks_share_what_time_there_is_for_them() {
    // One CPU has to be stopped by NMI: a second for the disks to fall silent in.
    let story = Story {
        wedges: &["irqs-off,cpu=3"],
        stopped: &[(3, "nmi", "interrupted")],
        ..Story::PANIC
    };
    let mut options = story.options();
    let images = ["disk.img", "disk1.img", "disk2.img"].map(|name| options.out.join(name));
    let served = images.map(|image| {
        let server = Arc::new(Mutex::new(Server::new((READ, u64::MAX))));
        let served_at = Some(start(&server, image));
        (server, Disk { served_at, ..Disk::new(Bus::Virtio) })
    });
    options.disks = served.iter().map(|(_, disk)| *disk).collect();
    options.disks.push(Disk::new(Bus::Nvme));
    options.timeout = Duration::from_secs(55);
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("crash: panic on ").expect("a crash");
    for (server, _) in &served {
        server.lock().expect("no panic").silent = true;
    }
    running.machine.wait_for_line("capture: policy: ").expect("the end");
    for (server, _) in &served {
        let mut server = server.lock().expect("no panic");
        server.silent = false;
        assert_eq!(server.held.len(), 1, "spoken to again");
        let mut replies = answer(server.held[0]);
        // What was to be read: the header of the area.
        replies.extend([0; 4096]);
        server.client.as_mut().expect("a client").write_all(&replies).expect("to go on");
    }
    let crashed = Crashed::read(running.finish(&mut |_| ()).expect("an end"));
    let console = &crashed.outcome.console;
    assert_eq!(console.all_after(": no answer in time: read").count(), 3);
    assert_eq!(console.all_after("capture: disks that do not answer have taken").count(), 1);
    story.check(&crashed);
}

/// Bus mastering of the function at slot `slot` of bus 0, as the outside sees it.
fn is_master(running: &mut Running, slot: u64) -> bool {
    // The firmware put configuration space there (PCIEXBAR of the q35): 4 KiB for each of
    // 8 functions; the command register is at 4, bus mastering its bit 2.
    let command = 0xb000_0000 + (slot << 15) + 4;
    let shown = running.machine.qmp().human(&format!("xp /1wx {command:#x}")).expect("memory");
    let value = shown.trim().rsplit("0x").next().expect("a value");
    u32::from_str_radix(value, 16).expect("a number") & 1 << 2 != 0
}

/// The firmware has used both disks. The one that the dump does not go to loses the right
/// to touch memory.
#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn a_device_that_is_not_the_target_is_silenced() {
    let mut options = Options { policy: Policy::Halt, ..Story::PANIC.options() };
    options.disks = vec![Disk::new(Bus::Nvme), Disk::new(Bus::Virtio)];
    options.command_line.push_str(" dump_to=virtio");
    let mut running = harness::start(&options).expect("a machine");
    running.machine.wait_for_line("booted by").expect("a boot");
    assert!(is_master(&mut running, 1), "the firmware left it on");
    running.machine.wait_for_line("capture: policy: halt").expect("a dump");
    assert!(!is_master(&mut running, 1), "the other disk");
    assert!(is_master(&mut running, 2), "the target");
    assert_verdict(&running.finish(&mut |_| ()).expect("an end"), Verdict::Captured);
}
