//! A model of an NVMe controller, written against the specification and not the driver.

use std::cell::RefCell;
use std::rc::Rc;

use crate::memory::Registers;
use crate::memory::fake::{peek32, peek64, poke, take};

/// How the controller behaves, and what it saw.
pub struct Controller {
    pub capabilities: u64,
    pub configuration: u32,
    pub status: u32,
    /// Block size as a power of two.
    pub shift: u8,
    pub metadata: u16,
    pub max_transfer: u8,
    pub write_protected: bool,
    /// The namespace that has blocks.
    pub namespace: u32,
    /// The active namespaces as listed; an empty list is refused, as before version 1.1.
    pub active: Vec<u32>,
    pub disk: Vec<u8>,
    /// Doorbells are noted and not acted upon.
    pub silent: bool,
    /// The last command submitted is answered first.
    pub backwards: bool,
    /// Identifiers of the I/O commands, in the order of their answers.
    pub ids: Vec<u32>,
    /// CC.EN is not followed.
    pub stuck: bool,
    /// Enabling ends in a fatal status.
    pub dies: bool,
    /// Commands for this block fail.
    pub bad_block: Option<u64>,
    /// This admin command is refused.
    pub refused: Option<u8>,
    /// Every data length a write carried.
    pub writes: Vec<usize>,
    pub flushed: u64,
    pub register_writes: u64,
    pub(super) admin: [u64; 2],
    pub(super) sizes: u32,
    /// By queue: addresses of both queues, entries, tail rung, entries taken.
    pub(super) queues: [Queue; 2],
}

#[derive(Clone, Copy, Default)]
pub(super) struct Queue {
    submissions: u64,
    completions: u64,
    entries: u32,
    tail: u32,
    taken: u32,
    answered: u32,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            // The NVM command set, 500 ms to get ready, 2048 entries.
            capabilities: 1 << 37 | 1 << 24 | 0x7ff,
            configuration: 0,
            status: 0,
            shift: 9,
            metadata: 0,
            max_transfer: 0,
            write_protected: false,
            namespace: 1,
            active: vec![],
            disk: vec![0; 4 << 20],
            silent: false,
            backwards: false,
            ids: vec![],
            stuck: false,
            dies: false,
            bad_block: None,
            refused: None,
            writes: vec![],
            flushed: 0,
            register_writes: 0,
            admin: [0; 2],
            sizes: 0,
            queues: [Queue::default(); 2],
        }
    }
}

#[derive(Clone, Default)]
pub struct FakeRegisters(pub Rc<RefCell<Controller>>);

impl Registers for FakeRegisters {
    fn read(&self, offset: usize) -> u32 {
        let controller = self.0.borrow();
        match offset {
            0x00 => controller.capabilities as u32,
            0x04 => (controller.capabilities >> 32) as u32,
            0x14 => controller.configuration,
            0x1c => controller.status,
            _ => panic!("read of register {offset:#x}"),
        }
    }

    fn write(&self, offset: usize, value: u32) {
        let mut controller = self.0.borrow_mut();
        controller.register_writes += 1;
        let half = |old: u64, high: bool| match high {
            false => old >> 32 << 32 | u64::from(value),
            true => old & 0xffff_ffff | u64::from(value) << 32,
        };
        match offset {
            0x14 => controller.configure(value),
            0x24 => controller.sizes = value,
            0x28 | 0x2c => controller.admin[0] = half(controller.admin[0], offset == 0x2c),
            0x30 | 0x34 => controller.admin[1] = half(controller.admin[1], offset == 0x34),
            0x1000.. => {
                let stride = 4 << (controller.capabilities >> 32 & 0xf);
                let (bell, rest) = ((offset - 0x1000) / stride, (offset - 0x1000) % stride);
                assert_eq!(rest, 0, "between two doorbells");
                if bell % 2 == 0 {
                    controller.queues[bell / 2].tail = value;
                    if !controller.silent {
                        controller.work(bell / 2);
                    }
                }
            }
            _ => panic!("write of register {offset:#x}"),
        }
    }
}

impl Controller {
    fn configure(&mut self, value: u32) {
        self.configuration = value;
        if self.stuck {
            return;
        }
        self.status = value & 1;
        if value & 1 != 0 {
            assert_eq!(value & !1, 6 << 16 | 4 << 20);
            assert_eq!(self.sizes & 0xffff, self.sizes >> 16);
            self.queues = [Queue::default(); 2];
            self.queues[0] = Queue {
                submissions: self.admin[0],
                completions: self.admin[1],
                entries: (self.sizes & 0xfff) + 1,
                ..Queue::default()
            };
            if self.dies {
                self.status = 2;
            }
        }
    }

