//! The CLI from the outside: every command, on good files and on bad ones.

mod area;
mod checksums;
mod collecting;
mod commands;
mod common;
mod consoles;
mod damage;
mod golden;
mod images;
mod kinds;
mod limits;
mod pair;
mod partitions;
mod reading;
mod schema;
