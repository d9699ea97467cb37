//! The hardware watchdog on this machine: `epitaph_firmware::hw_watchdog` knows the devices,
//! this module has the access to them.

use epitaph_firmware::hardware::{Ports, Registers};
use epitaph_firmware::hw_watchdog as devices;
use handoff::Range;
use handoff::devices::WatchdogFacts;

use super::port;

pub use devices::{MAX_MS, MIN_MS};

/// A watchdog that was found, or that sealed facts describe. Its registers in memory are
/// mapped: see [`registers`](Self::registers).
#[derive(Clone, Copy, Debug)]
pub struct HwWatchdog(devices::HwWatchdog);

/// Access to the registers of a watchdog, in memory that is mapped.
struct Mapped;

impl HwWatchdog {
    /// Looks for a watchdog that can reset the machine. The second value says whether it was
    /// this watchdog that reset the machine; that is forgotten by asking.
    ///
    /// Registers in memory below 4 GiB are mapped.
    #[must_use]
    pub fn find() -> Option<(Self, bool)> {
        let watchdog = devices::HwWatchdog::look(&Mapped)?;
        watchdog.prepare(&Mapped).then(|| (Self(watchdog), watchdog.has_fired(&Mapped)))
    }

    /// Returns the watchdog that sealed facts describe.
    #[must_use]
    pub fn from_facts(facts: &WatchdogFacts) -> Option<Self> {
        devices::HwWatchdog::from_facts(facts).map(Self)
    }

    /// Returns what the capture image needs to know of the watchdog, and the time it is to be
    /// set to.
    #[must_use]
    pub fn facts(&self, timeout_ms: u64) -> WatchdogFacts {
        self.0.facts(timeout_ms)
    }

    /// Returns the watchdog's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Returns the registers in memory, which have to be mapped.
    #[must_use]
    pub const fn registers(&self) -> Option<Range> {
        self.0.registers()
    }

    /// Starts the watchdog, or sets a running one anew: `milliseconds` from now it resets the
    /// machine, unless it is fed.
    pub fn arm(&self, milliseconds: u64) {
        self.0.arm(&Mapped, milliseconds);
    }

    /// Begins the watchdog's time anew.
    pub fn feed(&self) {
        self.0.feed(&Mapped);
    }

    /// Stops the watchdog.
    pub fn disarm(&self) {
        self.0.disarm(&Mapped);
    }
}

impl Ports for Mapped {
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

impl Registers for Mapped {
    fn read_memory8(&self, address: u64) -> u8 {
        // SAFETY: the registers of a watchdog, where the device, the chipset or sealed facts
        // say, in memory that the callers have mapped; no memory of this program.
        unsafe { (address as *const u8).read_volatile() }
    }

    fn read_memory16(&self, address: u64) -> u16 {
        // SAFETY: as in `read_memory8`.
        unsafe { (address as *const u16).read_volatile() }
    }

    fn read_memory32(&self, address: u64) -> u32 {
        // SAFETY: as in `read_memory8`.
        unsafe { (address as *const u32).read_volatile() }
    }

    fn write_memory8(&self, address: u64, value: u8) {
        // SAFETY: as in `read_memory8`.
        unsafe { (address as *mut u8).write_volatile(value) }
    }

    fn write_memory16(&self, address: u64, value: u16) {
        // SAFETY: as in `read_memory8`.
        unsafe { (address as *mut u16).write_volatile(value) }
    }

    fn write_memory32(&self, address: u64, value: u32) {
        // SAFETY: as in `read_memory8`.
        unsafe { (address as *mut u32).write_volatile(value) }
    }
}
