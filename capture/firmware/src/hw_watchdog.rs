//! A hardware watchdog, which resets the machine unless it is fed: finding it, seeing whether
//! it runs, feeding it.
//!
//! Two are known. The TCO timer lies in the I/O controller hubs of Intel's chipsets from the
//! ICH9 (Intel I/O Controller Hub 9 data sheet, 13.9: TCO registers); QEMU's q35 has one.
//! The 6300ESB (Intel 6300ESB data sheet, 16: watchdog timer) is a function of its own; QEMU
//! has it as a device. Both count twice: at the end of the first count they could warn
//! somebody, at the end of the second they reset, so each count is half of the time.

use handoff::Range;
use handoff::devices::{WatchdogFacts, WatchdogKind};

use crate::hardware::{Ports, Registers};

/// The longest time both can be set to, in milliseconds: 1023 counts of 0.6 s, twice.
pub const MAX_MS: u64 = 1_200_000;
/// The shortest: 4 counts of 0.6 s, twice, which the TCO timer takes as the least.
pub const MIN_MS: u64 = 5_000;

/// Ports of PCI configuration mechanism 1 (PCI Local Bus Specification 3.0, 3.2.2.3.2), for
/// registers that are not 32 bits wide.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;
/// Configuration registers every function has: identity, command, base address 0.
const CONFIG_ID: u32 = 0x00;
const CONFIG_COMMAND: u32 = 0x04;
const CONFIG_BAR0: u32 = 0x10;
const COMMAND_MEMORY: u32 = 1 << 1;

const INTEL: u32 = 0x8086;
const ID_6300ESB: u32 = 0x25ab << 16 | INTEL;
/// LPC bridges of the ICH9 family, at device 31, function 0 of bus 0 (13.1.2 there).
const IDS_ICH9: core::ops::RangeInclusive<u32> = 0x2910..=0x291f;
const LPC: u32 = CONFIG_ENABLE | 31 << 11;
/// Configuration registers of the bridge: where the ACPI ports are, whether they answer, and
/// where the chipset's registers are (13.1.13, 13.1.14, 13.1.35).
const LPC_ACPI_BASE: u32 = 0x40;
const LPC_ACPI_CONTROL: u32 = 0x44;
const LPC_ROOT_COMPLEX: u32 = 0xf0;
/// General control and status among the chipset's registers, and its "no reboot" (10.1.75).
const GENERAL_CONTROL: u64 = 0x3410;
const NO_REBOOT: u32 = 1 << 5;
/// ACPI port: SMI control and enable, and its "a TCO time-out is an SMI" (13.8.3.9). A BIOS
/// that handles those would feed the watchdog itself.
const SMI_ENABLE: u16 = 0x30;
const SMI_TCO: u32 = 1 << 13;

/// The TCO ports, from the ACPI ports on, and as offsets from there (13.9).
const TCO: u16 = 0x60;
const TCO_RELOAD: u16 = 0x00;
const TCO_STATUS_1: u16 = 0x04;
const TCO_STATUS_2: u16 = 0x06;
const TCO_CONTROL_1: u16 = 0x08;
const TCO_COUNT: u16 = 0x12;
/// Status 1: the count ended once. Status 2: it ended twice, and so the machine was reset.
const TCO_ENDED: u16 = 1 << 3;
const TCO_ENDED_TWICE: u16 = 0b110;
const TCO_HALT: u16 = 1 << 11;
/// The counter's unit in milliseconds, and its width.
const TCO_UNIT_MS: u64 = 600;
const TCO_COUNTS: core::ops::RangeInclusive<u64> = 4..=1023;

/// Configuration registers of the 6300ESB's watchdog (16.4.12, 16.4.13), of 16 and of 8 bits;
/// what is written in another width is not taken.
const ESB_CONFIG: u32 = 0x60;
const ESB_LOCK: u32 = 0x68;
/// Its clock at 1 kHz, no interrupt, and the pin that resets in use (that bit is inverted).
const ESB_CONFIG_VALUE: u16 = 0b11;
const ESB_ENABLE: u8 = 1 << 1;
/// Its registers (16.5): both counts, and the one that is written to keep it quiet. Before
/// each write two words have to be written there.
const ESB_BYTES: u64 = 16;
const ESB_COUNT_1: u64 = 0x00;
const ESB_COUNT_2: u64 = 0x04;
const ESB_RELOAD: u64 = 0x0c;
const ESB_UNLOCK: [u16; 2] = [0x80, 0x86];
const ESB_FEED: u16 = 1 << 8;
const ESB_ENDED: u16 = 1 << 9;
const ESB_MOST: u64 = 0xf_ffff;

/// A watchdog, and how to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HwWatchdog {
    /// The TCO timer: its first port.
    Tco(u16),
    /// The 6300ESB: its configuration space as mechanism 1 selects it, and its registers.
    Esb(u32, u64),
}

