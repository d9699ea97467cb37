//! How far a dump would get in a slot, and how long it would take: reckoned beforehand.
//! Pure, so it is tested on the host.
//!
//! Nothing is taken off for zero pages and compression: what is promised here fits in any
//! case.

use core::fmt;

use storage::amount::Mib;
use vmcore_format::area::{DATA_OFFSET, stage_kind};

/// Bytes of memory that each stage has, together with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The image, its stacks and its data.
    pub mini: u64,
    /// What is in use now.
    pub used: u64,
    /// All of it.
    pub all: u64,
    /// CPUs, whose registers are in every stage's header.
    pub cpus: u64,
}

/// Bytes of a stage's header and tables that do not depend on anything.
const HEADER: u64 = 256 << 10;
/// Bytes of it for each CPU: its record twice, as notes of either kind, rounded up.
const HEADER_PER_CPU: u64 = 2 << 10;
/// A chunk's entry in the table is less than this part of the memory it holds.
const MEMORY_PER_ENTRY: u64 = 1 << 10;

impl Need {
    /// Bytes of memory in a stage of `kind` and those before it.
    #[must_use]
    pub const fn memory(&self, kind: u32) -> u64 {
        match kind {
            stage_kind::MINI => self.mini,
            stage_kind::ALL => self.all,
            _ => self.used,
        }
    }

    /// Bytes of a slot that it takes to hold `memory` bytes in a stage of `kind`.
    const fn slot(&self, kind: u32, memory: u64) -> u64 {
        let stages = match kind {
            stage_kind::MINI => 1,
            stage_kind::ALL => 3,
            _ => 2,
        };
        DATA_OFFSET
            + memory
            + stages * (HEADER + self.cpus * HEADER_PER_CPU + memory / MEMORY_PER_ENTRY)
    }
}

/// How far a dump would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The last stage there is room for, one of [`stage_kind`]; `None` when there is none for
    /// any.
    pub kept: Option<u32>,
    wanted: u32,
    need: Need,
    slot_bytes: u64,
}

impl Room {
    /// In a slot of `slot_bytes`, where a dump up to `wanted` is asked for.
    #[must_use]
    pub fn new(slot_bytes: u64, wanted: u32, need: Need) -> Self {
        let kinds = [stage_kind::ALL, stage_kind::USED, stage_kind::MINI];
        let fits = |kind: &u32| need.slot(*kind, need.memory(*kind)) <= slot_bytes;
        let kept = kinds.into_iter().filter(|kind| *kind <= wanted).find(fits);
        Self { kept, wanted, need, slot_bytes }
    }

    /// Bytes of memory that would be kept.
    #[must_use]
    pub const fn memory(&self) -> u64 {
        match self.kept {
            Some(kind) => self.need.memory(kind),
            None => 0,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = stage_kind::name(self.wanted);
        let (memory, slot) = (Mib(self.need.memory(self.wanted)), Mib(self.slot_bytes));
        match self.kept {
            Some(kind) if kind == self.wanted => {
                write!(f, "room for `{wanted}` ({memory} in {slot})")?;
                // It grows as work goes on.
                let grown = self.need.slot(kind, self.need.all);
                if kind == stage_kind::USED && grown > self.slot_bytes {
                    write!(f, " as it is now, not for all {}", Mib(self.need.all))?;
                }
                Ok(())
            }
            Some(kind) => {
                let kept = stage_kind::name(kind);
                write!(f, "too small for `{wanted}` ({memory} in {slot}), will keep `{kept}`")
            }
            None => write!(f, "too small for any stage ({slot})"),
        }
    }
}

/// What it is known by how fast a disk takes a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A dump on the disk says how long it took: its sequence number, bytes, nanoseconds.
    Dump(u64, u64, u64),
    /// It was read from: bytes, nanoseconds.
    Reading(u64, u64),
    /// By nothing.
    Unknown,
}

/// Bytes a second to reckon with where nothing is known.
const ASSUMED: u64 = 100 << 20;

impl Pace {
    /// How long `bytes` take, in milliseconds.
    #[must_use]
    pub fn ms(&self, bytes: u64) -> u64 {
        let (done, ns) = match *self {
            Self::Dump(_, done, ns) | Self::Reading(done, ns) if done > 0 && ns > 0 => (done, ns),
            _ => (ASSUMED, 1_000_000_000),
        };
        (u128::from(bytes) * u128::from(ns) / u128::from(done) / 1_000_000) as u64
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |done, ns| storage::amount::mib_per_second(done, ns);
        match *self {
            Self::Dump(sequence, done, ns) => {
                write!(f, "as dump {sequence} there was written, {} MiB/s", rate(done, ns))
            }
            Self::Reading(done, ns) => write!(f, "as it reads, {} MiB/s", rate(done, ns)),
            Self::Unknown => write!(f, "at {} MiB/s, a guess", ASSUMED >> 20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const NEED: Need = Need { mini: 3 * MIB, used: 40 * MIB, all: 90 * MIB, cpus: 4 };

    fn said(slot: u64, wanted: u32) -> (Option<u32>, String) {
        let room = Room::new(slot, wanted, NEED);
        (room.kept, room.to_string())
    }

    #[test]
    fn what_fits_is_promised_and_nothing_else() {
        let (kept, said_of) = said(112 * MIB, stage_kind::USED);
        assert_eq!(kept, Some(stage_kind::USED));
        assert_eq!(said_of, "room for `used` (40.0 MiB in 112.0 MiB)");
        assert_eq!(
            said(60 * MIB, stage_kind::USED).1,
            "room for `used` (40.0 MiB in 60.0 MiB) as it is now, not for all 90.0 MiB"
        );
        let (kept, said_of) = said(40 * MIB, stage_kind::USED);
        assert_eq!(kept, Some(stage_kind::MINI));
        assert_eq!(said_of, "too small for `used` (40.0 MiB in 40.0 MiB), will keep `mini`");
        let (kept, said_of) = said(60 * MIB, stage_kind::ALL);
        assert_eq!(kept, Some(stage_kind::USED));
        assert_eq!(said_of, "too small for `all` (90.0 MiB in 60.0 MiB), will keep `used`");
        assert_eq!(
            said(2 * MIB, stage_kind::ALL),
            (None, "too small for any stage (2.0 MiB)".into())
        );
        assert_eq!(said(112 * MIB, stage_kind::MINI).0, Some(stage_kind::MINI));
    }

    #[test]
    fn time_is_reckoned_from_what_is_known() {
        assert_eq!(Pace::Dump(7, 200 * MIB, 1_000_000_000).ms(100 * MIB), 500);
        assert_eq!(Pace::Reading(50 * MIB, 1_000_000_000).ms(100 * MIB), 2000);
        assert_eq!(Pace::Unknown.ms(100 * MIB), 1000);
        assert_eq!(Pace::Dump(7, 0, 0).ms(100 * MIB), 1000, "an empty dump says nothing");
        assert_eq!(Pace::Reading(u64::MAX, 1).ms(u64::MAX), 0);
        assert_eq!(
            Pace::Dump(7, 200 * MIB, 1_000_000_000).to_string(),
            "as dump 7 there was written, 200 MiB/s"
        );
    }
}