    /// Does everything that was submitted to a queue.
    pub fn work(&mut self, number: usize) {
        let mut answers = vec![];
        while self.queues[number].taken != self.queues[number].tail {
            let queue = self.queues[number];
            let command = queue.submissions + 64 * u64::from(queue.taken);
            let status = self.serve(number, command);
            self.queues[number].taken = (queue.taken + 1) % queue.entries;
            answers.push((peek32(command) >> 16, status));
        }
        if self.backwards {
            answers.reverse();
        }
        for (id, status) in answers {
            if number == 1 {
                self.ids.push(id);
            }
            self.answer(number, id, status);
        }
    }

    /// Posts a completion, whether a command had this identifier or not.
    pub fn answer(&mut self, number: usize, id: u32, status: u32) {
        let queue = &mut self.queues[number];
        let entry = queue.completions + 16 * u64::from(queue.answered % queue.entries);
        let phase = 1 - queue.answered / queue.entries % 2;
        queue.answered += 1;
        poke(entry, &[0; 12]);
        poke(entry + 12, &(id | phase << 16 | status << 17).to_le_bytes());
    }

    fn serve(&mut self, number: usize, command: u64) -> u32 {
        let opcode = peek32(command) as u8;
        let (namespace, data) = (peek32(command + 4), peek64(command + 24));
        let word = |index: u64| peek32(command + 4 * index);
        if number == 0 {
            if self.refused == Some(opcode) {
                return 1;
            }
            match opcode {
                6 if word(10) == 2 && self.active.is_empty() => return 2,
                6 => poke(data, &self.identify(namespace, word(10))),
                9 => assert_eq!(word(10), 7),
                1 | 5 => {
                    assert_eq!(word(10) & 0xffff, 1);
                    let queue = &mut self.queues[1];
                    queue.entries = (word(10) >> 16) + 1;
                    assert!(word(10) >> 16 <= self.capabilities as u32 & 0xffff, "MQES");
                    if opcode == 5 {
                        assert_eq!(word(11), 1, "contiguous, no interrupts");
                        queue.completions = data;
                    } else {
                        assert_eq!(word(11), 1 << 16 | 1, "contiguous, for queue 1");
                        assert_ne!(queue.completions, 0, "before its completion queue");
                        queue.submissions = data;
                    }
                }
                _ => return 1,
            }
            return 0;
        }
        if namespace != self.namespace {
            return 0x0b;
        }
        if opcode == 0 {
            self.flushed += 1;
            return 0;
        }
        let (block, bytes) =
            (peek64(command + 40), ((word(12) & 0xffff) as usize + 1) << self.shift);
        if self.bad_block == Some(block) {
            // Media error: write fault.
            return 0x280;
        }
        let mut at = (block as usize) << self.shift;
        if opcode == 1 {
            self.writes.push(bytes);
        }
        for (address, count) in pages(data, peek64(command + 32), bytes) {
            let place = &mut self.disk[at..at + count];
            match opcode {
                1 => take(address, place),
                2 => poke(address, place),
                _ => return 1,
            }
            at += count;
        }
        0
    }

    fn identify(&self, namespace: u32, structure: u32) -> Vec<u8> {
        let mut page = vec![0; 4096];
        match (structure, namespace) {
            (1, _) => {
                page[4..24].copy_from_slice(b"  dump-02 \x07         ");
                page[77] = self.max_transfer;
                page[516] = 3;
            }
            (2, 0) => {
                for (place, id) in page.chunks_exact_mut(4).zip(&self.active) {
                    place.copy_from_slice(&id.to_le_bytes());
                }
            }
            (0, number) if number == self.namespace => {
                let blocks = self.disk.len() as u64 >> self.shift;
                page[..8].copy_from_slice(&blocks.to_le_bytes());
                // The third format is in use.
                page[26] = 2;
                page[136..138].copy_from_slice(&self.metadata.to_le_bytes());
                page[138] = self.shift;
                page[99] = u8::from(self.write_protected);
            }
            _ => {}
        }
        page
    }
}

/// The pieces of memory a command names by its two entries (§4.3).
fn pages(first: u64, second: u64, bytes: usize) -> Vec<(u64, usize)> {
    let in_first = bytes.min(4096 - first as usize % 4096);
    let mut pieces = vec![(first, in_first)];
    let mut left = bytes - in_first;
    let list = left > 4096;
    let mut entry = second;
    while left > 0 {
        let page = if list { peek64(entry) } else { second };
        assert!(page != 0 && page.is_multiple_of(4096), "page {page:#x}");
        pieces.push((page, left.min(4096)));
        left -= left.min(4096);
        entry += 8;
    }
    pieces
}