impl HwWatchdog {
    /// Looks for a watchdog, the device of its own first: somebody put it in. Nothing is
    /// written but the address port of PCI configuration, so that a watchdog of a foreign
    /// kernel stays as it is.
    ///
    /// The registers of a 6300ESB have to be mapped before any other call: see
    /// [`registers`](Self::registers).
    #[must_use]
    pub fn look(hardware: &impl Ports) -> Option<Self> {
        Self::look_for_esb(hardware).or_else(|| Self::look_for_tco(hardware))
    }

    fn look_for_esb(hardware: &impl Ports) -> Option<Self> {
        let functions = (0..=0xff).map(|function| CONFIG_ENABLE | function << 8);
        let function = functions
            .into_iter()
            .find(|&at| read_config(hardware, at | CONFIG_ID) == ID_6300ESB)?;
        let registers = u64::from(read_config(hardware, function | CONFIG_BAR0) & !0xf);
        (registers != 0).then_some(Self::Esb(function, registers))
    }

    fn look_for_tco(hardware: &impl Ports) -> Option<Self> {
        let id = read_config(hardware, LPC | CONFIG_ID);
        if id & 0xffff != INTEL || !IDS_ICH9.contains(&(id >> 16)) {
            return None;
        }
        // Bit 7: the ACPI ports answer; bit 0 of the other: the chipset's registers do.
        let base = (read_config(hardware, LPC | LPC_ACPI_BASE) & 0xff80) as u16;
        let answers = read_config(hardware, LPC | LPC_ACPI_CONTROL) & (1 << 7) != 0;
        let tco = base.checked_add(TCO)?;
        (base != 0 && answers && general_control(hardware).is_some()).then_some(Self::Tco(tco))
    }

    /// Makes a watchdog that was found able to reset the machine; false when a strap of the
    /// board keeps it from that.
    pub fn prepare(&self, hardware: &(impl Ports + Registers)) -> bool {
        match *self {
            Self::Esb(function, _) => {
                let command = read_config(hardware, function | CONFIG_COMMAND) & 0xffff;
                write_config(hardware, function | CONFIG_COMMAND, command | COMMAND_MEMORY);
                true
            }
            Self::Tco(tco) => {
                let Some(control) = general_control(hardware) else { return false };
                let value = hardware.read_memory32(control);
                hardware.write_memory32(control, value & !NO_REBOOT);
                if hardware.read_memory32(control) & NO_REBOOT != 0 {
                    return false;
                }
                let smi_enable = tco.wrapping_sub(TCO).wrapping_add(SMI_ENABLE);
                let smi = hardware.read32(smi_enable);
                hardware.write32(smi_enable, smi & !SMI_TCO);
                true
            }
        }
    }

    /// Returns true if the watchdog runs: unless it is fed, it resets the machine. Of a
    /// 6300ESB, memory accesses have to be enabled.
    #[must_use]
    pub fn is_running(&self, hardware: &(impl Ports + Registers)) -> bool {
        match *self {
            Self::Tco(tco) => {
                let resets = general_control(hardware)
                    .is_some_and(|at| hardware.read_memory32(at) & NO_REBOOT == 0);
                resets && hardware.read16(port(tco, TCO_CONTROL_1)) & TCO_HALT == 0
            }
            Self::Esb(function, _) => {
                hardware.write32(CONFIG_ADDRESS, function | ESB_LOCK);
                hardware.read8(CONFIG_DATA) & ESB_ENABLE != 0
            }
        }
    }

    /// Returns the watchdog that sealed facts describe.
    #[must_use]
    pub fn from_facts(facts: &WatchdogFacts) -> Option<Self> {
        match facts.kind {
            WatchdogKind::ITCO => u16::try_from(facts.port).ok().map(Self::Tco),
            WatchdogKind::I6300ESB => Some(Self::Esb(facts.port, facts.mmio)),
            _ => None,
        }
    }

    /// Returns what the capture image needs to know of the watchdog, and the time it is to be
    /// set to.
    #[must_use]
    pub fn facts(&self, timeout_ms: u64) -> WatchdogFacts {
        let (kind, port, mmio) = match *self {
            Self::Tco(port) => (WatchdogKind::ITCO, port.into(), 0),
            Self::Esb(function, registers) => (WatchdogKind::I6300ESB, function, registers),
        };
        WatchdogFacts { kind, port, mmio, timeout_ms }
    }

