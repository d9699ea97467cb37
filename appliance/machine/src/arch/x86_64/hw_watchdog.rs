//! The last guard: a hardware watchdog, which resets the machine when nobody feeds it.
//!
//! Two are known. The TCO timer lies in the I/O controller hubs of Intel's chipsets from the
//! ICH9 (Intel I/O Controller Hub 9 data sheet, 13.9: TCO registers); QEMU's q35 has one.
//! The 6300ESB (Intel 6300ESB data sheet, 16: watchdog timer) is a function of its own; QEMU
//! has it as a device. Both count twice: at the end of the first count they could warn
//! somebody, at the end of the second they reset, so each count is half of the time.

use handoff::Range;
use handoff::devices::{WatchdogFacts, watchdog_kind};

use super::{pci, port};

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
#[derive(Clone, Copy, Debug)]
pub enum HwWatchdog {
    /// The TCO timer: its first port.
    Tco(u16),
    /// The 6300ESB: its configuration space as mechanism 1 selects it, and its registers.
    Esb(u32, u64),
}

impl HwWatchdog {
    /// Looks for one, the device of its own first: somebody put it in. The second value says
    /// whether it was this watchdog that reset the machine; that is forgotten by asking.
    ///
    /// Registers in memory below 4 GiB are mapped.
    #[must_use]
    pub fn find() -> Option<(Self, bool)> {
        Self::find_esb().or_else(Self::find_tco).map(|guard| (guard, guard.has_fired()))
    }

    fn find_esb() -> Option<Self> {
        let functions = (0..=0xff).map(|function| CONFIG_ENABLE | function << 8);
        let function = functions.into_iter().find(|&at| pci::read(at | CONFIG_ID) == ID_6300ESB)?;
        let registers = u64::from(pci::read(function | CONFIG_BAR0) & !0xf);
        if registers == 0 {
            return None;
        }
        let command = pci::read(function | CONFIG_COMMAND) & 0xffff;
        pci::write(function | CONFIG_COMMAND, command | COMMAND_MEMORY);
        Some(Self::Esb(function, registers))
    }

    fn find_tco() -> Option<Self> {
        let id = pci::read(LPC | CONFIG_ID);
        if id & 0xffff != INTEL || !IDS_ICH9.contains(&(id >> 16)) {
            return None;
        }
        // Bit 7: the ACPI ports answer; bit 0 of the other: the chipset's registers do.
        let base = (pci::read(LPC | LPC_ACPI_BASE) & 0xff80) as u16;
        let root = pci::read(LPC | LPC_ROOT_COMPLEX);
        if base == 0 || pci::read(LPC | LPC_ACPI_CONTROL) & (1 << 7) == 0 || root & 1 == 0 {
            return None;
        }
        let control = (u64::from(root & 0xffff_c000) + GENERAL_CONTROL) as *mut u32;
        // SAFETY: the bridge says that its registers are there, and this one is documented at
        // that offset; below 4 GiB, which the boot page tables map, and no memory of ours.
        let may_reset = unsafe {
            control.write_volatile(control.read_volatile() & !NO_REBOOT);
            control.read_volatile() & NO_REBOOT == 0
        };
        // A strap of the board can hold the bit: such a timer does nothing at its end.
        if !may_reset {
            return None;
        }
        let smi = port::read32(base + SMI_ENABLE);
        port::write32(base + SMI_ENABLE, smi & !SMI_TCO);
        Some(Self::Tco(base + TCO))
    }

    /// The one that sealed facts describe.
    #[must_use]
    pub fn from_facts(facts: &WatchdogFacts) -> Option<Self> {
        match facts.kind {
            watchdog_kind::ITCO => u16::try_from(facts.port).ok().map(Self::Tco),
            watchdog_kind::I6300ESB => Some(Self::Esb(facts.port, facts.mmio)),
            _ => None,
        }
    }

