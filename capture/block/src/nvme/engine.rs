//! Bringing a controller up, and the requests it serves.

use super::identify::{self, ControllerFacts, Page};
use super::queue::{Command, Link, MAX_ENTRIES, Queue};
use crate::memory::{Dma, PAGE, Registers};
use crate::pci::Address;
use crate::polled::{Answer, Engine, Kind, MAX_DEPTH, Polled, Request, bounce_pages};
use crate::{Deadline, Error, Platform};

/// Registers (§3.1).
mod register {
    pub const CAPABILITIES: usize = 0x00;
    pub const CONFIGURATION: usize = 0x14;
    pub const STATUS: usize = 0x1c;
    pub const ADMIN_SIZES: usize = 0x24;
    pub const ADMIN_SUBMISSIONS: usize = 0x28;
    pub const ADMIN_COMPLETIONS: usize = 0x30;
}

/// CC (§3.1.5): enabled.
const ENABLE: u32 = 1;
/// CC: entries of 2^6 and 2^4 bytes, pages of 4 KiB, the NVM command set.
const SETTINGS: u32 = 6 << 16 | 4 << 20;
/// CSTS (§3.1.6): ready, and fatal.
const READY: u32 = 1;
const FATAL: u32 = 1 << 1;

/// Admin commands (§5) and I/O commands (§6).
mod opcode {
    pub const CREATE_SUBMISSIONS: u32 = 0x01;
    pub const CREATE_COMPLETIONS: u32 = 0x05;
    pub const IDENTIFY: u32 = 0x06;
    pub const SET_FEATURES: u32 = 0x09;
    pub const FLUSH: u32 = 0x00;
    pub const WRITE: u32 = 0x01;
    pub const READ: u32 = 0x02;
}

/// Status (§4.6.1): invalid command opcode, and namespace is write protected.
const INVALID_OPCODE: u16 = 0x01;
const WRITE_PROTECTED: u16 = 0x20;
/// Feature: number of queues (§5.21.1.7).
const NUMBER_OF_QUEUES: u32 = 7;
/// The I/O queue pair.
const IO_QUEUE: u32 = 1;
/// Queue entries lie in one piece of memory (§5.3, §5.4).
const CONTIGUOUS: u32 = 1;
/// How long an admin command may take.
const ADMIN_MS: u64 = 10_000;
/// Namespaces looked at, in the order of their identifiers.
pub const MAX_NAMESPACES: usize = 64;
/// Identifiers tried one by one at a controller without the list of active namespaces.
const MAX_IDENTIFIERS: u32 = 16;
/// Identify: the structure of a namespace, of the controller, the list of active
/// namespaces (CNS, figure 244).
mod structure {
    pub const NAMESPACE: u32 = 0;
    pub const CONTROLLER: u32 = 1;
    pub const ACTIVE: u32 = 2;
}
/// Doorbells further apart than this would lie outside the registers mapped.
const MAX_STRIDE_SHIFT: u32 = 8;

/// Entries of the admin queue, which has one command in flight.
const ADMIN_ENTRIES: u16 = 8;
/// Entries of the I/O queue, where the controller has as many.
const IO_ENTRIES: u16 = MAX_DEPTH as u16 + 1;
const _: () = assert!(IO_ENTRIES <= MAX_ENTRIES);

/// Pages shared with the controller, by offset.
mod page {
    use super::PAGE;

    pub const ADMIN_SUBMISSIONS: usize = 0;
    pub const ADMIN_COMPLETIONS: usize = PAGE;
    pub const SUBMISSIONS: usize = 2 * PAGE;
    pub const COMPLETIONS: usize = 3 * PAGE;
    pub const IDENTIFY: usize = 4 * PAGE;
    pub const COUNT: usize = 5;
}

/// Lists of data pages (§4.3), one for each request in flight. None crosses a page: their length
/// is a power of two, and the largest is that of 1 MiB, 2 KiB.
struct PageLists {
    memory: Dma,
    list_bytes: usize,
    count: usize,
}

impl PageLists {
    /// Takes memory for the lists of `depth` requests of `max_bytes` each, or of as many as there
    /// is memory for.
    fn take<P: Platform>(mut depth: usize, max_bytes: u64) -> Result<Self, Error> {
        // A request touches one page more than it is long, and its first page is in no list.
        let list_bytes = (max_bytes as usize).div_ceil(PAGE).saturating_mul(8);
        let list_bytes = list_bytes.next_power_of_two().min(PAGE);
        loop {
            match Dma::take::<P>((depth * list_bytes).div_ceil(PAGE)) {
                Ok(memory) => return Ok(Self { memory, list_bytes, count: depth }),
                Err(error) if depth <= 1 => return Err(error),
                Err(_) => depth /= 2,
            }
        }
    }
}

