//! Access to the machine's devices, which the caller provides.
//!
//! The crate has no unsafe code, and so no access of its own. A test's model of a device and
//! the running machine both implement these traits.

/// I/O ports.
pub trait Ports {
    /// Reads a byte; all bits are set where no device answers.
    fn read8(&self, port: u16) -> u8;
    /// Reads 16 bits.
    fn read16(&self, port: u16) -> u16;
    /// Reads 32 bits.
    fn read32(&self, port: u16) -> u32;
    /// Writes a byte.
    fn write8(&self, port: u16, value: u8);
    /// Writes 16 bits.
    fn write16(&self, port: u16, value: u16);
    /// Writes 32 bits.
    fn write32(&self, port: u16, value: u32);
}

/// The running CPU.
pub trait Processor {
    /// Returns the time-stamp counter.
    fn counter(&self) -> u64;
    /// Returns EAX, EBX, ECX and EDX of a CPUID leaf, sub-leaf 0; `None` where the processor or
    /// the hypervisor has no such leaf.
    fn cpuid(&self, leaf: u32) -> Option<[u32; 4]>;
}

/// Device registers in memory, by physical address.
///
/// The addresses come out of PCI configuration space, or out of facts that passed their
/// checksum. An implementation has to see to it that they are mapped, uncached.
pub trait Registers {
    /// Reads a register of 8 bits.
    fn read_memory8(&self, address: u64) -> u8;
    /// Reads a register of 16 bits.
    fn read_memory16(&self, address: u64) -> u16;
    /// Reads a register of 32 bits.
    fn read_memory32(&self, address: u64) -> u32;
    /// Writes a register of 8 bits.
    fn write_memory8(&self, address: u64, value: u8);
    /// Writes a register of 16 bits.
    fn write_memory16(&self, address: u64, value: u16);
    /// Writes a register of 32 bits.
    fn write_memory32(&self, address: u64, value: u32);
}