    /// What the capture image needs to know of it, and the time it is to be set to.
    #[must_use]
    pub fn facts(&self, timeout_ms: u64) -> WatchdogFacts {
        let (kind, port, mmio) = match *self {
            Self::Tco(port) => (watchdog_kind::ITCO, port.into(), 0),
            Self::Esb(function, registers) => (watchdog_kind::I6300ESB, function, registers),
        };
        WatchdogFacts { kind, port, mmio, timeout_ms }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tco(_) => "iTCO",
            Self::Esb(..) => "i6300esb",
        }
    }

    /// Its registers in memory, which have to be mapped.
    #[must_use]
    pub const fn registers(&self) -> Option<Range> {
        match *self {
            Self::Tco(_) => None,
            Self::Esb(_, start) => Some(Range { start, bytes: ESB_BYTES }),
        }
    }

    fn has_fired(&self) -> bool {
        match *self {
            Self::Tco(tco) => {
                let fired = port::read16(tco + TCO_STATUS_2) & TCO_ENDED_TWICE == TCO_ENDED_TWICE;
                // Written as ones, they are cleared.
                port::write16(tco + TCO_STATUS_1, TCO_ENDED);
                port::write16(tco + TCO_STATUS_2, TCO_ENDED_TWICE);
                fired
            }
            Self::Esb(_, registers) => {
                let fired = read_esb(registers) & ESB_ENDED != 0;
                unlock_esb(registers);
                write_esb(registers, ESB_ENDED);
                fired
            }
        }
    }

    /// Starts it, or sets a running one anew: `milliseconds` from now it resets the machine,
    /// unless it is fed.
    pub fn arm(&self, milliseconds: u64) {
        let half = milliseconds.clamp(MIN_MS, MAX_MS) / 2;
        match *self {
            Self::Tco(tco) => {
                let counts = half / TCO_UNIT_MS;
                let counts = counts.clamp(*TCO_COUNTS.start(), *TCO_COUNTS.end()) as u16;
                let kept = port::read16(tco + TCO_COUNT) & !0x3ff;
                port::write16(tco + TCO_COUNT, kept | counts);
                self.feed();
                let control = port::read16(tco + TCO_CONTROL_1);
                port::write16(tco + TCO_CONTROL_1, control & !TCO_HALT);
            }
            Self::Esb(function, registers) => {
                port::write32(CONFIG_ADDRESS, function | ESB_CONFIG);
                port::write16(CONFIG_DATA, ESB_CONFIG_VALUE);
                for count in [ESB_COUNT_1, ESB_COUNT_2] {
                    unlock_esb(registers);
                    // SAFETY: a register of the device, in memory that is mapped.
                    unsafe {
                        ((registers + count) as *mut u32).write_volatile(half.min(ESB_MOST) as u32)
                    };
                }
                self.feed();
                lock_esb(function, ESB_ENABLE);
            }
        }
    }

    /// Not yet: it begins its time anew.
    pub fn feed(&self) {
        match *self {
            Self::Tco(tco) => {
                // What ended once is forgotten, or the next end would be the second.
                port::write16(tco + TCO_STATUS_1, TCO_ENDED);
                port::write16(tco + TCO_RELOAD, 1);
            }
            Self::Esb(_, registers) => {
                unlock_esb(registers);
                write_esb(registers, ESB_FEED);
            }
        }
    }

    /// Stops it.
    pub fn disarm(&self) {
        match *self {
            Self::Tco(tco) => {
                let control = port::read16(tco + TCO_CONTROL_1);
                port::write16(tco + TCO_CONTROL_1, control | TCO_HALT);
            }
            Self::Esb(function, _) => {
                self.feed();
                lock_esb(function, 0);
            }
        }
    }
}

fn lock_esb(function: u32, value: u8) {
    port::write32(CONFIG_ADDRESS, function | ESB_LOCK);
    port::write8(CONFIG_DATA, value);
}

fn read_esb(registers: u64) -> u16 {
    // SAFETY: as in `write_esb`.
    unsafe { ((registers + ESB_RELOAD) as *const u16).read_volatile() }
}

fn write_esb(registers: u64, value: u16) {
    // SAFETY: the device's own register, where it or sealed facts say, in memory that the
    // callers have mapped; no memory of ours.
    unsafe { ((registers + ESB_RELOAD) as *mut u16).write_volatile(value) };
}

fn unlock_esb(registers: u64) {
    ESB_UNLOCK.into_iter().for_each(|word| write_esb(registers, word));
}
