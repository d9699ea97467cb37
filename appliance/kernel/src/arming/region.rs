//! Where the reserved region lies. Pure: tested on the host.
//!
//! The appliance's ELF file has a segment for it (64 to 72 MiB), which every loader keeps
//! its modules out of. Where that is not RAM, since the machine is smaller or the firmware
//! has marked a page of it as bad, another place is taken.

use handoff::facts::MemoryKind;
use handoff::{MemoryRange, Range};

/// The region begins at a multiple of this: a page of 2 MiB, so that its protection splits
/// none.
const ALIGN: u64 = 2 << 20;
/// The region ends below this: CPUs that start up load its addresses into 32-bit registers,
/// and the loader's page tables map so much.
const END: u64 = 1 << 32;

/// Returns the place of the reserved region in the RAM of `map`: the `linked` one where it
/// is RAM throughout and nothing is in it, otherwise the lowest above `after` that touches
/// nothing in `taken`. `None` when there is none.
#[must_use]
pub fn choose(map: &[MemoryRange], linked: Range, after: u64, taken: &[Range]) -> Option<Range> {
    let ram = || map.iter().filter(|entry| entry.kind == MemoryKind::RAM);
    let obstacle = |place: &Range| taken.iter().find(|range| range.overlaps(place));
    let is_ram = |place: &Range| ram().any(|entry| entry.range.holds(place.start, place.bytes));
    if is_ram(&linked) && obstacle(&linked).is_none() {
        return Some(linked);
    }
    ram().find_map(|entry| {
        let end = entry.range.end().min(END);
        let mut start = entry.range.start.max(after).checked_next_multiple_of(ALIGN)?;
        // Each obstacle moves the place on at most once.
        for _ in 0..=taken.len() {
            let place = Range { start, bytes: linked.bytes };
            if start.checked_add(linked.bytes)? > end {
                return None;
            }
            match obstacle(&place) {
                Some(obstacle) => start = obstacle.end().checked_next_multiple_of(ALIGN)?,
                None => return Some(place),
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LINKED: Range = Range { start: 64 * MIB, bytes: 8 * MIB };
    /// Behind the appliance's image.
    const AFTER: u64 = 17 * MIB;

    fn ram(ranges: &[(u64, u64)]) -> Vec<MemoryRange> {
        let entry = |&(start, end)| MemoryRange {
            range: Range::between(start, end),
            kind: MemoryKind::RAM,
            reserved: 0,
        };
        ranges.iter().map(entry).collect()
    }

    fn chosen(map: &[(u64, u64)], taken: &[Range]) -> Option<u64> {
        choose(&ram(map), LINKED, AFTER, taken).map(|range| range.start / MIB)
    }

    #[test]
    fn the_segment_of_the_image_is_taken_where_it_is_free_ram() {
        assert_eq!(chosen(&[(MIB, 96 * MIB)], &[]), Some(64));
        assert_eq!(chosen(&[(0, MIB / 2), (MIB, 72 * MIB)], &[]), Some(64));
        let beside = [Range { start: 72 * MIB, bytes: MIB }];
        assert_eq!(chosen(&[(MIB, 96 * MIB)], &beside), Some(64));
    }

    #[test]
    fn a_bad_page_in_it_moves_the_region() {
        let around = |bad: u64| [(MIB, bad), (bad + 4096, 512 * MIB)];
        for bad in [64 * MIB, 64 * MIB + 4096, 71 * MIB, 72 * MIB - 4096] {
            assert_eq!(chosen(&around(bad), &[]), Some(18), "{bad:#x}");
        }
        for bad in [63 * MIB, 64 * MIB - 4096, 72 * MIB] {
            assert_eq!(chosen(&around(bad), &[]), Some(64), "{bad:#x}");
        }
    }

    #[test]
    fn modules_and_small_machines_are_met() {
        let module = |start, bytes| Range { start: start * MIB, bytes: bytes * MIB };
        // A module over the region and one behind the image.
        let taken = [module(60, 8), module(19, 6), module(30, 12)];
        assert_eq!(chosen(&[(MIB, 128 * MIB)], &taken), Some(42));
        // Neighbours leave no room between them.
        let taken = [module(64, 64), module(17, 10), module(33, 31)];
        assert_eq!(chosen(&[(MIB, 128 * MIB)], &taken), None);
        assert_eq!(chosen(&[(MIB, 64 * MIB)], &[]), Some(18));
        assert_eq!(chosen(&[(MIB, 26 * MIB)], &[]), Some(18));
        assert_eq!(chosen(&[(MIB, 25 * MIB)], &[]), None);
    }

    #[test]
    fn it_stays_below_four_gib_and_out_of_what_is_no_ram() {
        assert_eq!(chosen(&[(MIB, 20 * MIB), (4096 * MIB, 8192 * MIB)], &[]), None);
        assert_eq!(chosen(&[(MIB, 20 * MIB), (4088 * MIB, 8192 * MIB)], &[]), Some(4088));
        assert_eq!(chosen(&[(MIB, 20 * MIB), (4090 * MIB, 8192 * MIB)], &[]), None);
        assert_eq!(chosen(&[], &[]), None);
        let everything = Range { start: 0, bytes: u64::MAX };
        assert_eq!(chosen(&[(0, u64::MAX)], &[everything]), None);
    }
}