/// A controller that has been reset.
#[derive(Debug)]
pub struct Controller<R> {
    registers: R,
    capabilities: u64,
}

/// Reads a 64-bit register as two words.
fn read_wide(registers: &impl Registers, offset: usize) -> u64 {
    u64::from(registers.read(offset + 4)) << 32 | u64::from(registers.read(offset))
}

fn write_wide(registers: &impl Registers, offset: usize, value: u64) {
    registers.write(offset, value as u32);
    registers.write(offset + 4, (value >> 32) as u32);
}

/// How long a change of CC.EN may take, as the controller says (CAP.TO, §3.1.1), in ms.
const fn ready_ms(capabilities: u64) -> u64 {
    // At least one unit: some controllers say 0 and mean "at once".
    let units = capabilities >> 24 & 0xff;
    500 * if units == 0 { 1 } else { units }
}

impl<R: Registers> Controller<R> {
    /// Disables the controller, which resets it, and waits until it is (§7.3.2).
    ///
    /// # Errors
    /// When there is no controller or it does not come to rest.
    pub fn reset<P: Platform>(registers: R) -> Result<Self, Error> {
        let capabilities = read_wide(&registers, register::CAPABILITIES);
        let status = || registers.read(register::STATUS);
        // A function without decoding or power reads as ones.
        if capabilities == u64::MAX || status() == u32::MAX {
            return Err(Error::Setup("the registers read as ones"));
        }
        let limit = ready_ms(capabilities);
        let configuration = registers.read(register::CONFIGURATION);
        if configuration & ENABLE != 0 {
            // Disabling a controller on its way up is undefined (§3.1.5); a fatal one
            // never gets ready.
            let up = || status() & (READY | FATAL) != 0;
            if !Deadline::<P>::after_ms(limit).wait(up) {
                return Err(Error::Deadline("ready before the reset"));
            }
            registers.write(register::CONFIGURATION, configuration & !ENABLE);
        }
        if Deadline::<P>::after_ms(limit).wait(|| status() & READY == 0) {
            Ok(Self { registers, capabilities })
        } else {
            Err(Error::Deadline("reset"))
        }
    }

    /// Enables the controller, makes an I/O queue and lists the namespaces (§7.6.1).
    ///
    /// # Errors
    /// Says which step failed.
    pub fn start<P: Platform>(self) -> Result<Started<R>, Error> {
        let Self { registers, capabilities } = self;
        let stride_shift = (capabilities >> 32) as u32 & 0xf;
        if capabilities >> 37 & 1 == 0 {
            return Err(Error::Setup("no NVM command set"));
        }
        if capabilities >> 48 & 0xf != 0 {
            return Err(Error::Setup("no pages of 4 KiB"));
        }
        if stride_shift > MAX_STRIDE_SHIFT {
            return Err(Error::Setup("doorbells too far apart"));
        }
        // MQES: the entries of an I/O queue at most, less one; one entry is no queue.
        let entries = (capabilities as u16).saturating_add(1).min(IO_ENTRIES);
        if entries < 2 {
            return Err(Error::Setup("queues too short"));
        }
        let memory = Dma::take::<P>(page::COUNT)?;
        let last = u32::from(ADMIN_ENTRIES) - 1;
        registers.write(register::ADMIN_SIZES, last << 16 | last);
        let queues = [
            (register::ADMIN_SUBMISSIONS, page::ADMIN_SUBMISSIONS),
            (register::ADMIN_COMPLETIONS, page::ADMIN_COMPLETIONS),
        ];
        for (register, offset) in queues {
            write_wide(&registers, register, memory.address(offset));
        }
        registers.write(register::CONFIGURATION, SETTINGS | ENABLE);
        let status = || registers.read(register::STATUS);
        let up = || status() & (READY | FATAL) != 0;
        if !Deadline::<P>::after_ms(ready_ms(capabilities)).wait(up) {
            return Err(Error::Deadline("ready after the reset"));
        }
        if status() & FATAL != 0 {
            return Err(Error::Setup("a fatal controller status"));
        }
        let link = Link { registers, memory, stride: 4 << stride_shift };
        let admin = Queue::new(0, ADMIN_ENTRIES, page::ADMIN_SUBMISSIONS, page::ADMIN_COMPLETIONS);
        Admin { link, queue: admin }.finish::<P>(entries)
    }
}

