//! The proof that crash code cannot panic, allocate or wait for ever, on the linked images.
//!
//! What the compiler made of the sources is what runs when everything else has failed, so
//! that is what is looked at: every function of an image is disassembled, every call and
//! every jump that leaves a function is followed from where crash code begins, and
//!
//! * a way to a panic, to the allocator or to a lock is a fault, reported with that way;
//! * so is a wait that is not declared with what ends it, and a call through a pointer that
//!   is not declared with where it may lead;
//! * the deepest stack is added up and has to fit with room to spare.
//!
//! [`tables`] holds all that is declared. What this does not show: that the loops declared
//! to end do end, that memory is what the code takes it for, and what a processor exception
//! in crash code does. Those are the crash path's nested entries, which tests provoke.

mod binary;
mod frame;
mod graph;
mod pointer;
mod stacks;
mod statics;
mod tables;
mod walk;

use std::path::Path;

use anyhow::Result;
use e2e::harness::{self, Images};

pub use statics::addresses_in_crash_code;
use tables::Declared;

/// The fewest bytes of a stack that must stay free at the deepest point, in percent.
const SPARE_PERCENT: u64 = 25;

/// Looks at all images as they were last built; prints what is wrong and what was found.
pub fn holds() -> Result<bool> {
    let images = Images::find()?;
    let with_faults = Images::find_with_faults()?.appliance;
    let good = [
        check(&images.appliance, &tables::APPLIANCE)?,
        check(&with_faults, &tables::APPLIANCE_WITH_FAULTS)?,
        check(&images.capture_debug, &tables::CAPTURE)?,
        faults_only_where_asked_for(&images.appliance, &with_faults)?,
    ];
    Ok(good == [true; 4])
}

/// Returns true if the image that is `shipped` has no function and no static of the faults on
/// request, and the one `with_faults` has some: what the names are known by is right.
fn faults_only_where_asked_for(shipped: &Path, with_faults: &Path) -> Result<bool> {
    let left = harness::fault_symbols(shipped)?;
    for name in &left {
        println!("appliance: built without faults, and has {name}");
    }
    let meant = harness::fault_symbols(with_faults)?.len();
    if meant == 0 {
        println!("appliance with faults: has none: they are no longer called what they were");
    }
    println!(
        "faults on request: {} symbols in the appliance, {meant} in the one with faults",
        left.len()
    );
    Ok(left.is_empty() && meant > 0)
}

fn check(path: &Path, declared: &Declared) -> Result<bool> {
    let report = walk::Walk::new(path, declared)?.report()?;
    for fault in &report.faults {
        println!("{}: {fault}", declared.name);
    }
    println!("{}: {}", declared.name, report.summary);
    Ok(report.faults.is_empty())
}