    /// Returns the watchdog's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tco(_) => "iTCO",
            Self::Esb(..) => "i6300esb",
        }
    }

    /// Returns the registers in memory that have to be mapped.
    #[must_use]
    pub const fn registers(&self) -> Option<Range> {
        match *self {
            Self::Tco(_) => None,
            Self::Esb(_, start) => Some(Range { start, bytes: ESB_BYTES }),
        }
    }

    /// Returns true if this watchdog was what reset the machine; that is forgotten by asking.
    #[must_use]
    pub fn has_fired(&self, hardware: &(impl Ports + Registers)) -> bool {
        match *self {
            Self::Tco(tco) => {
                let status = hardware.read16(port(tco, TCO_STATUS_2));
                // Written as ones, they are cleared.
                hardware.write16(port(tco, TCO_STATUS_1), TCO_ENDED);
                hardware.write16(port(tco, TCO_STATUS_2), TCO_ENDED_TWICE);
                status & TCO_ENDED_TWICE == TCO_ENDED_TWICE
            }
            Self::Esb(_, registers) => {
                let reload = register(registers, ESB_RELOAD);
                let fired = hardware.read_memory16(reload) & ESB_ENDED != 0;
                unlock_esb(hardware, registers);
                hardware.write_memory16(reload, ESB_ENDED);
                fired
            }
        }
    }

    /// Starts the watchdog, or sets a running one anew: `milliseconds` from now it resets the
    /// machine, unless it is fed.
    pub fn arm(&self, hardware: &(impl Ports + Registers), milliseconds: u64) {
        let half = milliseconds.clamp(MIN_MS, MAX_MS) / 2;
        match *self {
            Self::Tco(tco) => {
                let counts = half / TCO_UNIT_MS;
                let counts = counts.clamp(*TCO_COUNTS.start(), *TCO_COUNTS.end()) as u16;
                let kept = hardware.read16(port(tco, TCO_COUNT)) & !0x3ff;
                hardware.write16(port(tco, TCO_COUNT), kept | counts);
                self.feed(hardware);
                let control = hardware.read16(port(tco, TCO_CONTROL_1));
                hardware.write16(port(tco, TCO_CONTROL_1), control & !TCO_HALT);
            }
            Self::Esb(function, registers) => {
                hardware.write32(CONFIG_ADDRESS, function | ESB_CONFIG);
                hardware.write16(CONFIG_DATA, ESB_CONFIG_VALUE);
                for count in [ESB_COUNT_1, ESB_COUNT_2] {
                    unlock_esb(hardware, registers);
                    let value = half.min(ESB_MOST) as u32;
                    hardware.write_memory32(register(registers, count), value);
                }
                self.feed(hardware);
                lock_esb(hardware, function, ESB_ENABLE);
            }
        }
    }

    /// Begins the watchdog's time anew.
    pub fn feed(&self, hardware: &(impl Ports + Registers)) {
        match *self {
            Self::Tco(tco) => {
                // What ended once is forgotten, or the next end would be the second.
                hardware.write16(port(tco, TCO_STATUS_1), TCO_ENDED);
                hardware.write16(port(tco, TCO_RELOAD), 1);
            }
            Self::Esb(_, registers) => {
                unlock_esb(hardware, registers);
                hardware.write_memory16(register(registers, ESB_RELOAD), ESB_FEED);
            }
        }
    }

    /// Stops the watchdog.
    pub fn disarm(&self, hardware: &(impl Ports + Registers)) {
        match *self {
            Self::Tco(tco) => {
                let control = hardware.read16(port(tco, TCO_CONTROL_1));
                hardware.write16(port(tco, TCO_CONTROL_1), control | TCO_HALT);
            }
            Self::Esb(function, _) => {
                self.feed(hardware);
                lock_esb(hardware, function, 0);
            }
        }
    }
}

/// Returns a port by its offset. Facts may name any first port: the sum wraps.
const fn port(first: u16, offset: u16) -> u16 {
    first.wrapping_add(offset)
}

/// Returns the address of a register by its offset; wraps as [`port`] does.
const fn register(first: u64, offset: u64) -> u64 {
    first.wrapping_add(offset)
}

fn read_config(hardware: &impl Ports, selector: u32) -> u32 {
    hardware.write32(CONFIG_ADDRESS, selector);
    hardware.read32(CONFIG_DATA)
}

fn write_config(hardware: &impl Ports, selector: u32, value: u32) {
    hardware.write32(CONFIG_ADDRESS, selector);
    hardware.write32(CONFIG_DATA, value);
}

/// Returns the address of the chipset's general control register, below 4 GiB, if the bridge
/// says that it answers.
fn general_control(hardware: &impl Ports) -> Option<u64> {
    let root = read_config(hardware, LPC | LPC_ROOT_COMPLEX);
    (root & 1 != 0).then_some(u64::from(root & 0xffff_c000) + GENERAL_CONTROL)
}

fn lock_esb(hardware: &impl Ports, function: u32, value: u8) {
    hardware.write32(CONFIG_ADDRESS, function | ESB_LOCK);
    hardware.write8(CONFIG_DATA, value);
}

fn unlock_esb(hardware: &impl Registers, registers: u64) {
    let reload = register(registers, ESB_RELOAD);
    ESB_UNLOCK.into_iter().for_each(|word| hardware.write_memory16(reload, word));
}

#[cfg(test)]
mod tests;
