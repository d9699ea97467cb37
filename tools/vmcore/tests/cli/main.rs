//! The CLI from the outside: every command, on good files and on bad ones.

mod area;
mod area_v4;
mod collecting;
mod commands;
mod common;
mod damage;
mod golden;
mod pair;
mod partitions;
mod schema;
