//! Finding root buses that neither a table nor AML names, by asking every bus.

use super::{Address, EcamWindow, ID, NO_VENDOR, RootBuses, root, scan_from};
use crate::Platform;

/// Devices of a bus.
const DEVICES: u8 = 32;

/// What asking every bus came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The root buses that were known, and those that were found.
    pub roots: RootBuses,
    /// First bus that was not asked any more, because the caller wanted no more.
    pub ended_at: Option<u8>,
}

/// Asks every bus of segment 0, up to `last_bus`, that no bridge of a known root bus leads to.
/// The first bus of a host bridge has the lowest number of those behind it, so that a bus that
/// answers and was not reached before is a root bus. `go_on` is asked before each bus: a
/// machine whose configuration space answers slowly is not waited for.
pub fn probe_roots<P: Platform>(
    windows: &[EcamWindow],
    known: &RootBuses,
    last_bus: u8,
    mut go_on: impl FnMut() -> bool,
) -> Probe {
    let mut seen = [false; 256];
    let of_segment = |index| root(windows, known, index).filter(|&(segment, _)| segment == 0);
    for (_, bus) in (0..super::MAX_ROOTS).map_while(of_segment) {
        scan_from::<P>(0, bus, &mut seen, &mut |_| true);
    }
    let mut roots = *known;
    for bus in 0..=last_bus {
        if seen.get(usize::from(bus)).is_none_or(|seen| *seen) {
            continue;
        }
        if !go_on() {
            return Probe { roots, ended_at: Some(bus) };
        }
        let answers = |device: u8| {
            let address = Address { segment: 0, bus, device, function: 0 };
            // A bus that nothing answers on reads as ones; one that reads as zeros is broken.
            let id = P::pci_read(address, ID);
            id as u16 != NO_VENDOR && id != 0
        };
        if (0..DEVICES).any(answers) {
            if let Some(word) = roots.get_mut(usize::from(bus / 64)) {
                *word |= 1 << (bus % 64);
            }
            scan_from::<P>(0, bus, &mut seen, &mut |_| true);
        }
    }
    Probe { roots, ended_at: None }
}
