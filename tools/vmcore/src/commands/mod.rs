//! The commands: one file each, holding what it computes and how it looks.

pub mod bt;
pub mod collect;
pub mod cpus;
pub mod extract;
pub mod from_console;
pub mod hashtree;
pub mod info;
pub mod last_words;
pub mod locks;
pub mod log;
pub mod prepare;
pub mod regs;
pub mod stamps;
pub mod timeline;
pub mod trace;
pub mod verify;
pub mod watch;
pub mod wipe;
