//! The WDAT: a hardware watchdog that the firmware describes by its registers (Microsoft,
//! Hardware Watchdog Timers Design Specification 2.0, chapter 5).
//!
//! The table holds a list of instructions for each action, so that one driver serves every
//! watchdog.

use super::{Acpi, GenericAddress, HEADER, Location, Table};
use crate::hardware::{Ports, Registers};

/// Offsets of fields, and of the first instruction.
const PERIOD: u32 = HEADER + 12;
const MAX_COUNT: u32 = HEADER + 16;
const MIN_COUNT: u32 = HEADER + 20;
const FLAGS: u32 = HEADER + 24;
const COUNT: u32 = HEADER + 28;
const FIRST: u32 = HEADER + 32;
/// Bytes of an instruction.
const INSTRUCTION_BYTES: u32 = 24;
/// Instructions that are looked at: a few for each of some twenty actions.
const MAX_INSTRUCTIONS: u32 = 256;
/// Flag: the firmware has enabled the watchdog.
const ENABLED: u8 = 1;
/// Kinds of instructions, and the bit that keeps the other bits of a register.
const READ_VALUE: u8 = 0;
const READ_COUNTDOWN: u8 = 1;
const WRITE_VALUE: u8 = 2;
const WRITE_COUNTDOWN: u8 = 3;
const PRESERVE: u8 = 0x80;

/// Actions (table 5-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WatchdogAction {
    /// Begins the time anew.
    Feed = 1,
    /// Returns the counts that are left.
    CountsLeft = 4,
    /// Sets the counts until the reset.
    SetCounts = 6,
    /// Returns 1 if it runs.
    IsRunning = 8,
    /// Starts it.
    Start = 9,
    /// Stops it.
    Stop = 0xb,
    /// Lets it reset the machine at its end.
    ResetAtEnd = 0x11,
    /// Returns 1 if it was what reset the machine.
    HasFired = 0x20,
    /// Forgets that it reset the machine.
    ForgetFired = 0x21,
}

/// A watchdog that the firmware describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogTable {
    table: Table,
    instructions: u32,
    /// Milliseconds of a count; at least 1.
    pub period_ms: u32,
    /// Fewest counts that it can be set to.
    pub min_count: u32,
    /// Most counts that it can be set to.
    pub max_count: u32,
}

impl WatchdogTable {
    /// Returns the counts for `milliseconds`, as near as the watchdog can come to it.
    #[must_use]
    pub fn counts(&self, milliseconds: u64) -> u32 {
        let counts = milliseconds.checked_div(self.period_ms.into()).unwrap_or(0);
        u32::try_from(counts).unwrap_or(u32::MAX).max(self.min_count).min(self.max_count)
    }
}

/// An instruction of a [`WatchdogTable`].
struct Instruction {
    kind: u8,
    register: GenericAddress,
    value: u32,
    mask: u32,
}

impl Acpi<'_> {
    /// Returns the watchdog of the WDAT; none where the firmware has it disabled.
    #[must_use]
    pub fn watchdog(&self) -> Option<WatchdogTable> {
        let table = self.table(b"WDAT")?;
        let enabled = self.u8(&table, FLAGS)? & ENABLED != 0;
        let [period_ms, max_count, min_count] =
            [PERIOD, MAX_COUNT, MIN_COUNT].map(|at| self.u32(&table, at).unwrap_or(0));
        let instructions = self.u32(&table, COUNT)?.min(MAX_INSTRUCTIONS);
        (enabled && period_ms > 0 && min_count <= max_count).then_some(WatchdogTable {
            table,
            instructions,
            period_ms,
            min_count,
            max_count,
        })
    }

    /// Does an action, with `counts` for [`WatchdogAction::SetCounts`], and returns what its
    /// last instruction read, or 0. `None` when the table has no instruction for it that can
    /// be carried out.
    pub fn do_with_watchdog(
        &self,
        watchdog: &WatchdogTable,
        action: WatchdogAction,
        counts: u32,
        hardware: &(impl Ports + Registers),
    ) -> Option<u32> {
        let mut result = None;
        for index in 0..watchdog.instructions {
            let at = index.checked_mul(INSTRUCTION_BYTES)?.checked_add(FIRST)?;
            let Some([of, kind, ..]) = self.array::<4>(&watchdog.table, at) else { break };
            if of != action as u8 {
                continue;
            }
            let instruction = Instruction {
                kind,
                register: self.generic_address(&watchdog.table, at.checked_add(4)?)?,
                value: self.u32(&watchdog.table, at.checked_add(16)?)?,
                mask: self.u32(&watchdog.table, at.checked_add(20)?)?,
            };
            result = Some(instruction.run(counts, hardware)?);
        }
        result
    }
}

impl Instruction {
    fn run(&self, counts: u32, hardware: &(impl Ports + Registers)) -> Option<u32> {
        let location = self.register.location()?;
        let bits = match (self.register.access, self.register.bits) {
            (1, _) | (0, 1..=8) => 8,
            (2, _) | (0, 9..=16) => 16,
            (3, _) | (0, 17..=32) => 32,
            _ => return None,
        };
        let read = || match (location, bits) {
            (Location::Port(port), 8) => hardware.read8(port).into(),
            (Location::Port(port), 16) => hardware.read16(port).into(),
            (Location::Port(port), _) => hardware.read32(port),
            (Location::Memory(at), 8) => hardware.read_memory8(at).into(),
            (Location::Memory(at), 16) => hardware.read_memory16(at).into(),
            (Location::Memory(at), _) => hardware.read_memory32(at),
        };
        let shift = u32::from(self.register.shift);
        let field = || Some(read().checked_shr(shift)? & self.mask);
        let (value, keep) = match (self.kind & !PRESERVE, self.kind & PRESERVE != 0) {
            (READ_VALUE, _) => return Some(u32::from(field()? == self.value)),
            (READ_COUNTDOWN, _) => return field(),
            (WRITE_VALUE, keep) => (self.value, keep),
            (WRITE_COUNTDOWN, keep) => (counts, keep),
            _ => return None,
        };
        let mask = self.mask.checked_shl(shift)?;
        let kept = if keep { read() & !mask } else { 0 };
        let word = (value & self.mask).checked_shl(shift)? | kept;
        match (location, bits) {
            (Location::Port(port), 8) => hardware.write8(port, word as u8),
            (Location::Port(port), 16) => hardware.write16(port, word as u16),
            (Location::Port(port), _) => hardware.write32(port, word),
            (Location::Memory(at), 8) => hardware.write_memory8(at, word as u8),
            (Location::Memory(at), 16) => hardware.write_memory16(at, word as u16),
            (Location::Memory(at), _) => hardware.write_memory32(at, word),
        }
        Some(0)
    }
}
