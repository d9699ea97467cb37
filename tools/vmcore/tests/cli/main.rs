//! The CLI from the outside: every command, on good files and on bad ones.

mod area;
mod collecting;
mod commands;
mod common;
mod damage;
mod forged;
mod golden;
mod output;
mod pair;
mod partitions;
mod random_damage;
mod salvage;
mod schema;
