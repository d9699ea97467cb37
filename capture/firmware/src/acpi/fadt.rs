//! The FADT: how to reset, how to switch off, the power-management timer (§5.2.9).

use handoff::PowerFacts;

use super::{Acpi, Location, Table};

/// Flags (table 5.10): a reset register, hardware-reduced ACPI, a timer of 32 bits.
const FLAG_TIMER_32: u32 = 1 << 8;
const FLAG_RESET: u32 = 1 << 10;
const FLAG_HARDWARE_REDUCED: u32 = 1 << 20;
/// Offsets of fields (table 5.9).
const DSDT: u32 = 40;
const PM1A_CONTROL: u32 = 64;
const PM1B_CONTROL: u32 = 68;
const PM_TIMER: u32 = 76;
const FLAGS: u32 = 112;
const RESET_REGISTER: u32 = 116;
const RESET_VALUE: u32 = 128;
const X_DSDT: u32 = 140;
const X_PM1A_CONTROL: u32 = 172;
const X_PM1B_CONTROL: u32 = 184;
const X_PM_TIMER: u32 = 208;
const SLEEP_CONTROL: u32 = 244;
/// [`PowerFacts::reset_space`] of a machine without a reset register.
const NO_RESET: u8 = u8::MAX;

/// The power-management timer: a counter at 3.579545 MHz (§4.8.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// I/O port of its 32-bit register.
    pub port: u16,
    /// True if all 32 bits count, false for 24: such a counter wraps after 4.7 s.
    pub wide: bool,
}

/// What the FADT says.
#[derive(Clone, Copy, Debug)]
pub struct Fadt {
    table: Table,
    flags: u32,
}

impl Acpi<'_> {
    /// Returns the FADT, which names ports, registers and the DSDT.
    #[must_use]
    pub fn fadt(&self) -> Option<Fadt> {
        let table = self.table(b"FACP")?;
        Some(Fadt { table, flags: self.u32(&table, FLAGS).unwrap_or(0) })
    }

    /// Returns the machine's first table of AML, which the FADT names.
    #[must_use]
    pub fn dsdt(&self, fadt: &Fadt) -> Option<Table> {
        let address = self
            .u64(&fadt.table, X_DSDT)
            .filter(|&address| address != 0)
            .or_else(|| self.u32(&fadt.table, DSDT).map(u64::from))?;
        Table::read(&self.reader, address, *b"DSDT")
    }

    /// Returns the power-management timer; none on hardware-reduced machines, and none where it
    /// is no I/O port.
    #[must_use]
    pub fn pm_timer(&self, fadt: &Fadt) -> Option<PmTimer> {
        if fadt.flags & FLAG_HARDWARE_REDUCED != 0 {
            return None;
        }
        let port = self.port(&fadt.table, PM_TIMER, X_PM_TIMER)?;
        Some(PmTimer { port, wide: fadt.flags & FLAG_TIMER_32 != 0 })
    }

    /// Returns the registers that reset the machine and switch it off. `sleep_types` are the
    /// values of the `_S5_` package, see [`Acpi::aml`]; without them nothing switches
    /// off, since the registers are of no use.
    #[must_use]
    pub fn power(&self, fadt: &Fadt, sleep_types: Option<(u8, u8)>) -> PowerFacts {
        let table = &fadt.table;
        let mut power = PowerFacts { reset_space: NO_RESET, ..PowerFacts::default() };
        if fadt.flags & FLAG_RESET != 0
            && let Some(register) = self.generic_address(table, RESET_REGISTER)
        {
            power.reset_space = register.space;
            power.reset_address = register.address;
            power.reset_value = self.u8(table, RESET_VALUE).unwrap_or(0);
        }
        let Some((a, b)) = sleep_types else { return power };
        (power.sleep_type_a, power.sleep_type_b) = (a, b);
        if fadt.flags & FLAG_HARDWARE_REDUCED == 0 {
            power.pm1a_control = self.port(table, PM1A_CONTROL, X_PM1A_CONTROL).unwrap_or(0);
            power.pm1b_control = self.port(table, PM1B_CONTROL, X_PM1B_CONTROL).unwrap_or(0);
        } else if let Some(register) = self.generic_address(table, SLEEP_CONTROL) {
            power.sleep_space = register.space;
            power.sleep_control = register.address;
        }
        power
    }

    /// Returns a port by its 64-bit field, where that is set, or by its 32-bit field.
    fn port(&self, table: &Table, narrow: u32, extended: u32) -> Option<u16> {
        let extended = self.generic_address(table, extended).and_then(|field| field.location());
        if let Some(Location::Port(port)) = extended {
            return Some(port);
        }
        let port = self.u32(table, narrow).and_then(|port| u16::try_from(port).ok());
        port.filter(|&port| port != 0)
    }
}
