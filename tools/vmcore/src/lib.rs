//! Reads the vmcore of an Epitaph appliance and says what happened.
//!
//! ```text
//! path ─ Source ─┬─ an ELF core ────────────────────────┐
//!                └─ a disk: slots, seals, StageFile ─────┴─ Dump ─ info, cpus, regs, log, stamps
//!                                                             └─ with an Image: bt
//! ```
//!
//! [`Source`] finds out what a file is, [`Dump`] holds what its header says and gives
//! access to its [`dump::Memory`], [`image::Image`] is the crashed program with its
//! debug information, and every command is a function in [`commands`] that returns a
//! plain struct, which is also its JSON.
//!
//! Nothing in here trusts a file: whatever its bytes are, the answer is a result or an
//! [`Error`] that says what is wrong and what to do, never a panic.
#![forbid(unsafe_code)]

mod area;
mod checksums;
pub mod commands;
pub mod console;
mod debug_info;
pub mod dump;
pub mod error;
mod file;
pub mod find;
pub mod image;
pub mod json;
mod kind;
mod lock;
mod output;
mod pair;
mod partition;
mod qmp;
pub mod source;
pub mod stage;
mod text;
pub mod unwind;

pub use commands::bt::{CpuBacktrace, Frame, backtraces};
pub use commands::collect::{Collection, Progress, Taken, collect, salvage};
pub use commands::cpus::{CpuState, cpus};
pub use commands::extract::{ExtractOptions, Extracted, extract, extract_with};
pub use commands::from_console::{FromConsole, from_console};
pub use commands::hashtree::{HashTree, hashtree};
pub use commands::info::{Info, info};
pub use commands::last_words::{LastWords, last_words};
pub use commands::locks::{Locks, locks};
pub use commands::log::{Log, log};
pub use commands::prepare::{Layout, Pages, Prepared, SlotPlan, prepare, prepare_with, upgrade};
pub use commands::regs::{CpuRegisters, registers};
pub use commands::stamps::{StampReport, stamps};
pub use commands::timeline::{Timeline, timeline};
pub use commands::trace::{Trace, trace};
pub use commands::verify::{Verified, verify};
pub use commands::watch::{Watch, Watched, watch};
pub use commands::wipe::{WipeOptions, Wiped, wipe};
pub use dump::Dump;
pub use error::{Error, Result};
pub use file::Storage;
pub use find::find_image;
pub use image::Image;
pub use partition::Which;
pub use source::{OpenOptions, Source};
pub use stage::StageFile;
pub use text::{printable, printable_json};
