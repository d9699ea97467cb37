//! Registers of a port (Serial ATA AHCI 1.3.1, §3.3).

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
pub const LINK_CONTROL: usize = 0x2c;
pub const ERRORS: usize = 0x30;
pub const ACTIVE: usize = 0x34;
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