/// A controller whose admin queue works.
struct Admin<R> {
    link: Link<R>,
    queue: Queue,
}

impl<R: Registers> Admin<R> {
    /// Makes the I/O queue of so many entries and lists the namespaces.
    fn finish<P: Platform>(mut self, entries: u16) -> Result<Started<R>, Error> {
        let page = self.identify::<P>(0, structure::CONTROLLER, "identify controller")?;
        let facts = ControllerFacts::read(&page);
        let mut namespaces = heapless::Vec::new();
        let more = match self.identify::<P>(0, structure::ACTIVE, "active namespaces") {
            Ok(page) => identify::active(&page, &mut namespaces),
            // A controller of before version 1.1 does not know the list.
            Err(Error::Setup(_)) => {
                for id in 1..=facts.namespaces.min(MAX_IDENTIFIERS) {
                    // There are more places than identifiers tried.
                    let _ = namespaces.push(id);
                }
                facts.namespaces > MAX_IDENTIFIERS
            }
            Err(error) => return Err(error),
        };
        // One pair is what it starts with; a controller may want to be asked, or refuse.
        let mut command = Command::default();
        command[0] = opcode::SET_FEATURES;
        command[10] = NUMBER_OF_QUEUES;
        match self.run::<P>(command, "number of queues") {
            Ok(()) | Err(Error::Setup(_)) => {}
            Err(error) => return Err(error),
        }
        let sizes = (u32::from(entries) - 1) << 16 | IO_QUEUE;
        let create = [
            // Without interrupts.
            (opcode::CREATE_COMPLETIONS, page::COMPLETIONS, CONTIGUOUS, "completion queue"),
            (
                opcode::CREATE_SUBMISSIONS,
                page::SUBMISSIONS,
                IO_QUEUE << 16 | CONTIGUOUS,
                "submission queue",
            ),
        ];
        for (opcode, offset, flags, what) in create {
            let mut command = Command::default();
            command[0] = opcode;
            set_address(&mut command, 6, self.link.memory.address(offset));
            command[10] = sizes;
            command[11] = flags;
            self.run::<P>(command, what)?;
        }
        let queue = Queue::new(IO_QUEUE as usize, entries, page::SUBMISSIONS, page::COMPLETIONS);
        let bounce = bounce_pages::<P>()?;
        let lists = PageLists::take::<P>(usize::from(entries - 1), facts.max_bytes)?;
        let (busy, epoch) = (0, 0);
        Ok(Started { admin: self, queue, bounce, lists, facts, namespaces, more, busy, epoch })
    }

    fn identify<P: Platform>(
        &mut self,
        namespace: u32,
        structure: u32,
        what: &'static str,
    ) -> Result<Page, Error> {
        let mut command = Command::default();
        command[0] = opcode::IDENTIFY;
        command[1] = namespace;
        set_address(&mut command, 6, self.link.memory.address(page::IDENTIFY));
        command[10] = structure;
        self.run::<P>(command, what)?;
        let mut page = [0; PAGE];
        self.link.memory.copy_out(page::IDENTIFY, &mut page);
        Ok(page)
    }

    /// Runs one admin command to its end.
    fn run<P: Platform>(&mut self, command: Command, what: &'static str) -> Result<(), Error> {
        self.queue.submit(&self.link, &command);
        self.queue.ring(&self.link);
        let mut answer = None;
        Deadline::<P>::after_ms(ADMIN_MS).wait(|| {
            answer = self.queue.take(&self.link);
            answer.is_some()
        });
        match answer {
            Some(completion) if completion.status == 0 => Ok(()),
            Some(_) => Err(Error::Setup(what)),
            None => Err(Error::Deadline(what)),
        }
    }
}

fn set_address(command: &mut Command, word: usize, address: u64) {
    command[word] = address as u32;
    command[word + 1] = (address >> 32) as u32;
}

/// A controller with an I/O queue, whose namespaces are disks, one at a time.
pub struct Started<R> {
    admin: Admin<R>,
    queue: Queue,
    /// Pages for small reads and writes, of the namespace that is open.
    bounce: Dma,
    lists: PageLists,
    facts: ControllerFacts,
    /// Identifiers of the namespaces, in ascending order.
    pub namespaces: heapless::Vec<u32, MAX_NAMESPACES>,
    /// The controller has more namespaces than the list.
    pub more: bool,
    /// I/O commands that the controller has not answered.
    busy: usize,
    /// Counts the namespaces opened. The upper byte of a command's identifier, so that a
    /// late answer to the namespace before is told apart.
    epoch: u8,
}

