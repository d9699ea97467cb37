//! One port and the disk at it.
//!
//! A disk with native command queueing has up to 32 commands in flight. It may answer them in any
//! order, and the port tells of it by the bits of PxSACT that become 0. Every other disk, and
//! every other command, is driven one at a time, through PxCI alone. The two never overlap
//! (ACS-3, §4.16.1): a flush waits until no queued command is left, and queued commands wait for
//! the flush.
//!
//! An error of one queued command aborts all of them. The port is then reset, so that nothing of
//! them is left in the disk, and each is sent once more by itself: the one that fails again is
//! the bad one, and the others cost nothing but time. A disk whose queue fails
//! [`MAX_QUEUE_ERRORS`] times is driven without it from then on.

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};

use super::{identify, register};
use crate::memory::{Dma, PAGE, Registers};
use crate::pci::Address;
use crate::polled::{Answer, Engine, Kind, MAX_DEPTH, Request};
use crate::{Deadline, Error, Identity, Platform, Source};

/// PxCMD (§3.3.7): start, receive, receiving, running.
const START: u32 = 1;
const RECEIVE: u32 = 1 << 4;
const RECEIVING: u32 = 1 << 14;
const RUNNING: u32 = 1 << 15;
/// PxTFD (§3.3.8): error, data request, busy.
const ERROR: u32 = 1;
const BUSY: u32 = 1 << 3 | 1 << 7;
/// PxIS (§3.3.5): task file error, bus fatal, bus data, interface fatal, overflow.
const FAILURES: u32 = 1 << 30 | 1 << 29 | 1 << 28 | 1 << 27 | 1 << 24;
/// PxSIG of a disk (§3.3.9).
const DISK: u32 = 0x0000_0101;

/// PxSCTL.DET (§3.3.11): all of it, and the value that resets the link and the disk.
const DETECTION: u32 = 0xf;
const COMRESET: u32 = 1;

/// ATA commands (ACS-3, §7).
mod ata {
    pub const READ: u8 = 0x25;
    pub const WRITE: u8 = 0x35;
    pub const READ_QUEUED: u8 = 0x60;
    pub const WRITE_QUEUED: u8 = 0x61;
    pub const FLUSH: u8 = 0xea;
    pub const IDENTIFY: u8 = 0xec;
}

/// A register FIS from the host: its type, its length in words, "this is a command"
/// (Serial ATA 3.1, §10.3.4), and the device register of a 48-bit command.
const FIS_TYPE: u8 = 0x27;
const FIS_WORDS: u32 = 5;
const FIS_COMMAND: u8 = 1 << 7;
const LBA_MODE: u8 = 1 << 6;

/// Pages shared with the port, by offset (§4.2): the command list, a kilobyte; received FISes, 256
/// bytes; what IDENTIFY DEVICE sends; a command table for each slot, with its one data range behind
/// 128 bytes.
mod page {
    use super::{MAX_DEPTH, PAGE};

    pub const LIST: usize = 0;
    pub const HEADER_BYTES: usize = 32;
    pub const RECEIVED: usize = 1024;
    pub const IDENTIFY: usize = 2048;
    pub const TABLES: usize = PAGE;
    /// Tables lie at multiples of 128 bytes.
    pub const TABLE_BYTES: usize = 256;
    pub const DATA_RANGE: usize = 0x80;
    pub const COUNT: usize = 1 + MAX_DEPTH * TABLE_BYTES / PAGE;
    const _: () = assert!(MAX_DEPTH <= 32, "a command list has 32 headers, a port 32 bits");
}

/// A command header (§4.2.2): data goes to the disk, one data range.
const TO_DISK: u32 = 1 << 6;
const ONE_RANGE: u32 = 1 << 16;
/// How long a link may take to come up behind something that is plugged in.
const LINK_MS: u64 = 1_000;
/// How long a disk may take to answer after a reset. It turns already.
const READY_MS: u64 = 10_000;
/// How long a port may take to stop (§10.1.2).
const STOP_MS: u64 = 500;
/// How long identifying may take.
const IDENTIFY_MS: u64 = 10_000;
/// How long the reset of a link is asked for, in ms (§10.4.2).
const COMRESET_MS: u64 = 1;
/// Errors of the queue after which a disk is driven without it. A choice: each costs the reset of
/// the port and the commands of a queue one by one, and a disk with so many has more.
const MAX_QUEUE_ERRORS: u32 = 3;
/// Why a disk is given up that answers commands which it was not given.
const UNASKED: Error = Error::Setup("the device answered what nobody asked");

/// What a controller is able to do.
#[derive(Clone, Copy)]
pub struct Abilities {
    /// It reaches memory above 4 GiB.
    pub wide: bool,
    /// Commands in the queue of a port, 1 to 32; 1 where it does no native command queueing.
    pub depth: usize,
}

