//! A model of an AHCI controller with one disk, written against the specification and not
//! the driver.

use std::cell::RefCell;
use std::rc::Rc;

use crate::memory::Registers;
use crate::memory::fake::{peek, peek32, peek64, poke, take};

/// The port the disk is at; the model has two more, with nothing behind them.
pub const PORT: u8 = 2;

/// How the controller behaves, and what it saw.
pub struct Controller {
    pub capabilities: u32,
    pub control: u32,
    pub disk: Vec<u8>,
    pub block_bytes: u32,
    pub signature: u32,
    pub link: u32,
    /// Words of IDENTIFY DEVICE that differ.
    pub words: Vec<(usize, u16)>,
    /// The reset never ends.
    pub never_resets: bool,
    /// Commands are noted and not acted upon.
    pub silent: bool,
    /// A stopped port says that it runs on.
    pub runs_on: bool,
    /// The disk stays busy after the reset.
    pub stays_busy: bool,
    /// Commands for this block fail.
    pub bad_block: Option<u64>,
    /// Queued commands for this block fail.
    pub bad_in_queue: Option<u64>,
    /// The command in the highest slot is answered first.
    pub backwards: bool,
    /// After so many looks at PxSACT everything that was issued is done, also while `silent`.
    pub answers_at_look: Option<u32>,
    pub(super) looks: u32,
    /// The link does not come up again when it is reset.
    pub stays_down: bool,
    /// The links that were reset.
    pub resets: u32,
    /// Every command, and how many bytes it carried.
    pub commands: Vec<(u8, usize)>,
    pub register_writes: u64,
    pub(super) list: u64,
    pub(super) received: u64,
    pub(super) interrupts: u32,
    pub(super) command: u32,
    pub(super) task_file: u32,
    pub issued: u32,
    pub active: u32,
    /// A queued command failed: the disk takes no other before it was reset.
    pub(super) aborted: bool,
    /// PxSCTL.
    pub(super) link_control: u32,
    /// PxSERR.DIAG.X: the disk's first FIS waits until this is cleared.
    pub(super) exchanged: bool,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            capabilities: 1 << 31,
            control: 0,
            disk: vec![0; 4 << 20],
            block_bytes: 512,
            signature: 0x101,
            link: 0x123,
            words: vec![],
            never_resets: false,
            silent: false,
            runs_on: false,
            stays_busy: false,
            bad_block: None,
            bad_in_queue: None,
            backwards: false,
            answers_at_look: None,
            looks: 0,
            stays_down: false,
            resets: 0,
            commands: vec![],
            register_writes: 0,
            list: 0,
            received: 0,
            interrupts: 0,
            // What the crashed system left: running.
            command: 0xc011,
            task_file: 0x80,
            issued: 0,
            active: 0,
            aborted: false,
            link_control: 0x300,
            exchanged: false,
        }
    }
}

/// A controller with so many slots, and a disk whose queue is so long.
pub fn with_queue(slots: u32, depth: u16) -> Controller {
    Controller {
        capabilities: 1 << 31 | 1 << 30 | (slots - 1) << 8,
        words: vec![(75, depth - 1), (76, 1 << 8 | 1 << 3)],
        ..Controller::default()
    }
}

#[derive(Clone, Default)]
pub struct FakeRegisters(pub Rc<RefCell<Controller>>);

/// The register's offset within the port with the disk.
fn of_port(offset: usize) -> Option<usize> {
    let start = 0x100 + 0x80 * usize::from(PORT);
    offset.checked_sub(start).filter(|&offset| offset < 0x80)
}

