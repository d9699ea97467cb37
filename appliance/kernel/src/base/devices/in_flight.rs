//! PCI functions with requests in flight, for the hand-off.
//!
//! A driver enters its function before the first request is given to the device, and takes it
//! off again when the device has answered the last one, or was reset. A crash may come at any
//! moment between: the list is words that are written without a lock, and a function on it that
//! has nothing in flight costs no more than a few copies of memory.
//!
//! A function keeps its place for good, so that no reader sees one function's number with
//! another's memory.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use block::pci::Address;
use handoff::crash::MAX_IN_FLIGHT;
use handoff::devices::in_flight_flags;
use handoff::{InFlight, Range};

use crate::log;

/// The low half of a [`Place::state`] is the function's number.
const NUMBER: u64 = 0xffff_ffff;
/// The place is a function's.
const TAKEN: u64 = 1 << 32;
/// Requests are in flight.
const BUSY: u64 = 1 << 33;
/// A request missed its deadline.
const GIVEN_UP: u64 = 1 << 34;
/// A workload's data disk.
const DATA: u64 = 1 << 35;

/// One function.
struct Place {
    /// 0 while the place is free.
    state: AtomicU64,
    /// Memory that the function may write.
    start: AtomicU64,
    bytes: AtomicU64,
}

static PLACES: [Place; MAX_IN_FLIGHT] = [const {
    Place { state: AtomicU64::new(0), start: AtomicU64::new(0), bytes: AtomicU64::new(0) }
}; MAX_IN_FLIGHT];
/// Functions that found no place.
static LOST: AtomicU32 = AtomicU32::new(0);

/// A function's place on the list; none when all are taken.
#[derive(Clone, Copy, Debug)]
pub struct Entry(Option<usize>);

impl Entry {
    /// Finds the place of a function, or takes one for it.
    #[must_use]
    pub fn of(address: Address) -> Self {
        let own = TAKEN | u64::from(address.number());
        let is_own = |place: &Place| match place.state.compare_exchange(
            0,
            own,
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            Ok(_) => true,
            Err(state) => state & (TAKEN | NUMBER) == own,
        };
        Self(PLACES.iter().position(is_own))
    }

    fn place(self) -> Option<&'static Place> {
        self.0.and_then(|index| PLACES.get(index))
    }

    /// Notes that requests will be in flight from now on, by which the function may write
    /// `memory`; a range without a byte when that is not known.
    pub fn begin(self, memory: Range) {
        let Some(place) = self.place() else {
            if LOST.fetch_add(1, Ordering::Relaxed) == 0 {
                log!("warning: pci: too many disks to remember which have requests in flight");
            }
            return;
        };
        place.start.store(memory.start, Ordering::Relaxed);
        place.bytes.store(memory.bytes, Ordering::Relaxed);
        place.state.fetch_or(BUSY, Ordering::Release);
    }

    /// Notes that no request is in flight any more.
    pub fn end(self) {
        self.change(|place| place.state.fetch_and(!BUSY, Ordering::Release));
    }

    /// Notes that a request missed its deadline: the function stays on the list.
    pub fn give_up(self) {
        self.change(|place| place.state.fetch_or(BUSY | GIVEN_UP, Ordering::Release));
    }

    /// Notes that a function that was given up has answered after all.
    pub fn recover(self) {
        self.change(|place| place.state.fetch_and(!(BUSY | GIVEN_UP), Ordering::Release));
    }

    /// Notes that a workload keeps its data there.
    pub fn keeps_data(self) {
        self.change(|place| place.state.fetch_or(DATA, Ordering::Relaxed));
    }

    fn change(self, change: impl FnOnce(&Place) -> u64) {
        if let Some(place) = self.place() {
            change(place);
        }
    }
}

/// Returns the functions that have requests in flight, or that were given up.
pub fn list() -> impl Iterator<Item = InFlight> {
    PLACES.iter().filter_map(|place| {
        let state = place.state.load(Ordering::Acquire);
        let flag = |bit: u64, flag: u32| if state & bit != 0 { flag } else { 0 };
        (state & BUSY != 0).then(|| InFlight {
            function: state as u32,
            flags: flag(GIVEN_UP, in_flight_flags::GIVEN_UP) | flag(DATA, in_flight_flags::DATA),
            memory: Range {
                start: place.start.load(Ordering::Relaxed),
                bytes: place.bytes.load(Ordering::Relaxed),
            },
        })
    })
}

/// Returns how many functions found no place on the list.
#[must_use]
pub fn lost() -> u32 {
    LOST.load(Ordering::Relaxed)
}

/// Returns the [numbers](Address::number) of the functions that were given up.
pub fn given_up() -> impl Iterator<Item = u32> {
    let given_up = |entry: &InFlight| entry.flags & in_flight_flags::GIVEN_UP != 0;
    list().filter(given_up).map(|entry| entry.function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_on_the_list_while_it_has_requests() {
        let at = |device| Address { segment: 3, bus: 1, device, function: 0 };
        let on_list = |device: u8| {
            let number = at(device).number();
            let entry = list().find(|entry| entry.function == number);
            entry.map(|entry| (entry.flags, entry.memory.start))
        };
        let memory = |start| Range { start, bytes: 4096 };
        let (one, other) = (Entry::of(at(1)), Entry::of(at(2)));
        assert_eq!(on_list(1), None);
        one.begin(memory(0x1000));
        other.begin(memory(0x2000));
        // The same function has the same place, with the memory of its latest request.
        Entry::of(at(1)).begin(memory(0x3000));
        assert_eq!((on_list(1), on_list(2)), (Some((0, 0x3000)), Some((0, 0x2000))));
        one.end();
        other.keeps_data();
        other.give_up();
        // A disk that was given up stays, whatever its driver does then.
        assert_eq!((on_list(1), on_list(2)), (None, Some((1 | 2, 0x2000))));
        assert_eq!(given_up().collect::<std::vec::Vec<_>>(), [at(2).number()]);
        // Unless it has answered after all.
        other.recover();
        assert_eq!((on_list(2), given_up().count()), (None, 0));
        other.give_up();
        assert_eq!(lost(), 0);
        let more = (0..=MAX_IN_FLIGHT as u32)
            .map(|bus| Entry::of(Address { segment: 9, ..Address::from_number(bus << 8) }));
        more.for_each(|entry| entry.begin(Range::default()));
        // Two places were taken, so three found none.
        assert_eq!((list().count(), lost()), (MAX_IN_FLIGHT - 1, 3));
    }
}
