//! Rate of the time-stamp counter: `epitaph_firmware::clock` has the arithmetic and the
//! measurements, this module the access to the processor and to ports.

use epitaph_firmware::hardware::{Ports, Processor};

use super::{cpu, port};

/// The running CPU and its I/O ports.
#[derive(Clone, Copy, Debug)]
pub struct Hardware;

impl Ports for Hardware {
    fn read8(&self, port: u16) -> u8 {
        port::read8(port)
    }

    fn read16(&self, port: u16) -> u16 {
        port::read16(port)
    }

    fn read32(&self, port: u16) -> u32 {
        port::read32(port)
    }

    fn write8(&self, port: u16, value: u8) {
        port::write8(port, value);
    }

    fn write16(&self, port: u16, value: u16) {
        port::write16(port, value);
    }

    fn write32(&self, port: u16, value: u32) {
        port::write32(port, value);
    }
}

impl Processor for Hardware {
    fn counter(&self) -> u64 {
        cpu::rdtsc()
    }

    fn cpuid(&self, leaf: u32) -> Option<[u32; 4]> {
        if !cpu::has_cpuid(leaf) {
            return None;
        }
        let registers = cpu::cpuid(leaf, 0);
        Some([registers.eax, registers.ebx, registers.ecx, registers.edx])
    }
}
