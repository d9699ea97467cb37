//! One port and the disk at it.

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};

use super::identify;
use crate::memory::{Dma, PAGE, Registers};
use crate::pci::Address;
use crate::polled::{Answer, Engine, Kind, Request};
use crate::{Deadline, Error, Identity, Platform};

/// Registers of a port (§3.3).
pub mod register {
    use crate::memory::Registers;

    /// First port, and bytes from one to the next.
    const PORTS: usize = 0x100;
    const PORT_BYTES: usize = 0x80;

    pub const COMMAND_LIST: usize = 0x00;
    pub const RECEIVED: usize = 0x08;
    pub const INTERRUPTS: usize = 0x10;
    pub const COMMAND: usize = 0x18;
    pub const TASK_FILE: usize = 0x20;
    pub const SIGNATURE: usize = 0x24;
    pub const LINK: usize = 0x28;
    pub const ERRORS: usize = 0x30;
    pub const ISSUED: usize = 0x38;

    /// PxCMD: spin up.
    const SPIN_UP: u32 = 1 << 1;

    /// A port's part of the registers.
    pub struct Port<R> {
        registers: R,
        start: usize,
    }

    impl<R: Registers> Port<R> {
        /// Port `number` of the controller.
        pub fn new(registers: R, number: u8) -> Self {
            Self { registers, start: PORTS + PORT_BYTES * usize::from(number) }
        }

        /// Reads one of the port's registers.
        pub fn read(&self, offset: usize) -> u32 {
            self.registers.read(self.start + offset)
        }

        /// Writes one.
        pub fn write(&self, offset: usize, value: u32) {
            self.registers.write(self.start + offset, value);
        }

        /// Lets the disk turn, where that waits to be asked for.
        pub fn spin_up(&self) {
            self.write(COMMAND, self.read(COMMAND) | SPIN_UP);
        }

        /// Whether something is plugged in (PxSSTS.DET, §3.3.10).
        pub fn detects(&self) -> bool {
            self.read(LINK) & 0xf != 0
        }

        /// Whether there is a working link to it.
        pub fn linked(&self) -> bool {
            self.read(LINK) & 0xf == 3
        }
    }
}

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

/// ATA commands (ACS-3, §7).
mod ata {
    pub const READ: u8 = 0x25;
    pub const WRITE: u8 = 0x35;
    pub const FLUSH: u8 = 0xea;
    pub const IDENTIFY: u8 = 0xec;
}

/// A register FIS from the host: its type, its length in words, "this is a command"
/// (Serial ATA 3.1, §10.3.4), and the device register of a 48-bit command.
const FIS_TYPE: u8 = 0x27;
const FIS_WORDS: u32 = 5;
const FIS_COMMAND: u8 = 1 << 7;
const LBA_MODE: u8 = 1 << 6;

/// Pages shared with the port, by offset (§4.2): the command list, a kilobyte; received
/// FISes, 256 bytes; the one command table, with its one data range behind 128 bytes.
mod page {
    use super::PAGE;

    pub const LIST: usize = 0;
    pub const RECEIVED: usize = 1024;
    pub const TABLE: usize = 2048;
    pub const DATA_RANGE: usize = TABLE + 0x80;
    pub const IDENTIFY: usize = PAGE;
    pub const COUNT: usize = 2;
}

/// The only command slot used.
const SLOT: u32 = 1;
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