impl<R: Registers> Started<R> {
    /// Opens the namespace `id`: `None` when it has no blocks. Waits first until the
    /// commands of the namespace opened before are answered, whose memory they may use.
    ///
    /// # Errors
    /// When the namespace has a format that the driver does not write, or the controller
    /// does not answer.
    pub fn namespace<P: Platform>(
        &mut self,
        id: u32,
        location: Address,
    ) -> Result<Option<Polled<P, Nvme<'_, R>>>, Error> {
        let rested = Deadline::<P>::after_ms(ADMIN_MS).wait(|| {
            if self.busy > 0 && self.queue.take(&self.admin.link).is_some() {
                self.busy -= 1;
            }
            self.busy == 0
        });
        if !rested {
            return Err(Error::Deadline("the namespace before"));
        }
        self.epoch = self.epoch.wrapping_add(1);
        let page = self.admin.identify::<P>(id, structure::NAMESPACE, "identify namespace")?;
        let Some(identity) = identify::namespace(&page, id, &self.facts, location)? else {
            return Ok(None);
        };
        let block_shift = identity.block_bytes.trailing_zeros();
        let bounce = self.bounce.again();
        let engine = Nvme { controller: self, namespace: id, block_shift };
        Ok(Some(Polled::with_pages(engine, identity, bounce)))
    }
}

/// A namespace ready for reading and writing.
pub struct Nvme<'a, R> {
    controller: &'a mut Started<R>,
    namespace: u32,
    block_shift: u32,
}

impl<R: Registers> Nvme<'_, R> {
    /// The two addresses by which a command names its data (§4.3): the first page, and the
    /// second or a list of all others. Only the first may start inside a page.
    fn data_pages(&self, slot: usize, start: u64, bytes: u64) -> (u64, u64) {
        let page = PAGE as u64;
        let second = start / page * page + page;
        let rest = (start + bytes).saturating_sub(second);
        let PageLists { memory, list_bytes, .. } = &self.controller.lists;
        match rest.div_ceil(page) {
            0 => (start, 0),
            1 => (start, second),
            pages => {
                let list = slot * list_bytes;
                for index in 0..pages {
                    memory.write_address(list + 8 * index as usize, second + page * index);
                }
                (start, memory.address(list))
            }
        }
    }
}

impl<R: Registers> Engine for Nvme<'_, R> {
    fn depth(&self) -> usize {
        self.controller.lists.count
    }

    fn flushes_beside_writes(&self) -> bool {
        self.depth() > 1
    }

    fn start(&mut self, slot: usize, request: &Request) -> Result<(), Error> {
        let mut command = Command::default();
        let opcode = match request.kind {
            Kind::Flush => opcode::FLUSH,
            Kind::Write => opcode::WRITE,
            Kind::Read => opcode::READ,
        };
        // The command's identifier: the epoch, and the slot.
        let id = u32::from(self.controller.epoch) << 8 | slot as u32;
        command[0] = id << 16 | opcode;
        command[1] = self.namespace;
        if request.kind != Kind::Flush {
            let (first, others) = self.data_pages(slot, request.data.address, request.data.bytes);
            set_address(&mut command, 6, first);
            set_address(&mut command, 8, others);
            set_address(&mut command, 10, request.offset >> self.block_shift);
            command[12] = (request.data.bytes >> self.block_shift) as u32 - 1;
        }
        let controller = &mut *self.controller;
        controller.queue.submit(&controller.admin.link, &command);
        controller.queue.ring(&controller.admin.link);
        controller.busy += 1;
        Ok(())
    }

    /// The controller has heard of everything: bursts gain nothing over an early start.
    fn announce(&mut self) {}

    fn finished(&mut self) -> Result<Option<(usize, Answer)>, Error> {
        let controller = &mut *self.controller;
        let Some(completion) = controller.queue.take(&controller.admin.link) else {
            return Ok(None);
        };
        controller.busy = controller.busy.saturating_sub(1);
        let [slot, epoch] = completion.id.to_le_bytes();
        if epoch != controller.epoch {
            return Err(Error::Setup("the device answered what nobody asked"));
        }
        let answer = match completion.status {
            0 => Answer::Done,
            INVALID_OPCODE => Answer::Unsupported,
            WRITE_PROTECTED => Answer::ReadOnly,
            _ => Answer::Failed,
        };
        Ok(Some((usize::from(slot), answer)))
    }
}
