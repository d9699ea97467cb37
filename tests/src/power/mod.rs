//! Power cuts, replayed: what a disk may hold when the power goes during a dump.
//!
//! QEMU records every write and flush of a disk while a dump is written ([`WriteLog`]).
//! A real disk keeps what was flushed; of the writes since then it keeps any, in any order,
//! and of each block of 4 KiB any sectors. [`replay()`] makes such states: one after every
//! write, and between two flushes random subsets with torn blocks. Each is a [`Cut`], which
//! the library of the CLI reads like a disk.
//!
//! The log itself says what a state holds: a stage is there when the first sector of its
//! seal is. So the judge needs neither the writer's word nor the reader's:
//!
//! - no false seal: with a seal, everything written before it is there;
//! - the best stage is found, and no other; without a seal, the dump of before;
//! - the dump of before is not touched: no write of the log reaches into its slot.
//!
//! [`kill()`] is the blunter test beside it: QEMU itself is killed in the middle of a dump.
//! The host keeps every write it has taken, so this is no power cut, but nothing is
//! simulated.

mod cut;
mod kill;
mod log;
mod replay;
mod scene;

pub use cut::Cut;
pub use kill::{Killed, kill};
pub use log::{Write, WriteLog};
pub use replay::{Plan, Report, replay};
pub use scene::{Before, Images, Scene};

/// Bytes of a sector: what a disk writes wholly or not at all.
pub const SECTOR: u64 = 512;
/// Bytes of a block: the pieces in which a long write reaches the medium.
pub const BLOCK: u64 = 4096;