/// A disk ready for reading and writing.
pub struct Port<P, R> {
    registers: register::Port<R>,
    memory: Dma,
    /// The controller reaches memory above 4 GiB.
    wide: bool,
    block_bytes: u32,
    busy: bool,
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
        wide: bool,
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
        let mut port =
            Self { registers, memory, wide, block_bytes: 512, busy: false, platform: PhantomData };
        port.set_address(register::COMMAND_LIST, page::LIST)?;
        port.set_address(register::RECEIVED, page::RECEIVED)?;
        port.clear_errors();
        port.change(RECEIVE, 0);
        // The first FIS of the disk makes it ready, and says what it is.
        let ready = || port.registers.read(register::TASK_FILE) & BUSY == 0;
        if !Deadline::<P>::after_ms(READY_MS).wait(ready) {
            return Err(Error::Deadline("ready after the reset"));
        }
        if port.registers.read(register::SIGNATURE) != DISK {
            return Err(Error::NotADisk);
        }
        port.change(START, 0);
        let identity = identify::read(&port.identify()?, location)?;
        port.block_bytes = identity.block_bytes;
        Ok((port, identity))
    }

    /// Names one of our pages to the port.
    fn set_address(&self, register: usize, offset: usize) -> Result<(), Error> {
        let address = self.reachable(self.memory.address(offset))?;
        self.registers.write(register, address as u32);
        self.registers.write(register + 4, (address >> 32) as u32);
        Ok(())
    }

    fn reachable(&self, address: u64) -> Result<u64, Error> {
        let reached = self.wide || address >> 32 == 0;
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
        self.issue(ata::IDENTIFY, 0, 0, address, data.len() as u64)?;
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

    /// Puts one command into the slot and lets it go (§5.5).
    fn issue(
        &mut self,
        command: u8,
        block: u64,
        blocks: u64,
        address: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        let address = self.reachable(address)?;
        let lba = block.to_le_bytes();
        let count = (blocks as u16).to_le_bytes();
        let fis = [
            u32::from_le_bytes([FIS_TYPE, FIS_COMMAND, command, 0]),
            u32::from_le_bytes([lba[0], lba[1], lba[2], LBA_MODE]),
            u32::from_le_bytes([lba[3], lba[4], lba[5], 0]),
            u32::from_le_bytes([count[0], count[1], 0, 0]),
            0,
        ];
        for (index, word) in fis.into_iter().enumerate() {
            self.memory.write(page::TABLE + 4 * index, word);
        }
        let mut header = FIS_WORDS;
        if bytes > 0 {
            header |= ONE_RANGE;
            self.memory.write_address(page::DATA_RANGE, address);
            self.memory.write(page::DATA_RANGE + 8, 0);
            // The length less one; 1 MiB is far below the 4 MiB of a range.
            self.memory.write(page::DATA_RANGE + 12, bytes as u32 - 1);
        }
        if command == ata::WRITE {
            header |= TO_DISK;
        }
        self.memory.write(page::LIST, header);
        // The count of bytes transferred, which the controller writes.
        self.memory.write(page::LIST + 4, 0);
        self.memory.write_address(page::LIST + 8, self.memory.address(page::TABLE));
        // The command, and the data it names, must be in memory before the port looks.
        fence(Ordering::SeqCst);
        self.busy = true;
        self.registers.write(register::ISSUED, SLOT);
        Ok(())
    }

    /// Makes the port ready for the next command after one has failed (§6.2.2.1).
    fn recover(&mut self) -> Result<(), Error> {
        self.change(0, START);
        let stopped = || self.registers.read(register::COMMAND) & RUNNING == 0;
        if !Deadline::<P>::after_ms(STOP_MS).wait(stopped) {
            return Err(Error::Deadline("stop after an error"));
        }
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
        1
    }

    fn flushes_beside_writes(&self) -> bool {
        false
    }

    fn start(&mut self, _slot: usize, request: &Request) -> Result<(), Error> {
        let block_bytes = u64::from(self.block_bytes);
        let data = request.data;
        let (Some(block), Some(blocks)) =
            (request.offset.checked_div(block_bytes), data.bytes.checked_div(block_bytes))
        else {
            return Err(Error::OutOfRange);
        };
        match request.kind {
            Kind::Flush => self.issue(ata::FLUSH, 0, 0, 0, 0),
            Kind::Write => self.issue(ata::WRITE, block, blocks, data.address, data.bytes),
            Kind::Read => self.issue(ata::READ, block, blocks, data.address, data.bytes),
        }
    }

    fn announce(&mut self) {}

    fn finished(&mut self) -> Result<Option<(usize, Answer)>, Error> {
        if !self.busy {
            return Ok(None);
        }
        let failed = self.registers.read(register::INTERRUPTS) & FAILURES != 0;
        if !failed && self.registers.read(register::ISSUED) & SLOT != 0 {
            return Ok(None);
        }
        // What the command brought must not be read before its end was seen.
        fence(Ordering::SeqCst);
        self.busy = false;
        // Looked at again: the failure may have come between the two.
        let failed = failed
            || self.registers.read(register::INTERRUPTS) & FAILURES != 0
            || self.registers.read(register::TASK_FILE) & ERROR != 0;
        if failed {
            self.recover()?;
            return Ok(Some((0, Answer::Failed)));
        }
        Ok(Some((0, Answer::Done)))
    }
}
