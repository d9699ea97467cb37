//! The CLI from the outside: every command, on good files and on bad ones.

mod area;
mod collecting;
mod commands;
mod common;
mod damage;
mod golden;
mod pair;
mod partitions;
mod schema;
mod versions;