impl Registers for FakeRegisters {
    fn read(&self, offset: usize) -> u32 {
        let controller = self.0.borrow();
        match (offset, of_port(offset)) {
            (0x00, _) => controller.capabilities,
            (0x04, _) => controller.control,
            (0x0c, _) => 0b111,
            (_, Some(0x10)) => controller.interrupts,
            (_, Some(0x18)) => controller.command,
            (_, Some(0x20)) => controller.task_file,
            (_, Some(0x24)) => controller.signature,
            (_, Some(0x28)) => controller.link,
            (_, Some(0x2c)) => controller.link_control,
            (_, Some(0x34)) => {
                drop(controller);
                self.0.borrow_mut().look()
            }
            (_, Some(0x38)) => controller.issued,
            // The link of the ports with nothing behind them, and their commands.
            (0x128 | 0x1a8 | 0x118 | 0x198, _) => 0,
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
        match (offset, of_port(offset)) {
            (0x04, _) => controller.set_control(value),
            (_, Some(at @ (0x00 | 0x04))) => controller.list = half(controller.list, at == 4),
            (_, Some(at @ (0x08 | 0x0c))) => {
                controller.received = half(controller.received, at == 12);
            }
            (_, Some(0x10)) => controller.interrupts &= !value,
            (_, Some(0x18)) => controller.set_command(value),
            (_, Some(0x2c)) => controller.set_link_control(value),
            (_, Some(0x30)) => {
                if core::mem::take(&mut controller.exchanged) && !controller.stays_busy {
                    controller.task_file = 0x50;
                }
            }
            (_, Some(0x34)) => {
                assert_ne!(controller.command & 1, 0, "queued at a stopped port");
                controller.active |= value;
            }
            (_, Some(0x38)) => {
                assert_ne!(controller.command & 1, 0, "issued to a stopped port");
                assert_eq!(value.count_ones(), 1);
                assert_eq!(controller.issued & value, 0, "issued twice");
                let queued = matches!(controller.fis(value)[2], 0x60 | 0x61);
                let others = (controller.issued | controller.active) & !value;
                match queued {
                    true => assert_eq!(controller.active & value, value, "PxSACT before PxCI"),
                    false => assert_eq!(others, 0, "beside others"),
                }
                assert_eq!(others & !controller.active, 0, "beside one by itself");
                controller.issued |= value;
                if !controller.silent {
                    controller.work();
                }
            }
            (0x118 | 0x198, _) => {}
            _ => panic!("write of register {offset:#x}"),
        }
    }
}

impl Controller {
    fn set_control(&mut self, value: u32) {
        assert_ne!(value & 1 << 31, 0, "AHCI mode");
        self.control = value;
        if value & 1 != 0 && !self.never_resets {
            (self.control, self.command, self.interrupts) = (0, 0x6, 0);
        }
    }

    fn set_command(&mut self, value: u32) {
        assert_ne!(self.control & 1 << 31, 0, "AHCI mode");
        if value & 1 == 0 && self.command & 1 != 0 {
            (self.issued, self.active) = (0, 0);
        }
        self.command = value & 0x3fff | (value & 1) << 15 | (value & 1 << 4) << 10;
        if self.runs_on {
            self.command |= 1 << 15;
        }
        if value & 1 << 4 != 0 && !self.stays_busy {
            assert_eq!((self.list % 1024, self.received % 256), (0, 0));
            assert!(self.list != 0 && self.received != 0);
            self.task_file &= !0x88;
        }
    }

    fn look(&mut self) -> u32 {
        self.looks += 1;
        if self.answers_at_look.is_some_and(|looks| self.looks.is_multiple_of(looks)) {
            self.silent = false;
            self.work();
        }
        self.active
    }

    fn set_link_control(&mut self, value: u32) {
        assert_eq!(self.command & 1, 0, "the link of a running port");
        let before = core::mem::replace(&mut self.link_control, value);
        match (before & 0xf, value & 0xf) {
            (0, 1) => (self.link, self.task_file) = (0, 0x7f),
            (1, 0) => {
                self.resets += 1;
                (self.aborted, self.exchanged) = (false, true);
                self.link = if self.stays_down { 1 } else { 0x123 };
            }
            other => panic!("PxSCTL.DET {other:?}"),
        }
    }

    /// The command in the slot that is a bit.
    fn fis(&self, slot: u32) -> [u8; 20] {
        peek(peek64(self.list + 32 * u64::from(slot.trailing_zeros()) + 8))
    }