/// A disk ready for reading and writing. In the bits, slot n is bit n.
pub struct Port<P, R> {
    registers: register::Port<R>,
    memory: Dma,
    abilities: Abilities,
    block_bytes: u32,
    /// Commands in the disk's queue at most; 1 where it has none, or it failed too often.
    depth: usize,
    queue_errors: u32,
    /// What each slot is asked for, from [`Engine::start`] until it has finished.
    requests: [Option<Request>; MAX_DEPTH],
    /// Slots in the disk's queue.
    queued: u32,
    /// The slot of the command that is under way by itself; then none is in the queue.
    single: Option<usize>,
    /// Slots that the disk does not have yet.
    waiting: u32,
    /// Those of them that were in the queue when it failed: to be sent by themselves.
    retried: u32,
    platform: PhantomData<P>,
}

impl<P: Platform, R: Registers> Port<P, R> {
    /// Starts a port of a controller that has just been reset, and asks the disk what it
    /// is (§10.1.2).
    ///
    /// # Errors
    /// Says which step failed.
    pub fn start(
        registers: register::Port<R>,
        abilities: Abilities,
        location: Address,
    ) -> Result<(Self, Identity), Error> {
        if !Deadline::<P>::after_ms(LINK_MS).wait(|| registers.linked()) {
            return Err(Error::Deadline("link"));
        }
        let command = || registers.read(register::COMMAND);
        if command() & (START | RECEIVE | RECEIVING | RUNNING) != 0 {
            return Err(Error::Setup("a port that the reset did not stop"));
        }
        let memory = Dma::take::<P>(page::COUNT)?;
        let mut port = Self {
            registers,
            memory,
            abilities,
            block_bytes: 512,
            depth: 1,
            queue_errors: 0,
            requests: [const { None }; MAX_DEPTH],
            queued: 0,
            single: None,
            waiting: 0,
            retried: 0,
            platform: PhantomData,
        };
        port.set_address(register::COMMAND_LIST, page::LIST)?;
        port.set_address(register::RECEIVED, page::RECEIVED)?;
        port.clear_errors();
        port.change(RECEIVE, 0);
        // The first FIS of the disk makes it ready, and says what it is.
        port.wait_ready()?;
        if port.registers.read(register::SIGNATURE) != DISK {
            return Err(Error::NotADisk);
        }
        port.change(START, 0);
        let data = port.identify()?;
        let identity = identify::read(&data, location)?;
        port.block_bytes = identity.block_bytes;
        port.depth = abilities.depth.min(identify::queue_depth(&data));
        Ok((port, identity))
    }

    /// Waits until the disk takes commands.
    fn wait_ready(&self) -> Result<(), Error> {
        let ready = || self.registers.read(register::TASK_FILE) & BUSY == 0;
        let rested = Deadline::<P>::after_ms(READY_MS).wait(ready);
        if rested { Ok(()) } else { Err(Error::Deadline("ready after the reset")) }
    }

    /// Names one of our pages to the port.
    fn set_address(&self, register: usize, offset: usize) -> Result<(), Error> {
        let address = self.reachable(self.memory.address(offset))?;
        self.registers.write(register, address as u32);
        self.registers.write(register + 4, (address >> 32) as u32);
        Ok(())
    }

    fn reachable(&self, address: u64) -> Result<u64, Error> {
        let reached = self.abilities.wide || address >> 32 == 0;
        if reached { Ok(address) } else { Err(Error::Unreachable(address)) }
    }

    fn change(&self, set: u32, clear: u32) {
        let command = self.registers.read(register::COMMAND);
        self.registers.write(register::COMMAND, command & !clear | set);
    }

    /// Forgets errors noted earlier; every bit is cleared by writing it.
    fn clear_errors(&self) {
        self.registers.write(register::ERRORS, u32::MAX);
        self.registers.write(register::INTERRUPTS, u32::MAX);
    }

    fn identify(&mut self) -> Result<identify::Data, Error> {
        let mut data: identify::Data = [0; 512];
        let address = self.memory.address(page::IDENTIFY);
        let source = Source { address, bytes: data.len() as u64 };
        self.reachable(address)?;
        self.build(0, ata::IDENTIFY, 0, 0, source);
        self.go_single(0);
        let mut answer = Ok(None);
        Deadline::<P>::after_ms(IDENTIFY_MS).wait(|| {
            answer = self.finished();
            !matches!(answer, Ok(None))
        });
        match answer? {
            Some((_, Answer::Done)) => {}
            Some(_) => return Err(Error::Setup("identify")),
            None => return Err(Error::Deadline("identify")),
        }
        self.memory.copy_out(page::IDENTIFY, &mut data);
        Ok(data)
    }

