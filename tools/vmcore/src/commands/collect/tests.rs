//! The order of the steps behind a core, and what becomes of the slot when one fails.

use std::io;
use std::path::{Path, PathBuf};

use e2e::synth::area_v2::{Dump, Storing, build};
use e2e::synth::core::Core;

use super::run;
use crate::output::Step;

/// A folder with a disk that holds one dump.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("vmcore-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let disk = build(&[Some(Dump::sealed(8, Core::small().build(), Storing::Raw))]);
    std::fs::write(folder.join("disk.img"), disk).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_slot_is_marked_when_its_core_is_on_the_medium() {
    let folder = folder("steps");
    let cores = folder.join("cores");
    let mut done = Vec::new();
    let mut steps = |step| {
        let names = names(&cores);
        let named = names.iter().any(|name| name.ends_with(".core"));
        assert_eq!(named, matches!(step, Step::FlushFolder | Step::Mark), "{step:?}: {names:?}");
        done.push(step);
        Ok(())
    };
    let disks = [folder.join("disk.img")];
    let taken = run(&disks, &cores, false, &mut steps, &mut |_, _, _| ()).unwrap();
    assert!(taken.is_good() && taken.dumps[0].marked, "{taken:?}");
    assert_eq!(done, [Step::FlushFile, Step::Name, Step::FlushFolder, Step::Mark]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_step_that_fails_leaves_the_slot_as_it_is() {
    let folder = folder("failing-steps");
    let disks = [folder.join("disk.img")];
    let before = std::fs::read(&disks[0]).unwrap();
    for failing in [Step::FlushFile, Step::Name, Step::FlushFolder, Step::Mark] {
        let cores = folder.join(format!("{failing:?}"));
        let mut steps = |step| {
            if step == failing { Err(io::Error::other("the medium is gone")) } else { Ok(()) }
        };
        let taken = run(&disks, &cores, false, &mut steps, &mut |_, _, _| ()).unwrap();
        assert!(!taken.is_good() && !taken.is_damaged(), "{failing:?}: {taken:?}");
        assert!(taken.failures[0].reason.contains("the medium is gone"), "{taken:?}");
        assert!(taken.dumps.iter().all(|dump| !dump.marked), "{failing:?}: {taken:?}");
        assert!(std::fs::read(&disks[0]).unwrap() == before, "{failing:?}: the disk was written");
        let left = names(&cores);
        assert!(left.iter().all(|name| !name.ends_with(".partial")), "{failing:?}: {left:?}");
    }
    // The dump is still there, to be taken when the medium is back.
    let mut all = |_| Ok(());
    let cores = folder.join("cores");
    let taken = run(&disks, &cores, false, &mut all, &mut |_, _, _| ()).unwrap();
    assert!(taken.is_good() && taken.dumps[0].marked, "{taken:?}");
    std::fs::remove_dir_all(folder).unwrap();
}
