//! The CLI from the outside: every command, on good files and on bad ones.

mod area;
mod area_v4;
mod checksums;
mod collecting;
mod commands;
mod common;
mod consoles;
mod damage;
mod forged;
mod golden;
mod images;
mod kinds;
mod limits;
mod output;
mod pair;
mod partitions;
mod random_damage;
mod reading;
mod salvage;
mod schema;
mod versions;
mod virtual_memory;
