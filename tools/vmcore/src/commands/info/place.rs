//! Where on a disk, or on two, a dump is.

use serde::{Deserialize, Serialize};
use vmcore_format::area::part;

use crate::dump::Stored;

/// Where on a disk a dump is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo {
    /// Number of the slot.
    pub slot: u32,
    /// Sequence number of the dump.
    pub sequence: u64,
    /// Where the other half of a dump is that two disks shared; `null` for any other.
    pub other: Option<OtherInfo>,
}

/// The other half of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherInfo {
    /// Identity of its dump area.
    pub area: String,
    /// Slot of that.
    pub slot: u32,
    /// Sequence number it has there.
    pub sequence: u64,
    /// Bytes stored there, by all stages.
    pub stored_bytes: u64,
    /// Whether it is at hand.
    pub here: bool,
}

/// Where a dump was found.
pub(super) fn slot(stored: &Stored) -> SlotInfo {
    let open = &stored.open;
    let other = (open.part != part::WHOLE).then(|| OtherInfo {
        area: uuid::Uuid::from_bytes(open.other_area).to_string(),
        slot: open.other_slot,
        sequence: open.other_sequence,
        stored_bytes: stored.seals.iter().map(|(_, seal)| seal.other_bytes).sum(),
        here: stored.other,
    });
    SlotInfo { slot: stored.slot, sequence: open.sequence, other }
}