    /// Puts a command into a slot.
    fn build(&self, slot: usize, command: u8, block: u64, blocks: u64, data: Source) {
        let lba = block.to_le_bytes();
        let queued = matches!(command, ata::READ_QUEUED | ata::WRITE_QUEUED);
        // A queued command has its tag, the number of the slot, where others have the count of
        // blocks, and the count in the place of the features (ACS-3, §7.19).
        let blocks = blocks as u16;
        let (features, count) = if queued { (blocks, (slot as u16) << 3) } else { (0, blocks) };
        let (features, count) = (features.to_le_bytes(), count.to_le_bytes());
        let fis = [
            u32::from_le_bytes([FIS_TYPE, FIS_COMMAND, command, features[0]]),
            u32::from_le_bytes([lba[0], lba[1], lba[2], LBA_MODE]),
            u32::from_le_bytes([lba[3], lba[4], lba[5], features[1]]),
            u32::from_le_bytes([count[0], count[1], 0, 0]),
            0,
        ];
        let (list, table) =
            (page::LIST + slot * page::HEADER_BYTES, page::TABLES + slot * page::TABLE_BYTES);
        for (index, word) in fis.into_iter().enumerate() {
            self.memory.write(table + 4 * index, word);
        }
        let mut header = FIS_WORDS;
        if data.bytes > 0 {
            header |= ONE_RANGE;
            let range = table + page::DATA_RANGE;
            self.memory.write_address(range, data.address);
            self.memory.write(range + 8, 0);
            // The length less one; 1 MiB is far below the 4 MiB of a range.
            self.memory.write(range + 12, data.bytes as u32 - 1);
        }
        if matches!(command, ata::WRITE | ata::WRITE_QUEUED) {
            header |= TO_DISK;
        }
        self.memory.write(list, header);
        // The count of bytes transferred, which the controller writes.
        self.memory.write(list + 4, 0);
        self.memory.write_address(list + 8, self.memory.address(table));
    }

    /// Lets the command of a slot go by itself (§5.5).
    fn go_single(&mut self, slot: usize) {
        self.single = Some(slot);
        // The command, and the data it names, must be in memory before the port looks.
        fence(Ordering::SeqCst);
        self.registers.write(register::ISSUED, bit(slot));
    }

    /// Lets the command of a slot go into the disk's queue (§5.6.2).
    fn go_queued(&mut self, slot: usize) {
        self.queued |= bit(slot);
        fence(Ordering::SeqCst);
        // The bit in PxSACT has to be set first (§3.3.13); only those written as 1 are.
        self.registers.write(register::ACTIVE, bit(slot));
        self.registers.write(register::ISSUED, bit(slot));
    }

    /// Sends what waits, as far as the order of queued and other commands allows.
    fn advance(&mut self) {
        if self.depth > 1 && self.retried == 0 && self.single.is_none() {
            for slot in slots(self.waiting) {
                let Some(Some(request)) = self.requests.get(slot) else { continue };
                let command = match request.kind {
                    Kind::Read => ata::READ_QUEUED,
                    Kind::Write => ata::WRITE_QUEUED,
                    Kind::Flush => continue,
                };
                self.build(slot, command, self.block(request), self.blocks(request), request.data);
                self.waiting &= !bit(slot);
                self.go_queued(slot);
            }
        }
        if self.queued != 0 || self.single.is_some() {
            return;
        }
        // Writes go before a flush.
        let is_flush = |slot: &usize| {
            let request = self.requests.get(*slot).and_then(Option::as_ref);
            request.is_some_and(|request| request.kind == Kind::Flush)
        };
        let first = slots(self.retried)
            .next()
            .or_else(|| slots(self.waiting).find(|slot| !is_flush(slot)))
            .or_else(|| slots(self.waiting).next());
        let Some(slot) = first else { return };
        let Some(Some(request)) = self.requests.get(slot) else { return };
        let command = match request.kind {
            Kind::Read => ata::READ,
            Kind::Write => ata::WRITE,
            Kind::Flush => ata::FLUSH,
        };
        self.build(slot, command, self.block(request), self.blocks(request), request.data);
        self.waiting &= !bit(slot);
        self.retried &= !bit(slot);
        self.go_single(slot);
    }

    fn block(&self, request: &Request) -> u64 {
        request.offset.checked_div(self.block_bytes.into()).unwrap_or_default()
    }

    fn blocks(&self, request: &Request) -> u64 {
        request.data.bytes.checked_div(self.block_bytes.into()).unwrap_or_default()
    }

    /// Returns true if the port has noted an error.
    fn has_failed(&self) -> bool {
        self.registers.read(register::INTERRUPTS) & FAILURES != 0
            || self.registers.read(register::TASK_FILE) & ERROR != 0
    }