    /// Does everything that was issued.
    pub fn work(&mut self) {
        let mut slots: Vec<u32> = (0..32).map(|slot| 1 << slot).collect();
        if self.backwards {
            slots.reverse();
        }
        for slot in slots {
            if self.issued & slot != 0 {
                self.serve(slot);
            }
        }
    }

    fn serve(&mut self, slot: u32) {
        let at = self.list + 32 * u64::from(slot.trailing_zeros());
        let (header, table) = (peek32(at), peek64(at + 8));
        let fis = self.fis(slot);
        assert_eq!((header & 0x1f, fis[0], fis[1], table % 128), (5, 0x27, 0x80, 0));
        let ranges = u64::from(header >> 16);
        let block = [fis[4], fis[5], fis[6], fis[8], fis[9], fis[10], 0, 0];
        let block = u64::from_le_bytes(block);
        let queued = matches!(fis[2], 0x60 | 0x61);
        let count = if queued { [fis[3], fis[11]] } else { [fis[12], fis[13]] };
        let count = usize::from(u16::from_le_bytes(count));
        let bytes = count * self.block_bytes as usize;
        let at = block as usize * self.block_bytes as usize;
        self.commands.push((fis[2], bytes));
        let moves = matches!(fis[2], 0x25 | 0x35 | 0x60 | 0x61);
        let bad = self.bad_block == Some(block) || queued && self.bad_in_queue == Some(block);
        if self.aborted || bad && moves {
            self.interrupts |= 1 << 30;
            self.task_file = 0x0451;
            if queued {
                // It has accepted the command, and keeps the bit in PxSACT.
                self.issued &= !slot;
                self.aborted = true;
            }
            return;
        }
        let piece = |index: u64| {
            let entry = table + 0x80 + 16 * index;
            (peek64(entry), peek32(entry + 12) as usize + 1)
        };
        let writes = matches!(fis[2], 0x35 | 0x61);
        match fis[2] {
            0xec => {
                assert_eq!((ranges, piece(0).1), (1, 512));
                poke(piece(0).0, &self.identify());
            }
            0x25 | 0x35 | 0x60 | 0x61 => {
                assert_eq!((fis[7], header & 1 << 6 != 0), (0x40, writes));
                if queued {
                    let tag = slot.trailing_zeros() as u8;
                    assert_eq!([fis[12], fis[13]], [tag << 3, 0], "the tag");
                }
                let mut at = at;
                for (address, count) in (0..ranges).map(piece) {
                    let place = &mut self.disk[at..at + count];
                    if writes {
                        take(address, place)
                    } else {
                        poke(address, place)
                    }
                    at += count;
                }
                assert_eq!(at, block as usize * self.block_bytes as usize + bytes);
            }
            0xea => assert_eq!(ranges, 0),
            other => panic!("command {other:#x}"),
        }
        self.task_file = 0x50;
        self.interrupts |= if queued { 1 << 3 } else { 1 };
        self.issued &= !slot;
        self.active &= !slot;
    }

    fn identify(&self) -> Vec<u8> {
        let mut words = [0u16; 256];
        for (word, pair) in words[10..20].iter_mut().zip(b"dump-03 \x07           ".chunks(2)) {
            *word = u16::from_be_bytes([pair[0], pair[1]]);
        }
        words[83] = 1 << 14 | 1 << 13 | 1 << 10;
        let blocks = self.disk.len() as u64 / u64::from(self.block_bytes);
        for (index, word) in words[100..104].iter_mut().enumerate() {
            *word = (blocks >> (16 * index)) as u16;
        }
        if self.block_bytes != 512 {
            words[106] = 1 << 14 | 1 << 12;
            words[117] = (self.block_bytes / 2) as u16;
            words[118] = ((self.block_bytes / 2) >> 16) as u16;
        }
        for (index, word) in &self.words {
            words[*index] = *word;
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}
