//! PCI functions that had requests in flight when the machine stopped.
//!
//! A virtual device waits for its requests when its bus mastering ends or it is reset, and the
//! hypervisor with it: when the other end of a disk has fallen silent, that is for ever. So
//! nothing at such a function is touched before a stage is sealed, and one that is no disk for a
//! dump is not touched at all. What it may still write of memory is copied before it is stored.

use core::fmt;

use block::pci::Address;
use handoff::devices::in_flight_flags;
use handoff::{Handoff, InFlight};

/// The list of the hand-off.
#[derive(Clone, Copy)]
pub struct InFlightList {
    functions: &'static [InFlight],
    /// There are functions that are not on it.
    lost: bool,
}

impl InFlightList {
    /// The list of a hand-off.
    pub fn of(handoff: &'static Handoff) -> Self {
        Self { functions: handoff.in_flight(), lost: handoff.in_flight_lost > 0 }
    }

    /// Returns the numbers of all functions on the list.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        self.functions.iter().map(|entry| entry.function)
    }

    /// Returns the numbers of the functions that were given up: nothing there is ever touched.
    pub fn given_up(self) -> impl Iterator<Item = u32> {
        self.flagged(in_flight_flags::GIVEN_UP).map(|entry| entry.function)
    }

    /// Returns true if a function on the list has a disk for data, on which no dump can go.
    pub fn keeps_data(self, function: Address) -> bool {
        let number = function.number();
        self.flagged(in_flight_flags::DATA).any(|entry| entry.function == number)
    }

    fn flagged(self, flag: u32) -> impl Iterator<Item = &'static InFlight> {
        self.functions.iter().filter(move |entry| entry.flags & flag != 0)
    }

    /// Returns true if a function is on the list, or may be one that found no place there.
    pub fn may_have(self, function: Address) -> bool {
        self.lost || self.numbers().any(|number| number == function.number())
    }

    /// Returns true if any function may have requests in flight.
    pub const fn is_incomplete(self) -> bool {
        self.lost
    }
}

/// The functions on the list, for a line of the console.
impl fmt::Display for InFlightList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.numbers().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{}", Address::from_number(number))?;
        }
        if self.lost {
            f.write_str(", and others that found no place on the list")?;
        }
        Ok(())
    }
}