    /// Returns how the command went that is under way by itself; `None` while it is.
    fn finished_single(&mut self, slot: usize) -> Result<Option<(usize, Answer)>, Error> {
        let failed = self.registers.read(register::INTERRUPTS) & FAILURES != 0;
        if !failed && self.registers.read(register::ISSUED) & bit(slot) != 0 {
            return Ok(None);
        }
        // What the command brought must not be read before its end was seen.
        fence(Ordering::SeqCst);
        self.single = None;
        self.forget(slot);
        // Looked at again: the failure may have come between the two.
        if failed || self.has_failed() {
            self.recover()?;
            return Ok(Some((slot, Answer::Failed)));
        }
        Ok(Some((slot, Answer::Done)))
    }

    /// Returns the next command that the disk's queue is done with.
    fn finished_queued(&mut self) -> Result<Option<(usize, Answer)>, Error> {
        // Before the bits of the commands: an error that comes behind is seen the next time.
        let failed = self.has_failed();
        let left = self.registers.read(register::ACTIVE) | self.registers.read(register::ISSUED);
        // After an error the port may say anything of commands that are no longer there.
        if !failed && left & !self.queued != 0 {
            return Err(UNASKED);
        }
        // A command that failed keeps its bit (§6.2.2.2).
        if let Some(slot) = slots(self.queued & !left).next() {
            fence(Ordering::SeqCst);
            self.queued &= !bit(slot);
            self.forget(slot);
            return Ok(Some((slot, Answer::Done)));
        }
        if failed {
            self.recover_queue()?;
        }
        Ok(None)
    }

    /// Forgets what a slot was asked for.
    fn forget(&mut self, slot: usize) {
        if let Some(place) = self.requests.get_mut(slot) {
            *place = None;
        }
    }

    /// Takes everything out of the disk's queue after an error, to be sent one by one.
    fn recover_queue(&mut self) -> Result<(), Error> {
        self.retried = self.queued;
        self.waiting |= self.queued;
        self.queued = 0;
        self.queue_errors += 1;
        if self.queue_errors >= MAX_QUEUE_ERRORS {
            self.depth = 1;
        }
        self.stop()?;
        self.reset()?;
        self.change(START, 0);
        Ok(())
    }

    /// Resets the link and the disk of a port that was stopped (§10.4.2).
    fn reset(&self) -> Result<(), Error> {
        let control = self.registers.read(register::LINK_CONTROL) & !DETECTION;
        self.registers.write(register::LINK_CONTROL, control | COMRESET);
        Deadline::<P>::after_ms(COMRESET_MS).wait(|| false);
        self.registers.write(register::LINK_CONTROL, control);
        if !Deadline::<P>::after_ms(LINK_MS).wait(|| self.registers.linked()) {
            return Err(Error::Deadline("link after an error"));
        }
        // The disk's first FIS is not let through before that.
        self.clear_errors();
        self.wait_ready()
    }

    /// Stops the port (§10.1.2).
    fn stop(&self) -> Result<(), Error> {
        self.change(0, START);
        let stopped = || self.registers.read(register::COMMAND) & RUNNING == 0;
        let rested = Deadline::<P>::after_ms(STOP_MS).wait(stopped);
        if rested { Ok(()) } else { Err(Error::Deadline("stop after an error")) }
    }

    /// Makes the port ready for the next command after one has failed (§6.2.2.1).
    fn recover(&mut self) -> Result<(), Error> {
        self.stop()?;
        self.clear_errors();
        if self.registers.read(register::TASK_FILE) & BUSY != 0 {
            return Err(Error::Setup("the disk stays busy after an error"));
        }
        self.change(START, 0);
        Ok(())
    }
}

impl<P: Platform, R: Registers> Engine for Port<P, R> {
    fn depth(&self) -> usize {
        self.depth
    }

    /// Neither a queue nor a command by itself goes on beside a flush.
    fn flushes_beside_writes(&self) -> bool {
        false
    }

    fn start(&mut self, slot: usize, request: &Request) -> Result<(), Error> {
        if request.kind != Kind::Flush {
            self.reachable(request.data.address)?;
        }
        let place = self.requests.get_mut(slot).filter(|place| place.is_none());
        *place.ok_or(Error::Setup("queue out of step"))? = Some(*request);
        self.waiting |= bit(slot);
        self.advance();
        Ok(())
    }

    fn announce(&mut self) {
        self.advance();
    }

    fn finished(&mut self) -> Result<Option<(usize, Answer)>, Error> {
        match self.single {
            Some(slot) => self.finished_single(slot),
            None if self.queued != 0 => self.finished_queued(),
            None => Ok(None),
        }
    }
}

/// Returns the bit of a slot, which is below 32.
const fn bit(slot: usize) -> u32 {
    1 << (slot & 31)
}

/// Returns the slots whose bits are set, in ascending order.
fn slots(bits: u32) -> impl Iterator<Item = usize> {
    (0..MAX_DEPTH).filter(move |slot| bits & bit(*slot) != 0)
}
